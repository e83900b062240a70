"""Stages trained by several workers. Oracle: the same stage in one process, and a group that nothing disturbed."""

import json
from pathlib import Path

import pytest

from infra.attempt import run_stage
from infra.session import Session, open_session
from infra.settings import Execution, ParallelSettings
from infra.stage import stage
from infra.store import Store
from tasks.training.dpo import DPOConfig, train_dpo
from tasks.training.reward import RewardConfig, train_reward
from tasks.training.rlvr import RLVRConfig, rlvr
from tasks.training.run import METRICS
from tasks.training.sft import SFTConfig, train_sft
from tests.model.groups import run_group
from tests.tasks.training.group_stage import Lines, run_stages, train_lines

lines = stage(train_lines, name="pretrain", version=1, grouped=True)
REFERENCE = "tests.tasks.training.group_stage:train_lines"


def session(root: Path, **execution) -> Session:
    return Session(Store(str(root)), Execution(store=str(root), cores=2, **execution))


def losses(store: Store, address: str) -> list[float]:
    return [json.loads(line)["loss"] for line in store.read(f"{address}/{METRICS}").splitlines()]


@pytest.mark.slow
@pytest.mark.chaos
def test_a_killed_worker_restarts_the_group_which_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Through Ray Train, with sharded save points; the undisturbed run is two processes without Ray."""
    config = Lines(steps=9, kill_step=7, kill_marker=str(tmp_path / "killed"))
    events: list[tuple] = []
    layout = {"workers": 2, "data": "fsdp"}
    outcome = run_stage(
        lines,
        session(tmp_path / "ray", parallel={"pretrain": layout}, save_every=3),
        {"config": config},
        lambda *event: events.append(event),
    )
    assert (tmp_path / "killed").exists()
    assert outcome.record.resumed_from in ("step 3", "step 6")
    assert outcome.record.notes["workers"] == 2
    assert [event for event in events if event[:2] == ("progress", "train")][-1][2:4] == (9, 9)

    calls = [(REFERENCE, {"config": Lines(steps=9)})]
    undisturbed = run_group(2, run_stages, str(tmp_path / "group"), ParallelSettings(**layout), calls)
    assert undisturbed[1] == [None]
    assert {name: entry.sha256 for name, entry in undisturbed[0][0].files.items()} == {
        name: entry.sha256 for name, entry in outcome.record.files.items()
    }

    alone = run_stage(lines, session(tmp_path / "one", ray="off"), {"config": config}, lambda *event: None)
    assert alone.record.id == outcome.record.id
    mine = losses(Store(str(tmp_path / "one")), alone.artifact.address)
    ours = losses(Store(str(tmp_path / "ray")), outcome.artifact.address)
    assert len(mine) == 5
    assert ours == pytest.approx(mine, rel=1e-6)


@pytest.mark.slow
def test_an_error_of_the_users_making_is_raised_as_it_is_and_not_tried_again(tmp_path: Path) -> None:
    events: list[tuple] = []
    with pytest.raises(ValueError, match="batch 3 is bad"):
        run_stage(
            lines,
            session(tmp_path, parallel={"pretrain": {"workers": 2}}),
            {"config": Lines(bad_step=3)},
            lambda *event: events.append(event),
        )
    assert sum(event[:3] == ("progress", "train", 0.0) and len(event) == 5 for event in events) <= 2


def test_post_training_stages_in_a_group_make_what_one_process_makes(bench, tmp_path: Path) -> None:
    base, chats, pairs = bench.base(), bench.chats(), bench.preferences()
    common = {"batch": 5, "epochs": 2, "max_tokens": 64, "precision": "fp32", "pass_tokens": 128}
    stages = [
        (train_sft, {"parent": base, "chats": chats, "config": SFTConfig(**common, learning_rate=1e-3)}),
        (train_dpo, {"policy": base, "pairs": pairs, "config": DPOConfig(**common, learning_rate=1e-4)}),
        (train_reward, {"parent": base, "pairs": pairs, "config": RewardConfig(**common, learning_rate=1e-4)}),
    ]
    calls = [(f"{function.__module__}:{function.__name__}", arguments) for function, arguments in stages]
    root = bench.session.store.url
    group = run_group(2, run_stages, root, ParallelSettings(workers=2, data="fsdp"), calls)
    assert group[1] == [None] * 3
    for (function, arguments), found in zip(stages, group[0], strict=True):
        alone = bench.outcome(function, **arguments)
        assert found.files.keys() == alone.record.files.keys()
        ours = losses(bench.session.store, found.artifact.address)
        assert ours == pytest.approx(losses(bench.session.store, alone.artifact.address), rel=1e-6, abs=1e-6)
        facts = {name: value for name, value in alone.artifact.facts().items() if name != "loss"}
        assert found.artifact.facts().items() >= facts.items()


def test_reinforcement_in_a_group_is_refused_before_anything_runs(bench) -> None:
    execution = Execution(cores=2, parallel={"rlvr": ParallelSettings(workers=2)})
    refusal = r"execution\.parallel\.rlvr\.workers=2, but stage rlvr runs in one process"
    with (
        open_session(Session(bench.session.store, execution, planning=True)),
        pytest.raises(ValueError, match=refusal),
    ):
        rlvr(bench.base(), bench.prompts(), RLVRConfig())


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


def test_a_group_takes_the_cores_of_all_its_workers() -> None:
    execution = Execution(cores=4, threads={"sft": 2}, parallel={"sft": {"workers": 2}})
    assert execution.stage_cores("sft") == 4
    assert execution.stage_cores("dpo") == 1
    assert Execution(cores=2, ray="127.0.0.1:6379", parallel={"sft": {"workers": 64}}).stage_cores("sft") == 1
