"""What the dashboard does with artifacts that exist, on a real Prefect server. Oracles: the store, and what the server has."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client

from flows import deployments, store_deployments
from flows.inspection.artifacts import list_rows
from flows.running.dashboard import prefect_file
from flows.running.work_pool import ENTRYPOINTS
from flows.store_deployments import MOST_CELLS, cells, comparison, export, grid
from infra.storage.store import Store
from tests.flows.test_model_card import Nothing, fit, read
from tests.flows.test_model_card import Source as SourceConfig
from tests.tasks.training.conftest import Bench


def artifacts(key: str) -> list[Any]:
    """What runs left on the dashboard under a key."""
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": [key]}}}).json()
    return [item["data"] for item in found]


def test_what_prefect_yaml_names_is_what_the_worker_starts():
    named = [item["entrypoint"] for item in yaml.safe_load(prefect_file().read_text())["deployments"]]
    assert sorted(named) == sorted(ENTRYPOINTS)
    for entrypoint in named:
        module, _, name = entrypoint.rpartition(".")
        assert hasattr({"flows.deployments": deployments, "flows.store_deployments": store_deployments}[module], name)


def test_artifacts_are_compared_and_exported_from_the_dashboard(
    prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path / "store")
    documents = bench.run(read, "collect", config=SourceConfig())
    first = bench.run(fit, "sft", documents=documents, config=Nothing())
    second = bench.run(fit, "sft", documents=documents, config=Nothing(chat=True))
    comparison(first.id, second.id, "store")
    assert "chat: False → True" in artifacts("comparison-differences")[0].replace("\\", "")
    assert export(first.id, "mine", "store") == "exports/mine"
    assert (tmp_path / "exports/mine/README.md").exists()
    for name in ("../out", "/etc/x", "a/../../b"):
        with pytest.raises(ValueError, match="below a folder"):
            export(first.id, name, "store")
    assert {path.name for path in tmp_path.iterdir()} <= {"store", "exports"}


@pytest.mark.slow
def test_a_grid_makes_one_artifact_for_each_combination_and_shares_the_rest(prefect_server: None, tmp_path: Path):
    values = {"synthesize.maths.count": [40, 80], "synthesize.maths.seed": [1, 2]}
    ids = grid(values, "smoke", "synthesize:maths", str(tmp_path / "store"), ["execution.ray=off"])
    assert len(set(ids)) == 4
    made = list_rows(Store(str(tmp_path / "store")))
    assert {row["id"] for row in made if row["label"] == "synthesize:maths"} == set(ids)
    rows = json.loads(artifacts("grid")[0])
    assert [(row["synthesize.maths.count"], row["synthesize.maths.seed"]) for row in rows] == [
        (40, 1),
        (40, 2),
        (80, 1),
        (80, 2),
    ]


@pytest.mark.parametrize("values", [{}, {"a": []}, {"a": list(range(MOST_CELLS + 1))}])
def test_a_grid_of_nothing_or_of_far_too_much_is_refused(values: dict[str, list[Any]]):
    with pytest.raises(ValueError, match="give 1 to 64"):
        cells(values)
