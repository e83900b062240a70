"""Documents from files, local or in an object store: Dolma JSON lines, Parquet, plain text, HTML and web archives
(RECIPE C.1).

Work is cut into items by bytes: a long uncompressed JSON-lines file by byte ranges (a line belongs to the
range in which it begins), Parquet by row groups, a compressed file as one stream, short files several to an
item. Every file is read as a stream; what is in memory at once is one document, and that is bounded. A file that cannot
be read to its end gives what came before and one bad row; a medium that fails (SourceFailureError) fails the stage.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from infra.workspace import Workspace
from tasks.data.sources.intake import Intake, SourceConfig
from tasks.data.sources.lines import read_lines
from tasks.data.sources.listing import SourceFile, find_files
from tasks.data.sources.pages import read_archive, read_page
from tasks.data.sources.tables import read_table, row_groups
from tasks.data.sources.texts import read_text

LINE_SUFFIXES = (".jsonl", ".json", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
PAGE_SUFFIXES = (".html", ".htm", ".xhtml")
ARCHIVE_SUFFIXES = (".warc", ".wet")
COMPRESSIONS = ("", ".gz", ".zst", ".bz2")
SUFFIXES = (
    *(
        suffix + compression
        for suffix in (*LINE_SUFFIXES, *TEXT_SUFFIXES, *PAGE_SUFFIXES)
        for compression in COMPRESSIONS
    ),
    *(suffix + compression for suffix in ARCHIVE_SUFFIXES for compression in ("", ".gz", ".zst")),
    ".parquet",
)

EXPECTED_EXPANSION = 4
"""Text bytes per compressed byte, only to put short files together into items of about `shard_bytes`."""

Piece = dict[str, Any]


class LocalSource(SourceConfig):
    """Files of JSON lines, plain text or HTML (`.gz`, `.zst` and `.bz2` too), Parquet, or WARC and WET archives."""

    kind: Literal["local"] = "local"
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, folders, globs (`**` for any folders) or URLs of them."""
    text_field: str = "text"
    """Field or column that holds the text."""
    id_field: str = "id"
    """Field or column that holds the id; documents without one are named after file and position, and all are if
    this is empty."""
    text_separator: str = ""
    """What separates the documents of a plain-text file; empty: each file is one document."""
    files: tuple[SourceFile, ...] = ()
    """The files that `paths` stand for, pinned by content; `resolve` fills them in, so that the identity
    covers them."""


def resolve_local(config: LocalSource) -> LocalSource:
    """The config with its files listed and fingerprinted. Raises ValueError if one is missing, none is found
    or one is of no known kind."""
    files = find_files(config.paths, SUFFIXES)
    for file in files:
        _format(file.name)
    return config.model_copy(update={"files": files})


def _format(name: str) -> str:
    lower = name.lower()
    bare = next((lower[: -len(end)] for end in COMPRESSIONS[1:] if lower.endswith(end)), lower)
    kinds = {"lines": LINE_SUFFIXES, "text": TEXT_SUFFIXES, "page": PAGE_SUFFIXES, "archive": ARCHIVE_SUFFIXES}
    for kind, suffixes in kinds.items():
        if bare.endswith(suffixes) and lower.endswith(SUFFIXES):
            return kind
    if lower.endswith(".parquet"):
        return "parquet"
    raise ValueError(f"{name}: no known document format; files must end in one of {', '.join(SUFFIXES)}")


def local_items(config: LocalSource) -> list[dict[str, Any]]:
    """Items of about `shard_bytes` each. Raises ValueError if the config was not resolved."""
    if not config.files:
        raise ValueError(
            f"source {config.name!r} has no `files`; call tasks.data.collect.resolve on it, so that the "
            "artifact's identity covers what is read"
        )
    items: list[list[Piece]] = []
    room = 0
    for index, file in enumerate(config.files):
        for weight, piece in _pieces(file, config.shard_bytes):
            if not items or weight > room:
                items.append([])
                room = config.shard_bytes
            items[-1].append({"file": index, **piece})
            room -= weight
    return [{"item": number, "pieces": pieces} for number, pieces in enumerate(items)]


def _pieces(file: SourceFile, shard_bytes: int) -> Iterator[tuple[int, Piece]]:
    """(text bytes expected, piece) of one file."""
    form = _format(file.name)
    if form == "parquet":
        for group, size in row_groups(file):
            yield size, {"group": group}
    elif form == "lines" and file.name.lower().endswith(LINE_SUFFIXES) and file.size > shard_bytes:
        for start in range(0, file.size, shard_bytes):
            end = min(file.size, start + shard_bytes)
            yield end - start, {"start": start, "end": end}
    else:
        compressed = file.name.lower().endswith(COMPRESSIONS[1:])
        yield file.size * (EXPECTED_EXPANSION if compressed else 1), {}


def collect_local(ws: Workspace, item: dict[str, Any]) -> dict[str, Any]:
    """Shard function: read the item's pieces."""
    config = LocalSource.model_validate(item["config"])
    intake = Intake(ws, item["item"], config)
    fields = (config.text_field, config.id_field)
    named = Counter(file.name for file in config.files)
    for piece in item["pieces"]:
        file = config.files[piece["file"]]
        form = _format(file.name)
        # Files of several folders may share a name; documents are named after it.
        name = file.name if named[file.name] == 1 else f"{piece['file']}/{file.name}"
        if form == "parquet":
            read_table(intake, file, name, piece["group"], fields)
        elif form == "text":
            read_text(intake, file, name, config.text_separator)
        elif form == "page":
            read_page(intake, file, name)
        elif form == "archive":
            read_archive(intake, file, name)
        else:
            read_lines(intake, file, name, piece.get("start", 0), piece.get("end"), fields)
    return intake.finish()
