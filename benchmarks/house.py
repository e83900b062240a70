"""How the house stands: counts of the map of the code, for comparing two commits (docs/architecture.md has both columns).

Run: `python benchmarks/house.py [FOLDER]`; an older commit is looked at as a folder that `git archive COMMIT | tar x -C FOLDER`
made. Counted from the syntax trees of flows, tasks, model and infra. With `--trace` the smoke recipe is run until pre-training
in a copy whose engine, process and objective note their stacks, and the frames of ours between command and loss are counted.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("flows", "tasks", "model", "infra")
CITATION = re.compile(r"\bRECIPE ((?:[A-K]|0)(?:\.\d+)?(?:, (?:[A-K]\.\d+|[A-K](?![\w.])))*)")
FACTS = "docs/recipe/index.md"
Function = ast.FunctionDef | ast.AsyncFunctionDef
STOPS = {
    "def language_model_objective": "def objective(",
    "def run_in_process(": "def run_in_process(",
    "class Stage(": "def __call__(",
    "class PrefectEngine:": "def stage(",
    "def submit(stage": "def submit(",
}
"""Where stacks are noted: the file that holds the first text, at the first line after it that begins with the second. The
last two were below the call of a stage in older commits."""


def modules(root: Path) -> dict[str, tuple[Path, ast.Module]]:
    """Every module of the product by dotted name, parsed."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = (path, ast.parse(path.read_text()))
    return found


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """Our modules that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & known or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


def cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that all lead to each other."""

    def reached(start: str) -> set[str]:
        seen, left = set(), [start]
        while left:
            for module in graph[left.pop()] - seen:
                seen.add(module)
                left.append(module)
        return seen

    reach = {module: reached(module) for module in graph}
    groups = {frozenset(m for m in reach[name] if name in reach[m]) for name in graph if name in reach[name]}
    return [set(group) for group in groups]


def fullest_folder(root: Path) -> tuple[int, str]:
    """Most files and folders that one folder of the product has."""
    rooms: Counter[str] = Counter()
    for package in PACKAGES:
        for folder in [root / package, *(path for path in (root / package).rglob("*") if path.is_dir())]:
            if not folder.name.startswith("__"):
                found = (p for p in folder.iterdir() if p.suffix == ".py" or (p.is_dir() and p.name[0] not in "_."))
                rooms[str(folder.relative_to(root))] = sum(1 for path in found if path.name != "__init__.py")
    ((folder, count),) = rooms.most_common(1)
    return count, folder


def widest(known: dict[str, tuple[Path, ast.Module]]) -> tuple[int, str]:
    """Most parameters of one function. Those of a command are the options that a person may give, and do not count."""
    found = []
    for name, (_, tree) in known.items():
        if name.startswith("flows.cli"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, Function):
                arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                found.append((sum(a.arg not in ("self", "cls") for a in arguments), f"{name}.{node.name}"))
    return max(found)


def public_names(known: dict[str, tuple[Path, ast.Module]]) -> dict[str, list[str]]:
    """Public functions, classes and constants at the top of a module that another module defines too."""
    places: dict[str, list[str]] = {}
    for module, (_, tree) in known.items():
        for node in tree.body:
            names = [node.name] if isinstance(node, Function | ast.ClassDef) else []
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                if not name.startswith("_"):
                    places.setdefault(name, []).append(module)
    return {name: found for name, found in places.items() if len(set(found)) > 1 and len(name) > 1}


def citations(root: Path) -> tuple[int, int]:
    """Citations of the facts page in the code, and how many of them name a section that it has."""
    page = root / FACTS
    text = page.read_text() if page.exists() else ""
    headings = re.findall(r"^#{2,3} (0|[A-K](?:\.\d+)?)\.? ", text, flags=re.MULTILINE)
    sections = {*headings, *(f"0.{number}" for number in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE))}
    cited = [
        name for path in sources(root) for match in CITATION.finditer(path.read_text()) for name in match[1].split(", ")
    ]
    return len(cited), sum(name in sections for name in cited)


def sources(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((root / package).rglob("*.py"))


def comment_share(root: Path) -> float:
    """Lines of a comment, among all lines that are not blank."""
    lines = [line.strip() for path in sources(root) for line in path.read_text().splitlines() if line.strip()]
    return sum(line.startswith("#") or "  # " in line for line in lines) / len(lines)


def counts(root: Path) -> dict[str, str]:
    """Every count, with where the largest is."""
    known = modules(root)
    graph = {name: imports(tree, set(known)) - {name} for name, (_, tree) in known.items()}
    rooms, folder = fullest_folder(root)
    parameters, function = widest(known)
    cited, resolved = citations(root)
    lines = [line for path in sources(root) for line in path.read_text().splitlines()]
    anys = sum("dict[str, Any]" in line for line in lines)
    # Imports name no value, so they are not counted.
    opened = sum("JsonObject" in line and "import" not in line for line in lines)
    return {
        "modules": f"{len(known)}",
        "file cycles": f"{len(cycles(graph))}",
        "most rooms in a folder": f"{rooms} ({folder})",
        "parameters of the widest function": f"{parameters} ({function})",
        "public names in more than one module": f"{len(public_names(known))}",
        "lines with dict[str, Any]": f"{anys}",
        "lines with JsonObject, its name": f"{opened}",
        "citations that resolve": f"{resolved} of {cited}",
        "comment lines": f"{comment_share(root):.1%}",
    }


def note_stacks(copy: Path) -> None:
    """Let the functions of `STOPS` write their stacks to the file that STACKS names."""
    line = "__import__('pathlib').Path(__import__('os').environ['STACKS']).open('a').write(__import__('json').dumps(\n"
    line += "{pad}[f'{{f.filename}}:{{f.name}}' for f in __import__('traceback').extract_stack()]) + chr(10))\n"
    for path in sources(copy):
        text = path.read_text()
        for place, begin in STOPS.items():
            if place not in text:
                continue
            lines = text[: text.index(place)].count("\n")
            tree = ast.parse(text)
            found = [
                n for n in ast.walk(tree) if isinstance(n, Function) and n.lineno > lines and begin[4:-1] == n.name
            ]
            if not found:
                continue  # another class of that name
            node = min(found, key=lambda node: node.lineno)
            pad = " " * node.body[0].col_offset
            at = node.body[0].lineno - 1
            rows = text.split("\n")
            rows[at:at] = [pad + part for part in line.format(pad="    ").rstrip("\n").split("\n")]
            text = "\n".join(rows)
        path.write_text(text)


def calls_to_loss(root: Path) -> list[str]:
    """Our frames from the command's function to the objective of pre-training, in the order they are entered.

    Stages run in threads and processes, so the way has pieces: command to engine, engine to process, process to loss.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy, stacks = Path(folder) / "copy", Path(folder) / "stacks"
        for name in (*PACKAGES, "recipes"):
            shutil.copytree(root / name, copy / name)
        shutil.copy(root / "prefect.yaml", copy)
        note_stacks(copy)
        command = [
            sys.executable,
            "-m",
            "flows.cli",
            "run",
            "smoke",
            "--until",
            "pretrain",
            "--store",
            f"{folder}/store",
        ]
        environment = os.environ | {"STACKS": str(stacks), "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        # The store is new, so every stage runs; what calls stages after pre-training is left out by its file.
        subprocess.run([*command, "--set", "execution.ray=off"], cwd=copy, env=environment, check=True, stdout=2)
        pieces: dict[str, list[str]] = {}
        for row in stacks.read_text().splitlines():
            ours = [frame for frame in json.loads(row) if frame.startswith(str(copy))]
            ours = [frame.removeprefix(f"{copy}/") for frame in ours if ":<module>" not in frame]
            if any("flows/phases/" in frame and "/pretraining.py" not in frame for frame in ours):
                continue
            pieces[ours[-1].split(":")[-1]] = [frame for frame in ours if not frame.endswith((":main", ":_main"))]
        # A piece that another one goes on from is part of it.
        whole = [
            piece
            for piece in pieces.values()
            if not any(piece == o[: len(piece)] for o in pieces.values() if o is not piece)
        ]
        return [frame for piece in whole for frame in piece]


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--trace"]
    root = Path(words[0] if words else Path(__file__).parents[1]).resolve()
    for name, value in counts(root).items():
        print(f"{name:40} {value}")
    if "--trace" in sys.argv:
        frames = calls_to_loss(root)
        print(f"{'calls from the command to the loss':40} {len(frames)}", *frames, sep="\n  ")


if __name__ == "__main__":
    main()
