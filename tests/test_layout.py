"""The map of the house: which files lie where, and that the import rules name all of them."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGE_FOLDERS = ("tasks/data", "tasks/evaluation", "tasks/training")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def stage_files() -> list[Path]:
    """Every file that lies directly in a folder of stages."""
    return [
        path for folder in STAGE_FOLDERS for path in sorted((ROOT / folder).glob("*.py")) if path.name != "__init__.py"
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
        assert len(rooms) <= 30, f"{folder.relative_to(ROOT)} has {len(rooms)} files and folders"
