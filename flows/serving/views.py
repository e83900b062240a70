"""What the pages of a store show, as plain values: lists, one artifact with its lineage, samples of its files, comparisons.

Everything comes from records and payload files; nothing is written. Ids and file names from an address are looked up, never
joined to a path unseen.
"""

import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

import orjson
import zstandard

from flows.inspection.artifacts import find_record
from flows.serving.pages import (
    ArtifactList,
    ArtifactPage,
    ComparedPage,
    Graph,
    GraphNode,
    LossCurve,
    RunEnd,
    Runs,
    Samples,
)
from infra.execution.compare import record_differences
from infra.execution.plan import flatten
from infra.records.index import Index
from infra.records.marks import notes, pins, tags
from infra.records.reader import Reader
from infra.records.record import Record, lineage, load_record
from infra.session import matches
from infra.storage.store import Store
from tasks.artifacts import METRICS, Scores
from tasks.evaluation.comparing.differences import Difference, compare_scores

PAGE_ROWS = 100
_SAMPLES = 20
"""Rows of a file on one page."""
LONGEST_LINE = 1 << 20
"""Bytes of a row that are read; a longer one is told as such."""
_SHOWN_CHARACTERS = 4_000
"""Of a value in a row."""
FARTHEST_ROW = 200_000
"""Rows that are passed over to reach a page: files have no index, so a far page costs reading what is before it."""
CURVE_POINTS = 300
MOST_NODES = 300
"""Artifacts drawn in a lineage."""
COLUMN, ROW, BOX = 190, 46, (160, 30)
"""Pixels of the lineage's grid, and of a box."""


class NotFound(ValueError):
    """There is nothing of this name."""


def listing(store: Store, stage: str, words: str, page: int) -> ArtifactList:
    """One page of the artifacts, newest first; `stage` is a stage, label or pattern, `words` is looked for in label and id."""
    rows = [
        row
        for row in reversed(Index(store).rows())
        if (not stage or matches(stage, row["stage"], row["label"]))
        and (not words or words.lower() in f"{row['label']} {row['id']} {row['kind']}".lower())
    ]
    # Rounded up, and one page even where there is nothing.
    pages = max(1, -(-len(rows) // PAGE_ROWS))
    # A page beyond the last shows the last.
    page = min(max(page, 1), pages)
    shown = rows[(page - 1) * PAGE_ROWS : page * PAGE_ROWS]
    return {"rows": shown, "count": len(rows), "page": page, "pages": pages, "stage": stage, "words": words}


def runs(store: Store) -> Runs:
    """Artifacts that nothing was made from, newest first: where each run has come to."""
    rows: list[RunEnd] = []
    used: set[str] = set()
    for summary, body in Index(store).bodies():
        rows.append({**summary, "recipe": body["config"].get("recipe", "")})
        used |= {item["address"] for item in body["inputs"]}
    # By address, since a generation may have been used while a later one was not.
    ends = [row for row in rows if f"{row['stage']}/{row['id']}/g{row['generation']:04d}" not in used]
    return {"ends": list(reversed(ends))[:PAGE_ROWS], "count": len(rows), "tags": list(tags(store).values())}


def record_named(store: Store, id: str, generation: int | None) -> Record:
    """The record of an id, its newest generation when none is given. Raises NotFound."""
    try:
        record = find_record(store, id)
    except ValueError as error:
        raise NotFound(str(error)) from error
    if generation is None or generation == record.generation:
        return record
    older = load_record(store, record.stage, record.id, generation)
    if older is None:
        raise NotFound(f"{record.stage}/{record.id} has no generation {generation}")
    return older


def artifact(store: Store, record: Record) -> ArtifactPage:
    """Everything about one artifact."""
    users = [
        summary
        for summary, body in Index(store).bodies()
        if any(item["address"] == record.address for item in body["inputs"])
    ]
    return {
        "record": record,
        "bytes": sum(entry.size for entry in record.files.values()),
        "facts": flatten(record.facts),
        "config": flatten(record.config),
        "cost": flatten(record.notes),
        "users": users,
        "graph": graph(store, record),
        "curve": _curve(store, record),
        "samples": [name for name in sorted(record.files) if is_rows(name)],
        "tags": sorted(name for name, mark in tags(store).items() if mark.address == record.address),
        "pinned": any(mark.address == record.address for mark in pins(store)),
        "said": notes(store, record),
    }


def is_rows(name: str) -> bool:
    """Whether a file is one of rows that can be looked at."""
    return name.endswith((".jsonl", ".jsonl.zst", ".json"))


# -- lineage ----------------------------------------------------------------------------------------------


def graph(store: Store, record: Record) -> Graph:
    """Boxes and lines of what an artifact was made from, inputs left of what uses them."""
    records = lineage(store, record)
    left_out = max(0, len(records) - MOST_NODES)
    # The oldest are left out: they are the farthest from what is looked at.
    records = records[left_out:]
    depth: dict[str, int] = {}
    # Inputs come first, so their depth is known.
    for item in records:
        above = [depth[parent.address] for parent in item.inputs if parent.address in depth]
        depth[item.address] = 1 + max(above, default=-1)
    rows: dict[int, int] = {}
    nodes: dict[str, GraphNode] = {}
    for item in records:
        column = depth[item.address]
        # Places of a column are given from the top in the order of the list.
        row = rows[column] = rows.get(column, -1) + 1
        place = (8 + column * COLUMN, 8 + row * ROW)
        nodes[item.address] = GraphNode(
            item.id, item.generation, item.label, item.stage, *place, item.address == record.address
        )
    lines = [
        (nodes[parent.address], nodes[item.address])
        for item in records
        for parent in item.inputs
        if parent.address in nodes
    ]
    width, height = 16 + max(rows, default=0) * COLUMN + BOX[0], 16 + max(rows.values(), default=0) * ROW + BOX[1]
    return {
        "nodes": list(nodes.values()),
        "lines": lines,
        "width": width,
        "height": height,
        "box": BOX,
        "left_out": left_out,
    }


# -- files ------------------------------------------------------------------------------------------------


def _curve(store: Store, record: Record) -> LossCurve | None:
    """The loss of a training as a line in a box of 600 x 160; None where none was logged."""
    if METRICS not in record.files:
        return None
    points = []
    for line in _lines_of(store, record, METRICS):
        row = orjson.loads(line) if line is not None else {}
        if isinstance(row.get("loss"), int | float) and isinstance(row.get("step"), int):
            points.append((row["step"], float(row["loss"])))
    # A NaN is not equal to itself.
    points = [point for point in points if point[1] == point[1]]
    if len(points) < 2:
        return None
    stride = max(1, len(points) // CURVE_POINTS)
    kept = [*points[::stride], points[-1]]
    low, high = min(value for _, value in kept), max(value for _, value in kept)
    first, last = kept[0][0], kept[-1][0]
    x = [600 * (step - first) / max(1, last - first) for step, _ in kept]
    # SVG counts downwards, so the highest loss is at the top.
    y = [155 - 150 * (value - low) / ((high - low) or 1) for _, value in kept]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return {"line": line, "low": low, "high": high, "first": first, "last": last, "end": kept[-1][1]}


def samples(store: Store, record: Record, name: str, page: int) -> Samples:
    """One page of the rows of a file of an artifact. Raises NotFound for a file that it does not have."""
    if name not in record.files or not is_rows(name):
        raise NotFound(f"{record.label} {record.id} has no file of rows {name[:200]!r}")
    start = min(max(page, 1) - 1, FARTHEST_ROW // _SAMPLES) * _SAMPLES
    # One row more than is shown, to know whether there is another page.
    lines = list(islice(_lines_of(store, record, name), start, start + _SAMPLES + 1))
    rows = [(start + place, shown_row(line)) for place, line in enumerate(lines[:_SAMPLES])]
    return {"record": record, "file": name, "rows": rows, "page": start // _SAMPLES + 1, "more": len(lines) > _SAMPLES}


def _lines_of(store: Store, record: Record, name: str) -> Iterator[bytes | None]:
    """Lines of a verified file; None for one that is too long. A `.json` file is one line."""
    path = Reader(store).path(record.artifact(), name)
    with path.open("rb") as raw:
        stream = zstandard.ZstdDecompressor().stream_reader(raw) if name.endswith(".zst") else raw
        buffered = io.BufferedReader(stream, 1 << 16)  # type: ignore[arg-type]
        if name.endswith(".json"):
            # One byte more than is shown tells a file that is too long from one that just fits.
            data = buffered.read(LONGEST_LINE + 1)
            yield data if len(data) <= LONGEST_LINE else None
            return
        while line := buffered.readline(LONGEST_LINE + 1):
            if len(line) <= LONGEST_LINE:
                yield line
                continue
            # The rest of a long line is passed over in pieces, so that it never stands in memory whole.
            while (rest := buffered.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield None


def shown_row(line: bytes | None) -> dict[str, str]:
    """A row's fields as text, each cut to what a page can hold."""
    if line is None:
        return {"": f"a row of more than {LONGEST_LINE:,} bytes"}
    value = orjson.loads(line)
    fields = value if isinstance(value, dict) else {"": value}
    return {name: _cut(item if isinstance(item, str) else _pretty(item)) for name, item in fields.items()}


def _pretty(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def comparison_page(store: Store, first: Record, second: Record) -> ComparedPage:
    """How two artifacts differ; two evaluations also item by item."""
    scores: list[Difference] = []
    if first.kind == second.kind == Scores.__name__:
        one, other = first.artifact(), second.artifact()
        assert isinstance(one, Scores) and isinstance(other, Scores)
        try:
            scores = compare_scores(Reader(store), one, other)
        except ValueError as error:
            raise NotFound(str(error)) from error
    return {"first": first, "second": second, "differences": record_differences(first, second), "scores": scores}
