"""`--json` of every command: the tree of commands is walked, and standard output is one JSON value or nothing.

Oracle: json.loads of what was written, on one finished run; and the option in the command's own list.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flows.cli.main import app
from flows.inspection.artifacts import list_rows
from infra.storage.store import Store


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below one, with the words that name it."""
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, inner in command.commands.items():
        yield from commands(inner, (*words, name))


ALL = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_has_the_option_and_says_nothing_else_of_bad_input(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert any("--json" in option.opts for option in ALL[words].params), words
    if words in (("dashboard",), ("serve",)):
        return  # they take no input that could be bad; what they say when they answer is tested below
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    given = ["no-such-thing" for option in ALL[words].params if option.param_type_name == "argument"]
    done = CliRunner().invoke(app, [*words, *given, "--json"])
    if done.exit_code != 0:
        assert done.stdout == ""
    else:
        json.loads(done.stdout)


EXAMPLES = (
    "plan smoke", "verify {sft}", "repair {sft}", "gc", "cp {sft} {folder}/other", "diff {sft} {dpo}", "accepted", "approvals",
    "tag {sft} best", "pin {sft}", "note {sft} hello", "search loss<100", "ls", "ls --save-points", "show {sft}", "clean",
    "export {sft} {folder}/out", "trace {pretrain} --step 1", "diagnose {pretrain} --out {folder}/figures", "data funnel smoke",
    "data look --dropped length --sample 1", "looks {sft}", "rescore {evaluate}", "compare {evaluate} {evaluate}",
    "nodes --check", "promote {rank} --recipe smoke --candidate arithmetic --out {folder}/mix.yaml",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(finished_smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("json") / "store"
    shutil.copytree(finished_smoke, store)
    return store


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_what_a_command_says_is_one_json_value(example: str, finished: Path, tmp_path: Path):
    ids = {row["stage"]: row["id"] for row in list_rows(Store(str(finished)), None)}
    words = example.format(folder=tmp_path, **ids).split()
    done = CliRunner().invoke(app, [*words, "--store", str(finished), "--json"])
    assert done.exit_code == 0, (done.stdout, done.stderr, done.exception)
    assert isinstance(json.loads(done.stdout), dict | list)
