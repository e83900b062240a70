"""Stores that are mistyped, given twice or not there: the command says so and exits with 2. Oracle: code, text, folders made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import s3fs
from typer.testing import CliRunner

from flows.cli.main import app
from flows.cli.options import FOLDED
from flows.cli.plan import print_plan
from flows.config.errors import RecipeError
from flows.running.run import load_recipe
from flows.running.sessions import new_session
from infra.execution.plan import PlanRow, config_differences, shortened
from infra.records.record import all_records
from infra.storage.store import Store
from tests.flows.dashboards import REPOSITORY
from tests.flows.test_json_everywhere import ALL
from tests.flows.test_terminal import add_record


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


IDS = [
    ("show", ""), ("export", "", "out"), ("repair", ""), ("cp", "", "other"), ("diff", "", ""), ("gc", "--keep", ""),
    ("verify", ""), ("rescore", ""), ("compare", "", ""), ("eval", ""), ("trace", "", "--step", "1"), ("diagnose", ""),
    ("data", "funnel", ""), ("adopt", "", "--as", "base"), ("ls", "--stage", ""),
]  # fmt: skip
MAKING = ("run", "rerun", "rehearse", "plan", "eval", "adopt")
"""Commands that may begin a store."""
NEEDED = {
    ("trace",): ["--step", "1"],
    ("judge",): ["--url", "http://127.0.0.1:9/v1"],
    ("promote",): ["--recipe", "smoke", "--out", "mix.yaml"],
    ("data", "look"): ["--dropped", "length"],
}
"""What a command asks for besides its arguments."""
OF_A_STORE = [
    words
    for words, command in ALL.items()
    if any("--store" in option.opts for option in command.params) and words[0] not in MAKING
]


@pytest.mark.parametrize("words", IDS, ids=lambda words: " ".join(words[:2]))
def test_no_command_takes_an_empty_word(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The store has one artifact, which an empty beginning of an id would mean."""
    monkeypatch.chdir(tmp_path)
    store = Store(str(tmp_path / "store"))
    add_record(store, "soup")
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(app, [*words, "--store", store.url])
    assert isinstance(done.exception, ValueError)
    assert "is empty" in str(done.exception) or "id ''" in str(done.exception)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", OF_A_STORE, ids=" ".join)
def test_no_command_that_reads_takes_a_mistyped_store_for_an_empty_one(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    given = ["a" for option in ALL[words].params if option.param_type_name == "argument"]
    done = CliRunner().invoke(app, [*words, *given, *NEEDED.get(words, []), "--store", "typo"])
    assert isinstance(done.exception, ValueError)
    assert f"there is no store {tmp_path / 'typo'}" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.s3
@pytest.mark.parametrize("words", [("ls",), ("show", "a"), ("search", "loss<3")], ids=" ".join)
@pytest.mark.parametrize("url", ["s3://no-such-bucket", "s3://no-such-bucket/runs", "s3://reading/tpyo"])
@pytest.mark.usefixtures("s3_endpoint")
def test_a_bucket_or_a_prefix_that_is_not_there_is_refused(words: tuple[str, ...], url: str):
    """Oracle: a real server of the protocol, with one bucket that has one object."""
    s3fs.S3FileSystem().mkdirs("reading", exist_ok=True)
    Store("s3://reading/there").write("a", b"1")
    done = CliRunner().invoke(app, [*words, "--store", url])
    assert isinstance(done.exception, ValueError)
    assert f"there is no store {url}" in str(done.exception)


def test_an_empty_stage_or_store_is_refused(tmp_path: Path):
    with pytest.raises(RecipeError, match="no stage ''"):
        new_session(load_recipe("smoke", store=str(tmp_path)), until="")
    done = CliRunner().invoke(app, ["ls", "--store", ""])
    assert done.exit_code == 2
    assert "--store is empty" in done.output


def test_a_plan_of_another_recipe_in_a_pipe_is_folded_and_not_padded(capsys: pytest.CaptureFixture[str]):
    names = [f"p{number}" for number in range(21)]
    before = {"packages": [], "versions": {}, "path": "x" * 900}
    now = {"packages": names, "versions": dict.fromkeys(names, "1.0"), "path": "y"}
    reason = "; ".join(shortened(config_differences(before, now)))
    assert "packages.0: absent → p0" in reason
    assert "and 20 more values of packages" in reason
    assert "and 20 more values of versions" in reason
    assert len(reason) < 500
    print_plan([PlanRow("collect:web", "collect", "run", reason, "", (), {"tokens": 5}, None)])
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= FOLDED
    assert [line for line in output.splitlines() if line != line.rstrip()] == []
    assert "and20morevaluesofversions" in "".join(output.split()), "folded, not cut"


@pytest.mark.parametrize("url", ["ftp://user:planted@host/v1", "HTTP://user:pl@anted@host", "://planted@host"])
def test_a_refused_endpoint_does_not_repeat_its_password(url: str):
    with pytest.raises(RecipeError, match=r"execution\.endpoints\.a\.url") as refused:
        load_recipe("smoke", [f"execution.endpoints={{a: {{url: '{url}'}}}}"])
    assert "planted" not in str(refused.value)
    assert "anted" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("execution.store=ftp://user:planted@host/x", "execution.store"),
        ("execution.endpoints={a: {url: 'https://user:planted@host/v1'}}", "execution.endpoints.a.url"),
        ("collect.web={kind: local, name: web, paths: ['https://user:planted@host/a.jsonl']}", "paths.0"),
    ],
)
def test_a_recipe_with_a_password_in_a_url_is_refused(override: str, field: str):
    with pytest.raises(RecipeError, match=field) as refused:
        load_recipe("smoke", [override])
    assert "planted" not in str(refused.value)


def test_the_version_is_told(tmp_path: Path):
    done = olmo2(tmp_path, "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "olmo2")


def test_the_size_of_the_cache_reaches_the_store_of_a_run(tmp_path: Path):
    config = load_recipe("smoke", ["execution.cache_bytes=5000000"], str(tmp_path))
    assert new_session(config).store.cache_bytes == 5_000_000


def test_copies_and_repairs_are_told_as_json(tmp_path: Path):
    """Oracle: one JSON value on standard output, and the copy in the other store."""
    store = Store(str(tmp_path / "store"))
    add_record(store, "sft")
    (record,) = all_records(store)
    done = olmo2(tmp_path, "cp", record.id, str(tmp_path / "other"), "--store", "store", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{"label": record.label, "id": record.id, "copied": True}]
    assert Store(str(tmp_path / "other")).exists(f"{record.stage}/{record.id}/record-0001.json")
    mended = olmo2(tmp_path, "repair", record.id, "--store", "store", "--json")
    assert json.loads(mended.stdout) == {"mended": []}, mended.stderr
