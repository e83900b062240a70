"""Object storage that fails now and then: work goes on, is the same, and is committed once. Oracle: a calm local run."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3fs

from infra.records.record import all_records
from infra.records.upkeep import verify_artifacts
from infra.storage import retries
from infra.storage.store import Store, StoreError
from tests.chaos.fault_proxy import KINDS, FaultProxy
from tests.chaos.small_stages import run_all

pytestmark = [pytest.mark.s3, pytest.mark.chaos]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Patience in proportion to the small pipeline: a hang is noticed after a second, pauses are short."""
    monkeypatch.setattr(retries, "ANSWER_SECONDS", 1)
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(retries, "LONGEST_PAUSE_SECONDS", 1.0)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, str]:
    calm = Store(str(tmp_path / "calm"), tmp_path / "calm-cache")
    return {name: record.digest for name, record in run_all(calm).items()}


def bucket(endpoint: str) -> str:
    name = f"faults-{time.time_ns()}"
    s3fs.S3FileSystem(endpoint_url=endpoint).mkdir(name)
    return f"s3://{name}/root"


def through(proxy: FaultProxy, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    return Store(url, cache)


def check(store: Store, expected: dict[str, str]) -> None:
    """Everything is there once, whole and the same, asked without faults."""
    assert {record.stage: record.digest for record in all_records(store)} == expected
    assert len(all_records(store)) == len(expected)
    assert verify_artifacts(store, [], lambda *heard: None)[1] == []


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.15, 0.3])
def test_a_run_through_faults_ends_with_the_same_bytes_and_one_commit_each(
    rate: float,
    s3_endpoint: str,
    quick: None,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    url = bucket(s3_endpoint)
    with FaultProxy(s3_endpoint, rate, seed=int(rate * 100)) as proxy:
        made = run_all(through(proxy, url, tmp_path / "cache", monkeypatch))
    assert {name: record.digest for name, record in made.items()} == expected
    assert sum(proxy.counts[kind] for kind in KINDS) > 100 * rate, proxy.counts
    check(through_nothing(s3_endpoint, url, tmp_path, monkeypatch), expected)


def through_nothing(endpoint: str, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    return Store(url, folder / "calm-look")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_by_itself(
    kind: str, s3_endpoint: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Writes, creations, reads, listings and removals, a third of them going wrong in one way."""
    url = bucket(s3_endpoint)
    with FaultProxy(s3_endpoint, 0.33, seed=KINDS.index(kind), kinds=(kind,)) as proxy:
        store = through(proxy, url, tmp_path / "cache", monkeypatch)
        for place in range(8):
            store.write(f"a/{place}", b"x" * 1000 * place)
            assert store.create(f"b/{place}", f"mine {place}".encode()), "a creation whose reply was lost is one's own"
            assert not store.create(f"b/{place}", b"theirs")
            assert store.read(f"a/{place}") == b"x" * 1000 * place
        assert store.names("a") == [str(place) for place in range(8)]
        store.remove("a/3")
        assert not store.exists("a/3")
        assert proxy.counts[kind] >= 5
    calm = through_nothing(s3_endpoint, url, tmp_path, monkeypatch)
    assert [calm.read(f"b/{place}") for place in range(8)] == [f"mine {place}".encode() for place in range(8)]


@pytest.mark.slow
def test_two_drivers_on_faulty_storage_commit_once(
    s3_endpoint: str, quick: None, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = bucket(s3_endpoint)
    ended: list[object] = []

    def drive(number: int) -> None:
        try:
            made = run_all(Store(url, tmp_path / f"cache-{number}"))
            ended.append({name: record.digest for name, record in made.items()})
        except StoreError as error:
            ended.append(error)

    with FaultProxy(s3_endpoint, 0.1, seed=5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        drivers = [threading.Thread(target=drive, args=(number,)) for number in range(2)]
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.join(240)
    assert expected in ended
    assert all(end == expected or isinstance(end, StoreError) for end in ended), ended
    check(through_nothing(s3_endpoint, url, tmp_path, monkeypatch), expected)


class HangsOnce(FaultProxy):
    """The next request hangs, those after it do not."""

    hangs = False

    def choose(self) -> str:
        hangs, self.hangs = self.hangs, False
        return "hang" if hangs else ""


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda store: store.read_json("a/b"), 7),
        (lambda store: store.size("a/b"), 1),
        (lambda store: store.names("a"), ["b"]),
        (lambda store: len(store.stamp("a")), 64),
    ],
    ids=["read_json", "size", "names", "stamp"],
)
def test_a_small_question_does_not_wait_for_a_connection_that_hangs(
    ask: Callable[[Store], object], answer: object, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = bucket(s3_endpoint)
    with HangsOnce(s3_endpoint, 0.0, seed=0) as proxy:
        store = through(proxy, url, tmp_path / "cache", monkeypatch)
        store.write("a/b", b"7")
        assert ask(store) == answer
        proxy.hangs = True
        assert ask(store) == answer
        assert proxy.hanging.total() == 1, "the answer came while the first request still hung"
        # What is absent is told so as well, and a late error of the request that was given up goes nowhere.
        proxy.hangs = True
        with pytest.raises(FileNotFoundError):
            store.read_json("a/none")


def test_storage_that_only_fails_is_told_with_endpoint_and_verb(
    s3_endpoint: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = bucket(s3_endpoint)
    with FaultProxy(s3_endpoint, 1.0, seed=0, kinds=("503",)) as proxy:
        store = through(proxy, url, tmp_path / "cache", monkeypatch)
        store.patience_seconds = 2.0
        began = time.monotonic()
        with pytest.raises(
            StoreError, match=rf"cannot write a in store {url} at {proxy.url}.*run the same command again"
        ):
            store.write("a", b"x")
        assert time.monotonic() - began < 30
