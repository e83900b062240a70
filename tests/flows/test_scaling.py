"""Scaling of a training stage. Oracles: closed forms of the alpha-beta model, Young's interval, a simulation of failures."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.inspection.costs.cost import DEVICES, Run
from flows.inspection.costs.scaling import FAILURE_HOURS, Fabric, Reliability, Scaled, scale, stops_at
from model.config import ModelConfig
from model.parallel.traffic import Collective

SEVEN = ModelConfig(size="7B")
PRETRAIN = Run("pretrain", 928_646, 1024, 4096, 4096, "bf16")


def test_a_collective_takes_latency_and_bytes_over_bandwidth() -> None:
    fabric = Fabric(efficiency=1.0)
    inside = Collective("gather", 8e9, 8, 1, "block")
    assert fabric.seconds(inside, apart=False) == pytest.approx(7 * 3e-6 + 7e9 / 450e9)
    across = Collective("reduce", 8e9, 4, 1, "copies")
    assert fabric.seconds(across, apart=True) == pytest.approx(6 * 12e-6 + 2 * 6e9 / 50e9)
    assert fabric.seconds(Collective("gather", 8e9, 1, 1, "block"), apart=False) == 0


def test_what_nothing_hides_is_all_that_is_sent() -> None:
    """Bytes over bandwidth. By hand: of each block two gathers in bf16 and a scatter in fp32, of the ends one each in fp32."""
    run, fabric = Run("pretrain", 10, 8, 512, 512, "bf16"), Fabric(node_latency=0, efficiency=1.0, hides=False)
    model = ModelConfig(size="190M")
    (found,) = scale(run, model, [8], DEVICES["h100"], 0.4, fabric)
    ends = 2 * model.vocab_size * model.d_model + model.d_model
    sent = 7 / 8 * (8 * model.n_layers * model.block_parameters + 8 * ends)
    assert found.exposed == pytest.approx(sent / fabric.node_bandwidth)


def test_alone_a_gpu_waits_for_nobody() -> None:
    model = ModelConfig(size="190M")
    (alone,) = scale(Run("pretrain", 10, 64, 1024, 1024, "bf16"), model, [1], DEVICES["h100"], 0.4)
    assert (alone.exposed, alone.sent, alone.passes) == (0, 0, 64)
    assert alone.step == pytest.approx(64 * 1024 * model.flops_per_token(1024) / (0.4 * DEVICES["h100"].peak_flops))


def test_more_gpus_take_less_time_and_lose_efficiency() -> None:
    found = scale(PRETRAIN, SEVEN, [8, 64, 512, 1024, 2048], DEVICES["h100"], 0.45)
    assert [item.gpus for item in found] == [8, 64, 512, 1024]
    steps = [item.step for item in found]
    work = [item.step * item.gpus for item in found]
    assert steps == sorted(steps, reverse=True)
    assert work == sorted(work)
    # A slow network stops scaling early, and what does not fit is not offered.
    slow = scale(PRETRAIN, SEVEN, [8, 64, 512], DEVICES["h100"], 0.45, Fabric(network_bandwidth=1e9))
    assert stops_at(slow) == 64
    assert scale(PRETRAIN, SEVEN, [1], DEVICES["h100"], 0.45) == []


def test_the_save_interval_is_the_one_that_costs_least() -> None:
    how, gpus = Reliability(save_seconds=20), 512
    best = how.interval(gpus)
    assert best == pytest.approx(math.sqrt(2 * 20 * FAILURE_HOURS * 3600 / 512))
    assert all(how.overhead(gpus, best) <= how.overhead(gpus, best * factor) for factor in (0.5, 0.9, 1.1, 2.0))


def test_expected_time_is_that_of_simulated_failures() -> None:
    """Exponential failures, work lost since the last save point, and restarts, played through."""
    how, gpus, random = (
        Reliability(failure_hours=2_000, save_seconds=10, restart_seconds=300),
        512,
        np.random.default_rng(0),
    )
    interval, work = how.interval(gpus), 3e6
    clock = done = 0.0
    failure = random.exponential(how.mean_seconds(gpus))
    while done < work:
        if clock + interval + how.save_seconds <= failure:
            clock, done = clock + interval + how.save_seconds, done + interval
        else:
            clock = failure + how.restart_seconds
            failure = clock + random.exponential(how.mean_seconds(gpus))
    assert clock / work - 1 == pytest.approx(how.overhead(gpus, interval), rel=0.15)


def test_the_command_prints_a_row_for_each_number_and_refuses_rubbish() -> None:
    run = CliRunner().invoke
    found = run(app, ["scale", "olmo2-7b", "--gpus", "64,8", "--json"])
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)["rows"]
    assert [row["gpus"] for row in rows] == [8, 64]
    assert all(row["memory"] < 80e9 and row["hours"] > 0 for row in rows)
    shown = run(app, ["scale", "olmo2-7b", "--gpus", "8,64"])
    assert "hsdp 8x8" in shown.output and "Simulated, not measured" in shown.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "8,x"], "give whole numbers"),
        (["--gpus", "4096"], "runs on none of 4096 GPUs"),
        (["--stage", "soup"], "no training stage"),
        (["--mfu", "2"], "share of the peak"),
        (["--network", "0"], "above 0"),
    ],
)
def test_rubbish_is_refused(options: list[str], message: str) -> None:
    given = {"--gpus": "8", "--stage": "pretrain", "--mfu": "0.4", "--network": "400"} | dict([options])
    found = CliRunner().invoke(app, ["scale", "olmo2-7b", *(word for pair in given.items() for word in pair)])
    assert found.exit_code != 0
    assert message in str(found.exception) + found.output


def test_nothing_scales_forever() -> None:
    assert stops_at([]) is None
    item = {
        "shards": 1,
        "replicas": 1,
        "passes": 1,
        "sent": 0.0,
        "memory": 0.0,
        "save_interval": 1.0,
        "overhead": 0.0,
        "steps": 1,
    }
    found = [
        Scaled(gpus=count, compute=8 / count, exposed=waits, **item) for count, waits in ((1, 0), (2, 1.0), (4, 8.0))
    ]  # type: ignore[arg-type]
    assert stops_at(found) == 4
