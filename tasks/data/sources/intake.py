"""The gate that every incoming row passes: good ones become Dolma documents, bad ones are kept aside with
their place.

Repairs, counted as `repaired`: a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD (pairs written as
two escapes are joined); NUL characters are removed, because C libraries downstream end a string there; `NaN`
in metadata becomes null. Source: RECIPE C.1 for the schema; the paper does not say what its authors did with
broken rows.
"""

import json
from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import Field

from infra.workspace import Workspace
from model.config import Config
from tasks.data.dolma import LineWriter

SCHEMA = ("id", "text", "source", "added", "created", "metadata")
_KEPT_RAW_CHARS = 2000
_EXAMPLES = 3


class SourceConfig(Config):
    """What every kind of source has."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    """Label of the documents, as mixes and reports name it."""
    shard_bytes: int = Field(default=64_000_000, gt=0)
    """Text per document file, bytes: one unit of parallel work. A document is never cut, so a shard may be
    longer."""
    max_bad_fraction: float = Field(default=0.001, ge=0, le=1)
    """The stage fails when a larger share of rows is unusable."""


class Intake:
    """Writes one item's rows to `documents/<item>-<part>.jsonl.zst` and `bad/<item>.jsonl.zst`, and counts
    them."""

    def __init__(self, ws: Workspace, item: int, source: str, shard_bytes: int):
        self.ws = ws
        self.item = item
        self.source = source
        self.shard_bytes = shard_bytes
        self.documents = 0
        self.bytes = 0
        self.repaired = 0
        self.bad: dict[str, int] = {}
        self.bad_rows: list[dict[str, Any]] = []
        self._part = 0
        self._part_bytes = 0
        self._writer: LineWriter | None = None

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
            row = _repair(json.loads(text))
        except (ValueError, RecursionError):
            self.reject("not_json", error, line, file=file, line_number=line_number)
            return None
        self.repaired += 1
        return row

    def accept(self, row: Any, *, file: str, line_number: int, fallback_id: str) -> None:
        """One parsed row; `fallback_id` names it when it has no id of its own."""
        if not isinstance(row, dict):
            kind = type(row).__name__
            self.reject("not_object", f"a JSON {kind}", repr(row).encode(), file=file, line_number=line_number)
            return
        text = row.get("text")
        if not isinstance(text, str):
            keys = ", ".join(sorted(map(str, row))[:8])
            self.reject("no_text", f"fields: {keys}", repr(row).encode(), file=file, line_number=line_number)
            return
        document = {key: row[key] for key in SCHEMA if row.get(key) is not None}
        document["text"] = self._clean(text)
        document["id"] = self._clean(str(row["id"])) if row.get("id") not in (None, "") else fallback_id
        document["source"] = self.source
        metadata = document.get("metadata")
        document["metadata"] = metadata if isinstance(metadata, dict) else {}
        if row.get("source") not in (None, self.source):
            document["metadata"] = {**document["metadata"], "original_source": row["source"]}
        self._write(document)

    def _clean(self, text: str) -> str:
        clean = clean_text(text)
        if clean is not text:
            self.repaired += 1
        return clean

    def _write(self, document: Mapping[str, Any]) -> None:
        size = len(document["text"].encode())
        if self._writer is not None and self._part_bytes + size > self.shard_bytes:
            self._close_part()
        if self._writer is None:
            self._writer = LineWriter(self.ws, f"documents/{self.item:05d}-{self._part:03d}.jsonl.zst").__enter__()
        self._writer.write(document)
        self._part_bytes += size
        self.bytes += size
        self.documents += 1

    def _close_part(self) -> None:
        assert self._writer is not None
        self._writer.__exit__(None)
        self._writer = None
        self._part += 1
        self._part_bytes = 0

    def reject(self, reason: str, detail: str, raw: bytes, *, file: str, line_number: int) -> None:
        """Keep an unusable row aside. Lines count from 1."""
        self.bad[reason] = self.bad.get(reason, 0) + 1
        self.bad_rows.append(
            {
                "file": file,
                "line": line_number,
                "reason": reason,
                "detail": clean_text(detail),
                "raw": clean_text(raw[:_KEPT_RAW_CHARS].decode("utf-8", errors="replace")),
            }
        )

    def shift_lines(self, first: int, lines: int) -> None:
        """Add `lines` to the line numbers of the bad rows from `first` on: they were counted from inside the
        file."""
        for row in self.bad_rows[first:]:
            row["line"] += lines

    def finish(self) -> dict[str, Any]:
        """Close the files and return the counts as the item's result."""
        if self._writer is not None:
            self._close_part()
        if self.bad_rows:
            self.ws.write_jsonl(f"bad/{self.item:05d}.jsonl.zst", self.bad_rows)
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "repaired": self.repaired,
            "bad": self.bad,
            "examples": [
                f"{row['file']}:{row['line']}: {row['reason']} ({row['detail']})" for row in self.bad_rows[:_EXAMPLES]
            ],
        }


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


def _repair(value: Any) -> Any:
    """A JSON value in which every string and number can be written again."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_repair(item) for item in value]
    if isinstance(value, dict):
        return {clean_text(key): _repair(item) for key, item in value.items()}
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    return value
