"""Files of one split in a local copy of a hub data set, by the names that such copies have.

A copy is the repository as downloaded (`data/test-00000-of-00001.parquet`, `subset/test.jsonl`), what `save_to_disk` writes
(`subset/test/data-00000-of-00001.arrow`), or a folder with one file per split (`test.jsonl`).
"""

from tasks.data.rows import SUFFIXES
from tasks.data.sources.listing import list_names

DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `save_to_disk` writes about the data."""
STOPS = (".", "-", "_", "/")
"""What may come after the name of a split."""


def split_files(root: str, subset: str, split: str) -> tuple[str, ...]:
    """Paths of the split's files. Raises ValueError naming what is there when it is not among it."""
    root = root.rstrip("/")
    if root.endswith(SUFFIXES):
        return (root,)
    names = list_names(root, SUFFIXES)
    below = [name for name in names if subset and name.startswith(f"{subset}/")]
    # A copy of one subset alone has no folder of its name.
    found = [name for name in below or names if is_split(name.removeprefix(f"{subset}/"), split)]
    if not found:
        raise ValueError(
            f"{root} has no file of split {split!r}{f' of subset {subset!r}' if subset else ''}: expected names such as "
            f"{f'{subset}/' if subset else ''}{split}-00000-of-00001.parquet, {split}.jsonl or {split}/data-00000-of-00001.arrow; "
            f"it has {', '.join(names[:8]) or 'no data files'}"
        )
    return tuple(f"{root}/{name}" for name in found)


def is_split(name: str, split: str) -> bool:
    """Whether a file's path names the split, in its own name or in its folder's."""
    parts = name.split("/")
    own = parts[-1]
    if own in DESCRIPTIONS:
        return False
    return split in parts[:-1] or any(own.startswith(f"{split}{stop}") for stop in STOPS)
