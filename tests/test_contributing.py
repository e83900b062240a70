"""CONTRIBUTING.md's worked examples, applied to a copy of the repository and run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS: dict[str, str] = dict(re.findall(r"^## (Add .*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S))
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
COPIED = ("flows", "infra", "model", "tasks", "recipes", "tests", "pyproject.toml", "prefect.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("title", SECTIONS)
def test_a_worked_example_works(title: str, tmp_path: Path):
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    blocks = BLOCK.findall(SECTIONS[title])
    assert any(kind in ("sh", "python") and "title=" not in options for kind, options, _ in blocks), "nothing is run"
    for kind, options, body in blocks:
        named = re.search(r'(?:title|file)="([^"]+)"', options)
        if kind == "edit":
            assert named, options
            path = copy / named[1]
            path.write_text(edited(path.read_text(), body, named[1]))
        elif named:
            (copy / named[1]).write_text(body)
        elif kind == "sh":
            for command in body.splitlines():
                run(copy, [sys.executable, "-m", "flows.cli", *command.split()[1:]] if command.startswith("olmo2") else
                    [sys.executable, *command.split()[1:]])  # fmt: skip
        elif kind == "python":
            run(copy, [sys.executable, "-c", body])


def run(folder: Path, command: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def edited(text: str, edit: str, name: str) -> str:
    """Put each group of `+` lines after the lines before it, which must stand in the file just so; those with `-` go."""
    for context, added in re.findall(r"((?:^(?!\+).*\n)+)((?:^\+.*\n)+)", edit, flags=re.MULTILINE):
        lines = context.splitlines(keepends=True)
        old = "".join(line.removeprefix("- ") for line in lines)
        assert text.count(old) == 1, f"{name} has {text.count(old)} times:\n{old}"
        kept = "".join(line for line in lines if not line.startswith("- "))
        new = "".join(line.removeprefix("+ ") for line in added.splitlines(keepends=True))
        text = text.replace(old, kept + new)
    return text
