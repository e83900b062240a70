"""`olmo2 sample`: the first rows of every data set that a recipe reads, in a folder that a rehearsal reads instead of the hub.

Files keep their names, compressions and columns. A data set costs one listing, its card, and the beginning of a few files.
They are the first of each of the first folders of what the recipe reads, because the files of one subset come from several
converters.
"""

import csv
import gzip
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from fsspec.utils import glob_translate
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.utils import build_hf_headers

from flows.config.recipe_config import RecipeConfig
from flows.rehearsing.local_rows import split_patterns
from tasks.evaluation.benchmarks.olmes.tasks import find_task

_ROWS = 100
"""Rows of each file."""
_FOLDERS = 16
"""Folders of a subset that give a file each."""
_CARD = "README.md"
SEPARATED = {".csv": "excel", ".tsv": "excel-tab"}
"""Dialects of tables of separated values, by their endings."""
LINES = re.compile(r"\.(jsonl?|ndjson)(\.(gz|zst|zstd))?$")


@dataclass(frozen=True)
class Wanted:
    """One thing that a recipe reads from the hub."""

    dataset: str
    subset: str
    split: str
    revision: str
    data_files: tuple[str, ...] = ()


def wanted(config: RecipeConfig) -> list[Wanted]:
    """What the recipe reads from the hub, each once, in the order of its stages."""
    # A dict keeps the first of equal things in its order, which a set does not.
    return list(dict.fromkeys(_wanted(config.model_dump(mode="json", exclude={"execution"}))))


def _wanted(value: Any) -> Iterator[Wanted]:
    if isinstance(value, list):
        for member in value:
            yield from _wanted(member)
    if not isinstance(value, dict):
        return
    if value.get("kind") == "hub" and not Path(value["path"]).expanduser().is_dir():
        yield Wanted(value["path"], value["subset"], value["split"], value["revision"], tuple(value["data_files"]))
    elif value.get("kind") == "olmes" and not value["path"]:
        task = find_task(value["task"])
        shots = task.shots if value["shots"] is None else value["shots"]
        splits = [task.split, *([task.shot_split] if task.shot_split and shots else [])]
        for _, dataset, subset in task.sources():
            for split in splits:
                yield Wanted(dataset, subset, split, value["revision"])
    elif value.get("dataset") and "paths" in value:
        yield Wanted(value["dataset"], value["subset"], value["split"], value["revision"])
    for member in value.values():
        yield from _wanted(member)


def sample(config: RecipeConfig, folder: Path, rows: int = _ROWS) -> dict[str, int]:
    """Write the samples; returns the rows of each file. What is there already is left as it is.

    Raises ValueError for a data set that has no file of a kind that is read, OSError when the hub does not answer.
    """
    written: dict[str, int] = {}
    listings: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for item in wanted(config):
        key = (item.dataset, item.revision)
        if key not in listings:
            # One listing for a data set and revision, however many parts of it the recipe reads.
            info = HfApi().dataset_info(item.dataset, revision=item.revision or None)
            # The commit too: all files of one sample come from the same state of the data set.
            listings[key] = (str(info.sha), sorted(file.rfilename for file in info.siblings or []))
        commit, names = listings[key]
        for name in first_files(item, folder, commit, names):
            target = folder / item.dataset / name
            if not target.exists():
                written[f"{item.dataset}/{name}"] = _copy(item.dataset, commit, name, target, rows)
    return written


def first_files(item: Wanted, folder: Path, commit: str, names: list[str]) -> list[str]:
    """The first file of each of the first folders that the recipe reads. Fetches the card. ValueError when there is none."""
    card = folder / item.dataset / _CARD
    if _CARD in names and not card.exists():
        card.parent.mkdir(parents=True, exist_ok=True)
        with _open(item.dataset, commit, _CARD) as stream:
            card.write_bytes(stream.read())
    patterns = item.data_files or split_patterns(card, item.subset, item.split)
    expressions = [re.compile(glob_translate(pattern)) for pattern in patterns]
    found = [name for name in names if any(expression.match(name) for expression in expressions) and _is_read(name)]
    if not found:
        raise ValueError(
            f"{item.dataset} has no file of JSON lines, Parquet, CSV or TSV for configuration "
            f"{item.subset or 'default'!r}, split {item.split!r} ({', '.join(patterns)})"
        )
    by_folder: dict[str, str] = {}
    for name in found:
        # The first of each folder, in the listing's sorted order.
        by_folder.setdefault(name.rpartition("/")[0], name)
    return list(by_folder.values())[:_FOLDERS]


def _is_read(name: str) -> bool:
    return name.endswith((".parquet", *SEPARATED)) or LINES.search(name) is not None


def _open(dataset: str, commit: str, name: str) -> IO[bytes]:
    url = hf_hub_url(dataset, name, repo_type="dataset", revision=commit)
    files, path = fsspec.url_to_fs(url, headers=build_hf_headers())
    return files.open(path, "rb")


def _copy(dataset: str, commit: str, name: str, target: Path, rows: int) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    with _open(dataset, commit, name) as stream:
        if name.endswith(".parquet"):
            return _copy_table(stream, target, rows)
        if name.endswith(tuple(SEPARATED)):
            return _copy_separated(stream, target, rows)
        lines = list(islice(_lines(stream, name), rows))
    target.write_bytes(_packed(b"".join(lines), name))
    return len(lines)


def _copy_table(stream: IO[bytes], target: Path, rows: int) -> int:
    source = pq.ParquetFile(stream)
    batch = next(source.iter_batches(batch_size=rows), None)
    # A schema is kept even where a file has no row.
    table = pa.Table.from_batches([] if batch is None else [batch], schema=source.schema_arrow)
    pq.write_table(table, target, compression="zstd")
    return table.num_rows


def _copy_separated(stream: IO[bytes], target: Path, rows: int) -> int:
    """The header and the first rows; a row may have several lines."""
    dialect = SEPARATED[target.suffix]
    read = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), dialect=dialect, strict=True)
    # One more for the header.
    found = list(islice(read, rows + 1))
    with target.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, dialect=dialect).writerows(found)
    return len(found) - 1


def _lines(stream: IO[bytes], name: str) -> Iterable[bytes]:
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=stream)
    if name.endswith((".zst", ".zstd")):
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(stream))  # type: ignore[arg-type]
    return stream


def _packed(data: bytes, name: str) -> bytes:
    if name.endswith(".gz"):
        # Without the time of now, equal rows give equal bytes.
        return gzip.compress(data, mtime=0)
    return zstandard.ZstdCompressor().compress(data) if name.endswith((".zst", ".zstd")) else data
