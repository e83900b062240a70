"""The map of the house: which files lie where, and that the import rules name all of them."""

import ast
import graphlib
import re
import tomllib
from pathlib import Path

import pytest

from flows.config.stage_names import FOLDERS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("flows", "tasks", "model", "infra")
LOCAL_IMPORTS = {"flows.running.run": {"infra.execution.prefect_engine"}}
"""Imports of our own inside a function that save seconds where nothing is run; the command line may have them everywhere."""
FOREIGN_PRIVATE = {"os", "torch", "part", "storage", "untyped_storage", "fs"}
"""Names through which private parts of other packages are reached, since those offer no public way."""
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def stage_files() -> list[Path]:
    """Every file that lies directly in a folder of stages."""
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder.replace(".", "/")).glob("*.py"))
        if path.name != "__init__.py"
    ]


def stages_in(path: Path) -> list[str]:
    """Names that a module binds to `stage(...)` at its top level."""
    found = []
    for node in ast.parse(path.read_text()).body:
        call = node.value if isinstance(node, ast.Assign) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "stage":
            assert isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            found.append(node.targets[0].id)
    return found


@pytest.mark.parametrize("path", stage_files(), ids=lambda path: path.stem)
def test_a_file_directly_in_a_stage_folder_defines_one_stage(path: Path):
    assert len(stages_in(path)) == 1, (
        f"{path.relative_to(ROOT)} defines {stages_in(path)}; what is no stage lies deeper"
    )


def test_no_stage_imports_another():
    """import-linter's list of independent modules is that of the stage files, whatever is added."""
    (contract,) = [contract for contract in CONTRACTS if contract["type"] == "independence"]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in stage_files()}
    missing, gone = modules - set(contract["modules"]), set(contract["modules"]) - modules
    assert not missing, f"add to pyproject.toml, [tool.importlinter]: {sorted(missing)}"
    assert not gone, f"remove from pyproject.toml, [tool.importlinter]: {sorted(gone)}"


@pytest.mark.parametrize("package", ["flows", "infra", "model", "tasks"])
def test_no_folder_grows_beyond_what_one_can_see(package: str):
    for folder in [ROOT / package, *(path for path in (ROOT / package).rglob("*") if path.is_dir())]:
        if folder.name.startswith("__"):
            continue
        rooms = [
            path for path in folder.iterdir() if path.suffix == ".py" or (path.is_dir() and path.name[0] not in "_.")
        ]
        rooms = [path for path in rooms if path.name != "__init__.py"]  # as benchmarks/house.py counts
        assert len(rooms) <= 16, f"{folder.relative_to(ROOT)} has {len(rooms)} files and folders"


def modules() -> dict[str, Path]:
    """All modules of the product, by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(tree: ast.AST, known: dict[str, Path]) -> set[str]:
    """Our own modules that a syntax tree imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & known.keys() or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known.keys()


def test_no_module_leads_back_to_itself():
    """Counted are all imports, those for type checkers and those in functions too."""
    known = modules()
    graph = {name: imports_of(ast.parse(path.read_text()), known) - {name} for name, path in known.items()}
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()  # raises CycleError, which names the circle


def test_own_modules_are_imported_at_the_top():
    known, wrong = modules(), []
    for name, path in known.items():
        if name.startswith("flows.cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inside = imports_of(node, known) - LOCAL_IMPORTS.get(name, set())
                wrong += [f"{name}, {node.name}: {module}" for module in sorted(inside)]
    assert not wrong, f"import these at the top of the module: {wrong}"


def private_names(tree: ast.Module) -> set[str]:
    """Private names that a module defines itself: its functions, classes, attributes and fields."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            found.add(node.attr)
    return {name for name in found if name.startswith("_")}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in ("_replace", "_asdict", "_fields")


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_private_is_read_in_its_own_module_only(package: str):
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text())
        own = private_names(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
                through = ast.unparse(node.value)
                if not FOREIGN_PRIVATE & set(re.findall(r"\w+", through)):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {through}.{node.attr}")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
                names = [alias.name for alias in node.names if is_private(alias.name)]
                wrong += [f"{path.relative_to(ROOT)}:{node.lineno} {name}" for name in names]
    assert not wrong, f"make these public where they are defined, or ask what is public: {wrong}"


WIDEST = 8
"""Parameters of the widest function. Those of commands are the options that a person may give, and do not count."""


def test_no_function_grows_wider():
    wide = []
    for name, path in modules().items():
        if name.startswith("flows.cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                count = sum(argument.arg not in ("self", "cls") for argument in arguments)
                wide += [f"{name}.{node.name} has {count}"] if count > WIDEST else []
    assert not wide, f"put what belongs together into one value: {wide}"


def test_a_public_name_is_defined_once():
    """What only its module uses is private. The few that are left are what every family of benchmarks or every flow has."""
    places: dict[str, set[str]] = {}
    for name, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            names += [node.name] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else []
            for public in names:
                if not public.startswith("_") and len(public) > 1:
                    places.setdefault(public, set()).add(name)
    several = {public: sorted(found) for public, found in places.items() if len(found) > 1}
    assert len(several) <= 30, f"rename these to what each is, or make them private: {several}"


@pytest.mark.parametrize("package", PACKAGES)
def test_comments_say_why(package: str):
    """At least one line in 25 has a comment, as benchmarks/house.py counts: the reason where a reader must stop and think."""
    found = [line.strip() for path in (ROOT / package).rglob("*.py") for line in path.read_text().splitlines()]
    lines = [line for line in found if line]
    share = sum(line.startswith("#") or "  # " in line for line in lines) / len(lines)
    assert share >= 0.04, f"{share:.2%} of the lines of {package} have a comment; say why at the lines that need it"


UNTYPED = {"dict[str, Any]": 8, "JsonObject": 90}
"""Most lines with each, as benchmarks/house.py counts. Before the house plan 296 had the first, for known keys too."""


@pytest.mark.parametrize("name", UNTYPED)
def test_untyped_dictionaries_stay_few(name: str):
    """Known keys have a TypedDict, a dataclass or a pydantic model; only an open JSON object is a `JsonObject`."""
    lines = [
        f"{path.relative_to(ROOT)}:{number}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if name in line and "import" not in line
    ]
    assert len(lines) <= UNTYPED[name], f"{len(lines)} lines have {name}: {lines}"
