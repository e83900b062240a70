"""The gate that every incoming row passes: good ones become Dolma documents, bad ones are kept aside with
their place.

Repairs are counted as `repaired`. A lone surrogate, which UTF-8 cannot hold, becomes U+FFFD (pairs written as two escapes
are joined). NUL characters are removed, because C libraries downstream end a string there. `NaN` in metadata becomes null.
Source: RECIPE C.1 for the schema; the paper does not say what its authors did with broken rows. What is in memory does not
grow with an item: rows good and bad go to compressed files as they come. Of each document only the hash of its id and its
place are noted, for `sources/repeated.py`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from hashlib import blake2b
from typing import Any, NotRequired, TypedDict

import numpy as np
import orjson
from pydantic import Field

from infra.json_values import JsonObject
from infra.workspace import ShardItem, Workspace
from model.config import Config
from tasks.data.documents.dolma_files import LineWriter, Row
from tasks.data.documents.partitions import KeySpill, put_work
from tasks.data.sources.files.listing import SourceFile

SCHEMA = ("id", "text", "source", "added", "created", "metadata")
PLACE = np.dtype([("part", "<u4"), ("file", "<u4"), ("first", "<u8"), ("line", "<u8"), ("group", "<i4")])
"""Says where a document went and came from: its part, the index of its file in the item's list, and its place there. The
place is its line, counted from byte `first` of that file, or its row, counted from the beginning of the row group (-1 in a
file without)."""
_NESTED = 3
"""Objects inside each other under `metadata` whose fields are the document's."""
_KEPT_RAW_CHARS = 2000
_DIGITS = 20
"""Of the longest number of 64 bits, with a sign."""
EXAMPLES = 3
"""Rows kept aside that an item names in messages."""


class IntakeCounts(TypedDict):
    """What became of one item's rows."""

    documents: int
    bytes: int
    repaired: int
    bad: dict[str, int]
    """Rows kept aside, by reason."""
    examples: list[str]
    passed_over: dict[str, int]
    files: dict[str, list[int]]
    """By file: rows kept, rows unusable, and 1 where a part of it broke."""
    ids: dict[str, int]
    """As `KeySpill.close` gives it."""


class RowPlace(TypedDict):
    """Where a row stands in its source."""

    file: str
    line_number: int
    group: NotRequired[int | None]
    """Of a table; the line is then counted from the group's beginning."""


Reading = tuple[Callable[..., IntakeCounts], list[ShardItem]]
"""A module-level function of (workspace, part), and the parts of a source that it is called with."""


class SourceConfig(Config):
    """What every kind of source has."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    """Label of the documents, as mixes and reports name it."""
    shard_bytes: int = Field(default=64_000_000, gt=0)
    """Text per document file, bytes: one unit of parallel work. A document is never cut, so a shard may be
    longer."""
    max_document_bytes: int = Field(default=64_000_000, gt=0)
    """A longer line, text or page is kept aside as unusable, bytes: it bounds the memory of a worker."""
    max_bad_fraction: float = Field(default=0.001, ge=0, le=1)
    """The stage fails when a larger share of rows is unusable."""
    max_bad_file_fraction: float = Field(default=0.001, ge=0, le=1)
    """The stage fails when a larger share of files is unusable: a part of the file broke, or no row of it is usable."""


@dataclass
class FileCounts:
    """What became of one file's rows."""

    kept: int = 0
    unusable: int = 0
    broke: bool = False
    """Whether a part of the file could not be read."""

    def __iter__(self) -> Iterator[int]:
        return iter((self.kept, self.unusable, int(self.broke)))


class Intake:
    """Writes one item's rows to `documents/<item>-<part>.jsonl.zst` and `bad/<item>.jsonl.zst`, and counts
    them."""

    def __init__(self, ws: Workspace, item: int, config: SourceConfig):
        self.ws = ws
        self.item = item
        self.config = config
        self.documents = 0
        self.bytes = 0
        self.repaired = 0
        self.bad: dict[str, int] = {}
        self.passed_over: dict[str, int] = {}
        """Records that are no documents by their kind, such as the requests of a crawl."""
        self.counts: dict[str, FileCounts] = {}
        self.examples: list[str] = []
        self.first = 0
        """Byte of the present file from which lines are counted, and how many lines come before it."""
        self.lines_before: Callable[[], int] = _none_before
        self._part = 0
        self._part_bytes = 0
        self._writer: LineWriter | None = None
        self._bad_writer: LineWriter | None = None
        self._ids = KeySpill(ws, "ids", item)
        self._files: dict[str, int] = {}
        self._pinned: dict[str, dict[str, object]] = {}
        self._room: float = float("inf")
        self._places = (ws.scratch / f"places-{item:05d}").open("w+b")

    def reading(self, file: SourceFile, limit: int | None = None) -> None:
        """The file that rows come from now, and how many rows of it are wanted at most."""
        self.counts.setdefault(file.url, FileCounts())
        self._pinned[file.url] = file.model_dump(mode="json")
        self._room = float("inf") if limit is None else limit

    @property
    def room(self) -> float:
        """Rows of the file that are still wanted; infinite without a limit."""
        return self._room

    @property
    def full(self) -> bool:
        """Whether as many rows of the file were read as are wanted."""
        return self._room <= 0

    def pass_over(self, kind: str) -> None:
        """Count a record that is no document by its kind."""
        self.passed_over[kind] = self.passed_over.get(kind, 0) + 1

    def begin(self, first: int = 0, lines_before: Callable[[], int] | None = None) -> None:
        """From now on, lines count from byte `first` of a file; `lines_before` is asked when a line must be named."""
        self.first = first
        self.lines_before = lines_before or _none_before

    def accept(self, row: Any, *, file: str, line_number: int, fallback_id: str, group: int | None = None) -> None:
        """One parsed row; `fallback_id` names it when it has no id of its own."""
        place: RowPlace = {"file": file, "line_number": line_number, "group": group}
        if not isinstance(row, dict):
            self.reject("not_object", f"a JSON {type(row).__name__}", _shown(row), **place)
            return
        text = row.get("text")
        if not isinstance(text, str):
            keys = ", ".join(sorted(map(str, row))[:8])
            self.reject("no_text", f"fields: {keys}", _shown(row), **place)
            return
        text = self._clean(text)
        size = len(text) if text.isascii() else len(text.encode())
        limit = self.config.max_document_bytes
        if size > limit:
            shown = text[:_KEPT_RAW_CHARS].encode()
            self.reject("too_long", f"{size:,} bytes, over {limit:,}", shown, **place)
            return
        document = {key: row[key] for key in ("added", "created") if row.get(key) is not None}
        document["text"] = text
        # Ids are texts here: a number and its digits are one id.
        document["id"] = self._clean(str(row["id"])) if row.get("id") not in (None, "") else fallback_id
        document["source"] = self.config.name
        document["metadata"] = metadata_of(row)
        # The row's own word for its source is kept, since ours replaces it.
        if row.get("source") not in (None, self.config.name):
            document["metadata"]["original_source"] = row["source"]
        self._write(document, size)
        self.counts.setdefault(file, FileCounts()).kept += 1
        self._room -= 1
        self._note(document["id"], file, line_number, group)

    def _clean(self, text: str) -> str:
        clean = clean_text(text)
        if clean is not text:
            self.repaired += 1
        return clean

    def _write(self, document: Mapping[str, Any], size: int) -> None:
        # A document is never cut, so a part may be over its size by one document.
        if self._writer is not None and self._part_bytes + size > self.config.shard_bytes:
            self._close_part()
        if self._writer is None:
            self._writer = LineWriter(self.ws, part_name(self.item, self._part)).__enter__()
        self._writer.write(document)
        self._part_bytes += size
        self.bytes += size
        self.documents += 1

    def _note(self, id: str, file: str, line_number: int, group: int | None) -> None:
        """Keep the hash of a written document's id, and its place."""
        self._ids.add(blake2b(id.encode(), digest_size=16).digest(), self.documents - 1)
        index = self._files.setdefault(file, len(self._files))
        place = -1 if group is None else group
        # The place goes to a file: items may have millions of documents.
        self._places.write(np.array((self._part, index, self.first, line_number, place), dtype=PLACE).tobytes())

    def _close_part(self) -> None:
        assert self._writer is not None
        self._writer.__exit__(None)
        self._writer = None
        self._part += 1
        self._part_bytes = 0

    def reject(
        self,
        reason: str,
        detail: str,
        raw: bytes,
        *,
        file: str,
        line_number: int,
        group: int | None = None,
        rows: int = 1,
        broke: bool = False,
    ) -> None:
        """Keep unusable rows aside: one, or all those that a broken part of a file held. Lines count from 1.

        A line that goes on with a row that is counted already has 0 `rows`.
        """
        self.bad[reason] = self.bad.get(reason, 0) + rows
        counts = self.counts.setdefault(file, FileCounts())
        counts.unusable += rows
        counts.broke |= broke
        self._room -= rows
        if self._bad_writer is None:
            self._bad_writer = LineWriter(self.ws, f"bad/{self.item:05d}.jsonl.zst").__enter__()
        row = {
            "file": file,
            "line": line_number + self.lines_before(),
            "reason": reason,
            "detail": clean_text(detail),
            # The beginning is enough to see what was wrong, and it bounds the file.
            "raw": clean_text(raw[:_KEPT_RAW_CHARS].decode("utf-8", errors="replace")),
        }
        row |= {} if group is None else {"group": group}
        row |= {} if rows == 1 else {"rows": rows}
        self._bad_writer.write(row)
        if len(self.examples) < EXAMPLES:
            self.examples.append(example(row))

    def reject_problem(self, problem: str, raw: bytes, **place: Any) -> None:
        """Keep aside what a reader could not give, with its `reason: detail`."""
        reason, _, detail = problem.partition(": ")
        self.reject(reason, detail, raw, **place)

    def finish(self) -> IntakeCounts:
        """Close the files and return the counts as the item's result."""
        if self._writer is not None:
            self._close_part()
        if self._bad_writer is not None:
            self._bad_writer.__exit__(None)
        # The places are read once, when all rows are in.
        self._places.seek(0)
        put_work(self.ws, f"places/{self.item:05d}.bin", self._places.read())
        put_work(
            self.ws, f"places/{self.item:05d}.json", orjson.dumps([[url, self._pinned.get(url)] for url in self._files])
        )
        self._places.close()
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "repaired": self.repaired,
            "bad": self.bad,
            "examples": self.examples,
            "passed_over": self.passed_over,
            "files": {url: list(counts) for url, counts in self.counts.items()},
            "ids": self._ids.close(),
        }


def parse_line(line: bytes) -> tuple[Any, str, bool]:
    """(value, problem, whether it was repaired) of a JSON line: what the fast parser refuses although JSON readers commonly take
    it (lone surrogates, NaN, a byte order mark), or rounds (whole numbers of more than 64 bits), is repaired."""
    refused = ""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        refused = str(error)
    else:
        if not is_rounded(value):
            return value, "", False
    try:
        # Files that were joined have a byte order mark in their middle; sequences (RFC 7464) begin each row with a separator.
        text = line.decode("utf-8").lstrip("\ufeff\x1e")
    except UnicodeDecodeError as error:
        return None, f"not_utf8: {error}", False
    try:
        return writable(json.loads(text, parse_int=_whole)), "", True
    except (ValueError, RecursionError) as error:
        return None, f"not_json: {refused or error}", False


def is_rounded(value: Any) -> bool:
    """Whether a value holds a number that may be a whole one of more than 64 bits, which the fast parser rounds."""
    kind = type(value)
    if kind is float:
        # 2^63 itself may be 2^63 + 1 rounded, so the bounds are strict.
        return not -(2.0**63) < value < 2.0**63
    if kind is not dict and kind is not list:
        return False
    # Most values are texts, and every row comes through here.
    for item in value.values() if kind is dict else value:
        kind = type(item)
        if kind is not str and kind is not int and is_rounded(item):
            return True
    return False


def _whole(text: str) -> int | str:
    """A whole number; its digits where it is so long that no JSON of ours holds it, and Python makes no number of it."""
    return int(text) if len(text) <= _DIGITS else text


def part_name(item: int, part: int) -> str:
    """Name of one document file of an item."""
    return f"documents/{item:05d}-{part:03d}.jsonl.zst"


def example(row: Row) -> str:
    """A row that was kept aside, for a message."""
    group = f" row group {row['group']} row " if "group" in row else ""
    many = f" of {row['rows']:,} rows" if row.get("rows", 1) > 1 else ""
    return f"{row['file']}:{group}{row['line']}: {row['reason']}{many} ({row['detail']})"


def metadata_of(row: Mapping[str, Any]) -> JsonObject:
    """Return what a row says besides the schema, in one object: its fields at the top level, those of its `metadata`, and
    those of a `metadata` in that. A `metadata` is an object, or a JSON string that holds one. The inner ones win."""
    found = {key: value for key, value in row.items() if key not in SCHEMA}
    inner = row.get("metadata")
    for _ in range(_NESTED):
        fields = _object(inner)
        if fields is None:
            break
        found |= {key: value for key, value in fields.items() if key != "metadata"}
        inner = fields.get("metadata")
    if inner is not None:
        found["metadata"] = inner
    return found


def _object(value: Any) -> JsonObject | None:
    """An object, or the one that a JSON string holds."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = writable(json.loads(value))
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _none_before() -> int:
    return 0


def _shown(value: Any) -> bytes:
    """The beginning of a value that is no document. A long text in it is not shown whole, to bound memory."""
    if isinstance(value, dict):
        # Keys and values are cut too, since a broken row may be one huge field.
        value = {str(key)[:80]: str(item)[:200] for key, item in list(value.items())[:20]}
    elif isinstance(value, list):
        value = [str(item)[:200] for item in value[:20]]
    return str(value)[:_KEPT_RAW_CHARS].encode(errors="replace")


def clean_text(text: str) -> str:
    """The text without NUL and lone surrogates; the same object when there is nothing to repair."""
    if "\x00" in text:
        text = text.replace("\x00", "")
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # Only lone surrogates cannot be encoded; through UTF-16, pairs join and lone ones are replaced.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def writable(value: Any) -> Any:
    """A value in which every string, number and other thing can be written as JSON: what JSON has no form for becomes a
    string."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list | tuple):
        return [writable(item) for item in value]
    if isinstance(value, dict):
        return {clean_text(str(key)): writable(item) for key, item in value.items()}
    # JSON readers round whole numbers beyond 64 bits, so they are kept as digits.
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    if isinstance(value, datetime):
        # A subclass too, such as a time stamp of nanoseconds, which keeps its digits.
        return value.isoformat()
    if isinstance(value, bytes):
        return clean_text(value.decode("utf-8", errors="replace"))
    return value if value is None or isinstance(value, bool | int | float | date) else clean_text(str(value))
