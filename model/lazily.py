"""Imports that wait until what they name is used, as Python 3.15's `lazy from … import …` does (PEP 810).

Stages name what trains and decodes at their top, and a plan that only asks what a stage is never loads it: PyTorch alone
takes two seconds to import.

    >>> with lazily():
    ...     from model.training.loop import train
    >>> train(state, course, compute)  # imported here, at the first use

What is a base class, a decorator, an exception to catch or a type of a pydantic field is used at once; import it as usual.
"""

import builtins
import importlib
import sys
import threading
from types import TracebackType
from typing import Any, Union

_lock = threading.Lock()


def resolve(module: str, name: str) -> Any:
    """What `from module import name` binds, or the module itself without a name."""
    found = importlib.import_module(module)
    if not name:
        return found
    try:
        return getattr(found, name)
    except AttributeError:
        return importlib.import_module(f"{module}.{name}")


class Deferred:
    """Stands for a name that was imported lazily; it does what the thing itself would do."""

    __slots__ = ("_module", "_name", "_value")

    def __init__(self, module: str, name: str):
        self._module = module
        self._name = name

    def resolved(self) -> Any:
        """The thing itself."""
        try:
            return self._value
        except AttributeError:
            self._value = resolve(self._module, self._name)
            return self._value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.resolved()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_value":
            raise AttributeError(name)
        return getattr(self.resolved(), name)

    def __getitem__(self, item: Any) -> Any:
        return self.resolved()[item]

    def __iter__(self) -> Any:
        return iter(self.resolved())

    def __contains__(self, item: Any) -> bool:
        return item in self.resolved()

    def __len__(self) -> int:
        return len(self.resolved())

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007 - an annotation that is not resolved yet

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self.resolved())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self.resolved())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.resolved(),)

    def __reduce__(self) -> tuple[Any, ...]:
        return resolve, (self._module, self._name)

    def __repr__(self) -> str:
        return f"<{self._module}.{self._name}, imported at its first use>"


class _Names:
    """What an import statement in a `with lazily()` block takes its names from."""

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> Deferred:
        return Deferred(self._module, name)


class lazily:  # noqa: N801 - reads as the keyword that it stands for
    """The imports of the block bind names that are imported at their first use. Only for the top level of a module."""

    def __enter__(self) -> None:
        self._owner = sys._getframe(1).f_globals
        _lock.acquire()
        self._import = builtins.__import__
        builtins.__import__ = self._defer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        builtins.__import__ = self._import
        _lock.release()

    def _defer(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if globals is not self._owner:
            return self._import(name, globals, locals, fromlist, level)
        assert level == 0, "imports here are absolute"
        if fromlist:
            return _Names(name)
        assert "." not in name, "name what is used: from a.b import c"
        return Deferred(name, "")
