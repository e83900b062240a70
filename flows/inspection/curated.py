"""The data stages that a question is about: those of a recipe, those above an artifact, or those of a whole store.

Source: everything is read from the artifacts themselves (RECIPE C.1: attributes next to documents, dropped documents with
reason and detail). So it can be asked of any store at any time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from flows.cli.options import existing_store
from flows.config.errors import RecipeError
from flows.config.files import names_recipe
from flows.inspection.artifacts import find_record
from flows.running.run import load_recipe, plan
from infra.json_values import JsonObject
from infra.records.reader import Reader
from infra.records.record import Record, all_records, lineage, record_of
from infra.storage.store import Store
from tasks.data.documents.dolma_files import written_lines

DOCUMENTS, DROPPED, ATTRIBUTES, TOKENS = "documents/", "dropped/", "attributes/", "tokens/"
"""Folders of a payload."""


@dataclass(frozen=True)
class Curated:
    """The records of data stages that are asked about, inputs before what was made of them."""

    reader: Reader
    records: list[Record]

    def lines(self, record: Record, prefix: str, needle: bytes = b"") -> Iterator[tuple[str, int, JsonObject]]:
        """(file, 1-based line, row) of the payload's rows below a prefix whose bytes have the needle."""
        for name in sorted(name for name in record.files if name.startswith(prefix)):
            yield from self.lines_of(record, name, needle)

    def lines_of(self, record: Record, name: str, needle: bytes = b"") -> Iterator[tuple[str, int, JsonObject]]:
        """The same of one file."""
        for number, line in enumerate(written_lines(self.reader.path(record.artifact(), name)), start=1):
            # The needle is looked for in the bytes, since most lines need no parsing at all.
            if needle in line:
                yield name, number, orjson.loads(line)


def curated(target: str | None, store: str | None) -> Curated:
    """The data stages of a recipe, above an artifact id, or (with neither) of the whole store.

    Raises ValueError when there are none.
    """
    if target is not None and names_recipe(target):
        config = load_recipe(target, None, store)
        found = Store(config.execution.store)
        rows = [row.artifact for row in plan(config) if row.artifact is not None]
        records = [record_of(found, artifact) for artifact in rows]
    else:
        found = existing_store(store)
        records = lineage(found, find_record(found, target)) if target is not None else newest(found)
    records = [
        record for record in records if any(name.startswith((DOCUMENTS, ATTRIBUTES, TOKENS)) for name in record.files)
    ]
    if not records:
        what = f"{target} was made from" if target else "it has"
        raise RecipeError(
            f"store {found.url}: {what} no finished data stage; make them: olmo2 run RECIPE --until encode"
        )
    return Curated(Reader(found), records)


def newest(store: Store) -> list[Record]:
    """The newest generation of every artifact of a store, inputs before what was made of them."""
    known = {record.address: record for record in all_records(store)}
    # Records come oldest first, so a later generation replaces an earlier one.
    last = {(record.stage, record.id): record.address for record in known.values()}
    ordered: dict[str, Record] = {}

    def visit(address: str) -> None:
        if address in ordered or address not in known:
            return
        for item in known[address].inputs:
            visit(item.address)
        ordered[address] = known[address]

    # Inputs first: an explanation reads from the source to the token file.
    for address in last.values():
        visit(address)
    newest_addresses = set(last.values())
    return [record for address, record in ordered.items() if address in newest_addresses]
