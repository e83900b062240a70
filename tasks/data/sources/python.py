"""The embedded offline source: real text that every Python installation carries.

`docs` are the docstrings of modules, classes and functions of the standard library and of named packages, the
topics of pydoc's help, and the long descriptions of the packages; `code` are the `.py` files themselves. With `assets`, `docs`
also hold pieces of the scripts, style sheets and drawings that packages ship for their web pages: what extraction leaves in web
text and filters have to find.
Files are parsed, never imported. Each document names its package, version, file, object and licence.

The same versions give the same bytes. Files are put in the order of a hash of their names and dealt to a fixed number of
shards, and each shard stops at its share of the byte budget. So the versions are part of the config, filled in by `pinned`.
"""

import ast
import gc
import hashlib
import importlib.metadata
import inspect
import platform
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NotRequired, Self, TypedDict

from pydantic import Field

from infra import python_ast
from infra.workspace import ShardItem, Workspace
from tasks.data.sources.intake import Intake, IntakeCounts, Reading, SourceConfig

STANDARD_LIBRARY = "python"
STANDARD_LIBRARY_LICENSE = "PSF-2.0"

_PACKAGES = (
    *(
        "SQLAlchemy",
        "aiohttp",
        "botocore",
        "datasets",
        "fonttools",
        "fsspec",
        "huggingface_hub",
        "jinja2",
        "matplotlib",
    ),
    *(
        "mpmath",
        "networkx",
        "numpy",
        "pandas",
        "pillow",
        "prefect",
        "pyarrow",
        "pydantic",
        "ray",
        "rich",
        "sympy",
        "torch",
    ),
)
"""Packages that the project's own dependencies always bring, rich in docstrings."""

MIN_DOCSTRING_SHARE = 0.1
"""Files with a smaller share of text in triple quotes are not parsed: a third of the time for a twentieth of
the docstrings (measured on the packages above)."""

ASSETS = (".js", ".css", ".svg")
"""Endings of what pages ship next to their text."""
ASSET_CHARACTERS = 2_000
"""Characters of a document that is cut from an asset."""

Unit = tuple[str, str, str]
"""(package, kind, name): kind `file` or `asset` with a path relative to the package's root, `topic`, or `description`.
"""


class PythonSource(SourceConfig):
    """Docstrings and help texts, or source files, of the Python installation that runs the stage."""

    kind: Literal["python"] = "python"
    content: Literal["docs", "code"] = "docs"
    """Docstrings, topics and descriptions, or whole `.py` files."""
    packages: tuple[str, ...] = _PACKAGES
    """Installed distributions to read besides the standard library."""
    exclude_folders: tuple[str, ...] = (
        *("test", "tests", "testing", "_vendor", "thirdparty_files", "idlelib", "lib2to3", "site-packages"),
        *("_examples", "__pycache__"),
    )
    """Folders that are left out wherever they occur: tests, and copies of other packages."""
    max_bytes: int = Field(default=16_000_000, gt=0)
    """UTF-8 bytes of text to collect at most."""
    assets: float = Field(default=0.0, ge=0, lt=1)
    """Share of these bytes, of `docs` only, that are pieces of scripts, style sheets and drawings instead of prose."""
    shard_bytes: int = Field(default=2_000_000, gt=0)
    """Text per document file, bytes: one unit of parallel work."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Exact version of `python` and of each package; `pinned` fills them in from the installation, so that
    the identity covers them."""

    def pinned(self) -> Self:
        """The config with the installed versions. Raises ValueError for a package that is not installed."""
        found = installed_versions(self.packages)
        if self.versions and self.versions != found:
            changed = [
                f"{name}: recipe {self.versions.get(name, 'none')}, installed {found.get(name, 'none')}"
                for name in sorted(self.versions.keys() | found.keys())
                if self.versions.get(name) != found.get(name)
            ]
            raise ValueError(
                f"source {self.name!r} pins other versions than are installed ({'; '.join(changed)}); "
                "install those or remove `versions`"
            )
        return self.model_copy(update={"versions": found})

    def reading(self) -> Reading:
        """The function that reads a part of the source, and the parts."""
        return collect_python, python_items(self)


def installed_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python and of packages, by name. Raises ValueError if one is missing."""
    versions = {STANDARD_LIBRARY: platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise ValueError(f"package {name!r} is not installed; install it or take it out of `packages`") from error
    return dict(sorted(versions.items()))


def python_items(config: PythonSource) -> list[ShardItem]:
    """One item per shard: its number, its byte budget, and the units it reads, in order.

    Raises ValueError if the config is not pinned or the installation is another one.
    """
    if not config.versions:
        raise ValueError(
            f"source {config.name!r} has no `versions`; call its method `pinned`, so that "
            "the artifact's identity covers what is read"
        )
    config.pinned()
    shards = max(1, -(-config.max_bytes // config.shard_bytes))
    # Order by hash mixes packages, so each shard holds some of all; hashes do not depend on the file system.
    units = sorted(list_units(config), key=lambda unit: hashlib.sha256("\0".join(unit).encode()).digest())
    return [
        # Dealt by stride, so that shards differ by one unit at most.
        {"item": index, "budget": config.max_bytes // shards, "units": units[index::shards]}
        for index in range(shards)
    ]


def list_units(config: PythonSource) -> Iterator[Unit]:
    """Everything there is to read."""
    excluded = set(config.exclude_folders)
    root = _root(STANDARD_LIBRARY)
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if not excluded.intersection(relative.parts) and "pydoc_data" not in relative.parts:
            yield STANDARD_LIBRARY, "file", relative.as_posix()
    for package in config.packages:
        for name in _installed_files(package):
            # Scripts and data outside the package's folder have paths that climb out of it.
            if name.endswith(".py") and not excluded.intersection(parts := name.split("/")) and ".." not in parts:
                yield package, "file", name
        if config.content == "docs":
            yield package, "description", package
        if config.content == "docs" and config.assets:
            for name in _installed_files(package):
                if name.endswith(ASSETS) and not excluded.intersection(parts := name.split("/")) and ".." not in parts:
                    yield package, "asset", name
    if config.content == "docs":
        yield from ((STANDARD_LIBRARY, "topic", name) for name in _topics())


def collect_python(ws: Workspace, item: ShardItem) -> IntakeCounts:
    """Shard function: read the item's units until its budgets are used up, that of assets and that of all else."""
    config = PythonSource.model_validate(item["config"])
    intake = Intake(ws, item["item"], config)
    licenses = {name: license_of(name) for name in config.versions}
    assets = int(item["budget"] * config.assets)
    room = {True: assets, False: item["budget"] - assets}
    for package, kind, name in item["units"]:
        is_asset = kind == "asset"
        # Two budgets: assets must not use up the room of prose, nor the reverse.
        if room[is_asset] <= 0:
            continue
        origin = {"package": package, "version": config.versions[package], "license": licenses[package]}
        try:
            rows = list(unit_rows(config.content, package, kind, name))
        except (SyntaxError, ValueError, RecursionError) as error:
            # Templates and files for other interpreters do not parse; they count as unusable rows.
            intake.reject(
                "not_python", f"{type(error).__name__}: {error}", b"", file=f"{package}/{name}", line_number=1
            )
            continue
        for id, text, facts in rows:
            room[is_asset] -= len(text.encode(errors="replace"))
            # The row that exceeds the budget is left out, and with it the rest of its unit.
            if room[is_asset] < 0:
                break
            intake.accept(
                {"id": id, "text": text, "metadata": {**origin, **facts}},
                file=f"{package}/{name}",
                line_number=facts.get("line", 1),
                fallback_id=id,
            )
    return intake.finish()


class UnitFacts(TypedDict):
    """The metadata of a unit's documents."""

    object: str
    """topic, description, asset, file, or what a docstring is of."""
    name: NotRequired[str]
    file: NotRequired[str]
    line: NotRequired[int]


def unit_rows(content: str, package: str, kind: str, name: str) -> Iterator[tuple[str, str, UnitFacts]]:
    """(id, text, metadata) of one unit. Raises SyntaxError or ValueError for a file that does not parse or
    decode."""
    if kind == "topic":
        yield f"{package}:topic:{name}", _topics()[name].strip(), {"object": "topic", "name": name}
    elif kind == "description":
        text = (importlib.metadata.metadata(package).get_payload() or "").strip()  # type: ignore[attr-defined]
        if text:
            yield f"{package}:description", text, {"object": "description", "name": package}
    elif kind == "asset":
        text = (_root(package) / name).read_text(encoding="utf-8", errors="replace")
        for start in range(0, len(text), ASSET_CHARACTERS):
            piece = text[start : start + ASSET_CHARACTERS]
            yield f"{package}:{name}:{start}", piece, {"object": "asset", "name": name, "file": name, "line": 1}
    else:
        data = (_root(package) / name).read_bytes()
        if content == "code":
            encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
            yield f"{package}:{name}", data.decode(encoding), {"object": "file", "file": name}
        elif quoted_share(data) >= MIN_DOCSTRING_SHARE:
            for qualified, kind_of_object, line, text in docstrings(data):
                facts: UnitFacts = {"object": kind_of_object, "name": qualified, "file": name, "line": line}
                yield f"{package}:{name}:{line}:{qualified}", text, facts


def quoted_share(source: bytes) -> float:
    """Share of a file's bytes that stand between triple quotes of the more frequent kind."""
    # Whichever quote a file uses more; the odd pieces of a split lie inside.
    inside = max(sum(map(len, source.split(quote)[1::2])) for quote in (b'"""', b"'''"))
    return inside / max(1, len(source))


def docstrings(source: bytes) -> Iterator[tuple[str, str, int, str]]:
    """(qualified name, module | class | function, line, text) of every docstring, outer before inner, in file
    order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        # A tree is a million small objects that live and die together: the collector would walk them again and again.
        gc.disable()
        try:
            tree = python_ast.parse(source)
        finally:
            gc.enable()
    stack: list[tuple[str, Any]] = [("", tree)]
    while stack:
        name, node = stack.pop()
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            text = inspect.cleandoc(first.value.value).strip()
            kind = {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")
            if text:
                yield name, kind, first.lineno, text
        children = [
            child for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
        # Reversed, since the stack gives back the last one first.
        stack += [(f"{name}.{child.name}".lstrip("."), child) for child in reversed(children)]


def license_of(package: str) -> str:
    """The licence that a package declares: its SPDX expression, else its classifiers, else the first line of
    `License`."""
    if package == STANDARD_LIBRARY:
        return STANDARD_LIBRARY_LICENSE
    metadata = importlib.metadata.metadata(package)
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    classifiers = [
        entry.split(" :: ")[-1] for entry in metadata.get_all("Classifier", []) if entry.startswith("License ::")
    ]
    if classifiers:
        return "; ".join(classifiers)
    text = metadata["License"] if "License" in metadata else ""  # noqa: SIM401
    return next((line.strip() for line in text.splitlines() if line.strip()), "not declared")[:120]


def _installed_files(package: str) -> Iterator[str]:
    """Paths of a package's files relative to its root, from its installation record (lines of path, hash and
    size)."""
    record = importlib.metadata.distribution(package).read_text("RECORD")
    if record is None:
        raise ValueError(
            f"package {package!r} was installed without a RECORD of its files; install it as a wheel or take it out of `packages`"
        )
    for line in record.splitlines():
        yield line.rsplit(",", 2)[0]


@cache
def _root(package: str) -> Path:
    """The folder that a package's file names are relative to."""
    if package == STANDARD_LIBRARY:
        return Path(sysconfig.get_paths()["stdlib"])
    return Path(str(importlib.metadata.distribution(package).locate_file("")))


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return topics
