"""How long a cancelled training goes on: seconds from the request in the dashboard to the end of the stage's last process.

`python benchmarks/cancel.py [--repeats 5]`. A dashboard of its own starts the smoke recipe with a training of 5,000 steps, which
is cancelled in its middle; the next run goes on from what was kept and is cancelled again. Printed are the seconds until nothing
of the run works any more and until the server knows it, and from which step the next one would go on.
"""

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

import psutil

from tests.conftest import free_port
from tests.flows.dashboards import RunningDashboard, running_dashboard, until

LONG = ["pretrain.steps=5000", "execution.save_every=100000", "execution.ray=off"]
"""A training that lasts, and that keeps nothing of itself unless it is asked to stop."""
START_SECONDS = 400.0


def cancelled(dashboard: RunningDashboard) -> tuple[float, float, str]:
    """Start, cancel in the training's middle; both times, and what the stage said."""
    body = {"parameters": {"recipe": "smoke", "until": "pretrain", "overrides": LONG}}
    run = dashboard.api(f"/deployments/{dashboard.deployment('recipe')}/create_flow_run", body)["id"]
    running = {"task_runs": {"name": {"any_": ["pretrain"]}, "state": {"type": {"any_": ["RUNNING"]}}}}
    until(lambda: dashboard.api("/task_runs/filter", running), START_SECONDS, "running training")
    # Some hundred steps, so that it is met at its work.
    time.sleep(8)
    children = psutil.Process(dashboard.process.pid).children(recursive=True)
    engines = [child for child in children if "prefect.engine" in child.cmdline()]
    working = [child for engine in engines for child in (engine, *engine.children(recursive=True))]
    began = time.monotonic()
    dashboard.api(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    _, alive = psutil.wait_procs(working, timeout=120)
    assert working and not alive, alive
    stopped = time.monotonic() - began
    ended = dashboard.ended(run)
    assert ended["state_type"] == "CANCELLED", ended["state"]
    known = time.monotonic() - began
    query = {"task_runs": {"name": {"any_": ["pretrain"]}}, "sort": "EXPECTED_START_TIME_DESC"}
    task = dashboard.api("/task_runs/filter", query)[0]
    step = re.search(r"from step [\d,]+", task["state"]["message"] or "")
    assert step is not None, task["state"]
    return round(stopped, 1), round(known, 1), step.group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="olmo2-cancel-") as folder,
        running_dashboard(Path(folder), free_port()) as dashboard,
    ):
        found = [cancelled(dashboard) for _ in range(arguments.repeats)]
    told = {"stopped": [one[0] for one in found], "known": [one[1] for one in found], "kept": [one[2] for one in found]}
    print(json.dumps(told | {"longest": max(told["stopped"])}))


if __name__ == "__main__":
    main()
