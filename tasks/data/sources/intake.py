"""The gate that every incoming row passes: good ones become Dolma documents, bad ones are kept aside with
their place.

Repairs, counted as `repaired`: a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD (pairs written as
two escapes are joined); NUL characters are removed, because C libraries downstream end a string there; `NaN`
in metadata becomes null. Source: RECIPE C.1 for the schema; the paper does not say what its authors did with
broken rows. What is in memory does not grow with an item: rows good and bad go to compressed files as they
come, and of each document only the hash of its id and its place are noted, for `sources/repeated.py`.
"""

import json
from collections.abc import Callable, Mapping
from datetime import date
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson
from pydantic import Field

from infra.workspace import Workspace
from model.config import Config
from tasks.data.documents.dolma_files import LineWriter
from tasks.data.documents.partitions import KeySpill, put_work

SCHEMA = ("id", "text", "source", "added", "created", "metadata")
PLACE = np.dtype([("part", "<u4"), ("file", "<u4"), ("first", "<u8"), ("line", "<u8")])
"""Where a document went and came from: its part, the index of its file in the item's list, and its line, counted
from byte `first` of that file."""
_KEPT_RAW_CHARS = 2000
EXAMPLES = 3
"""Rows kept aside that an item names in messages."""


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
        self._places = (ws.scratch / f"places-{item:05d}").open("w+b")

    def begin(self, first: int = 0, lines_before: Callable[[], int] | None = None) -> None:
        """From now on, lines count from byte `first` of a file; `lines_before` is asked when a line must be named."""
        self.first = first
        self.lines_before = lines_before or _none_before

    def parse(self, line: bytes, *, file: str, line_number: int) -> Any:
        """The value of one JSON line; None, and the line kept aside, when it has none."""
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return self._parse_tolerantly(line, str(error), file, line_number)

    def _parse_tolerantly(self, line: bytes, error: str, file: str, line_number: int) -> Any:
        """What the fast parser refuses although JSON readers commonly take it: lone surrogates, NaN."""
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as decode_error:
            self.reject("not_utf8", str(decode_error), line, file=file, line_number=line_number)
            return None
        try:
            row = writable(json.loads(text))
        except (ValueError, RecursionError):
            self.reject("not_json", error, line, file=file, line_number=line_number)
            return None
        self.repaired += 1
        return row

    def accept(self, row: Any, *, file: str, line_number: int, fallback_id: str) -> None:
        """One parsed row; `fallback_id` names it when it has no id of its own."""
        if not isinstance(row, dict):
            kind = type(row).__name__
            self.reject("not_object", f"a JSON {kind}", _shown(row), file=file, line_number=line_number)
            return
        text = row.get("text")
        if not isinstance(text, str):
            keys = ", ".join(sorted(map(str, row))[:8])
            self.reject("no_text", f"fields: {keys}", _shown(row), file=file, line_number=line_number)
            return
        text = self._clean(text)
        size = len(text) if text.isascii() else len(text.encode())
        limit = self.config.max_document_bytes
        if size > limit:
            shown = text[:_KEPT_RAW_CHARS].encode()
            self.reject("too_long", f"{size:,} bytes, over {limit:,}", shown, file=file, line_number=line_number)
            return
        document = {key: row[key] for key in SCHEMA if row.get(key) is not None}
        document["text"] = text
        document["id"] = self._clean(str(row["id"])) if row.get("id") not in (None, "") else fallback_id
        document["source"] = self.config.name
        metadata = document.get("metadata")
        document["metadata"] = metadata if isinstance(metadata, dict) else {}
        if row.get("source") not in (None, self.config.name):
            document["metadata"] = {**document["metadata"], "original_source": row["source"]}
        self._write(document, size)
        self._note(document["id"], file, line_number)

    def _clean(self, text: str) -> str:
        clean = clean_text(text)
        if clean is not text:
            self.repaired += 1
        return clean

    def _write(self, document: Mapping[str, Any], size: int) -> None:
        if self._writer is not None and self._part_bytes + size > self.config.shard_bytes:
            self._close_part()
        if self._writer is None:
            self._writer = LineWriter(self.ws, part_name(self.item, self._part)).__enter__()
        self._writer.write(document)
        self._part_bytes += size
        self.bytes += size
        self.documents += 1

    def _note(self, id: str, file: str, line_number: int) -> None:
        """Keep the hash of a written document's id, and its place."""
        self._ids.add(blake2b(id.encode(), digest_size=16).digest(), self.documents - 1)
        index = self._files.setdefault(file, len(self._files))
        self._places.write(np.array((self._part, index, self.first, line_number), dtype=PLACE).tobytes())

    def _close_part(self) -> None:
        assert self._writer is not None
        self._writer.__exit__(None)
        self._writer = None
        self._part += 1
        self._part_bytes = 0

    def reject(self, reason: str, detail: str, raw: bytes, *, file: str, line_number: int) -> None:
        """Keep an unusable row aside. Lines count from 1."""
        self.bad[reason] = self.bad.get(reason, 0) + 1
        if self._bad_writer is None:
            self._bad_writer = LineWriter(self.ws, f"bad/{self.item:05d}.jsonl.zst").__enter__()
        row = {
            "file": file,
            "line": line_number + self.lines_before(),
            "reason": reason,
            "detail": clean_text(detail),
            "raw": clean_text(raw[:_KEPT_RAW_CHARS].decode("utf-8", errors="replace")),
        }
        self._bad_writer.write(row)
        if len(self.examples) < EXAMPLES:
            self.examples.append(example(row))

    def reject_problem(self, problem: str, raw: bytes, *, file: str, line_number: int) -> None:
        """Keep aside what a reader could not give, with its `reason: detail`."""
        reason, _, detail = problem.partition(": ")
        self.reject(reason, detail, raw, file=file, line_number=line_number)

    def finish(self) -> dict[str, Any]:
        """Close the files and return the counts as the item's result."""
        if self._writer is not None:
            self._close_part()
        if self._bad_writer is not None:
            self._bad_writer.__exit__(None)
        self._places.seek(0)
        put_work(self.ws, f"places/{self.item:05d}.bin", self._places.read())
        put_work(self.ws, f"places/{self.item:05d}.json", orjson.dumps(list(self._files)))
        self._places.close()
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "repaired": self.repaired,
            "bad": self.bad,
            "examples": self.examples,
            "ids": self._ids.close(),
        }


def part_name(item: int, part: int) -> str:
    """Name of one document file of an item."""
    return f"documents/{item:05d}-{part:03d}.jsonl.zst"


def example(row: dict[str, Any]) -> str:
    """A row that was kept aside, for a message."""
    return f"{row['file']}:{row['line']}: {row['reason']} ({row['detail']})"


def _none_before() -> int:
    return 0


def _shown(value: Any) -> bytes:
    """The beginning of a value that is no document. A long text in it is not shown whole, to bound memory."""
    if isinstance(value, dict):
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
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    if isinstance(value, bytes):
        return clean_text(value.decode("utf-8", errors="replace"))
    return value if value is None or isinstance(value, bool | int | float | date) else clean_text(str(value))
