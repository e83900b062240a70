"""Approval above a price, on a real Prefect server: the form is answered through its API as the dashboard's page does it.

Oracles: what the store keeps, what ran, and the states of the server.
"""

import sys
import threading
import time
import traceback
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.exceptions import Abort, Pause, PrefectSignal
from prefect.settings import PREFECT_API_URL, PREFECT_UI_ENABLED, temporary_settings

from infra.execution import asking
from infra.execution.approval import ApprovalNeeded, Question, Refused, approvals
from infra.execution.asking import ask_on_dashboard
from infra.execution.prefect_engine import PrefectEngine, without_heartbeats
from infra.session import Price, Session, open_session
from infra.settings import Execution
from infra.storage.store import Store
from tests.infra.stages_for_tests import NumberConfig, diamond

pytestmark = pytest.mark.usefixtures("prefect_server")
ONE, TWO = NumberConfig(value=1), NumberConfig(value=2)
PRICES = {"number:left": 3.0, "total": 70.0, "total:again": 20.0}
APPROVE = {"decision": "approve", "reason": "worth it", "name": "Ada <b>"}


def waiting(label: str) -> list[Any]:
    """Flow runs that wait for an answer about a stage."""
    with get_client(sync_client=True) as client:
        name = {"name": {"any_": [f"approve {label}"]}, "state": {"type": {"any_": ["PAUSED"]}}}
        return client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(name))


def running_functions() -> set[str]:
    """What runs in the threads of this process."""
    return {part.f_code.co_name for frame in sys._current_frames().values() for part, _ in traceback.walk_stack(frame)}


def answer(label: str, said: dict[str, str], shown: list[str], refused: list[str], beating: list[str]) -> None:
    """Answer the question about a stage once it is there; an answer without its fields is not taken."""
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            for run in waiting(label):
                keys = run.state.state_details.run_input_keyset
                if (
                    client.request(
                        "POST", f"/flow_runs/{run.id}/input/filter", json={"prefix": keys["schema"], "limit": 9}
                    ).json()
                    == []
                ):
                    continue
                beating.extend(name for name in running_functions() if "heartbeat" in name)
                shown.append(client.request("GET", f"/flow_runs/{run.id}/input/{keys['description']}").json())
                taken = client.resume_flow_run(run.id, run_input={"decision": "maybe", "reason": "", "name": "x"})
                refused.append(taken.status.value)
                assert client.resume_flow_run(run.id, run_input=said).status.value == "ACCEPT"
                return
            time.sleep(0.2)
    raise AssertionError(f"nobody asks about {label}")


def run(
    store: Store, said: dict[str, dict[str, str]], prices: dict[str, float] = PRICES, approve: str = ""
) -> tuple[list[str], list[str]]:
    """The diamond, with answers to its questions; returns what was shown and how bad answers were taken."""
    shown: list[str] = []
    refused: list[str] = []
    beating: list[str] = []
    people = [
        threading.Thread(target=answer, args=(label, words, shown, refused, beating)) for label, words in said.items()
    ]
    for person in people:
        person.start()
    execution = Execution.model_validate(
        {"ray": "off", "approve_above": 10, "pricing": {"price": 2.5}, "approve": approve}
    )
    price = {label: Price(money, (("hours", "7"),)) for label, money in prices.items()}
    try:
        with (
            without_heartbeats(),
            open_session(Session(store, execution, engine=PrefectEngine(), price=price.get)),
        ):
            diamond(ONE, TWO)
    finally:
        for person in people:
            person.join()
    # Two weeks of heartbeats would be sent for a question that waits.
    assert not beating
    return shown, refused


def test_what_is_dear_waits_for_an_answer_which_is_kept_and_not_asked_for_again(tmp_path: Path):
    store = Store(str(tmp_path))
    shown, refused = run(store, {"total": APPROVE, "total:again": APPROVE})
    assert len(shown) == 2 and all("\\| hours \\| 7".replace("\\", "") in text for text in shown)
    assert any("70.00" in text for text in shown)
    assert set(refused) == {"REJECT"}
    kept = [(said.label, said.decision, said.reason, said.who, said.price, said.above) for said in approvals(store)]
    assert sorted(kept) == [
        ("total", "approve", "worth it", "Ada <b>", 70.0, 10.0),
        ("total:again", "approve", "worth it", "Ada <b>", 20.0, 10.0),
    ]
    run(store, {})
    assert len(approvals(store)) == 2


def test_a_refusal_ends_the_stage_with_its_reason_and_leaves_its_neighbours(tmp_path: Path):
    store = Store(str(tmp_path))
    with pytest.raises(Refused, match="refused by Bob: too dear this month"):
        run(store, {"total": {"decision": "refuse", "reason": "too dear this month", "name": "Bob"}})
    assert [said.decision for said in approvals(store)] == ["refuse"]
    assert store.names("number") and not store.names("total")
    run(store, {"total": APPROVE, "total:again": APPROVE})
    assert [said.decision for said in approvals(store)] == ["refuse", "approve", "approve"]


def test_what_was_approved_is_asked_for_again_only_at_a_higher_price(tmp_path: Path):
    store = Store(str(tmp_path))
    run(store, {}, {"total": 70.0}, approve="the budget of May")
    (said,) = approvals(store)
    assert (said.reason, said.decision) == ("the budget of May", "approve") and "@" in said.who


def test_without_a_dashboard_the_ways_out_are_named():
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(ApprovalNeeded, match="--approve 'why'"):
        ask_on_dashboard(Question("total", "0123", 70.0, 10.0, "first run", ()))


def test_the_temporary_server_of_a_run_is_no_dashboard():
    own = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_UI_ENABLED: False}
    with temporary_settings(own), pytest.raises(ApprovalNeeded, match="no dashboard to ask on"):
        ask_on_dashboard(Question("total", "0123", 70.0, 10.0, "first run", ()))


def test_a_cancelled_question_is_no_approval(tmp_path: Path):
    store, errors = Store(str(tmp_path)), []

    def cancel() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (found := waiting("total")):
            time.sleep(0.2)
        with get_client(sync_client=True) as client:
            client.request("POST", f"/flow_runs/{found[0].id}/set_state", json={"state": {"type": "CANCELLED"}})

    person = threading.Thread(target=cancel)
    person.start()
    with pytest.raises(ApprovalNeeded, match="cancelled"):
        run(store, {}, {"total": 70.0})
    person.join()
    assert approvals(store) == errors == []


@pytest.mark.parametrize("sent", [Abort, Pause])
def test_a_question_that_the_server_refuses_ends_the_wait(sent: type[PrefectSignal], monkeypatch: pytest.MonkeyPatch):
    """In a thread with a time limit: what is wrong here shows as a wait without end."""

    def refused(**_: object) -> None:
        raise sent("not now")

    monkeypatch.setattr(asking, "pause_flow_run", refused)
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            ask_on_dashboard(Question("total", "0123", 70.0, 10.0, "first run", ()))
        except BaseException as error:
            raised.append(error)

    asker = threading.Thread(target=copy_context().run, args=(ask,), daemon=True)
    asker.start()
    asker.join(60)
    assert not asker.is_alive()
    (error,) = raised
    assert isinstance(error, ApprovalNeeded) and isinstance(error.__cause__, sent)
    assert "the question about total could not be asked" in str(error) and "not now" in str(error)
