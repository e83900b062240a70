"""Keys of the environment are in nothing that a stage leaves. Oracle: every byte of the store, and the errors raised."""

from pathlib import Path

import pytest

from infra.execution.attempt import run_stage
from infra.session import Session
from infra.settings import EndpointSettings, Execution
from infra.storage.store import Store
from tests.infra.stages_for_tests import NumberConfig, number

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "ENDPOINT_KEY")


def test_no_key_of_the_environment_is_in_the_store_or_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in KEYS:
        monkeypatch.setenv(name, f"planted-{name}")
    endpoint = EndpointSettings(url="http://127.0.0.1:9/v1", key_env="ENDPOINT_KEY")
    store = Store(str(tmp_path))
    session = Session(store, Execution(ray="off", endpoints={"default": endpoint}))
    told: list[object] = []
    run_stage(number, session, {"config": NumberConfig(value=3)}, lambda *event: told.append(event))
    with pytest.raises(ValueError, match="on purpose") as failed:
        run_stage(number, session, {"config": NumberConfig(fail="on purpose")}, lambda *event: told.append(event))
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b'"digest"' in data for data in left), "the record is among what is looked at"
    assert not [data for data in left if b"planted-" in data]
    assert "planted-" not in f"{failed.value!r} {told!r}"
