"""Names of all stages, without importing them: their modules bring PyTorch, which takes seconds, and a list needs only names.

A file directly in a folder of stages defines one stage of the file's name; tests compare this with `flows/config/stages.py`.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

FOLDERS = (
    "tasks.data", "tasks.data.classifying", "tasks.data.synthesis", "tasks.data.post_training", "tasks.training",
    "tasks.evaluation",
)  # fmt: skip
"""Folders of stages: every file directly in one of them defines one stage (tests/test_layout.py)."""


@cache
def stage_names() -> frozenset[str]:
    """Every stage; all but the two that adopt a checkpoint may stand in a recipe."""
    names: set[str] = set()
    for folder in FOLDERS:
        spec = find_spec(folder)
        assert spec is not None and spec.submodule_search_locations is not None, folder
        for place in spec.submodule_search_locations:
            names |= {path.stem for path in Path(place).glob("*.py") if path.stem != "__init__"}
    return frozenset(names)
