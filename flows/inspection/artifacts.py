"""Looking at a store: lists, records with lineage, exports; and tidying up after killed processes."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from rich.tree import Tree

from flows.config.stage_names import stage_names
from flows.inspection.model_card import CARD, model_card
from infra.json_values import JsonObject
from infra.records.cleaning import Cleaned, clean
from infra.records.index import Index, Summary
from infra.records.marks import notes, pins, tagged_record, tags
from infra.records.permanent_save_points import kept_save_points
from infra.records.reader import Reader
from infra.records.record import Record, generations, lineage, load_record
from infra.records.save_points import DamagedSavePoint
from infra.session import matches
from infra.storage.store import Store
from tasks.artifacts import Checkpoint, RewardModel, is_of_model

if TYPE_CHECKING:
    from flows.cli.plain_console import PlainConsole


class KeptRow(TypedDict):
    """A permanent save point, for a list."""

    name: str
    """ID@STEP."""
    stage: str
    id: str
    generation: int
    step: int
    bytes: int | None
    """None where the save point is damaged."""


class Parent(TypedDict):
    """A record that an artifact was made from, directly or not."""

    address: str
    label: str
    kind: str
    digest: str
    created: str
    inputs: list[str]
    """Addresses."""


class Marks(TypedDict):
    """What people have said of an artifact."""

    tags: list[str]
    pinned: bool
    said: list[dict[str, str]]
    """Notes: who, when, text."""


MOST_BEGUN = 32
"""So many ids that begin alike are asked whether they are finished; more are too many anyway."""
TOLD_IDS = 8
"""So many ids are named where a beginning fits several."""


def list_rows(store: Store, stage: str | None = None) -> list[Summary]:
    """One row per record, oldest first; with `stage`, of that stage, label (`anneal:42`) or pattern (`anneal:*`).

    Raises ValueError, which names the stages that the store has, for a word that means none.
    """
    rows = Index(store).rows()
    found = [row for row in rows if stage is None or matches(stage, row["stage"], row["label"])]
    if not found:
        _check_stage(stage, [(row["stage"], row["label"]) for row in rows])
    return found


def _check_stage(stage: str | None, there: Sequence[tuple[str, str]]) -> None:
    if stage == "":
        raise ValueError("--stage is empty; give a stage, a label such as anneal:42, or a pattern")
    # A stage of the recipe without artifacts is no typing error.
    if stage is None or not there or stage in stage_names():
        return
    known = ", ".join(sorted({word for pair in there for word in pair}))
    raise ValueError(f"no stage {stage!r} is in the store; there are {known}")


def kept_rows(store: Store, stage: str | None = None) -> list[KeptRow]:
    """One row per permanent save point, of the stage, label or pattern; `bytes` is None where the save point is damaged."""
    rows: list[KeptRow] = []
    others: list[tuple[str, str]] = []
    for kept in kept_save_points(store):
        # The label is in what was begun, so it is read only where the stage's name does not decide.
        if stage is not None and stage != kept.stage:
            started = kept.started(store)
            if not matches(stage, started.stage, started.label):
                others.append((started.stage, started.label))
                continue
        # A damaged save point is listed all the same, so that people see it.
        try:
            size = sum(int(entry["size"]) for entry in kept.files(store).values())
        except DamagedSavePoint:
            size = None
        rows.append(
            KeptRow(
                name=kept.name,
                stage=kept.stage,
                id=kept.id,
                generation=kept.generation,
                step=kept.point.step,
                bytes=size,
            )
        )
    if not rows:
        _check_stage(stage, others)
    return rows


def find_record(store: Store, id: str) -> Record:
    """The newest record whose id begins so, or the one that a tag of this name marks. Raises ValueError for none or several."""
    if not id:
        raise ValueError("the id is empty; give an id or its beginning, see: olmo2 ls")
    stages = [name for name in store.names("") if name[0] not in "_."]
    found = [(stage, name) for stage in stages for name in store.names(stage) if name.startswith(id)]
    # An id that was begun and not finished has a folder but no generation. Asking about very many would take long.
    if len(found) <= MOST_BEGUN:
        found = [(stage, name) for stage, name in found if generations(store, stage, name)]
    # An id goes before a tag of the same text.
    if not found and (tagged := tagged_record(store, id)):
        return tagged
    if not found:
        raise ValueError(f"store {store.url} has no artifact with id {id!r}; see: olmo2 ls --store {store.url}")
    if len(found) > 1:
        ids = ", ".join(f"{stage}/{name}" for stage, name in sorted(found)[:TOLD_IDS])
        raise ValueError(f"id {id!r} is not unique in store {store.url}: {ids}; give more of it")
    record = load_record(store, *found[0])
    assert record is not None, "it has a generation"
    return record


def show_record(store: Store, id: str) -> JsonObject:
    """A record as JSON, with its lineage: every record it was made from, inputs first."""
    record = find_record(store, id)
    parents: list[Parent] = [
        {
            "address": parent.address,
            "label": parent.label,
            "kind": parent.kind,
            "digest": parent.digest,
            "created": parent.created,
            "inputs": [item.address for item in parent.inputs],
        }
        for parent in lineage(store, record)
    ]
    marks: Marks = {
        "tags": sorted(name for name, mark in tags(store).items() if mark.address == record.address),
        "pinned": any(mark.address == record.address for mark in pins(store)),
        "said": [{"who": said.who, "when": said.when, "text": said.text} for said in notes(store, record)],
    }
    return record.model_dump(mode="json") | {"lineage": parents, "marks": marks}


def print_list(console: "PlainConsole", rows: list[Summary], nothing: str) -> None:
    """One line per artifact, or what to say when there is none."""
    if not rows:
        console.print(nothing, highlight=False, markup=False)
        return
    heads = ("id", "stage", "generation", "created", "seconds", "size")
    lines = [
        (
            row["id"],
            row["label"],
            str(row["generation"]),
            row["created"],
            f"{row['seconds']:,.1f}",
            size_of(row["bytes"]),
        )
        for row in rows
    ]
    # Measured here, since rich's table of 100,000 rows takes a minute.
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    console.print(_aligned(heads, widths), style="bold", highlight=False, soft_wrap=True)
    console.lines(_aligned(line, widths) for line in lines)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def size_of(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:,.2f} MB"


def print_kept(console: Console, rows: list[KeptRow], nothing: str) -> None:
    """One line per permanent save point, or what to say when there is none."""
    if not rows:
        console.print(nothing, highlight=False, markup=False)
        return
    table = Table(Column("save point", overflow="fold"), "stage", "generation", "size", box=None, pad_edge=False)
    for row in rows:
        size = "damaged" if row["bytes"] is None else f"{row['bytes'] / 1e6:,.2f} MB"
        table.add_row(row["name"], row["stage"], str(row["generation"]), size)
    console.print(table)
    console.print("start from one: olmo2 adopt ID@STEP --as base (or soup, sft, dpo)", highlight=False)


def print_record(console: Console, shown: JsonObject) -> None:
    """Facts, cost, configuration and lineage tree of a record."""
    console.print(Text.assemble((shown["label"], "bold"), f"  {shown['address']}  ({shown['kind']})"))
    table = Table(box=None, show_header=False, pad_edge=False)
    for name in ("created", "seconds", "attempts", "resumed_from", "host", "device", "threads", "digest"):
        table.add_row(name, str(shown[name]))
    for section in ("facts", "notes", "config", "code"):
        for name, value in shown[section].items():
            table.add_row(f"{section}.{name}", str(value)[:300])
    for name in ("tags", "pinned"):
        if shown["marks"][name]:
            table.add_row(name, str(shown["marks"][name]))
    for said in shown["marks"]["said"]:
        table.add_row("note", f"{said['when']} {said['who']}: {said['text']}")
    table.add_row("files", f"{len(shown['files'])}, {sum(file['size'] for file in shown['files'].values()):,} bytes")
    console.print(table, highlight=False)
    by_address = {parent["address"]: parent for parent in shown["lineage"]}
    console.print(_tree(by_address, shown["address"], set()))


def _tree(records: dict[str, Parent], address: str, seen: set[str], into: Tree | None = None) -> Tree:
    record = records.get(address)
    known = address in seen
    # An input may have been removed, or have stayed in another store.
    text = Text(record["label"] if record else f"{address} (record gone)")
    if record:
        text.append(f" {address} {record['digest'][:12]}", "dim")
    # What stands above with its inputs is not drawn twice: shared inputs would grow the tree exponentially.
    if into and known and record and record["inputs"]:
        text.append(" (above)", "dim")
    branch = into.add(text) if into else Tree(text)
    seen.add(address)
    if record and not known:
        for parent in record["inputs"]:
            _tree(records, parent, seen, branch)
    return branch


def export_checkpoint(store: Store, id: str, folder: Path) -> list[str]:
    """Copy the Hugging Face part of a checkpoint into a new folder, with a model card; returns the names written.

    Raises ValueError if the artifact is not a checkpoint or the folder is not empty.
    """
    record = find_record(store, id)
    if record.kind not in (Checkpoint.__name__, RewardModel.__name__):
        raise ValueError(f"{record.label} {record.id} is of kind {record.kind}; only checkpoints can be exported")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is {'not empty' if folder.is_dir() else 'a file'}: give a new folder")
    workspace = Reader(store)
    artifact = record.artifact()
    # Weights, config and tokenizer; metrics and AdamW's moments stay in the store.
    names = [name for name in record.files if is_of_model(name)]
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # Through the reader, which verifies each file before it leaves the store.
        shutil.copyfile(workspace.path(artifact, name), folder / name)
    # A card that came with an adopted checkpoint is kept.
    if CARD not in names:
        (folder / CARD).write_text(model_card(store, record), "utf-8")
    return sorted({*names, CARD})


def clean_rows(store: Store, hours: float) -> list[Cleaned]:
    """Remove what killed processes left behind; one row per kind: what was removed, what that freed, what was kept."""
    return clean(store, hours * 3600)


def print_cleaned(console: Console, rows: list[Cleaned]) -> None:
    for row in rows:
        kept = f"; kept {row.kept:,} ({row.kept_bytes:,} bytes) that may be in use" if row.kept else ""
        console.print(f"{row.what}: {row.removed:,} removed{kept}", highlight=False, markup=False)
    console.print(f"{sum(row.freed_bytes for row in rows):,} bytes freed", highlight=False)
