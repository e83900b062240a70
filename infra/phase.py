"""A phase of the recipe: several stages handed to the session's engine together.

The engine that runs makes it one Prefect flow; the engine that plans just calls the function.
"""

from collections.abc import Callable
from functools import partial, update_wrapper
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
        bound = partial(self.function, *args, **kwargs)
        return current_session().in_charge.phase(self.function.__name__, bound)()
