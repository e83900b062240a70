"""Samples in place of the hub: a folder OWNER/NAME per data set, with the card and the files that the data set has there.

The card's front matter says which files are which configuration and split, as the hub reads it; without one all files are.
"""

from pathlib import Path
from typing import Any

import yaml

from infra.json_values import JsonObject
from tasks.evaluation.benchmarks.olmes.tasks import find_task

ALL_FILES = "**/*"


def with_local_rows(value: Any, folder: Path) -> Any:
    """Raw recipe fields with every data set of the hub read from the folder. ValueError for one that it lacks."""
    if isinstance(value, list):
        return [with_local_rows(member, folder) for member in value]
    if not isinstance(value, dict):
        return value
    # From the leaves up, so that a mapping is looked at with its members replaced.
    found = {key: with_local_rows(member, folder) for key, member in value.items()}
    # A path that is a folder here is the recipe's own and stays.
    if found.get("kind") == "hub" and not Path(found["path"]).expanduser().is_dir():
        return found | {"path": str(sample_folder(folder, found["path"]))}
    if found.get("kind") == "olmes" and not found["path"]:
        dataset = find_task(found["task"]).dataset
        # A task of several data sets has them side by side.
        place = folder / dataset.partition("/")[0] if "{group}" in dataset else sample_folder(folder, dataset)
        return found | {"path": str(place.absolute())}
    if found.get("dataset") and "paths" in found:
        files = sample_files(folder, found["dataset"], found["subset"], found["split"])
        # What is read now are files, and files have one split.
        return found | {"dataset": "", "subset": "", "split": "train", "paths": [str(file) for file in files]}
    return found


def sample_folder(folder: Path, dataset: str) -> Path:
    """Where a data set's samples are. Raises ValueError when there are none."""
    found = folder / dataset
    if not found.is_dir():
        raise ValueError(
            f"{folder} has no samples of {dataset}; `olmo2 sample RECIPE {folder}` writes the first rows of all that a "
            "recipe reads"
        )
    return found.absolute()


def sample_files(folder: Path, dataset: str, subset: str, split: str) -> list[Path]:
    """The files of one configuration and split, in order. Raises ValueError when there are none."""
    root = sample_folder(folder, dataset)
    patterns = split_patterns(root / "README.md", subset, split)
    files = sorted(
        # The card itself matches `**/*` and is no data.
        {file for pattern in patterns for file in root.glob(pattern) if file.is_file()} - {root / "README.md"}
    )
    if not files:
        raise ValueError(f"{root} has no file of configuration {subset or 'default'!r}, split {split!r} ({patterns})")
    return files


def split_patterns(card: Path, subset: str, split: str) -> list[str]:
    """Globs of one configuration and split, as a card says them. Raises ValueError for one that it does not have."""
    configs = card_configs(card)
    if not configs:
        return [f"{subset}/{ALL_FILES}" if subset else ALL_FILES]
    names = [config["config_name"] for config in configs]
    # The hub's own order: what was asked, the marked default, `default`, the first.
    wanted = subset or next((item["config_name"] for item in configs if item.get("default")), "")
    wanted = wanted or ("default" if "default" in names else names[0])
    if wanted not in names:
        raise ValueError(f"{card} has no configuration {wanted!r}; it has {', '.join(names)}")
    data_files = configs[names.index(wanted)]["data_files"]
    if isinstance(data_files, str):
        return [data_files]
    found = [item["path"] for item in data_files if item["split"] == split]
    if not found:
        raise ValueError(
            f"{card} has no split {split!r} of {wanted!r}; it has {[item['split'] for item in data_files]}"
        )
    # A path may be one glob or a list of them.
    return [path for item in found for path in ([item] if isinstance(item, str) else item)]


def card_configs(card: Path) -> list[JsonObject]:
    """The configurations of a card's front matter; none without a card."""
    if not card.is_file():
        return []
    # Front matter stands between the first two lines of dashes.
    parts = card.read_text(encoding="utf-8").split("---\n", 2)
    front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    return (front or {}).get("configs", [])
