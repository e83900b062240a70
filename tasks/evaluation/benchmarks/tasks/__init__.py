"""The tasks of OLMES, one small file per family. A new family is one new file here: its `TASKS` are found by name."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from tasks.evaluation.benchmarks.task import Task


@cache
def all_tasks() -> Mapping[str, Task]:
    """Every task by its name. Raises ValueError when two files define one name."""
    found: dict[str, Task] = {}
    for module in sorted(info.name for info in iter_modules(__path__)):
        for task in import_module(f"{__name__}.{module}").TASKS:
            if task.name in found:
                raise ValueError(f"task {task.name!r} is defined twice, the second time in {module}.py; rename one")
            found[task.name] = task
    return found


def find_task(name: str) -> Task:
    """The task of this name. Raises ValueError naming the tasks there are."""
    tasks = all_tasks()
    if name not in tasks:
        raise ValueError(f"there is no task {name!r}; the tasks are {', '.join(sorted(tasks))}")
    return tasks[name]
