"""This module hashes the code behind a stage; `plan` compares the hashes to say that an artifact is stale.

A stage's fingerprint covers every definition (function, class, constant) that its function reaches, directly or not, in its
own module, `tasks` and `model`. Data files there that a string names (templates, word lists) are covered by their bytes, and
modules that a string names (`sandbox_child.py`) by their definitions. Of
`infra` only what gives payload files their bytes counts (`WRITERS`): the rest moves bytes and makes none. What other
packages do is not hashed; the record names their versions.

A definition is hashed as its syntax tree without comments, docstrings, formatting and annotations that nothing reads while it
runs (`syntax.py`), with local variables numbered. What a stage function itself is annotated with counts: it says which config
and which artifacts the stage takes, and their classes are reached through it. Names
of ours stand in it without their module, and two fingerprints are compared as sets of (name, hash). So a definition that
moves to another file is the same. One that is renamed is not.

    >>> a = fingerprint_of(train_dpo)  # {"tasks/training/dpo.py": {"train_dpo": "5f0c…", …}, "model/training/losses.py": {…}}
    >>> differences(recorded, a)
    ['model/training/losses.py: z_loss changed']
"""

import ast
import hashlib
import importlib.util
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import orjson

from infra import python_ast
from infra.execution.syntax import Definition, Scope, definitions, imported_names
from infra.execution.syntax import __file__ as syntax_file
from infra.storage.cache import cache_folder
from infra.workspace import Workspace

PACKAGES = ("tasks", "model")
WRITERS = ("Workspace.write", "Workspace.write_json", "Workspace.write_jsonl", "ZSTD_LEVEL")
"""Definitions of the workspace's module that give files their bytes."""
BODY = "(module)"
"""What a module does when it is imported, besides defining names."""

Fingerprint = dict[str, dict[str, str]]
"""File -> definition -> hash."""


@dataclass(frozen=True)
class Module:
    """One source file, parsed."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def file(self) -> str:
        """The path below the folder that all packages are in."""
        return "/".join(self.path.parts[-len(self.name.split(".")) - (self.path.name == "__init__.py") :])

    @cached_property
    def scope(self) -> Scope:
        """What its names mean."""
        return imported_names(self.tree.body, self.name, is_package=self.path.name == "__init__.py")

    @cached_property
    def definitions(self) -> dict[str, Definition]:
        return definitions(self.tree, BODY)


Stamp = tuple[int, int, int, int]
"""By what a file is known not to have changed: inode, size, times of its content and of its state, in ns."""
_modules: dict[str, tuple[Stamp, Module]] = {}
_hashes: dict[tuple[str, str, Stamp, bool], tuple[str, list[tuple[str, str]]]] = {}
# Stages run in threads of one process, and CPython 3.11 fails when two of them build syntax trees at once (gh-106905).
_making = threading.Lock()
_ours = {*PACKAGES, __name__.split(".")[0]}


def fingerprint_of(function: Callable[..., Any]) -> Fingerprint:
    """Hashes of all definitions that a stage function reaches. Raises ValueError if its source is not there.

    Kept in a file of the user's cache until one of the files that it was made of changes.
    """
    kept = _kept_file(function)
    try:
        known = orjson.loads(kept.read_bytes())
        # Times and sizes instead of hashes: reading every source again would cost more than the cache saves.
        if all(_stamp(Path(path)) == tuple(stamp) for path, stamp in known["files"]):
            return known["fingerprint"]
    except (FileNotFoundError, orjson.JSONDecodeError, KeyError):
        pass  # none yet, or half of one
    with _making:
        fingerprint, files = _made(function)
    body = {"fingerprint": fingerprint, "files": [[str(path), _stamp(path)] for path in files]}
    with suppress(OSError):  # without a cache it is made at each time
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed, so that no other process reads half a file.
        temporary = kept.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(orjson.dumps(body))
        temporary.replace(kept)
    return fingerprint


def _kept_file(function: Callable[..., Any]) -> Path:
    """Where a function's fingerprint is kept: by its place, and by this very code."""
    here = [_stamp(Path(file)) for file in (__file__, syntax_file)]
    key = f"{_root()} {function.__module__} {function.__name__} {here} {sys.version}"
    return cache_folder() / "fingerprints" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _stamp(path: Path) -> Stamp:
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _made(function: Callable[..., Any]) -> tuple[Fingerprint, list[Path]]:
    """A fingerprint, and the files and folders that it depends on."""
    package = function.__module__.split(".")[0]
    if package not in _ours:
        _ours.add(package)
        # What was no module of ours under the old set may be one now.
        _find.cache_clear()
    found: dict[tuple[str, str], str] = {}
    # Of each definition: whether its annotations are read, and those of all below it.
    read: dict[tuple[str, str], tuple[bool, bool]] = {}
    # A stage reads the annotations of its function, and of nothing below it.
    ways = [(function.__module__, function.__name__, (True, False))]
    ways += [("infra.workspace" if module is None else module, name, (False, False)) for module, name in _writers()]
    while ways:
        module, name, asked = ways.pop()
        place = _resolve(module, name, function.__module__)
        if place is None:
            continue
        known = read.get(place, (False, False))
        typed, below = known[0] or asked[0], known[1] or asked[1]
        # Visited again only where more of it is read than was known before, so the order of the ways changes nothing.
        if place in found and (typed, below) == known:
            continue
        read[place] = typed, below
        found[place], reached = _hashed(*place, typed=typed)
        below = below or _reads_types(*place)
        ways += [(target, named, (below, below)) for target, named in reached]
    shown: Fingerprint = {}
    for (module, name), value in sorted(found.items()):
        # An empty module stands for a data file, whose name is its path.
        file = name if module == "" else _module(module).file
        shown.setdefault(file, {})["(file)" if module == "" else name] = value
    files = {_module(module).path if module else _root() / name for module, name in found}
    return shown, sorted(files | {file.parent for (module, name) in found if not module for file in [_root() / name]})


def digest_of(fingerprint: Fingerprint) -> str:
    """One hash for a fingerprint, equal for equal code wherever it lies."""
    pairs = sorted(f"{name}\0{value}" for names in fingerprint.values() for name, value in names.items())
    return hashlib.sha256("\n".join(pairs).encode()).hexdigest()[:16]


def differences(before: Fingerprint, now: Fingerprint) -> list[str]:
    """What changed from one fingerprint to another, file by file: `model/training/losses.py: z_loss changed, f is new`."""
    # As pairs without their file, so that a definition that only moved differs in nothing.
    was, is_now = _pairs(before), _pairs(now)
    gone, new = was - is_now, is_now - was
    told: dict[str, list[str]] = {}
    named = {(file, name) for file, names in now.items() for name, value in names.items() if (name, value) in new}
    old = {(file, name) for file, names in before.items() for name, value in names.items() if (name, value) in gone}
    gone_names = {name for _, name in old}
    new_names = {name for _, name in named}
    for file, name in sorted(named):
        told.setdefault(file, []).append(f"{name} {'changed' if name in gone_names else 'is new'}")
    for file, name in sorted(old):
        if name not in new_names:
            told.setdefault(file, []).append(f"{name} is gone")
    return [f"{file}: {', '.join(names)}" for file, names in told.items()]


def _pairs(fingerprint: Fingerprint) -> Counter[tuple[str, str]]:
    return Counter(pair for names in fingerprint.values() for pair in names.items())


def _writers() -> Iterable[tuple[str, str]]:
    return [(Workspace.__module__, name) for name in WRITERS]


def _is_ours(module: str, own: str) -> bool:
    return module == own or module.split(".")[0] in PACKAGES


def _resolve(module: str, name: str, own: str) -> tuple[str, str] | None:
    """Where a name is defined, followed through re-exports; None for what does not count."""
    if module == "":
        return module, name
    if name in WRITERS and module == _writer_module():
        return module, name
    seen = set()
    # Two modules that import a name from each other would else be followed for ever.
    while (module, name) not in seen:
        seen.add((module, name))
        if not _is_ours(module, own) or _find(module) is None:
            return None
        there = _module(module)
        if name in there.definitions:
            return module, name
        target = there.scope.names.get(name)
        if target is None:
            return None
        module, name = target
    return None


@cache
def _writer_module() -> str:
    return next(iter(_writers()))[0]


def _reads_types(module: str, name: str) -> bool:
    return bool(module) and _module(module).definitions[name].reads_types


def _hashed(module: str, name: str, *, typed: bool) -> tuple[str, list[tuple[str, str]]]:
    """Hash of a definition, with its annotations where it is `typed`, and what it names that may be ours. Kept until its file
    changes.
    """
    if module == "":
        return hashlib.sha256(_root().joinpath(name).read_bytes()).hexdigest()[:12], []
    there = _module(module)
    key = (module, name, _modules[module][0], typed)
    if key not in _hashes:
        definition = there.definitions[name]
        text, reached = definition.normalised(there.scope, set(there.definitions), module, _find, typed=typed)
        ways = [(target or module, found) for target, found in reached]
        ways += [("", file) for file in _data_files(there, definition)]
        ways += [(program, "*") for program in _programs(there, definition)]
        ways += [(target, member) for target, found in ways if found == "*" for member in _all_of(target)]
        # What runs at import may change any definition of its module.
        if name != BODY and BODY in there.definitions:
            ways.append((module, BODY))
        _hashes[key] = hashlib.sha256(text.encode()).hexdigest()[:12], [way for way in ways if way[1] != "*"]
    return _hashes[key]


def _all_of(module: str) -> list[str]:
    """Every definition of a module that is handed on as a whole."""
    ours = module.split(".")[0] in PACKAGES and _find(module) is not None
    return list(_module(module).definitions) if ours else []


def _programs(module: Module, definition: Definition) -> list[str]:
    """Modules next to a module that a string of a definition names as files, to be run as processes of their own."""
    package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
    named = [text for text in definition.strings() if text.endswith(".py") and "/" not in text]
    return [f"{package}.{text.removesuffix('.py')}" for text in named if (module.path.parent / text).is_file()]


def _data_files(module: Module, definition: Definition) -> list[str]:
    """Files next to a module, not code, that a string of a definition names, or those of a folder that it names."""
    found = []
    for text in definition.strings():
        # A cheap sieve before the disk is asked: most strings of code name no file.
        if not 2 < len(text) < 100 or not text.isprintable() or text.startswith(("/", ".")) or " " in text:
            continue
        place = module.path.parent / text
        inside = sorted(place.iterdir()) if place.is_dir() else [place]
        found += [file for file in inside if file.is_file() and file.suffix not in ("", ".py", ".pyc")]
    return [file.relative_to(_root()).as_posix() for file in found if file.is_relative_to(_root())]


@cache
def _root() -> Path:
    """The folder that our packages are in."""
    return Path(__file__).resolve().parents[2]


@cache
def _find(module: str) -> Path | None:
    """The source file of a module; None if it is none of ours or no module. Others are not even looked for: that imports."""
    if module.split(".")[0] not in _ours:
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _module(name: str) -> Module:
    """A module, parsed again when its file's time or size has changed."""
    path = _find(name)
    if path is None:
        raise ValueError(f"the source of module {name} is not there, so whether its results are stale cannot be told")
    stamp = _stamp(path)
    if name not in _modules or _modules[name][0] != stamp:
        _modules[name] = stamp, Module(name, path, python_ast.parse(path.read_text(encoding="utf-8")))
    return _modules[name][1]
