"""Training killed again and again at random moments. Oracle: the weights of an undisturbed run."""

import multiprocessing
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from infra.records.record import all_records
from infra.storage.store import Store

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

KILLS = 20
STEPS = 200
SEED = 20_250_103
# One process imports torch, each attempt is forked from it: a kill then costs milliseconds of preparation.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["flows.running.run", "tests.chaos.test_random_kills"])


def attempt(folder: str) -> None:
    """Pre-train the smoke model for `STEPS` steps in this process, from wherever the store has it."""
    from flows.running.run import load_recipe
    from infra.execution.attempt import run_stage
    from infra.session import Session
    from infra.settings import Execution
    from tasks.training.pretrain import pretrain

    store = Store(folder)
    mix = next(record.artifact() for record in all_records(store) if record.label == "mix:pretrain")
    config = load_recipe("smoke", [f"pretrain.steps={STEPS}"]).pretrain
    arguments = pretrain.bind(mix, config)
    session = Session(store, Execution(ray="off", save_every=7))
    run_stage(replace(pretrain, process=False), session, arguments, lambda event: None)


def digest(store: Store) -> str | None:
    found = [record.digest for record in all_records(store) if record.stage == "pretrain"]
    return found[0] if found else None


@pytest.fixture
def mixed(undisturbed: Path, tmp_path: Path) -> Path:
    """A store that holds what pre-training needs, and no more."""
    folder = tmp_path / "mixed"
    for stage in ("mix", "encode"):
        shutil.copytree(undisturbed / stage, folder / stage)
    return folder


def test_twenty_kills_at_random_moments_change_no_byte(mixed: Path, tmp_path: Path):
    chance = random.Random(SEED)
    calm = shutil.copytree(mixed, tmp_path / "calm")
    began = time.monotonic()
    process = processes.Process(target=attempt, args=(str(calm),))
    process.start()
    process.join()
    assert process.exitcode == 0
    seconds = time.monotonic() - began
    expected = digest(Store(str(calm)))
    assert expected is not None

    kills = rounds = 0
    while kills < KILLS:
        rounds += 1
        store = Store(str(shutil.copytree(mixed, tmp_path / f"round-{rounds}")))
        while digest(store) is None:
            process = processes.Process(target=attempt, args=(store.root,))
            process.start()
            if kills < KILLS:
                process.join(chance.uniform(0, seconds / 3))
            else:
                process.join()
            if process.is_alive():
                process.kill()
                kills += 1
            process.join()
            assert process.exitcode in (0, -9)
        assert digest(store) == expected, f"round {rounds} after {kills} kills"
    assert kills == KILLS
