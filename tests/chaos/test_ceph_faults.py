"""The fault proxy before a real S3 server, Ceph's RADOS gateway: what moto answers is not what storage answers.

Oracle: a calm local run, as in test_store_faults.py.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.records.cleaning import Cleaned, clean
from infra.storage.store import Store
from tests.ceph import S3, gateway
from tests.chaos.fault_proxy import KINDS, FaultProxy
from tests.chaos.small_stages import run_all
from tests.chaos.test_store_faults import bucket, check, expected, quick, through, through_nothing

pytestmark = [pytest.mark.slow, pytest.mark.s3, pytest.mark.ceph, pytest.mark.chaos]
__all__ = ["expected", "quick"]


@pytest.fixture(scope="module")
def ceph() -> Iterator[S3]:
    with gateway() as server:
        yield server


@pytest.fixture
def endpoint(ceph: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in ceph.environment().items():
        monkeypatch.setenv(name, value)
    return ceph.endpoint


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_a_run_through_faults_on_ceph_is_the_calm_run(
    rate: float, endpoint: str, quick: None, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = bucket(endpoint)
    with FaultProxy(endpoint, rate, seed=int(rate * 100)) as proxy:
        made = run_all(through(proxy, url, tmp_path / "cache", monkeypatch))
    assert {name: record.digest for name, record in made.items()} == expected
    assert sum(proxy.counts[kind] for kind in KINDS) > 100 * rate, proxy.counts
    check(through_nothing(endpoint, url, tmp_path, monkeypatch), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_on_ceph(
    kind: str, endpoint: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A third of all requests goes wrong in one way; a creation whose reply was lost is known as one's own."""
    url = bucket(endpoint)
    with FaultProxy(endpoint, 0.33, seed=KINDS.index(kind), kinds=(kind,)) as proxy:
        store = through(proxy, url, tmp_path / "cache", monkeypatch)
        for place in range(8):
            store.write(f"a/{place}", b"x" * 1000 * place)
            assert store.create(f"b/{place}", f"mine {place}".encode())
            assert not store.create(f"b/{place}", b"theirs")
            assert store.read(f"a/{place}") == b"x" * 1000 * place
        assert store.names("a") == [str(place) for place in range(8)]
        store.remove("a/3")
        assert not store.exists("a/3")
        assert proxy.counts[kind] >= 5
    calm = through_nothing(endpoint, url, tmp_path, monkeypatch)
    assert [calm.read(f"b/{place}") for place in range(8)] == [f"mine {place}".encode() for place in range(8)]


def test_an_upload_in_parts_that_was_left_is_ended_and_a_new_one_is_kept(endpoint: str, tmp_path: Path):
    url = bucket(endpoint)
    store = Store(url, tmp_path / "cache")
    store.write("_progress/x", b"made")
    store.write("text/whole", b"whole")
    name, _, prefix = store.root.partition("/")
    begun = store.fs.call_s3("create_multipart_upload", Bucket=name, Key=f"{prefix}/text/half")
    store.fs.call_s3(
        "upload_part",
        Bucket=name,
        Key=f"{prefix}/text/half",
        UploadId=begun["UploadId"],
        PartNumber=1,
        Body=b"x" * 5000,
    )
    other = store.fs.call_s3("create_multipart_upload", Bucket=name, Key="elsewhere/half")

    def uploads() -> Cleaned:
        return next(item for item in clean(store, idle) if item.what == "unfinished uploads to the store")

    idle = 3600.0
    assert uploads() == Cleaned("unfinished uploads to the store", 0, 0, 1, 5000)
    time.sleep(1.1)
    idle = 1.0
    assert uploads() == Cleaned("unfinished uploads to the store", 1, 5000, 0, 0)
    assert store.unfinished_uploads() == []
    assert store.read("text/whole") == b"whole"
    left = store.fs.call_s3("list_multipart_uploads", Bucket=name)["Uploads"]
    assert [item["UploadId"] for item in left] == [other["UploadId"]], "what lies outside the store is not touched"
