"""The dashboard in a real browser: start the recipe, rerun a stage, start and schedule a sweep through their forms.

Oracle: the states and schedules that Prefect's API reports. Screenshots go to OLMO2_SCREENSHOTS when it is set.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime

import psutil
import pytest
from selenium.webdriver.common.keys import Keys

from tests.flows.browser import PAGE_SECONDS, RUN_SECONDS, Dashboard, opened_dashboard, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    with opened_dashboard(tmp_path_factory.mktemp("dashboard")) as opened:
        yield opened


def test_the_recipe_is_started_from_its_form(dashboard: Dashboard):
    dashboard.open(f"/deployments/deployment/{dashboard.deployments['recipe']}/run")
    dashboard.fill("recipe (Optional)", "smoke")
    dashboard.submit()
    run = dashboard.finished_run("recipe")
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert next(dashboard.store.glob("report/*/g0001/report.html")).stat().st_size > 10_000
    dashboard.open(f"/runs/flow-run/{run['id']}")
    dashboard.find("//*[contains(text(),'Completed')]")
    dashboard.click("//li[normalize-space()='Artifacts']")
    dashboard.find("//*[normalize-space()='recipe-report']")
    dashboard.shot("dashboard")


def test_progress_tables_and_texts_are_shown(dashboard: Dashboard):
    """Stages leave progress, table and markdown artifacts, which the page of their phase's run lists."""
    phase = next(run for run in dashboard.api("/flow_runs/filter", {}) if run["name"] == "trial")
    dashboard.open(f"/runs/flow-run/{phase['id']}")
    dashboard.click("//li[normalize-space()='Artifacts']")
    for key in ("anneal-try-arithmetic-progress", "rank-ranking", "anneal-try-arithmetic-artifact"):
        dashboard.find(f"//*[normalize-space()='{key}']")
    dashboard.shot("phase")
    dashboard.click("//*[normalize-space()='anneal-try-arithmetic-artifact']")
    dashboard.find("//td[normalize-space()='parameters']")
    dashboard.shot("artifact")


def test_one_stage_is_rerun_from_its_form(dashboard: Dashboard):
    dashboard.open(f"/deployments/deployment/{dashboard.deployments['stage']}/run")
    dashboard.fill("recipe (Optional)", "smoke")
    dashboard.submit()
    run = dashboard.finished_run("stage")
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert len(list(dashboard.store.glob("dpo/*/record-0002.json"))) == 1
    assert list(dashboard.store.glob("sft/*/record-0002.json")) == []


def test_a_sweep_with_candidates_of_its_own_is_started_from_its_form(dashboard: Dashboard):
    notes = dashboard.store.parent / "notes.jsonl"
    sums = [" ".join(f"{item} coins and {place} coins." for item in range(12)) for place in range(400)]
    notes.write_text(
        "".join(json.dumps({"id": f"note-{place}", "text": text}) + "\n" for place, text in enumerate(sums))
    )
    sweep = dashboard.deployments["sweep"]
    dashboard.open(f"/deployments/deployment/{sweep}/run")
    dashboard.click(dashboard.button("list", "candidates (Optional)"))
    dashboard.add_item("candidates (Optional)")
    dashboard.fill("Name", "four_operations")
    dashboard.click(dashboard.button("SynthesizeConfig"))
    dashboard.fill("Count (Optional)", "500")
    dashboard.fill("recipe (Optional)", "smoke")
    dashboard.shot("sweep-form", height=2400)
    dashboard.add_item("Ratio (Optional)")
    dashboard.fill("Name", "notes")
    dashboard.click(dashboard.button("LocalSource", "Collect (Optional)"))
    dashboard.add_item("Paths")
    dashboard.fill("Paths", str(notes))
    dashboard.submit()
    run = dashboard.finished_run("sweep")
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    tables = dashboard.api("/artifacts/filter", {"artifacts": {"key": {"any_": ["sweep-ranking"]}}})
    assert {row["candidate"] for row in json.loads(tables[0]["data"])} == {"four_operations", "notes"}


def test_a_sweep_is_scheduled_from_its_page(dashboard: Dashboard):
    sweep = dashboard.deployments["sweep"]
    dashboard.open(f"/deployments/deployment/{sweep}")
    dashboard.click(dashboard.button("Schedule"))
    dashboard.click(dashboard.button("Cron"))
    field = dashboard.find("//*[normalize-space()='Value']/following::input[1]")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("30 2 * * 1")
    dashboard.click(dashboard.button("Save"))
    dashboard.find("//*[contains(text(),'02:30')]")
    schedules = dashboard.api(f"/deployments/{sweep}/schedules")
    assert [(item["schedule"]["cron"], item["active"]) for item in schedules] == [("30 2 * * 1", True)]
    query = {"deployments": {"id": {"any_": [sweep]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    # The server looks at its schedules once a minute.
    runs = wait_for(lambda: dashboard.api("/flow_runs/filter", query), 2 * PAGE_SECONDS, "run that waits for its time")
    assert {datetime.fromisoformat(run["expected_start_time"]).strftime("%a %H:%M") for run in runs} == {"Mon 02:30"}
    dashboard.open("/deployments")
    dashboard.find("//*[normalize-space()='sweep']")
    dashboard.shot("deployments")


def test_ctrl_c_in_the_middle_of_a_run_stops_what_it_started_and_nothing_else(dashboard: Dashboard):
    parameters = {"recipe": "smoke", "stage": "pretrain"}
    dashboard.api(f"/deployments/{dashboard.deployments['stage']}/create_flow_run", {"parameters": parameters})
    running = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}, "name": {"any_": ["pretraining"]}}}
    wait_for(lambda: dashboard.api("/flow_runs/filter", running), RUN_SECONDS, "running phase")
    children = psutil.Process(dashboard.process.pid).children(recursive=True)
    assert any("prefect.engine" in child.cmdline() for child in children)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        dashboard.process.send_signal(signal.SIGINT)
        assert dashboard.process.wait(90) == 0
        _, alive = psutil.wait_procs(children, timeout=30)
        assert alive == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
