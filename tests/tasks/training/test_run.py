"""Training inside a workspace: counting, moments, refusals, and what is left out of the payload."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from infra.events import Metrics, Progress, Warned
from infra.workspace import Workspace
from model.data.labels import next_token_labels
from model.network.transformer import Transformer
from model.training.configs import LossConfig, OptimConfig
from model.training.loop import Course, Logging, train_step
from model.training.losses import language_model_objective
from model.training.measuring.metrics import EVERY_STEP
from tasks.artifacts import METRICS, MOMENTS, Checkpoint
from tasks.computing import compute_of
from tasks.training.fitting.fit import (
    Journal,
    adamw,
    begin,
    export,
    fitting,
    linear_schedule,
    load_checkpoint,
)
from tests.tasks.training.conftest import TINY, TOKENIZER, Seed, make_checkpoint


def batches(step: int) -> list[dict[str, np.ndarray]]:
    ids = np.random.default_rng(step).integers(0, 300, (2, 16)).astype(np.uint32)
    return [{"ids": ids, "labels": next_token_labels(ids)}]


def train_words(ws: Workspace, config: Seed, parent: Checkpoint | None = None) -> Checkpoint:
    """Seed is the number of steps; with a parent its weights and moments are continued."""
    model, moments = Transformer(TINY, seed=0), None
    if parent is not None:
        model, _ = load_checkpoint(ws, parent)
        moments = ws.path(parent, MOMENTS)
    state = begin(ws, model, adamw(1.0, "fp32"))
    course = Course(
        objective=language_model_objective(LossConfig()),
        batches=batches,
        schedule=linear_schedule(1e-3, 0.0),
        steps=config.seed,
        description="train",
        pad_id=TOKENIZER.pad_id,
        logging=Logging(every=2),
    )
    with fitting(ws, state, course, keep_moments=True, initial_moments=moments) as fit:
        for micro_batches in fit.loop:
            fit.loop.made(train_step(state, micro_batches, course, fit.loop.device))
    export(ws, fit.result.model, TOKENIZER, bos="none")
    return ws.artifact(Checkpoint, **fit.result.facts(), ranks=TOKENIZER.ranks, parent="")


def note_settings(ws: Workspace, config: Seed) -> Checkpoint:
    compute = compute_of(ws)
    ws.note(gc_every=compute.gc_every, stall_seconds=compute.stall_seconds)
    return make_checkpoint(ws, config)


def test_settings_reach_the_loop(make_bench):
    """What `execution` says of collections and hangs is what a training is handed."""
    made = make_bench("set", gc_every=3, stall_seconds=7.5).outcome(note_settings, config=Seed())
    assert made.record.notes.items() >= {"gc_every": 3, "stall_seconds": 7.5}.items()


def test_a_kernel_of_attention_is_a_fact_of_the_run_and_not_of_the_artifact(make_bench):
    """Oracle: the id of the same stage under ordinary settings, and an error before the first step."""
    named, ordinary = make_bench("named", attention={"default": "math"}), make_bench("ordinary")
    made, usual = (bench.outcome(train_words, config=Seed(seed=2)) for bench in (named, ordinary))
    assert made.artifact.id == usual.artifact.id
    line = made.record.notes["attention"]
    assert line.startswith("attention by math (math ") and "16 tokens, 2 heads of 16" in line
    assert [event.text for event in named.events if isinstance(event, Warned)] == [line]
    assert "attention" not in usual.record.notes
    with pytest.raises(ValueError, match=r"execution\.attention=cudnn cannot compute"):
        make_bench("absent", attention={"train_words": "cudnn"}).run(train_words, config=Seed(seed=2))


def train_in_float8(ws: Workspace, config: Seed) -> Checkpoint:
    """The fitting of any training on a mix, from its state on."""
    state = begin(ws, Transformer(TINY, seed=0), OptimConfig(precision="float8"))
    objective, schedule = language_model_objective(LossConfig()), linear_schedule(1e-3, 0.0)
    course = Course(objective, batches, schedule, config.seed, pad_id=TOKENIZER.pad_id)
    with fitting(ws, state, course) as fit:
        for micro_batches in fit.loop:
            fit.loop.made(train_step(state, micro_batches, course, fit.loop.device))
    export(ws, fit.result.model, TOKENIZER, bos="none")
    return ws.artifact(Checkpoint, **fit.result.facts(), ranks=TOKENIZER.ranks, parent="")


def test_how_far_float8_is_from_bf16_is_noted(make_bench):
    made = make_bench("emulated", emulate_float8=True).outcome(train_in_float8, config=Seed(seed=4))
    assert made.record.notes["float8"].startswith("float8 is apart from bf16 in the first steps by at most: loss 0.")
    with pytest.raises(ValueError, match=r"precision=float8 on execution\.device=cpu"):
        make_bench("plain").run(train_in_float8, config=Seed(seed=4))


def test_facts_files_and_notes(bench):
    outcome = bench.outcome(train_words, config=Seed(seed=5))
    made = outcome.artifact
    rows = [json.loads(line) for line in bench.read(made, METRICS).splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row.keys() == {"step", *EVERY_STEP} for row in rows[0:3:2])
    assert all(row.keys() == {"step", *EVERY_STEP, "lr", "tokens", "flops"} for row in (rows[1], rows[3], rows[4]))
    assert made.tokens == rows[-1]["tokens"] == 5 * 32
    assert made.flops == rows[-1]["flops"] == 5 * 32 * TINY.flops_per_token(16)
    assert made.loss == rows[-1]["loss"]
    assert made.parameters == TINY.parameters
    assert outcome.record.notes["tokens_per_second"] == outcome.record.notes["tokens_per_second_per_device"] > 0
    told = [event for event in bench.events if isinstance(event, Metrics)]
    live = [event.values for event in told]
    assert [event.step for event in told] == [2, 4, 5]
    assert all({"tokens_per_second", "data_wait_share", "skipped_steps"} <= line.keys() for line in live)
    expected = {"config.json", "model.safetensors", "tokenizer.json", METRICS, MOMENTS, "olmo2.json"}
    assert expected <= set(outcome.record.files)
    done = [event for event in bench.events if isinstance(event, Progress) and event.description == "train"]
    assert (done[-1].done, done[-1].total) == (5, 5)


def test_moments_are_continued(bench):
    first = bench.run(train_words, config=Seed(seed=3))
    second = bench.run(train_words, "continued", config=Seed(seed=1), parent=first)
    root = bench.session.store.full
    moments = load_file(f"{root(second.address)}/{MOMENTS}")
    assert float(moments["step/norm.weight"]) == 4
    assert torch.any(moments["exp_avg/norm.weight"] != 0)


def test_no_steps_are_refused(bench):
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        bench.run(train_words, config=Seed(seed=0))


def test_padding_is_not_counted():
    journal = Journal()
    model = Transformer(TINY, seed=None)
    ids = np.full((2, 8), TOKENIZER.pad_id)
    ids[0, :3] = 1
    journal.count(model, TOKENIZER.pad_id, [{"ids": ids}])
    assert journal.tokens == 3
    assert journal.flops == 3 * TINY.flops_per_token(8)


def test_the_stated_loss_is_the_mean_of_the_last_tenth():
    journal = Journal()
    for i in range(20):
        journal.add({"loss": float(i)})
    assert journal.final_loss() == 18.5
    assert Journal(lines=bytearray(b'{"loss":3.0}\n')).final_loss() == 3.0
