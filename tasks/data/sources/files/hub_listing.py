"""Finds which files of a dataset are meant, from one listing per dataset and commit, kept in the local cache. The dataset's
README says which configurations and splits it has (`configs`); else `datasets`' rules for names of folders and files decide.

A listing of 30,000 files is thirty requests, asked once. Matching names is done here, in memory: `datasets` would ask the hub
again for each pattern and resolve each file.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import yaml

from infra.json_values import JsonObject
from infra.storage.scratch import locked
from infra.storage.store import Store, default_cache
from tasks.data.sources.files.hub_stream import hub_root, open_hub_file
from tasks.data.sources.files.listing import glob_expression

README = "README.md"


class Listing(NamedTuple):
    """The files of a dataset at a commit."""

    sizes: dict[str, int]
    """Bytes by path."""
    configs: list[JsonObject]
    """What the README says of the dataset's configurations."""


def list_hub(dataset: str, revision: str) -> Listing:
    """The listing at a commit, from the local cache where it was asked for before."""
    root = hub_root(dataset, revision)
    store = Store(str(default_cache(root)))
    # Several workers may ask at once; one asks the hub and the others read what it wrote.
    with locked(Path(store.url)):
        if store.exists("listing.json"):
            return Listing(**orjson.loads(store.read("listing.json")))
        listing = _ask(dataset, revision)
        store.write("listing.json", orjson.dumps(listing._asdict()))
        return listing


def _ask(dataset: str, revision: str) -> Listing:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    entries = HfApi().list_repo_tree(dataset, repo_type="dataset", revision=revision, recursive=True)
    sizes = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
    try:
        with open_hub_file(hub_root(dataset, revision), README, sizes.get(README, 0)) as stream:
            text = b"".join(iter(lambda: stream.read(1 << 20), b""))
    except EntryNotFoundError:
        # A dataset without a README has no configurations to name.
        return Listing(sizes, [])
    return Listing(sizes, configs_of(text.decode("utf-8", errors="replace")))


def list_folder(folder: str) -> Listing:
    """The listing of a local folder in a dataset's layout."""
    store = Store(folder)
    # Hidden files are no data: `.cache` of the hub's client would double a dataset.
    names = [name for name in store.walk("") if not any(part.startswith(".") for part in name.split("/"))]
    readme = store.read(README).decode("utf-8", errors="replace") if README in names else ""
    return Listing(dict.fromkeys(names, 0), configs_of(readme))


def configs_of(readme: str) -> list[JsonObject]:
    """`configs` of a README's YAML head. ValueError when the head cannot be read."""
    head = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", readme, re.DOTALL)
    if not head:
        return []
    try:
        # safe_load: a README is text of others.
        facts = yaml.safe_load(head[1])
    except yaml.YAMLError as error:
        raise ValueError(f"the head of the dataset's README.md is no YAML: {error}") from error
    configs = facts.get("configs") if isinstance(facts, dict) else None
    return [config for config in configs or [] if isinstance(config, dict) and "config_name" in config]


def choose_files(listing: Listing, subset: str, split: str, data_files: Sequence[str]) -> list[str]:
    """Paths of the files of a split, sorted within each pattern, each once.

    ValueError names the subsets or splits there are when the one asked for is not among them.
    """
    names = _data_names(listing)
    patterns = list(data_files) or _patterns(listing, names, subset, split)
    return list(dict.fromkeys(name for pattern in patterns for name in match(names, pattern)))


def match(names: Sequence[str], pattern: str) -> list[str]:
    """The names that a pattern of `datasets` stands for. Hidden files and folders such as `__pycache__` are no data."""
    expression = re.compile(glob_expression(pattern.removeprefix("./")))
    return [name for name in names if expression.fullmatch(name) and not re.search(r"(?:^|/)(?:\.|__)", name)]


def split_names(listing: Listing, subset: str) -> list[str]:
    """Names of a subset's splits, sorted. ValueError when there is no such subset, or it has no files."""
    return sorted(map(str, _splits(listing, _data_names(listing), subset)))


def _data_names(listing: Listing) -> list[str]:
    from datasets.data_files import FILES_TO_IGNORE

    return [name for name in sorted(listing.sizes) if name.rsplit("/", 1)[-1] not in FILES_TO_IGNORE]


def _patterns(listing: Listing, names: Sequence[str], subset: str, split: str) -> list[str]:
    """The patterns of a subset's split."""
    splits = _splits(listing, names, subset)
    if split not in splits:
        raise ValueError(f"the dataset has no split {split!r}; it has {', '.join(sorted(map(str, splits))) or 'none'}")
    return splits[split]


def _splits(listing: Listing, names: Sequence[str], subset: str) -> dict[str, list[str]]:
    """The patterns of each split of a subset."""
    from datasets.data_files import sanitize_patterns

    config = _config(listing.configs, subset)
    folder = str(config.get("data_dir") or "").strip("/")
    below = f"{folder}/" if folder else ""
    if config.get("data_files"):
        files = config["data_files"]
        if isinstance(files, list) and files and isinstance(files[0], dict):
            splits = {str(entry["split"]): _list(entry["path"]) for entry in files}
        else:
            # `datasets` knows files as a text, as a list and by split; its own function makes them one form.
            splits = sanitize_patterns(files)
    else:
        splits = _default_splits([name.removeprefix(below) for name in names if name.startswith(below)])
    return {split: [f"{below}{pattern}" for pattern in patterns] for split, patterns in splits.items()}


def _list(paths: Any) -> list[str]:
    return list(paths) if isinstance(paths, list) else [paths]


def _config(configs: list[JsonObject], subset: str) -> JsonObject:
    """The configuration that is asked for, or the default one; an empty one where the README names none."""
    known = {str(config["config_name"]): config for config in configs}
    if subset:
        if subset in known:
            return known[subset]
        if known:
            raise ValueError(f"the dataset has no subset {subset!r}; it has {', '.join(sorted(known))}")
        return {"data_dir": "" if subset == "default" else subset}
    # One that is marked as default goes before one that is called so.
    chosen = [config for config in configs if config.get("default")] or [
        known[name] for name in known if name == "default"
    ]
    if not chosen and len(known) > 1:
        raise ValueError(f"the dataset has several subsets; give one as `subset`: {', '.join(sorted(known))}")
    return next(iter(chosen or known.values()), {})


def _default_splits(names: Sequence[str]) -> dict[str, list[str]]:
    """Splits by the names of files and folders, by `datasets`' own rules. ValueError where there are no files."""
    from datasets.data_files import _get_data_files_patterns  # pyright: ignore[reportPrivateUsage]

    try:
        # The rules of `datasets` themselves, so that a folder means the same splits here and there.
        return _get_data_files_patterns(lambda pattern: match(names, pattern))
    except FileNotFoundError:
        raise ValueError("the dataset, or the folder of its subset, holds no files") from None
