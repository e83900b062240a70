"""What a gc keeps besides what is named: the newest of each label, and what the dashboard's schedules will use."""

import json
import os
from collections.abc import Mapping
from typing import NotRequired, TypedDict
from urllib.request import Request, urlopen

from flows.running.prefect_server import running_dashboard
from infra.records.index import Index, Summary
from infra.records.record import Record, load_record
from infra.storage.store import Store

PAGE = 200
"""Deployments that the server gives at a time, its own limit."""
_ANSWER_SECONDS = 15


class _Parameters(TypedDict, total=False):
    """What is read of a run's parameters."""

    store: str | None
    recipe: str
    overrides: list[str] | None


class _Schedule(TypedDict):
    """What is read of a deployment's schedule."""

    active: bool
    parameters: NotRequired[_Parameters | None]
    """Its own, over the deployment's."""


class _Deployment(TypedDict):
    """What is read of the server's answer about a deployment."""

    paused: bool
    parameters: _Parameters
    schedules: list[_Schedule]


def newest_records(store: Store, count: int) -> list[Record]:
    """The newest artifacts of each label, so many of each."""
    by_label: dict[str, list[Summary]] = {}
    for row in Index(store).rows():
        by_label.setdefault(row["label"], []).append(row)
    # Rows come oldest first, so the last ones are the newest.
    kept = [row for rows in by_label.values() for row in rows[-count:]]
    records = [load_record(store, row["stage"], row["id"], row["generation"]) for row in kept]
    return [record for record in records if record is not None]


def scheduled_recipes(store: Store) -> list[tuple[str, list[str]]]:
    """(recipe, overrides) of each deployment with an active schedule that works on this store.

    Raises ValueError where no dashboard runs, since then nobody knows what is scheduled.
    """
    api = running_dashboard() or os.environ.get("PREFECT_API_URL")
    if api is None:
        raise ValueError(
            "--schedules asks a dashboard, and none is running; start one with olmo2 dashboard, or name --recipe"
        )
    found, start = [], 0
    # The server gives a page at a time; an empty one is the end.
    while page := _asked(f"{api}/deployments/filter", {"limit": PAGE, "offset": start}):
        start += len(page)
        for deployment in page:
            active = any(schedule["active"] for schedule in deployment["schedules"]) and not deployment["paused"]
            for parameters in [deployment["parameters"], *_own_parameters(deployment)] if active else []:
                where = parameters.get("store")
                # Two spellings of one folder are the same store only after `Store` has made them absolute.
                if where is None or Store(where).url == store.url:
                    # A deployment without a recipe runs the default of its form.
                    found.append((parameters.get("recipe") or "laptop", list(parameters.get("overrides") or [])))
    return found


def _own_parameters(deployment: _Deployment) -> list[_Parameters]:
    """A schedule may have parameters of its own over the deployment's."""
    return [
        deployment["parameters"] | (schedule.get("parameters") or {})
        for schedule in deployment["schedules"]
        if schedule["active"]
    ]


def _asked(url: str, body: Mapping[str, int]) -> list[_Deployment]:
    headers = {"Content-Type": "application/json"}
    if password := os.environ.get("PREFECT_API_AUTH_STRING"):
        import base64

        headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"
    with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=_ANSWER_SECONDS) as answer:
        return json.loads(answer.read())
