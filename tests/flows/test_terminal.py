"""What the terminal says after a run, and what it shows where nobody watches. Oracle: the command that goes on, run by hand."""

import hashlib
import os
import shlex
import signal
import socket
import subprocess
import sys
from io import StringIO

import pytest
from fsspec.implementations.local import LocalFileSystem
from prefect.client.orchestration import get_client
from prefect.exceptions import TerminationSignal
from rich.console import Console
from typer.testing import CliRunner

from flows.cli.main import app
from flows.cli.plain_console import PlainConsole
from flows.cli.terminal import RunRequest
from flows.config.errors import RecipeError
from flows.deployments import loaded_recipe
from flows.deployments import recipe as recipe_flow
from flows.inspection.artifacts import list_rows, print_list
from flows.running.commands import resume_command
from flows.running.dashboard import DashboardError, serve
from flows.running.readiness import check_ray
from flows.running.run import load_recipe, plan, run, running
from infra.execution import prefect_engine as prefect_tasks
from infra.records.record import Record, payload_address, record_path
from infra.storage.store import Store, StoreError

CHANGED = ["dpo.beta=1", "execution.threads={dpo: 2}"]


@pytest.mark.parametrize(
    ("until", "rerun", "overrides", "failed", "cascade", "command"),
    [
        (None, [], [], ["rlvr"], False, "olmo2 run smoke --store s"),
        ("sft", [], CHANGED, ["sft"], False,
         "olmo2 run smoke --until sft --store s --set dpo.beta=1 --set 'execution.threads={dpo: 2}'"),
        # What was rerun to its end is not rerun once more; what was still to be rerun is.
        (None, ["soup", "anneal"], [], ["anneal:42", "sft"], False, "olmo2 run smoke --rerun anneal:42 --store s"),
        (None, ["dpo"], [], ["rlvr"], True, "olmo2 rerun smoke rlvr --store s"),
        (None, ["dpo"], [], ["rlvr", "evaluate:dpo"], True, "olmo2 rerun smoke dpo --store s"),
    ],
)  # fmt: skip
def test_the_command_that_resumes_is_the_one_that_was_given(until, rerun, overrides, failed, cascade, command):
    assert resume_command("smoke", "s", until, rerun, overrides, failed, cascade=cascade) == command
    assert shlex.split(command)[:2] in (["olmo2", "run"], ["olmo2", "rerun"])


def test_a_list_of_nothing_says_so_and_ids_are_never_cut(tmp_path):
    shown = CliRunner().invoke(app, ["ls", "--stage", "dpo", "--store", str(tmp_path)])
    assert (shown.exit_code, shown.output) == (0, f"store {tmp_path} has no artifacts of stage 'dpo'\n")
    row = {"id": "0123456789abcdef", "label": "evaluate:try-word_problems", "generation": 1, "created": "now",
           "seconds": 1.0, "bytes": 1}  # fmt: skip
    console = PlainConsole(file=StringIO(), width=40)
    print_list(console, [row], "")
    lines = console.file.getvalue().splitlines()[1:]  # type: ignore[attr-defined]
    assert "".join(line.split(" ")[0] for line in lines).startswith(row["id"])


def test_a_list_takes_labels_and_patterns_and_names_what_there_is(tmp_path):
    store = Store(str(tmp_path))
    for label in ("anneal:42", "anneal:43", "soup"):
        add_record(store, label)

    def listed(word):
        return [row["label"] for row in list_rows(store, word)]

    assert listed("anneal:42") == ["anneal:42"]
    assert listed("anneal") == listed("anneal:*") == ["anneal:42", "anneal:43"]
    assert listed("dpo") == [], "a stage, though this store has none of it"
    with pytest.raises(
        ValueError, match=r"no stage 'annael' is in the store; there are anneal, anneal:42, anneal:43, soup$"
    ):
        listed("annael")


def add_record(store, label):
    stage, id = label.partition(":")[0], hashlib.sha256(label.encode()).hexdigest()[:16]
    address = payload_address(stage, id, 1)
    record = Record(
        stage=stage, version=1, id=id, label=label, generation=1, config={}, inputs=[], kind="Checkpoint", address=address,
        digest="d", facts={}, files={}, created=label, seconds=1.0, attempts=1, resumed_from="", peak_memory_bytes=1,
        energy_joules=None, notes={}, flow_run="", host="", device="cpu", threads=1, code={}, packages={}, python="",
    )  # fmt: skip
    store.write(record_path(stage, id, 1), record.model_dump_json().encode())


def test_a_store_that_does_not_answer_ends_a_plan_and_a_corrupt_record_is_a_row(tmp_path, monkeypatch):
    config = load_recipe("smoke", [], str(tmp_path))
    begun = plan(config)
    first = next(row for row in begun if row.id and [other.stage for other in begun].count(row.stage) == 1)
    store = Store(str(tmp_path))
    store.write(record_path(first.stage, first.id, 1), b"not JSON")
    rows = {row.label: row for row in plan(config)}
    assert [label for label, row in rows.items() if row.action == "corrupt"] == [first.label]
    assert "is not JSON" in rows[first.label].reason

    def refuse(*_, **__):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(LocalFileSystem, "ls", refuse)
    with pytest.raises(StoreError, match=r"cannot list .*ConnectionError: nobody there"):
        plan(config)


@pytest.mark.parametrize("address", ["auto", "of", "head", "http://head:6379", "head:123456"])
def test_an_odd_word_for_ray_is_refused_with_the_allowed_ones(address, tmp_path):
    with pytest.raises(RecipeError, match=f"execution.ray(.|\n)*'{address}' is none of: local .*, off .*, HOST:PORT"):
        load_recipe("smoke", [f"execution.ray={address}"], str(tmp_path))


def test_a_ray_that_does_not_answer_is_told_before_anything_runs(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        config = load_recipe("smoke", [f"execution.ray=127.0.0.1:{port}"], str(tmp_path))
        with pytest.raises(ValueError, match=rf"no Ray answers at execution.ray=127.0.0.1:{port} .*refused.*ray start"):
            run(config)
        probe.listen()
        rows = plan(config)
        check_ray(config.execution.ray, rows)
    check_ray(config.execution.ray, [])  # nothing is going to run
    assert not list(tmp_path.glob("collect/*"))


SIGNALLED = """
import os, signal, sys, threading
from flows.running.prefect_server import prepare_prefect
prepare_prefect()
from rich.console import Console
from flows import deployments
from flows.cli import terminal
terminal.ENDING_SECONDS = 0.5
def recipe(*_):
    from infra.compute.processes import stop_stages
    if sys.argv[2] == "kept":  # as Prefect's handler and `PrefectEngine.phase` leave it when Prefect hangs
        stop_stages()
    else:
        os.kill(os.getpid(), signal.Signals[sys.argv[2]])
    threading.Event().wait()
deployments.loaded_recipe = lambda *_: recipe
terminal.start_own_server = lambda: None
with terminal.watched(Console(), Console(), terminal.RunRequest("smoke", sys.argv[1], None, [], [])) as run:
    run.made = run.flow()
sys.stdout.flush()
os._exit(run.ended[0])
"""


@pytest.mark.parametrize(("how", "code"), [("SIGTERM", 143), ("kept", 143)])
def test_signals_end_a_run_with_a_word_and_the_store_is_named(how, code, tmp_path):
    """Oracle: a real process, real signals; 128 + the signal's number, as shells count."""
    done = subprocess.run([sys.executable, "-c", SIGNALLED, str(tmp_path), how], capture_output=True, text=True,
                          timeout=100, check=False, env=os.environ | {"COLUMNS": "300"})  # fmt: skip
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[0] == f"store {tmp_path}"
    assert "interrupted; the same command resumes where each stage was" in done.stdout


def test_a_flow_that_prefect_ends_tells_its_stages():
    ended = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefect_tasks, "stop_stages", lambda: ended.append(True))
        patch.setattr(prefect_tasks, "flow", lambda **_: lambda function: function)
        with pytest.raises(TerminationSignal):
            prefect_tasks.PrefectEngine().phase("phase", end)()
    assert ended


def end():
    raise TerminationSignal(signal.SIGTERM)


@pytest.mark.usefixtures("prefect_server")
def test_a_run_of_a_command_shows_what_was_asked(tmp_path):
    """Oracle: what the form of the same flow would have sent, as the server has it."""
    overrides = ["execution.ray=off", "dpo.beta=1"]
    config = load_recipe("smoke", overrides, str(tmp_path))
    asked = RunRequest("smoke", None, "collect", [], overrides).parameters(str(tmp_path))
    assert asked == {
        "recipe": "smoke", "store": str(tmp_path), "until": "collect", "rerun": [], "overrides": overrides, "cascade": False,
    }  # fmt: skip
    recipe_flow.validate_parameters(asked)
    with running(config, "collect"):
        state = loaded_recipe(config, asked)(return_state=True)
    assert state.is_completed()
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    assert (run.name, run.parameters) == ("recipe smoke", asked)


def test_a_dashboard_does_not_take_somebody_elses_port(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            DashboardError, match=rf"port {port} of 127\.0\.0\.1 cannot be used \(Address already in use\).*--port"
        ):
            serve(Console(file=StringIO()), port, "127.0.0.1", [], lambda _: None)


def test_every_argument_and_option_has_a_help_text():
    import typer

    def commands(group, path=""):
        for name, command in group.commands.items():
            yield f"{path} {name}".strip(), command
            yield from commands(command, name) if hasattr(command, "commands") else ()

    missing = [
        f"{path} {parameter.name}"
        for path, command in commands(typer.main.get_command(app))
        for parameter in command.params
        if not getattr(parameter, "help", None)
    ]
    assert missing == []
