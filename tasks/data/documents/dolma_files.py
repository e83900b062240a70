"""Dolma's document files: reading and writing `documents/*.jsonl.zst` and the files next to them (RECIPE C.1).

A row is `id`, `text`, `source` and, where known, `added`, `created`, `metadata`. Attribute files have the
same name, the same number of rows and the same order as the documents they describe. Streams are compressed
as they are written, so that memory does not grow with a shard. Bytes depend on the rows only: keys are
sorted, nothing is stamped.
"""

import io
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import zstandard
from backports import zstd

from infra.json_values import JsonObject
from infra.workspace import ShardResult, Workspace
from tasks.artifacts import Documents

_ZSTD_LEVEL = 1
"""Compression level of every file: more than twice as fast as 3 (320 against 140 MB/s per core, on source code) for a tenth
more bytes. At 3 compressing took a quarter of the filter's time."""

_BUFFER_BYTES = 1 << 20
_BATCH_CHARACTERS = 1_000_000
_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd", ".xz": "xz"}
_LARGEST_WINDOW: dict[int, int] = {
    zstd.DecompressionParameter.window_log_max: zstd.DecompressionParameter.window_log_max.bounds()[1]
}
"""`zstd --long=31` and less. pyarrow's own reader, and zstd's default, refuse windows above 128 MiB."""
_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE

Row = JsonObject
"""A document, or another row of a file: what it holds beyond the schema is its source's affair."""


class LineWriter:
    """Writes JSON lines to a local `.jsonl.zst` file and, on leaving the context, puts it into the payload.

    A file without rows is not put, unless `empty` says that a file of no rows must exist (attributes next to
    documents).
    """

    def __init__(self, ws: Workspace, name: str, *, empty: bool = False):
        self.ws = ws
        self.name = name
        self.rows = 0
        self.bytes = 0
        """Bytes of the lines before compression."""
        self._empty = empty
        # Slashes would be folders that nobody made.
        self._path = ws.scratch / name.replace("/", "__")
        self._file = self._path.open("wb")
        # closefd=False: the file is closed below, after the last frame is written.
        self._stream = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).stream_writer(self._file, closefd=False)
        self._pending = bytearray()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        self.write_line(orjson.dumps(row, option=_OPTIONS))

    def write_line(self, line: bytes) -> None:
        """Append a line that was written by a writer like this one, newline included."""
        self.rows += 1
        self.bytes += len(line)
        self._pending += line
        if len(self._pending) >= _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._stream.write(self._pending)
        self._pending.clear()

    def __enter__(self) -> "LineWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # Flushed even after an error, so that the file can be closed; it is put only without one.
        self._flush()
        self._stream.close()
        self._file.close()
        if kind is None and (self.rows or self._empty):
            self.ws.put(self._path, self.name)
        self._path.unlink()


def open_lines(raw: IO[bytes], name: str) -> io.BufferedReader:
    """A buffered stream of the decompressed bytes of a file; the ending of `name`, in any case, tells the compression.

    Reading raises OSError at the place where a compressed file is truncated or corrupt.
    """
    lower = name.lower()
    # Endings in any case: ".GZ" is as common in old dumps as ".gz".
    codec = next((codec for ending, codec in _CODECS.items() if lower.endswith(ending)), None)
    if codec is None:
        return io.BufferedReader(raw, _BUFFER_BYTES)  # type: ignore[arg-type]
    if codec == "zstd":
        stream = _Unpacked(zstd.ZstdFile(raw, options=_LARGEST_WINDOW), raw)
    elif codec == "xz":
        stream = _Unpacked(_XzStreams(raw), raw)
    else:
        stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)
    # A small buffer, because lines that share a buffer with the break of a truncated file are lost with it.
    return io.BufferedReader(stream, 1 << 16)  # type: ignore[arg-type]


class _Unpacked(io.RawIOBase):
    """A decompressor's bytes; what is truncated or corrupt is an OSError, as it is for the decompressors of pyarrow."""

    def __init__(self, stream: "_XzStreams | zstd.ZstdFile", raw: IO[bytes]):
        self._stream = stream
        self._raw = raw

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (EOFError, lzma.LZMAError, zstd.ZstdError) as error:
            if isinstance(error, EOFError) and self._raw.tell() == 0:
                return 0  # A file of no bytes holds no rows, as one that is not compressed.
            raise OSError(f"{type(error).__name__}: {error}") from error
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


class _XzStreams:
    """The streams of an xz file one after another, with zeros between them as the format allows.

    LZMAFile takes a stream with a broken head for the end of the file, and what follows would be lost without a word.
    """

    def __init__(self, raw: IO[bytes]):
        self._raw = raw
        self._held = raw.read(_BUFFER_BYTES)
        self._stream: lzma.LZMADecompressor | None = lzma.LZMADecompressor() if self._held else None

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, nothing at the end. EOFError where a stream is cut off, LZMAError where one is broken."""
        while self._stream is not None:
            # max_length bounds what a small file may unpack to at a time.
            data = self._stream.decompress(self._held, max_length=size)
            self._held = b""
            if self._stream.eof:
                self._next_stream(self._stream.unused_data)
            elif not data and self._stream.needs_input:
                self._held = self._raw.read(_BUFFER_BYTES)
                if not self._held:
                    raise EOFError("the file ends before its last stream does")
            if data:
                return data
        return b""

    def _next_stream(self, held: bytes) -> None:
        # The format allows zeros between streams, and only zeros.
        while not (held := held.lstrip(b"\x00")):
            if not (held := self._raw.read(_BUFFER_BYTES)):
                self._stream = None
                return
        self._held, self._stream = held, lzma.LZMADecompressor()


def written_lines(path: Path) -> Iterator[bytes]:
    """Lines of a local `.jsonl`, `.jsonl.gz` or `.jsonl.zst` file that this project wrote, newlines included."""
    with path.open("rb") as raw:
        yield from open_lines(raw, path.name)


def written_rows(path: Path) -> Iterator[Row]:
    """Rows of a local `.jsonl`, `.jsonl.gz` or `.jsonl.zst` file that this project wrote."""
    for line in written_lines(path):
        yield orjson.loads(line)


def parse_rows(data: bytes) -> Iterator[Row]:
    """Rows of a `.jsonl.zst` file's bytes."""
    for line in open_lines(io.BytesIO(data), ".zst"):
        yield orjson.loads(line)


def document_files(ws: Workspace, documents: Documents) -> list[str]:
    """Names of an artifact's document shards, in order. Raises ValueError if there are none."""
    names = ws.files(documents, "documents/")
    if not names:
        raise ValueError(
            f"{documents.address} holds no documents; its `dropped` says why: {documents.dropped}. "
            "Loosen the stage's thresholds or give it another source"
        )
    return names


def read_documents(ws: Workspace, documents: Documents, name: str) -> Iterator[Row]:
    """Documents of one shard of an input."""
    return written_rows(ws.path(documents, name))


def batches(rows: Iterator[Row], characters: int = _BATCH_CHARACTERS) -> Iterator[list[Row]]:
    """Rows in lists of about so many characters of text: rules have a fixed cost per call."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row["text"])
        # One batch is over the limit by its last document at most.
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def shard_name(name: str) -> str:
    """`documents/00003-000.jsonl.zst` -> `00003-000`."""
    return name.rsplit("/", 1)[-1].removesuffix(".jsonl.zst")


def read_own(ws: Workspace, name: str) -> bytes:
    """A payload file that an earlier step of this same stage wrote."""
    return ws.store.read(ws.address(name))


def add_counts(results: list[ShardResult], key: str) -> dict[str, int]:
    """Sum of the counters under `key` over shard results, sorted by name."""
    total: dict[str, int] = {}
    for result in results:
        for name, count in result[key].items():
            total[name] = total.get(name, 0) + count
    # Sorted, so that records of equal results are equal byte by byte.
    return dict(sorted(total.items()))
