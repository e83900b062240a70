"""`olmo2 nodes` on a machine without a cluster. Oracle: what was cordoned, and a fault that the test has planted in matmuls."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from flows.cli.main import app
from tests.infra.faulty_devices import faulty_matmul

HOST = socket.gethostname()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def nodes(store: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["nodes", *arguments, "--store", str(store)], env={"COLUMNS": "300"})


def rows(store: Path, *arguments: str) -> list[dict[str, Any]]:
    done = nodes(store, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_this_machine_is_listed_checked_cordoned_and_given_back(store: Path):
    (before, *_) = rows(store)
    assert (before["node"], before["health"], before["cordon"]) == (HOST, [], None)
    assert before["resources"]["CPU"] >= 1
    (checked, *_) = rows(store, "--check")
    assert [row["passed"] for row in checked["health"]] == [True]
    (cordoned, *_) = rows(store, "--cordon", HOST, "--why", "the fan is loud")
    assert (cordoned["cordon"]["place"], cordoned["cordon"]["why"]) == (HOST, "the fan is loud")
    shown = nodes(store).output
    # By the width of the terminal the cell is folded, or cut at its beginning.
    assert "loud" in shown
    assert cordoned["cordon"]["who"] and cordoned["cordon"]["when"]
    assert "cpu passed" in shown
    assert rows(store, "--uncordon", HOST)[0]["cordon"] is None


def test_a_check_that_fails_cordons_and_ends_with_1(store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "matmul", faulty_matmul)
    done = nodes(store, "--check", "--json")
    assert done.exit_code == 1
    (row, *_) = json.loads(done.stdout)
    assert not row["health"][0]["passed"]
    assert "fp32 matmul" in row["cordon"]["why"]
    assert "cpu failed" in nodes(store).output


def test_a_check_that_passes_lifts_no_cordon(store: Path):
    rows(store, "--cordon", HOST, "--why", "the fan is loud")
    (row, *_) = rows(store, "--check")
    assert row["health"][0]["passed"]
    assert row["cordon"]["why"] == "the fan is loud"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cordon", "gpu7", "--why", "loud"], f"'gpu7' is no node here; there are: {HOST}"),
        (["--cordon", HOST], "give one, such as --why"),
        (["--uncordon", HOST], "has no cordon"),
        (["--why", "loud"], "give both"),
        (["--check", "--uncordon", HOST], "at a time"),
        (["--ray", "127.0.0.1:1"], "no Ray answers"),
        (["--ray", "nonsense"], "HOST:PORT"),
    ],
)
def test_what_cannot_be_done_is_refused(store: Path, arguments: list[str], said: str):
    done = nodes(store, *arguments)
    assert isinstance(done.exception, ValueError)
    assert said in str(done.exception)
    assert done.stdout == ""
