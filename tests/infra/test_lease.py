"""Leases: one attempt at a time, takeover of the dead and the silent, fencing. Oracle: DESIGN section 3."""

import subprocess
import sys
import threading
import time

import orjson
import pytest

from infra.records.lease import LeaseLost, acquire, highest_lease, is_dead, process_identity
from infra.stopping import Interrupted
from infra.storage.store import Store


def test_numbers_rise_and_release_frees(store: Store):
    for number in (1, 2, 3):
        lease = acquire(store, "_progress/s/i", stale_seconds=60)
        assert lease is not None
        with lease:
            assert lease.number == number
            lease.check()
    assert highest_lease(store, "_progress/s/i") == 3


def test_a_second_attempt_waits_for_a_live_holder(tmp_path):
    store = Store(str(tmp_path))
    first = acquire(store, "p", stale_seconds=60)
    assert first is not None
    got: list[int] = []

    def second() -> None:
        lease = acquire(store, "p", stale_seconds=60)
        assert lease is not None
        with lease:
            got.append(lease.number)

    with first:
        waiter = threading.Thread(target=second)
        waiter.start()
        time.sleep(0.5)
        assert got == []
    waiter.join(20)
    assert got == [2]


def test_a_waiter_leaves_when_the_work_is_finished(tmp_path):
    store = Store(str(tmp_path))
    first = acquire(store, "p", stale_seconds=60)
    assert first is not None
    told: list[dict] = []
    with first:
        assert acquire(store, "p", 60, finished=lambda: True, waiting=told.append) is None
    assert told[0]["pid"] == process_identity()["pid"]


def test_a_dead_holder_of_this_machine_is_replaced_at_once(tmp_path):
    store = Store(str(tmp_path))
    code = (
        "import os, signal, sys; from infra.storage.store import Store; from infra.records.lease import acquire\n"
        f"lease = acquire(Store({str(tmp_path)!r}), 'p', 3600); lease.__enter__()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    began = time.monotonic()
    lease = acquire(store, "p", stale_seconds=3600)
    assert lease is not None
    assert lease.number == 2
    assert time.monotonic() - began < 30


def test_a_silent_holder_elsewhere_is_replaced_after_the_measured_interval(tmp_path):
    store = Store(str(tmp_path))
    elsewhere = process_identity() | {"host": "another-host"}
    store.create("p/lease-000001.json", orjson.dumps(elsewhere))
    assert not is_dead(elsewhere)
    lease = acquire(store, "p", stale_seconds=1.0)
    assert lease is not None
    assert lease.number == 2


def test_a_waiter_leaves_when_the_run_is_asked_to_stop(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.create("p/lease-000001.json", orjson.dumps(process_identity()))
    stopping = threading.Event()
    monkeypatch.setattr("infra.stopping._stopping", stopping)
    with pytest.raises(Interrupted):
        acquire(store, "p", stale_seconds=60, waiting=lambda _: stopping.set())


def test_a_superseded_attempt_cannot_go_on(tmp_path):
    store = Store(str(tmp_path))
    lease = acquire(store, "p", stale_seconds=60)
    assert lease is not None
    store.create("p/lease-000002.json", orjson.dumps(process_identity()))
    with pytest.raises(LeaseLost, match="attempt 1 was superseded by attempt 2"):
        lease.check()
