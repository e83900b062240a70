"""The tasks of OLMES, one small file per family: `choices`, `answers` and `reasoning`, by what a model has to do.

A new family is one new file and its name in `FAMILIES`. The list is written out, since code is compared with what made an
artifact by following imports (infra/execution/fingerprint.py).
"""

from collections.abc import Mapping
from functools import cache

from tasks.evaluation.benchmarks.olmes.task import Task
from tasks.evaluation.benchmarks.olmes.tasks.answers import (
    coqa,
    drop,
    jeopardy,
    lambada,
    naturalqs,
    popqa,
    squad,
    triviaqa,
)
from tasks.evaluation.benchmarks.olmes.tasks.choices import (
    agi_eval,
    arc,
    boolq,
    csqa,
    hellaswag,
    mmlu,
    mmlu_pro,
    openbookqa,
    piqa,
    socialiqa,
    truthfulqa,
    winogrande,
)
from tasks.evaluation.benchmarks.olmes.tasks.reasoning import bbh, deepmind_math, gpqa, gsm8k, humaneval, minerva_math

FAMILIES = (
    agi_eval,
    arc,
    boolq,
    csqa,
    hellaswag,
    mmlu,
    mmlu_pro,
    openbookqa,
    piqa,
    socialiqa,
    truthfulqa,
    winogrande,
    coqa,
    drop,
    jeopardy,
    lambada,
    naturalqs,
    popqa,
    squad,
    triviaqa,
    bbh,
    deepmind_math,
    gpqa,
    gsm8k,
    humaneval,
    minerva_math,
)


@cache
def all_tasks() -> Mapping[str, Task]:
    """Every task by its name. Raises ValueError when two files define one name."""
    found: dict[str, Task] = {}
    for family in FAMILIES:
        for task in family.TASKS:
            # Two families with one name would silently replace each other.
            if task.name in found:
                raise ValueError(
                    f"task {task.name!r} is defined twice, the second time in {family.__name__}; rename one"
                )
            found[task.name] = task
    return found


def find_task(name: str) -> Task:
    """The task of this name. Raises ValueError naming the tasks there are."""
    tasks = all_tasks()
    if name not in tasks:
        raise ValueError(f"there is no task {name!r}; the tasks are {', '.join(sorted(tasks))}")
    return tasks[name]
