"""Stores that are mistyped, given twice or not there: the command says so and exits with 2. Oracle: code, text, folders made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.dashboards import REPOSITORY


def olmo2(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    surroundings = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    surroundings.pop("OLMO2_STORE", None)
    command = [sys.executable, "-m", "flows.cli", *words]
    return subprocess.run(
        command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ls", "--store", "typo"), "there is no store"),
        (("show", "abcd", "--store", "typo"), "there is no store"),
        (("ls", "--store", "s3:/bucket/p"), "two slashes"),
        (("plan", "smoke", "--store", "gs:/bucket"), "two slashes"),
        (("ls", "--store", "a", "--store=b"), "--store is given 2 times"),
        (("run", "smoke", "--store", "new", "--until", "nosuch"), "no stage 'nosuch'"),
        (("rerun", "smoke", "nosuch", "--store", "new"), "no stage 'nosuch'"),
        (("run", "smoke", "--store", "new", "--set", "dpo.nosuch=1"), "there is no such field"),
    ],
)
def test_stores_that_are_none_are_refused(tmp_path: Path, words: tuple[str, ...], said: str):
    done = olmo2(tmp_path, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_empty_id_is_refused(tmp_path: Path):
    (tmp_path / "store").mkdir()
    done = olmo2(tmp_path, "show", "")
    assert done.returncode == 2
    assert "the id is empty" in done.stderr


def test_the_version_is_told(tmp_path: Path):
    done = olmo2(tmp_path, "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "olmo2")
