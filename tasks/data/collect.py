"""Stage: raw sources to Dolma documents (RECIPE C.1, C.2).

One source per artifact: files (`local`), a `datasets` dataset (`hub`), a dump of Stack Exchange (`stackexchange`) or the
installed Python (`python`).
Rows that cannot be used, documents whose id came before among them, are counted and kept in `bad/*.jsonl.zst` with
file and line; above the source's share of them the stage fails. A stage's identity is a hash of its config, so
`pinned` first writes into the config what will be read: package versions, file hashes, or a commit.
"""

from typing import Annotated, TypedDict

from pydantic import Field

from infra.stage import stage
from infra.workspace import ShardResult, Workspace
from tasks.artifacts import Documents, ReadCounts
from tasks.data.documents.dolma_files import add_counts
from tasks.data.sources.hub import HubSource
from tasks.data.sources.local import LocalSource
from tasks.data.sources.pieces import listed_bytes
from tasks.data.sources.python import PythonSource
from tasks.data.sources.repeated import REPEATED, set_repeated_ids_aside
from tasks.data.sources.stackexchange import (
    StackExchangeSource,
)

AnySource = LocalSource | HubSource | StackExchangeSource | PythonSource
Source = Annotated[AnySource, Field(discriminator="kind")]


def collect_documents(ws: Workspace, config: AnySource) -> Documents:
    """Read one pinned source into document shards.

    Raises ValueError if it holds no document, or if more than `max_bad_fraction` of its rows or `max_bad_file_fraction` of
    its files are unusable. Raises ValueError with the name of a file that changes, or that breaks where the number of its
    rows is unknown.
    """
    function, items = config.reading()
    # An item carries its own files; with the list of all in each, the work would grow with its square.
    own = config if isinstance(config, PythonSource) else config.model_copy(update={"files": ()})
    plain = own.model_dump(mode="json")
    work = [{**item, "config": plain} for item in items]
    # Sizes of the files make the bar follow bytes, since files of a source differ by orders of magnitude.
    results = ws.map(function, work, description=f"collect {config.name}", sizes=listed_bytes(items))
    # Ids are compared over all shards, which no shard can do by itself.
    results += set_repeated_ids_aside(ws, results)
    documents = sum(result["documents"] for result in results)
    bad = add_counts(results, "bad")
    # Three examples tell the kind of fault; more would only lengthen the error.
    examples = [example for result in results for example in result["examples"]][:3]
    files = file_counts(results)
    facts = facts_of(results)
    # Tested before the shares: with no row at all every share is 0 and nothing would fail.
    if documents == 0 and not bad:
        raise ValueError(_empty(config.name, list(files), facts["passed_over"]))
    _check(config.name, documents, bad, config.max_bad_fraction, examples)
    _check_files(config.name, files, config.max_bad_file_fraction)
    ws.write_json("collect.json", {**reading(files, documents, bad), **facts, "examples": examples})
    return ws.artifact(
        Documents,
        documents=documents,
        bytes=sum(result["bytes"] for result in results),
        sources={config.name: documents},
        dropped=bad,
    )


def file_counts(results: list[ShardResult]) -> dict[str, tuple[int, int, bool]]:
    """Rows kept and unusable of each file, and whether a part of it broke, over the items that read parts of it."""
    found: dict[str, tuple[int, int, bool]] = {}
    for result in results:
        for url, (kept, unusable, broke) in result["files"].items():
            before = found.get(url, (0, 0, False))
            # A file cut into parts comes back several times, so its counts are added.
            found[url] = (before[0] + kept, before[1] + unusable, before[2] or bool(broke))
    return found


def bad_files(files: dict[str, tuple[int, int, bool]]) -> list[str]:
    """Files of which a part broke, or of whose rows none is usable."""
    # A file of bad rows only is broken as a whole, whatever the share of rows says.
    return [url for url, (kept, unusable, broke) in files.items() if broke or (unusable and not kept)]


class RepairedCounts(TypedDict):
    """Repaired rows, and records that are no documents by their kind."""

    repaired: int
    passed_over: dict[str, int]


def reading(files: dict[str, tuple[int, int, bool]], documents: int, bad: dict[str, int]) -> ReadCounts:
    """The counts of all files."""
    # A repeated id is a usable row that stands elsewhere, so it counts as read.
    unusable = sum(count for reason, count in bad.items() if reason != REPEATED)
    listed = documents + sum(bad.values())
    bad_ones = bad_files(files)
    return {
        "files": len(files),
        "bad_files": len(bad_ones),
        "rows": listed,
        "read": listed - unusable,
        "documents": documents,
        "bad": bad,
        "first_bad_files": bad_ones[:10],
    }


def facts_of(results: list[ShardResult]) -> RepairedCounts:
    """The counts of all items."""
    return {
        "repaired": sum(result["repaired"] for result in results),
        "passed_over": add_counts(results, "passed_over"),
    }


def _check_files(name: str, files: dict[str, tuple[int, int, bool]], allowed: float) -> None:
    bad = bad_files(files)
    # A share of files next to that of rows: one broken file among many small ones hides in the rows.
    if len(bad) > allowed * len(files):
        shown = ", ".join(bad[:3]) + (f" and {len(bad) - 3:,} more" if len(bad) > 3 else "")
        raise ValueError(
            f"source {name!r}: {len(bad):,} of {len(files):,} files are unusable in part or whole, more than "
            f"max_bad_file_fraction={allowed}: {shown}. Repair them, leave them out with `exclude`, or raise "
            "max_bad_file_fraction"
        )


def _empty(name: str, files: list[str], passed_over: dict[str, int]) -> str:
    """The message on a source without any row."""
    others = f" but records that are no documents ({passed_over})" if passed_over else ""
    shown = ", ".join(files[:3]) or "none"
    return f"source {name!r} is empty: its files ({shown}) hold no rows{others}; check its paths and filters"


def _check(name: str, documents: int, bad: dict[str, int], allowed: float, examples: list[str]) -> None:
    rows = documents + sum(bad.values())
    if sum(bad.values()) > allowed * rows:
        raise ValueError(
            f"source {name!r}: {sum(bad.values()):,} of {rows:,} rows are unusable ({bad}), more than "
            f"max_bad_fraction={allowed}; the first: {'; '.join(examples)}. Repair them or raise max_bad_fraction"
            # Repeated ids have a way out of their own, which is told only where it helps.
            + (", or set id_field to '' to name documents after file and position" if REPEATED in bad else "")
        )
    if documents == 0:
        raise ValueError(f"source {name!r} holds no usable document: {bad}; the first: {'; '.join(examples)}")


collect = stage(collect_documents, name="collect", version=6)
