"""The dashboard acts on runs, in a real browser: cancel and resume in the middle of training, approve and refuse a stage.

Oracles: records and approvals of the store, processes that are left, and the states that Prefect's API reports.
"""

from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from infra.execution.approval import approvals
from infra.records.record import Record, all_records
from infra.storage.store import Store
from tests.flows.browser import RUN_SECONDS, Dashboard, opened_dashboard, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LONG = ("pretrain.steps=5000", "execution.save_every=100000", "execution.ray=off")
"""A training that is met in its middle, and that keeps nothing of itself unless it is asked to stop."""
STOP_SECONDS = 30.0
"""On a quiet machine; two tests on two busy cores take a multiple of it."""


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    with opened_dashboard(tmp_path_factory.mktemp("acting")) as opened:
        yield opened


def start(dashboard: Dashboard, *overrides: str, until: str = "pretrain") -> None:
    """Start the recipe from its form."""
    dashboard.open(f"/deployments/deployment/{dashboard.deployments['recipe']}/run")
    dashboard.fill("recipe (Optional)", "smoke")
    dashboard.click(dashboard.button("str", "until (Optional)"))
    dashboard.fill("until (Optional)", until)
    dashboard.click(dashboard.button("list", "overrides (Optional)"))
    for place, override in enumerate(overrides):
        dashboard.add_item("overrides (Optional)")
        fields = dashboard.browser.find_elements(
            By.XPATH, "(//span[normalize-space()='overrides (Optional)'])[last()]/following::textarea"
        )
        fields[place].send_keys(override)
    dashboard.submit()


def newest(dashboard: Dashboard, name: str, *states: str) -> dict[str, Any] | None:
    query = {
        "flow_runs": {"name": {"any_": [name]}, "state": {"type": {"any_": list(states)}}},
        "sort": "START_TIME_DESC",
    }
    return next(iter(dashboard.api("/flow_runs/filter", query)), None)


def pretrained(dashboard: Dashboard) -> Record:
    (found,) = [item for item in all_records(Store(str(dashboard.store))) if item.label == "pretrain"]
    return found


def page_of(dashboard: Dashboard, key: str) -> str:
    found = dashboard.api("/artifacts/filter", {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"})
    return str(found[0]["data"]) if found else ""


def test_a_training_is_cancelled_in_its_middle_and_a_new_run_goes_on_there(dashboard: Dashboard):
    start(dashboard, *LONG)
    # The page is live: progress, the newest metrics and the curve so far.
    wait_for(
        lambda: "loss by step" in page_of(dashboard, "pretrain-artifact"), RUN_SECONDS, "loss curve of the training"
    )
    live = page_of(dashboard, "pretrain-artifact")
    assert live.startswith("**pretrain is running.**") and "of 5,000 steps" in live and "[mix:pretrain]" in live
    (artifact,) = dashboard.api("/artifacts/filter", {"artifacts": {"key": {"any_": ["pretrain-artifact"]}}})
    dashboard.open(f"/artifacts/artifact/{artifact['id']}")
    dashboard.until(
        lambda: dashboard.browser.find_element(By.XPATH, "//img[contains(@src,'image/svg')]").get_property(
            "naturalWidth"
        ),
        "a curve that is drawn",
    )
    dashboard.shot("training", height=1150)
    run = newest(dashboard, "recipe smoke", "RUNNING")
    assert run is not None, "the training went on while its page was looked at"
    children = psutil.Process(dashboard.process.pid).children(recursive=True)
    engines = [child for child in children if "prefect.engine" in child.cmdline()]
    working = [child for engine in engines for child in (engine, *engine.children(recursive=True))]
    dashboard.open(f"/runs/flow-run/{run['id']}")
    dashboard.click("//button[normalize-space()='Cancel']")
    dashboard.click("//*[contains(@class,'p-modal')]//button[normalize-space()='Confirm']")
    wait_for(lambda: newest(dashboard, "recipe smoke", "CANCELLED"), 6 * STOP_SECONDS, "end of the cancelled run")
    _, alive = psutil.wait_procs(working, timeout=5)
    assert alive == []
    query = {"task_runs": {"name": {"any_": ["pretrain"]}}}
    (task,) = dashboard.api("/task_runs/filter", query)
    assert task["state_type"] == "CANCELLED"
    assert "kept for the next attempt: from step" in task["state"]["message"], task["state"]
    assert page_of(dashboard, "pretrain-artifact").startswith("**pretrain was stopped.**")
    dashboard.open(f"/artifacts/artifact/{artifact['id']}")
    dashboard.until(lambda: "kept for the next attempt" in dashboard.text(), "what is kept, on the page")
    dashboard.shot("cancelled", height=900)

    start(dashboard, *LONG)
    wait_for(lambda: newest(dashboard, "recipe smoke", "COMPLETED"), RUN_SECONDS, "run that goes on")
    record = pretrained(dashboard)
    step = int(record.resumed_from.removeprefix("step ").replace(",", ""))
    assert 0 < step < 5000
    assert f"from step {step}" in task["state"]["message"]
    assert record.facts["steps"] == 5000


def answer(dashboard: Dashboard, decision: str, reason: str) -> None:
    """Answer the question about the training on its page."""
    run = wait_for(lambda: newest(dashboard, "approve pretrain", "PAUSED"), RUN_SECONDS, "question about the training")
    dashboard.open(f"/runs/flow-run/{run['id']}")
    dashboard.click("//button[normalize-space()='Resume']")
    dashboard.find("//td[normalize-space()='price']")
    field = dashboard.find("(//span[normalize-space()='Decision'])[last()]/following::select[1]")
    Select(field).select_by_visible_text(decision)
    dashboard.fill("Reason", reason)
    dashboard.fill("Name", "Ada")
    dashboard.shot(f"approval-{decision}")
    dashboard.click("//*[contains(@class,'p-modal')]//button[normalize-space()='Submit']")


def test_a_dear_stage_is_refused_with_a_reason_and_then_approved(dashboard: Dashboard):
    dear = ("pretrain.steps=40", "execution.ray=off", "execution.approve_above=0", "execution.pricing={price: 2.5}")
    start(dashboard, *dear)
    answer(dashboard, "refuse", "the budget of this month is spent")
    failed = wait_for(lambda: newest(dashboard, "recipe smoke", "FAILED"), RUN_SECONDS, "refused run")
    assert "refused by Ada: the budget of this month is spent" in failed["state"]["message"]
    page = page_of(dashboard, "pretrain-artifact")
    assert page.startswith("**pretrain failed: Refused") and "<details><summary>Traceback</summary>" in page
    found = dashboard.api(
        "/artifacts/filter", {"artifacts": {"key": {"any_": ["pretrain-artifact"]}}, "sort": "CREATED_DESC"}
    )
    dashboard.open(f"/artifacts/artifact/{found[0]['id']}")
    dashboard.find("//summary[normalize-space()='Traceback']")
    dashboard.shot("failed", height=900)
    start(dashboard, *dear)
    answer(dashboard, "approve", "paid from the grant")
    wait_for(
        lambda: [item for item in all_records(Store(str(dashboard.store))) if item.facts.get("steps") == 40],
        RUN_SECONDS,
        "artifact of the approved stage",
    )
    said = [(item.decision, item.reason, item.who) for item in approvals(Store(str(dashboard.store)))]
    assert said == [
        ("refuse", "the budget of this month is spent", "Ada"),
        ("approve", "paid from the grant", "Ada"),
    ]
