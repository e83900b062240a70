"""`olmo2 run --accept` where nothing has to run: the acceptance is written down all the same."""

import shutil
from pathlib import Path

from infra.execution.stale import acceptances
from infra.records.record import all_records, record_path
from infra.storage.store import Store
from tests.flows.conftest import olmo2


def test_an_acceptance_is_kept_though_all_is_reused(finished_smoke: Path, tmp_path: Path):
    shutil.copytree(finished_smoke, tmp_path / "store")
    store = Store(str(tmp_path / "store"))
    record = next(record for record in all_records(store) if record.label == "collect:web")
    # As if a function of the stage's code had been another one when the artifact was made.
    file, names = next((file, names) for file, names in record.fingerprint.items() if file.startswith("tasks/data"))
    older = record.model_copy(update={"fingerprint": record.fingerprint | {file: dict.fromkeys(names, "0" * 16)}})
    path = record_path(record.stage, record.id, record.generation)
    store.remove(path)
    store.create(path, older.sealed().model_dump_json().encode())
    what = ("run", "smoke", "--until", "collect:web", "--set", "execution.ray=off")
    assert "stale" in olmo2(*what, store=tmp_path / "store", code=2)
    olmo2(*what, "--accept", "only tried here", store=tmp_path / "store")
    (said,) = acceptances(store)
    assert said["why"] == "only tried here"
    assert "reused" in olmo2(*what, store=tmp_path / "store")
