"""A phase of the recipe: several stages submitted together, as one Prefect flow.

Prefect is imported when a phase runs, not when it plans: a plan answers in the time that a person waits for it.
"""

from collections.abc import Callable
from functools import update_wrapper
from typing import Generic, ParamSpec, TypeVar

from infra.session import current_session

P = ParamSpec("P")
R = TypeVar("R")


class Phase(Generic[P, R]):
    """A Prefect flow when running, the plain function when planning.

    It waits for all the stages it calls, so that one failure does not stop its neighbours, and then returns their
    artifacts or raises the first error.
    """

    def __init__(self, function: Callable[P, R]):
        self.function = function
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if current_session().planning:
            return self.function(*args, **kwargs)
        from infra.execution.prefect_engine import run_as_flow

        return run_as_flow(self.function.__name__, lambda: self.function(*args, **kwargs))
