"""Files of one split in a local copy of a hub data set, by the names that such copies have.

A copy is the repository as downloaded (`data/test-00000-of-00001.parquet`, `subset/test.jsonl`), what `save_to_disk` writes
(`subset/test/data-00000-of-00001.arrow`), or a folder with one file per split (`test.jsonl`) or per subset (`gpqa_main.csv`).
"""

from infra.storage.store import Store
from tasks.data.sources.files.listing import list_names
from tasks.data.sources.reading.formats import ROW_SUFFIXES as SUFFIXES

DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `save_to_disk` writes about the data."""
STOPS = (".", "-", "_", "/")
"""What may come after the name of a split."""


def split_files(root: str, subset: str, split: str) -> tuple[str, ...]:
    """Paths of the split's files. Raises ValueError naming what is there when it is not among it."""
    root = root.rstrip("/")
    if root.endswith(SUFFIXES):
        # A single file is the split, whatever it is called.
        return (root,)
    names = list_names(root, SUFFIXES)
    below = [name for name in names if subset and name.startswith(f"{subset}/")]
    # A copy of one subset alone has no folder of its name.
    found = [name for name in below or names if is_split(name.removeprefix(f"{subset}/"), split)]
    # A set with one split may be a file that has the subset's name.
    found = found or [name for name in names if subset and "/" not in name and name.startswith(f"{subset}.")]
    if not found:
        raise ValueError(
            f"{root} has no file of split {split!r}{f' of subset {subset!r}' if subset else ''}: expected names such "
            f"as {f'{subset}/' if subset else ''}{split}-00000-of-00001.parquet, {split}.jsonl or "
            f"{split}/data-00000-of-00001.arrow; "
            f"it has {', '.join(names[:8]) or 'no data files'}"
        )
    return tuple(f"{root}/{name}" for name in found)


def row_paths(root: str) -> tuple[str, ...]:
    """A copy of a set with a single split: its folder, or its files of rows where there are others, such as a card."""
    names = [name for name in list_names(root, SUFFIXES) if name.rsplit("/", 1)[-1] not in DESCRIPTIONS]
    # The folder alone where it suffices: the paths are a part of the evaluation's id.
    return (root,) if names == list_names(root, ("",)) else tuple(f"{root}/{name}" for name in names)


def is_split(name: str, split: str) -> bool:
    """Whether a file's path names the split, in its own name or in its folder's."""
    parts = name.split("/")
    own = parts[-1]
    if own in DESCRIPTIONS:
        return False
    # "test-00000" and "test.jsonl" are the split test; "testing.jsonl" is not.
    return split in parts[:-1] or any(own.startswith(f"{split}{stop}") for stop in STOPS)


def find_copy(folder: str, dataset: str, task: str) -> str:
    """The copy of a data set in a folder of copies: `owner/name`, `owner__name`, `name` or the task's name.

    Raises ValueError naming the places that were looked at.
    """
    folder = folder.rstrip("/")
    owner, _, name = dataset.rpartition("/")
    places = [f"{owner}/{name}", f"{owner}__{name}", name, task]
    # Such a task names a data set per group, so its owner's folder holds them all.
    if "{group}" in dataset:
        places = [f"{owner}", task]
    for place in places:
        if Store(folder).fs.isdir(Store(folder).full(place)):
            return f"{folder}/{place}"
    raise ValueError(f"no copy of {dataset} in {folder}: it has none of the folders {', '.join(places)}")
