"""How a training reads its mix. Oracles: the arrays that were written; a store that counts what is asked of it."""

from pathlib import Path

import numpy as np
import pytest

from infra.execution.attempt import run_stage
from infra.records.reader import Reader
from infra.session import Session
from infra.settings import Execution
from infra.stage import stage
from infra.storage.store import Store, StoreError
from infra.workspace import Workspace
from model.config import Config
from model.data.batches import Window
from tasks.artifacts import Mix, Tokens
from tasks.data.mix import MixConfig, MixSource, mix
from tasks.training.fitting.mix_windows import (
    Copies,
    MixTrainingConfig,
    Ranges,
    StoredFile,
    mix_files,
    store_reader,
    training_windows,
)

FILES, LENGTH = 4, 160


class Source(Config):
    name: str


def write_tokens(ws: Workspace, config: Source) -> Tokens:
    files = {}
    for number in range(FILES):
        ids = np.random.default_rng([number, len(config.name)]).integers(0, 300, LENGTH + number).astype("<u4")
        ws.write(f"tokens/{number}.npy", ids.tobytes())
        files[f"tokens/{number}.npy"] = len(ids)
    return ws.artifact(Tokens, source=config.name, tokens=sum(files.values()), documents=1, ranks=300, files=files)


def made_mix(store: Store, config: MixConfig | None = None) -> Mix:
    session = Session(store, Execution(store=store.url, ray="off", cores=1))

    def run(wrapped, **arguments):
        return run_stage(wrapped, session, arguments, lambda event: None).artifact

    writing = stage(write_tokens, name="tokens", version=1)
    sources = [run(writing, config=Source(name=name)) for name in ("web", "code")]
    return run(mix, sources=sources, config=config or MixConfig(), ranking=None)


def cached(store: Store) -> list[Path]:
    return sorted(store.cache.rglob("*.npy"))


@pytest.fixture(autouse=True)
def _cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def test_copies_and_ranges_read_what_was_written_and_only_when_asked(store: Store):
    ws = Reader(store)
    files, stored = mix_files(ws, made_mix(store))
    before = cached(store)
    copies, ranges = store_reader(ws, stored), store_reader(ws, stored, copied_bytes=LENGTH)
    assert (type(copies), type(ranges)) == (Copies, Ranges)
    assert cached(store) == before, "nothing is fetched to begin with"
    windows = [Window(5, 16, 32), Window(0, 0, 16), Window(5, 144, 160)]
    expected = []
    for file, start, end in windows:
        whole = np.frombuffer(store.read(str(files[file].path)), dtype="<u4")
        expected.append(whole[start:end].tolist())
    assert [row.tolist() for row in ranges(windows)] == expected
    assert cached(store) == before, "ranges leave no copy"
    assert [row.tolist() for row in copies(windows)] == expected
    if not store.is_local:
        assert len(cached(store)) - len(before) == 2, "a copy of each file that was needed"


def test_both_readers_give_the_same_training(store: Store):
    ws = Reader(store)
    made = made_mix(store)
    config = MixTrainingConfig(sequence_length=16, batch_size=8)
    data = training_windows(ws, made, config, 3)
    assert isinstance(data.read, Copies)
    batches = [data.batch(step) for step in range(data.steps_per_epoch)]
    data.read = Ranges(ws, mix_files(ws, made)[1])
    for step, expected in enumerate(batches):
        for one, two in zip(data.batch(step), expected, strict=True):
            assert all((one[name] == two[name]).all() for name in two)


def test_a_file_that_is_short_or_changed_is_refused(tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    made = made_mix(store)
    ws = Reader(store)
    stored = mix_files(ws, made)[1]
    address = stored[1].address
    data = store.read(address)
    store.write(address, data[: LENGTH * 2])
    with pytest.raises(StoreError, match="bytes 576 to 640 are not all there"):
        Ranges(ws, stored)([Window(1, 144, 160)])
    store.write(address, bytes(len(data)))
    with pytest.raises(StoreError, match="its sha256 is"):
        Copies(ws, stored)([Window(0, 0, 16), Window(1, 0, 16)])
    store.remove(address)
    with pytest.raises((StoreError, FileNotFoundError), match=r"1\.npy"):
        Ranges(ws, stored)([Window(1, 0, 16)])


@pytest.mark.parametrize(
    ("sources", "length", "message"),
    [
        ((), 512, rf"'web' gives no window of 512 tokens: the mix takes [\d,]+ tokens of it in {FILES} files"),
        ((MixSource(source="web"), MixSource(source="code", passes=0.001)), 16, "'code' gives no window of 16 tokens"),
        ((MixSource(source="web"), MixSource(source="code", passes=3)), 512, "'web' gives no window"),
    ],
)
def test_a_source_of_which_nothing_is_read_is_refused_by_name(tmp_path: Path, sources, length: int, message: str):
    """Also where the mix is stated by passes and so knows no window."""
    store = Store(str(tmp_path / "store"))
    made = made_mix(store, MixConfig(sources=sources))
    with pytest.raises(ValueError, match=message):
        training_windows(Reader(store), made, MixTrainingConfig(sequence_length=length, batch_size=1), 3)


def test_norms_must_fall_on_logged_steps():
    with pytest.raises(ValueError, match=r"norms_every=100 is not a multiple of log_every=7.*use 98"):
        MixTrainingConfig(log_every=7)
    assert MixTrainingConfig(log_every=7, norms_every=0).norms_every == 0


def test_the_order_and_the_target_length_are_the_configs(tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    made = made_mix(store)
    ws = Reader(store)
    config = MixTrainingConfig(sequence_length=16, batch_size=2, target_length=64, order="published")
    data = training_windows(ws, made, config, 3)
    assert data.instances == 2 * FILES * (LENGTH // 64) * 4
    wanted = np.arange(data.instances, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(3)).shuffle(wanted)
    per_file = LENGTH // 64 * 4
    assert [(w.file, w.start) for w in data.locate(0)] == [(i // per_file, i % per_file * 16) for i in wanted[:2]]


def test_addresses_are_places_in_the_store(tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    files, stored = mix_files(Reader(store), made_mix(store))
    assert all(isinstance(file, StoredFile) and store.exists(file.address) for file in stored)
    assert [file.path for file in files] == [file.address for file in stored]
