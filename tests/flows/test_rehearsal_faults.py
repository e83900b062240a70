"""The faults with which no published recipe could finish, put back one by one: a rehearsal finds each.

A fault is put back into a copy of the sources, and the command runs from that copy, so that every process of it has the fault.
Next to each stands the same command on the sources as they are. Oracle: how the recipes failed before (issue 10).
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "tests" / "samples" / "hub"
PACKAGES = ("flows", "infra", "model", "tasks", "recipes")


@dataclass(frozen=True)
class Fault:
    """What was wrong, as edits of the sources, and what a rehearsal then says."""

    edits: tuple[tuple[str, str, str], ...]
    """(file, what stands there, what stood there before)"""
    arguments: tuple[str, ...]
    code: int
    said: tuple[str, ...]


NO_LIMITS = (
    "flows/config/sizes/limits.py",
    '    """Raise ValueError for the first thing that cannot fit."""\n',
    '    """Raise ValueError for the first thing that cannot fit."""\n    return\n',
)
FIRST_ROWS_COLUMNS = (
    "tasks/data/sources/intake.py",
    '        text = row.get("text")\n        if not isinstance(text, str):\n',
    '        self._columns = getattr(self, "_columns", set(row))\n'
    "        if not set(row) <= self._columns:\n"
    '            self.reject("unreadable", "another column", b"", **place, broke=True)\n'
    "            self._room = 0\n"
    "            return\n"
    '        text = row.get("text")\n        if not isinstance(text, str):\n',
)
CANDIDATES_AS_THEY_COME = (
    "flows/phases/leakage.py",
    "    if isinstance(origin, SynthesizeConfig):\n        return documents\n",
    "    return documents\n",
)
NO_FILL = ("flows/config/recipe_config.py", "            fill=sweep.web,\n", "")
NO_MESSAGE_LISTS = (
    "tasks/data/post_training/pairs.py",
    "        messages, reason = clean_messages(side)\n",
    '        messages, reason = [], "not a text"\n',
)
SHORT_CONTEXT = ("--set", "evaluation.base={tables: [], benchmarks: [{kind: ifeval, context: 2048}]}")

FAULTS = {
    "an answer as long as its context, refused before anything runs": Fault(
        (), (*SHORT_CONTEXT, "--until", "evaluate:base"), 2,
        ("evaluation.base.benchmarks.ifeval.max_new_tokens=2,048 leaves no room for a prompt in a context of 2,048",),
    ),
    "an answer as long as its context, without that check": Fault(
        (NO_LIMITS,), (*SHORT_CONTEXT, "--until", "evaluate:base"), 1,
        ("stage evaluate:base failed: ValueError", "max_new_tokens=256 leaves no room for a prompt in a context of 256"),
    ),
    "a file lost to a later row's columns": Fault(
        (FIRST_ROWS_COLUMNS,), ("--until", "collect:math"), 1,
        ("stage collect:math failed", "rows are unusable ({'unreadable': 2})", "v0_main_train", "tinyGSM-MIND"),
    ),
    "candidates that are not decontaminated": Fault(
        (CANDIDATES_AS_THEY_COME,), ("--until", "collect:math"), 2,
        ("text reaches a training without decontamination", "collect:math is read by anneal:try-math"),
    ),
    "a sweep that cannot be mixed": Fault(
        (NO_FILL,), ("--until", "synthesize:arithmetic"), 2, ("source 'gsm8k_students' needs", "max_repetition_ratio"),
    ),
    "released pairs that cannot be read": Fault(
        (NO_MESSAGE_LISTS,), ("--until", "pairs"), 1, ("stage pairs failed", "chosen: not a text"),
    ),
}  # fmt: skip
SYNTHESIS = "a sweep that cannot be mixed"


def rehearse(recipe: str, sources: Path, store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(sources), "COLUMNS": "200"}
    environment.pop("OLMO2_STORE", None)
    command = [sys.executable, "-m", "flows.cli", "rehearse", recipe, "--rows", str(SAMPLES), "--store", str(store)]
    return subprocess.run(
        [*command, *arguments],
        env=environment,
        cwd=store.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def copied(folder: Path, edits: tuple[tuple[str, str, str], ...]) -> Path:
    """The sources with the edits; each must find what it replaces exactly once."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, now, before in edits:
        text = (folder / name).read_text()
        assert text.count(now) == 1, f"{name} has no longer what the fault is put back in place of; follow it"
        (folder / name).write_text(text.replace(now, before))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_rehearsal_finds_the_fault(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    recipe = "olmo2-7b-synthesis" if name == SYNTHESIS else "olmo2-7b"
    sources = copied(tmp_path / "sources", fault.edits)
    done = rehearse(recipe, sources, tmp_path / "store", *fault.arguments)
    output = done.stdout + done.stderr
    assert done.returncode == fault.code, output[-3000:]
    for said in fault.said:
        assert said in " ".join(output.split()), output[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "until", "made"),
    [
        ("olmo2-7b", "collect:math", "48 documents"),
        ("olmo2-7b", "pairs", "48 pairs"),
        ("olmo2-7b-synthesis", "synthesize:arithmetic", "6 documents"),
    ],
)
def test_without_a_fault_the_same_stages_are_made(recipe: str, until: str, made: str, tmp_path: Path) -> None:
    done = rehearse(recipe, ROOT, tmp_path / "store", "--until", until)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(until))
    assert made in line
