"""Keys of the environment are in nothing that a stage leaves. Oracle: every byte of the store, and the errors raised."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.execution.attempt import run_stage
from infra.secrets import clean_error, without_secrets
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
    run_stage(number, session, {"config": NumberConfig(value=3)}, told.append)
    with pytest.raises(ValueError, match="on purpose") as failed:
        run_stage(number, session, {"config": NumberConfig(fail="on purpose")}, told.append)
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b'"digest"' in data for data in left), "the record is among what is looked at"
    assert not [data for data in left if b"planted-" in data]
    assert "planted-" not in f"{failed.value!r} {told!r}"


def test_an_error_that_repeats_a_key_is_told_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server's refusal may hold the key that it was sent, and a proxy's error its password."""
    monkeypatch.setenv("ENDPOINT_KEY", "planted-key-1")
    said = "401: wrong key planted-key-1 by http://user:planted-2@proxy.example:3128/"
    store = Store(str(tmp_path))
    told: list[object] = []
    arguments = {"config": NumberConfig(fail=said)}
    with pytest.raises(ValueError, match="401: wrong key") as failed:
        run_stage(number, Session(store, Execution(ray="off")), arguments, lambda event: told.append(repr(event)))
    assert "planted" not in f"{failed.value!r} {told}"
    logs = [path.read_text() for path in tmp_path.rglob("error-*.txt")]
    assert logs and not [text for text in logs if "planted" in text]


@pytest.mark.parametrize(
    "url", ["sftp://user:planted@host/runs", "ftp://:planted@host/x", "simplecache::ftp://u:pl@anted@host/x"]
)
def test_a_store_with_a_password_in_its_url_is_refused_without_repeating_it(url: str):
    with pytest.raises(ValueError, match="carries a password") as refused:
        Store(url)
    assert "planted" not in str(refused.value) and "anted" not in str(refused.value)
    assert "FSSPEC_FTP_PASSWORD" in str(refused.value)


@pytest.mark.parametrize(
    "url", ["sftp://user@host/runs", "s3://bucket/a:b@c", "abfs://box@account.dfs.core.windows.net/x"]
)
def test_a_url_without_a_password_is_not_touched(url: str):
    assert without_secrets(url) == url


@given(st.text("abc:@/. '", max_size=20), st.text("pqrXYZ019-_.", min_size=1, max_size=20))
def test_no_password_of_a_url_is_told(around: str, password: str):
    said = without_secrets(f"{around} http://user:S{password}E@host:80/x {around}")
    assert f"S{password}E" not in said
    assert said.endswith(f"@host:80/x {around}")


def test_secrets_are_taken_out_of_all_that_an_error_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted_token")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:planted-password")
    try:
        try:
            raise OSError(5, "no hf_planted_token", "f")
        except OSError as cause:
            raise ExceptionGroup("all", [RuntimeError("admin:planted-password")]) from cause
    except ExceptionGroup as error:
        error.add_note("with hf_planted_token")
        clean_error(error)
        said = f"{error} {error.exceptions!r} {error.__cause__} {error.__notes__}"
    assert "planted" not in said
    assert "no ***" in said


def test_what_is_short_or_a_path_is_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SORT_KEY", "id")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    assert without_secrets(f"id of {tmp_path}") == f"id of {tmp_path}"
    assert os.environ["SORT_KEY"] == "id"
