"""Sources on a real S3 server. Oracle: the same files in a local folder, whose artifacts have the same digests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import s3fs

from infra.records.record import record_of
from tasks.data.collect import collect
from tasks.data.sources.files.listing import ChangedFileError
from tasks.data.sources.intake import Intake
from tasks.data.sources.local import LocalSource
from tests.ceph import gateway
from tests.tasks.data.test_hostile_files import PACKS, answer, lines, record, written

pytestmark = [pytest.mark.slow, pytest.mark.s3, pytest.mark.ceph]

BUCKET = "olmo2-sources"
TEXTS = [f"text {number} of some rows" for number in range(50)]
TABLE = pa.table({"text": TEXTS, "number": range(50)})
FILES = {
    **{f"lines.jsonl{pack}": compress(lines(TEXTS)) for pack, compress in PACKS.items()},
    "deep/er/rows.parquet": written(TABLE, "parquet"),
    "file.arrow": written(TABLE, "file"),
    "stream.arrow": written(TABLE, "stream"),
    "crawl.warc.gz": PACKS[".gz"](record(answer()) * 9),
    "page.html": b"<p>some text of a page</p>",
    "a text.txt.xz": PACKS[".xz"](b"some plain text"),
}


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3fs.S3FileSystem]:
    """A server with one empty bucket, which this process finds by its environment."""
    with gateway() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        filesystem = s3fs.S3FileSystem(
            key=server.key, secret=server.secret, client_kwargs={"endpoint_url": server.endpoint}
        )
        filesystem.mkdir(BUCKET)
        yield filesystem


def put(bucket: s3fs.S3FileSystem, folder: str, name: str, data: bytes) -> None:
    bucket.pipe_file(f"{BUCKET}/{folder}/{name}", data)


@pytest.mark.parametrize("name", list(FILES))
def test_a_file_on_s3_gives_the_digest_of_the_local_one(bench, bucket, tmp_path: Path, name: str):
    """Documents are named after the file below the folder, so nothing of them says where it is."""
    local = tmp_path / "input"
    (local / name).parent.mkdir(parents=True)
    (local / name).write_bytes(FILES[name])
    put(bucket, "whole", f"{len(name)}/{name}", FILES[name])
    digests = []
    for place in (str(local), f"s3://{BUCKET}/whole/{len(name)}"):
        made = bench.run(collect, LocalSource(name="web", paths=(place,), include=(name.rsplit("/")[-1],)).pinned())
        assert made.documents > 0
        digests.append(record_of(bench.store, made).digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    "name", ["lines.jsonl", "lines.jsonl.zst", "deep/er/rows.parquet", "stream.arrow", "crawl.warc.gz"]
)
def test_an_object_that_is_replaced_while_it_is_read_ends_the_stage_by_name(bench, bucket, monkeypatch, name: str):
    """The new object has the same length and the same rows in another order, so only its version tells."""
    put(bucket, "changing", name, FILES[name])
    config = LocalSource(name="web", paths=(f"s3://{BUCKET}/changing/{name}",)).pinned()
    accept, seen = Intake.accept, []

    def accepting(self: Intake, *arguments: object, **place: object) -> None:
        accept(self, *arguments, **place)  # type: ignore[arg-type]
        seen.append(place)
        if len(seen) == 5:
            put(bucket, "changing", name, FILES[name][::-1])

    monkeypatch.setattr(Intake, "accept", accepting)
    with pytest.raises(ChangedFileError, match=rf"{os.path.basename(name)} changed while it was read"):
        bench.run(collect, config)
    monkeypatch.undo()
    with pytest.raises(ChangedFileError, match=rf"{os.path.basename(name)} changed since the stage was planned"):
        bench.run(collect, config)
