"""What reads a training's model leaves Adam's moments where they are. Oracle: every name that a remote store is asked for."""

from pathlib import Path
from typing import Any

import pytest

from flows.inspection.artifacts import export_checkpoint, show_record
from flows.inspection.steps import trace_document, trace_step, trained
from infra.records.reader import Reader
from infra.session import Session
from infra.settings import Execution
from infra.storage.store import Store
from model.training.schedule import ScheduleConfig
from tasks.artifacts import MOMENTS, Checkpoint
from tasks.evaluation.benchmarks.synthetic import SyntheticBenchmark
from tasks.evaluation.evaluate import EvaluateConfig, evaluate_checkpoint
from tasks.synthetic import ArithmeticConfig
from tasks.training.anneal import AnnealConfig, anneal_checkpoint
from tasks.training.fitting.fit import load_checkpoint, open_checkpoint
from tasks.training.pretrain import PretrainConfig, train_base
from tasks.training.sft import SFTConfig, train_sft
from tests.tasks.training.conftest import TINY, Bench
from tests.tasks.training.test_adopt import tiny_mix

SMALL: dict[str, Any] = {"sequence_length": 32, "batch_size": 2, "steps": 2, "log_every": 1}


class Remote(Bench):
    """A bench whose store is a remote one, in this process's memory; `asked` is every object name that was read from it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root)
        store = Store(f"memory://{root}/store")
        self.session = Session(store, Execution(store=store.url, ray="off", cores=1))
        self.asked: list[str] = []
        for name in ("cat_file", "get_file", "open"):
            self._watch(monkeypatch, type(store.fs), name)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
        real = getattr(kind, name)

        def watched(fs, path, *arguments, **options):
            self.asked.append(str(path))
            return real(fs, path, *arguments, **options)

        monkeypatch.setattr(kind, name, watched)

    def of(self, artifact: Checkpoint) -> set[str]:
        """Files of an artifact that were read since the last call."""
        asked, self.asked = self.asked, []
        return {path.rsplit("/", 1)[-1] for path in asked if artifact.address in path}


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Remote(tmp_path, monkeypatch)


@pytest.fixture
def base(remote: Remote, tmp_path: Path) -> Checkpoint:
    """A training whose moments are kept."""
    config = PretrainConfig(model=TINY, schedule=ScheduleConfig(warmup=1, length=10_000), **SMALL)
    made = remote.run(train_base, "pretrain", mix=tiny_mix(remote, tmp_path), config=config)
    assert MOMENTS in Reader(remote.session.store).files(made)
    remote.asked = []
    return made


def test_looking_at_a_training_fetches_no_moments(remote: Remote, base: Checkpoint, tmp_path: Path):
    store = remote.session.store
    shown = show_record(store, base.id)
    assert MOMENTS in shown["files"]
    assert not {MOMENTS, "model.safetensors"} & remote.of(base)
    training = trained(base.id, "pretrain", store.url)
    window = trace_step(training, 1)["windows"][0]
    trace_document(training, window["documents"][0]["id"])
    assert not {MOMENTS, "model.safetensors"} & remote.of(base)
    written = export_checkpoint(store, base.id, tmp_path / "exported")
    assert MOMENTS not in written
    read = remote.of(base)
    assert "model.safetensors" in read
    assert MOMENTS not in read


def test_starting_from_a_training_fetches_moments_only_to_go_on_with_them(
    remote: Remote, base: Checkpoint, tmp_path: Path
):
    ws = Reader(remote.session.store)
    for opened in (load_checkpoint, open_checkpoint):
        opened(ws, base)
    config = SFTConfig(batch_size=4, epochs=1, max_tokens=64, precision="fp32")
    remote.run(train_sft, "sft", parent=base, chats=remote.chats(8), config=config)
    mix = tiny_mix(remote, tmp_path)
    remote.run(anneal_checkpoint, "anneal", parent=base, mix=mix, config=AnnealConfig(**SMALL, moments="fresh"))
    assert MOMENTS not in remote.of(base)
    remote.run(anneal_checkpoint, "again", parent=base, mix=mix, config=AnnealConfig(**SMALL, moments="kept"))
    assert MOMENTS in remote.of(base)


def test_an_evaluation_fetches_no_moments(remote: Remote, base: Checkpoint):
    sums = SyntheticBenchmark(name="sums", problems=(ArithmeticConfig(),), items=2, max_new_tokens=4, shots=0)
    config = EvaluateConfig(label="base", benchmarks=(sums,))
    remote.run(evaluate_checkpoint, "evaluate", checkpoint=base, config=config)
    read = remote.of(base)
    assert "model.safetensors" in read
    assert MOMENTS not in read
