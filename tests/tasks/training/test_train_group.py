"""Stages trained by several workers. Oracle: the same stage in one process, and a group that nothing disturbed."""

import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.train import FailureConfig

from infra.compute.stage_call import Finished
from infra.compute.train_group import GroupFailed, group_failed
from infra.events import Event, Progress
from infra.execution.attempt import Outcome, run_stage
from infra.execution.plan import Plan
from infra.session import Session, open_session
from infra.settings import Execution, ParallelSettings
from infra.stage import stage
from infra.storage.store import Store
from infra.workspace import Workspace
from model.network.transformer import Transformer
from model.parallel.group import Group
from model.training.configs import OptimConfig
from tasks.artifacts import Checkpoint, Prompts, Tokens
from tasks.data.mix import MixConfig, mix_tokens
from tasks.evaluation.benchmarks.synthetic import SyntheticBenchmark
from tasks.generation import local_generator, own_share
from tasks.synthetic.arithmetic import ArithmeticConfig
from tasks.training.anneal import AnnealConfig, anneal_checkpoint
from tasks.training.answers.sampled_ahead import RolloutTiming
from tasks.training.dpo import DPOConfig, train_dpo
from tasks.training.fitting.fit import METRICS
from tasks.training.fitting.in_loop_evaluation import InLoopConfig
from tasks.training.ppo import PPOConfig, train_ppo
from tasks.training.pretrain import PretrainConfig, train_base
from tasks.training.reward import RewardConfig, train_reward
from tasks.training.rlvr import RLVRConfig, rlvr, train_rlvr
from tasks.training.sft import SFTConfig, train_sft
from tasks.training.soup import SoupConfig, soup
from tests.model.groups import run_group
from tests.tasks.training.conftest import RANKS, TINY, TOKENIZER, Bench, Rows, Seed, make_prompts, user
from tests.tasks.training.group_stage import (
    KINDS,
    PROMPTS,
    SAMPLING,
    Call,
    Decoded,
    Lines,
    decode,
    run_and_decode,
    run_calls,
    run_damaged,
    train_lines,
)

lines = stage(train_lines, name="pretrain", version=1, grouped=True)
FSDP, DDP = ParallelSettings(workers=2, data="fsdp"), ParallelSettings(workers=2)
PASSES = {"pass_tokens": {"default": 128}, "micro_instances": {"default": 2}}
POST = {"batch_size": 5, "epochs": 2, "max_tokens": 64, "precision": "fp32"}
SUMS = {"items": 20, "shots": 0, "problems": (ArithmeticConfig(max_operand=9),)}
BENCHMARKS = (
    SyntheticBenchmark(name="ranked", format="cloze", **SUMS), SyntheticBenchmark(name="said", max_new_tokens=4, **SUMS)
)  # fmt: skip
# Five windows of a source are two batches: the second worker has nothing in its last one.
MIX = {
    "sequence_length": 64, "steps": 5, "log_every": 1, "norms_every": 2, "optim": OptimConfig(precision="fp32"),
    "in_loop": InLoopConfig(every=2, windows=5, tasks=("ranked", "said"), items=7).filled(BENCHMARKS),
}  # fmt: skip
PRETRAIN = PretrainConfig(model=TINY, init_seed=2, batch_size=6, **MIX)
ANNEAL = AnnealConfig(learning_rate=1e-3, seed=1, batch_size=4, **MIX)
RLVR = RLVRConfig(
    learning_rate=1e-3, episodes=4 * 20, prompts_per_rollout=5, samples=4, max_prompt_tokens=64, max_new_tokens=8,
    unfinished_score=None, precision="fp32",
)  # fmt: skip
PPO = PPOConfig(
    learning_rate=1e-3, episodes=3 * 6, prompts_per_rollout=6, epochs=2, whiten_batch=3, max_prompt_tokens=64,
    max_new_tokens=8, unfinished_score=None, precision="fp32",
)  # fmt: skip
BEHIND = RLVR.model_copy(update={"rollouts": RolloutTiming(lag=1)})
SHORTER = RLVR.model_copy(update={"episodes": 3 * 20})
# About half of what an untrained model says has a capital.
LOWER_CASE = [
    {"messages": [user(f"{i}")], "ground_truth": {"func_name": "validate_lowercase"}, "dataset": "ifeval"}
    for i in range(6)
]


def session(root: Path, **execution) -> Session:
    return Session(Store(str(root)), Execution(store=str(root), cores=2, **PASSES, **execution))


def losses(store: Store, address: str) -> list[float]:
    return [json.loads(line)["loss"] for line in store.read(f"{address}/{METRICS}").splitlines()]


@pytest.mark.slow
@pytest.mark.chaos
def test_a_killed_worker_restarts_the_group_which_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Through Ray Train, with sharded save points; the undisturbed run is two processes without Ray."""
    config = Lines(steps=9, kill_step=7, kill_marker=str(tmp_path / "killed"))
    events: list[Event] = []
    layout = {"workers": 2, "data": "fsdp", "max_restarts": -1}
    outcome = run_stage(
        lines,
        session(tmp_path / "ray", parallel={"pretrain": layout}, save_every=3),
        {"config": config},
        events.append,
    )
    assert (tmp_path / "killed").exists()
    assert outcome.record.resumed_from in ("step 3", "step 6")
    assert outcome.record.notes["workers"] == 2
    bars = [event for event in events if isinstance(event, Progress) and event.description == "train"]
    assert (bars[-1].done, bars[-1].total) == (9, 9)

    call = Call("lines", train_lines, ParallelSettings(**layout), {"config": Lines(steps=9)})
    undisturbed = run_group(2, run_calls, str(tmp_path / "group"), [call])
    assert undisturbed[1] == [None]
    assert {name: entry.sha256 for name, entry in undisturbed[0][0].files.items()} == {
        name: entry.sha256 for name, entry in outcome.record.files.items()
    }

    alone = run_stage(lines, session(tmp_path / "one", ray="off"), {"config": config}, lambda event: None)
    assert alone.record.id == outcome.record.id
    mine = losses(Store(str(tmp_path / "one")), alone.artifact.address)
    ours = losses(Store(str(tmp_path / "ray")), outcome.artifact.address)
    assert len(mine) == 9
    assert ours == pytest.approx(mine, rel=1e-6)


def free_cores() -> list[float]:
    """How many cores Ray has to give, once they are all or a minute is over, and how many there are."""
    cores = ray.cluster_resources()["CPU"]
    deadline = time.monotonic() + 60
    while (free := ray.available_resources().get("CPU", 0.0)) < cores and time.monotonic() < deadline:
        time.sleep(0.2)
    return [free, cores]


def refused(root: Path, told: Connection) -> None:
    """A group whose batch is bad, then Ray's end, which kills a process of which any thread still works with Ray."""
    events: list[Event] = []
    try:
        run_stage(
            lines,
            session(root, parallel={"pretrain": {"workers": 2}}),
            {"config": Lines(bad_step=3)},
            events.append,
        )
    except ValueError as error:
        starts = sum(
            isinstance(event, Progress) and (event.description, event.done) == ("train", 0.0) for event in events
        )
        told.send((str(error), starts, free_cores()))
    ray.shutdown()
    time.sleep(3)


@pytest.mark.slow
def test_an_error_of_the_users_making_is_raised_as_it_is_not_tried_again_and_leaves_nothing(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    process = processes.Process(target=refused, args=(tmp_path, theirs))
    process.start()
    process.join()
    assert process.exitcode == 0
    message, starts, (free, cores) = ours.recv()
    assert "batch 3 is bad" in message
    assert starts <= 2
    assert free == cores, "what the group had reserved is there for the next"


def write_tokens(ws: Workspace, config: Seed) -> Tokens:
    """Windows of 64 random tokens, every fifth of one repeated token, which the loader masks."""
    ids = np.random.default_rng(config.seed).integers(0, 300, (30, 64)).astype("<u4")
    ids[::5] = 7
    ws.write("tokens/0.npy", ids.tobytes())
    return ws.artifact(
        Tokens, source=f"s{config.seed}", tokens=ids.size, documents=1, ranks=RANKS, files={"tokens/0.npy": ids.size}
    )


@dataclass(frozen=True)
class Trained:
    """Every training stage alone and by two workers."""

    bench: Bench
    policy: Checkpoint
    prompts: Prompts
    alone: dict[str, Outcome]
    """By stage."""
    first: dict[str, Finished]
    """What rank 0 hands back, by stage and layout."""
    second: dict[str, Finished | None]
    decoded: list[dict[str, Decoded]]
    """By worker, by kind."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    bench = Bench(tmp_path_factory.mktemp("trained") / "store")
    sources = [bench.run(write_tokens, config=Seed(seed=seed)) for seed in (1, 2)]
    mix = bench.run(mix_tokens, sources=sources, config=MixConfig(), ranking=None)
    base = bench.run(train_base, mix=mix, config=PRETRAIN)
    chats, pairs = bench.chats(), bench.preferences()
    prompts = bench.run(make_prompts, config=Rows(rows=LOWER_CASE))
    judging = RewardConfig(**POST, learning_rate=1e-4)
    judge = bench.run(train_reward, parent=base, pairs=pairs, config=judging)
    stages: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "pretrain": (train_base, {"mix": mix, "config": PRETRAIN}),
        "anneal": (anneal_checkpoint, {"parent": base, "mix": mix, "config": ANNEAL}),
        "sft": (train_sft, {"parent": base, "chats": chats, "config": SFTConfig(**POST, learning_rate=1e-3)}),
        "dpo": (train_dpo, {"policy": base, "pairs": pairs, "config": DPOConfig(**POST, learning_rate=1e-4)}),
        "reward": (train_reward, {"parent": base, "pairs": pairs, "config": judging}),
        "rlvr": (train_rlvr, {"policy": base, "prompts": prompts, "config": RLVR}),
        "ppo": (train_ppo, {"policy": base, "judge": judge, "prompts": prompts, "config": PPO}),
        "behind": (train_rlvr, {"policy": base, "prompts": prompts, "config": BEHIND}),
        "shorter": (train_rlvr, {"policy": base, "prompts": prompts, "config": SHORTER}),
    }
    layouts = [(name, FSDP) for name in stages] + [("pretrain", DDP), ("rlvr", DDP), ("ppo", DDP)]
    calls = [Call(f"{name}-{layout.data}", stages[name][0], layout, stages[name][1]) for name, layout in layouts]
    found = run_group(2, run_and_decode, bench.session.store.url, calls)
    first, second = ({call.id: made for call, made in zip(calls, one, strict=True)} for one, _ in found)
    alone = {name: bench.outcome(function, **arguments) for name, (function, arguments) in stages.items()}
    return Trained(bench, base, prompts, alone, first, second, [decoded for _, decoded in found])


def metrics(store: Store, address: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in store.read(f"{address}/{METRICS}").splitlines()]


NAMES = (
    "pretrain-fsdp", "pretrain-ddp", "anneal-fsdp", "sft-fsdp", "dpo-fsdp", "reward-fsdp", "rlvr-fsdp", "rlvr-ddp",
    "ppo-fsdp", "ppo-ddp", "behind-fsdp",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_two_workers_make_of_a_stage_what_one_process_makes(name: str, trained: Trained) -> None:
    alone, found = trained.alone[name.split("-")[0]], trained.first[name]
    assert trained.second[name] is None
    assert found.files.keys() == alone.record.files.keys()
    mine, ours = (metrics(trained.bench.session.store, made.artifact.address) for made in (alone, found))
    assert len(mine) == len(ours) >= 4
    # An answer's rounding enters the loss of a rollout through the ratio of two log-probabilities.
    near = 1e-5 if name.startswith(("rlvr", "ppo", "behind")) else 1e-6
    for one, two in zip(mine, ours, strict=True):
        assert one.keys() == two.keys()
        assert two["loss"] == pytest.approx(one["loss"], rel=near, abs=near)
        assert two["tokens"] == one["tokens"]
        for key, value in one.items():
            assert two[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
    facts = {key: value for key, value in alone.artifact.facts().items() if key != "loss"}
    assert found.artifact.facts().items() >= facts.items()


def test_windows_were_masked_and_answers_scored_differently(trained: Trained) -> None:
    """Without either, the runs above would agree too easily."""
    store, alone = trained.bench.session.store, trained.alone
    masked = [row["masked_instances"] for row in metrics(store, alone["pretrain"].artifact.address)]
    assert len(set(masked)) > 1 and max(masked) > 0
    rollouts = metrics(store, alone["rlvr"].artifact.address)
    assert len({row["score"] for row in rollouts}) > 1
    assert all(row["zero_std_groups"] < 1 and row["grad_norm"] > 1e-3 for row in rollouts)


def test_what_is_evaluated_while_training_is_not_all_the_same(trained: Trained) -> None:
    rows = metrics(trained.bench.session.store, trained.alone["pretrain"].artifact.address)
    evaluated = [row for row in rows if "task/ranked" in row]
    assert [row["step"] for row in evaluated] == [2, 4]
    assert all(row.keys() >= {"perplexity/s1", "perplexity/s2", "task/said"} for row in evaluated)
    assert all(1 / 8 < row["task/ranked"] < 1 for row in evaluated), [row["task/ranked"] for row in evaluated]


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_in_parts_says_what_one_process_says_with_one_block_whole_at_a_time(
    kind: str, trained: Trained
) -> None:
    """Alone, the shares are decoded one by one: other rows next to them could round otherwise."""
    dtype, precision = KINDS[kind]
    model = Transformer(TINY.model_copy(update={"init_std": 0.3}), seed=0).to(dtype).eval()
    generator = local_generator(model, TOKENIZER, precision)
    shares = [own_share(5, Group(rank=rank, world=2)) for rank in (0, 1)]
    alone = [
        answer
        for first, end in shares
        for answer in generator(PROMPTS[first:end], replace(SAMPLING, first_prompt=first))
    ]
    block = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    table = TINY.vocab_size * TINY.d_model
    likelihoods = decode(kind, ParallelSettings()).likelihoods
    for worker in trained.decoded:
        found = worker[kind]
        assert found.answers == alone
        assert found.single == generator(PROMPTS[:1], SAMPLING)
        assert found.held == 2 * [table, table + TINY.d_model, *(TINY.n_layers * [block])]
        assert found.whole_after == 0
        # Whole weights are read as a tree, sharded ones in padded rows: other orders of sums, which half precision shows.
        half = precision == "bf16" or dtype == torch.float16
        assert found.likelihoods == pytest.approx(likelihoods, rel=1e-2 if half else 1e-5)
    assert len({answer.text for answer in alone}) > 2


def test_reinforcement_begun_by_two_workers_goes_on_in_one_process(trained: Trained) -> None:
    """Oracle: the longer run of one process. The save point is the group's, sharded, before its last rollout."""
    assert trained.first["shorter-fsdp"].artifact.facts()["steps"] == 6
    arguments = {"policy": trained.policy, "prompts": trained.prompts, "config": RLVR}
    store = trained.bench.session.store
    found = run_calls(store.url, [Call("shorter-fsdp", train_rlvr, ParallelSettings(), arguments)])[0]
    assert found is not None and found.resumed_from == "step 4"
    mine = losses(store, trained.alone["rlvr"].artifact.address)
    assert losses(store, found.artifact.address) == pytest.approx(mine, rel=1e-5, abs=1e-5)


def test_what_does_not_train_is_refused_as_a_group_before_anything_runs(bench) -> None:
    execution = Execution(cores=2, parallel={name: ParallelSettings(workers=2) for name in ("rlvr", "soup")})
    refusal = r"execution\.parallel\.soup\.workers=2, but stage soup runs in one process"
    with open_session(Session(bench.session.store, execution, engine=Plan())):
        rlvr(bench.base(), bench.prompts(), RLVRConfig())
        with pytest.raises(ValueError, match=refusal):
            soup([bench.base()], SoupConfig())


def test_all_workers_go_back_to_the_save_point_that_every_one_of_them_can_read(tmp_path: Path) -> None:
    """The second worker's file of the newest one is damaged; the undisturbed run is the first of the two."""
    call = Call("lines", train_lines, FSDP, {"config": Lines(steps=7)}, keep_every=4)
    victim = "_progress/group/lines/points/0000000006/exp_avg-00001-of-00002.safetensors"
    (undisturbed, again), others = run_group(2, run_damaged, str(tmp_path), call, victim)
    assert others == [None, None]
    assert (undisturbed.resumed_from, again.resumed_from) == ("", "step 4")
    assert again.files == undisturbed.files
    assert victim.split("/")[-1] in again.notes["damaged_save_points"][0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ray": "off"}, r"parallel\.sft\.workers=2 are started through Ray; ray may not be off"),
        ({"cores": 2, "threads": {"sft": 2}}, "2 workers of 2 threads need 4 cores, there are cores=2"),
        ({"cores": 2, "keep_every": 500}, "keep_every=500 is not a multiple of save_every=200; use 600"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Execution(parallel={"sft": {"workers": 2}}, **settings)


@pytest.mark.parametrize(
    ("limit", "says"),
    [(-1, r"again as often as need be \(.*max_restarts=-1\)"), (2, "again at most 2 times in its run")],
)
def test_a_group_may_be_started_again_without_limit_as_rays_may(limit: int, says: str) -> None:
    settings = ParallelSettings(max_restarts=limit)
    assert FailureConfig(max_failures=settings.max_restarts).max_failures == limit
    assert "max_restarts" not in settings.layout(), "the trainer is not told"
    with pytest.raises(GroupFailed, match=says):
        raise group_failed("sft", settings.max_restarts, "a node died.")
    with pytest.raises(ValueError, match="greater than or equal to -1"):
        ParallelSettings(max_restarts=-2)


def test_a_group_takes_the_cores_of_all_its_workers() -> None:
    execution = Execution(cores=4, threads={"sft": 2}, parallel={"sft": {"workers": 2}})
    assert execution.stage_cores("sft") == 4
    assert execution.stage_cores("dpo") == 1
    assert Execution(cores=2, ray="127.0.0.1:6379", parallel={"sft": {"workers": 64}}).stage_cores("sft") == 0, (
        "a cluster has cores of its own"
    )
