"""What a file's ending says of it: its format and its compression, in any letter case (RECIPE C.1)."""

LINE_SUFFIXES = (".jsonl", ".json", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
PAGE_SUFFIXES = (".html", ".htm", ".xhtml")
ARCHIVE_SUFFIXES = (".warc", ".wet")
TABLE_SUFFIXES = (".parquet", ".arrow")
SEPARATED_SUFFIXES = (".csv", ".tsv")
COMPRESSIONS = (".gz", ".zst", ".zstd", ".xz", ".bz2")

STREAM_SUFFIXES = (*LINE_SUFFIXES, *TEXT_SUFFIXES, *PAGE_SUFFIXES, *ARCHIVE_SUFFIXES)
SUFFIXES = (*(suffix + packed for suffix in STREAM_SUFFIXES for packed in ("", *COMPRESSIONS)), *TABLE_SUFFIXES)
ROW_SUFFIXES = (
    *(suffix + packed for suffix in LINE_SUFFIXES for packed in ("", *COMPRESSIONS)),
    *TABLE_SUFFIXES,
    *SEPARATED_SUFFIXES,
)
"""Endings of files whose rows have columns."""

_FORMATS = {
    "lines": LINE_SUFFIXES,
    "text": TEXT_SUFFIXES,
    "page": PAGE_SUFFIXES,
    "archive": ARCHIVE_SUFFIXES,
    "parquet": (".parquet",),
    "arrow": (".arrow",),
}


def is_compressed(name: str) -> bool:
    """Whether the whole file is compressed; the pages of a Parquet file do not count."""
    return name.lower().endswith(COMPRESSIONS)


def format_of(name: str) -> str:
    """`lines`, `text`, `page`, `archive`, `parquet` or `arrow`. ValueError for an ending that no reader knows."""
    lower = name.lower()
    if lower.endswith(SUFFIXES):
        bare = next((lower[: -len(end)] for end in COMPRESSIONS if lower.endswith(end)), lower)
        return next(kind for kind, suffixes in _FORMATS.items() if bare.endswith(suffixes))
    raise ValueError(f"{name}: no known document format; files must end in one of {', '.join(SUFFIXES)}")
