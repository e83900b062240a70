"""Imports that wait until what they name is used, for commands that only ask what a recipe says or wait for a cluster.

Stages name at their top what trains, decodes and fetches, and a plan uses none of it; PyTorch alone takes seconds to import.
Python 3.15 can start in a mode like this one (`-X lazy_imports`, PEP 810), and Mercurial's `demandimport` has been one for years.
The mode changes no source, so fingerprints and import rules see the imports as they are written.

    >>> defer_imports()
    >>> from tasks.training.dpo import dpo  # its imports of torch and of what needs torch bind stand-ins
    >>> dpo.version, "torch._C" in sys.modules
    (4, False)

The first use of a stand-in (a call, an attribute, a base class) ends the mode: from then on all imports are Python's own, and
what was already bound does what the thing itself would do. Only our own modules are given stand-ins. Another package that imports
something heavy, as S3's client imports aiohttp, uses it in ways that a stand-in cannot take (`except ClientSSLError`), so that
package is loaded then, for everybody, and the others go on waiting.
"""

import importlib
import inspect
import re
import sys
import threading
import types
from collections.abc import Sequence, Set
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_HEAVY = frozenset({"torch", "safetensors", "aiohttp", "phonenumbers"})
"""Packages that no plan needs and that take long to import, or import one that does (safetensors imports PyTorch)."""
_OUR_PACKAGES = ("flows", "tasks", "model", "infra")
"""Where stand-ins are put into. Of these the modules of `model` that need PyTorch wait; the others say what a recipe may be."""
_NEEDED_BY = {"torch": ("torch", "model")}
"""Packages whose modules wait for a heavy one, if they are others than itself."""
_TOP_IMPORT = re.compile(r"^(?:from|import) ([\w.]+)(?: import (?:\(([^)]*)\)|(.*)))?", re.MULTILINE)


class StandIn(type):
    """A class that stands for a name which is imported when it is first used.

    It is a class because annotations take one as it is: `Tensor | None`, `Float[Tensor, "batch time"]`.
    """

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
        if not bases:
            return super().__new__(cls, name, bases, namespace)
        # A class is made of a stand-in: it is made of the thing itself.
        real = tuple(resolved(base) if isinstance(base, StandIn) else base for base in bases)
        return types.new_class(name, real, exec_body=lambda made: made.update(namespace))

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]):
        super().__init__(name, bases, namespace)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return resolved(cls)(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        # Who inspects annotations asks for names such as `__parameters__`, and need not know.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(resolved(cls), name)

    def __getitem__(cls, item: Any) -> Any:
        return resolved(cls)[item]

    def __iter__(cls) -> Any:
        return iter(resolved(cls))

    def __contains__(cls, item: Any) -> bool:
        return item in resolved(cls)

    def __len__(cls) -> int:
        return len(resolved(cls))

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, resolved(cls))


def stand_in(module: str, name: str) -> StandIn:
    """What `from module import name` binds for now."""
    return StandIn(name, (), {"place": (module, name)})


def resolved(standing: StandIn) -> Any:
    """The thing that a stand-in stands for. The first call ends the mode."""
    import_deferred()
    return _named(standing)


def _named(standing: StandIn) -> Any:
    module, name = vars(standing)["place"]
    found = importlib.import_module(module)
    # `from package import name` names an attribute or a module of the package.
    return getattr(found, name) if hasattr(found, name) else importlib.import_module(f"{module}.{name}")


class _WaitingModule(ModuleType):
    """A module that was imported and is not loaded: its names are stand-ins."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        if not _is_asked_by_us():
            _load(self.__name__)
        if sys.modules.get(self.__name__) is not self:  # something was used since, and the module is the real one now
            return getattr(importlib.import_module(self.__name__), name)
        inner = f"{self.__name__}.{name}"
        # A module of the package is imported as one, by the same rules.
        if PathFinder.find_spec(inner, vars(self).get("__path__", [])):
            return importlib.import_module(inner)
        return stand_in(self.__name__, name)


class _WaitingLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _WaitingModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        _waiting.append(module.__name__)


class _Finder(MetaPathFinder):
    """Finds what waits before Python's own finders do."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not _waits(fullname) or fullname.partition(".")[0] in _loaded:
            return None
        if not _is_asked_by_us():
            _load(fullname)
            return None
        # Python's own path finder is asked directly, since ours would be asked again by `find_spec`.
        found = PathFinder.find_spec(fullname, path)
        if found is None:
            return None
        spec = ModuleSpec(fullname, _WaitingLoader(), origin=found.origin)
        spec.submodule_search_locations = found.submodule_search_locations
        return spec


_finder = _Finder()
_waiting: list[str] = []
_loaded: set[str] = set()
"""Packages that do not wait any more."""
# Reentrant: resolving one stand-in imports modules, whose own stand-ins may end the mode too.
_lock = threading.RLock()


def defer_imports() -> None:
    """From now on what is heavy waits for its first use; what has been imported stays."""
    # With torch already there, nothing would be saved.
    if _finder not in sys.meta_path and not _HEAVY & sys.modules.keys():
        sys.meta_path.insert(0, _finder)


def import_deferred() -> None:
    """Imports are Python's own again, and every module of ours gets what it named."""
    with _lock:
        if _finder in sys.meta_path:
            sys.meta_path.remove(_finder)
            _give(_HEAVY | {"model"})


def _load(module: str) -> None:
    """What another package than ours imports waits no longer, whoever else imported it."""
    root = module.partition(".")[0]
    with _lock:
        if _finder in sys.meta_path and root not in _loaded:
            _give(set(_NEEDED_BY.get(root, (root,))))


def _give(packages: Set[str]) -> None:
    """Load what waits of these packages, and put it where its stand-ins are."""
    _loaded.update(packages)
    for name in [waiting for waiting in _waiting if waiting.partition(".")[0] in packages]:
        _waiting.remove(name)
        # The waiting modules go first, so that each import below loads the real one.
        del sys.modules[name]
        package, _, own = name.rpartition(".")
        if package in sys.modules and isinstance(vars(sys.modules[package]).get(own), _WaitingModule):
            delattr(sys.modules[package], own)
    # A list, because imports in the loop add to `sys.modules`.
    for module in [found for name, found in sys.modules.items() if name.partition(".")[0] in _OUR_PACKAGES]:
        for name, value in list(vars(module).items()):
            if isinstance(value, StandIn) and vars(value)["place"][0].partition(".")[0] in packages:
                setattr(module, name, _named(value))
            elif isinstance(value, _WaitingModule) and value.__name__.partition(".")[0] in packages:
                setattr(module, name, importlib.import_module(value.__name__))


def _is_asked_by_us() -> bool:
    """Whether the code that imports something, or asks a module for a name, is ours (or the program itself)."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith((__name__, "importlib", "_frozen_")):
        frame = frame.f_back
    package = "" if frame is None else frame.f_globals.get("__name__", "").partition(".")[0]
    return package in (*_OUR_PACKAGES, "__main__")


@cache
def _waits(module: str) -> bool:
    """Whether a module is heavy, or one of the model's that imports such a one at its top."""
    root = module.partition(".")[0]
    return root in _HEAVY or (root == "model" and any(_waits(name) for name in _imports(module)))


def _imports(module: str) -> set[str]:
    """What a module of the model imports at its top; none of a package or of what is no module."""
    path = Path(__file__).resolve().parents[2].joinpath(*module.split(".")).with_suffix(".py")
    if not path.is_file():
        return set()
    found = set()
    # By a pattern and not by a syntax tree, which takes far longer to make.
    for source, in_brackets, in_line in _TOP_IMPORT.findall(path.read_text(encoding="utf-8")):
        names = (in_brackets or in_line).split(",")
        found |= {source, *(f"{source}.{name.split()[0]}" for name in names if name.strip())}
    return found - {module}
