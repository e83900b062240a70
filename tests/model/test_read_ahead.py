"""Batches made ahead. Oracle: the same function called in order, in this thread."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from model.data.batches import TokenFile, WindowedTokens
from model.data.read_ahead import ReadAhead


def test_any_number_of_workers_gives_the_same_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.random.default_rng(0).integers(0, 9, 4000).astype("<u4").tofile(path)
    data = WindowedTokens([TokenFile(path, 4000)], 16, 8, seed=1, micro_instances=4)
    expected = [data.batch(step) for step in range(40)]
    for workers, ahead in ((1, 0), (2, 4), (5, 9)):
        with ReadAhead(data.batch, 40, ahead=ahead, workers=workers) as batches:
            for step in range(40):
                for one, two in zip(batches(step), expected[step], strict=True):
                    assert one.keys() == two.keys()
                    assert all((one[name] == two[name]).all() for name in one)


def test_steps_ahead_are_made_meanwhile_and_none_beyond_the_last() -> None:
    made: list[int] = []
    waiting = threading.Semaphore(0)

    def batches(step: int) -> list[dict[str, int]]:
        made.append(step)
        waiting.release()
        return [{"step": step}]

    with ReadAhead(batches, 6, ahead=2) as ahead:
        assert ahead(0) == [{"step": 0}]
        for _ in range(3):
            assert waiting.acquire(timeout=10)
        assert sorted(made) == [0, 1, 2]
        assert ahead(3) == [{"step": 3}], "a jump forgets what it passes over"
        assert [ahead(step)[0]["step"] for step in (4, 5)] == [4, 5]
    assert sorted(made) == [0, 1, 2, 3, 4, 5]
    assert not any("read-ahead" in t.name for t in threading.enumerate())


def test_an_error_is_raised_where_its_step_is_asked_for() -> None:
    def batches(step: int) -> list[dict[str, int]]:
        if step == 2:
            raise ValueError("file 7 is short")
        return [{"step": step}]

    with ReadAhead(batches, 5) as ahead:
        assert [ahead(step)[0]["step"] for step in (0, 1)] == [0, 1]
        with pytest.raises(ValueError, match="file 7 is short"):
            ahead(2)


def test_waiting_is_counted() -> None:
    with ReadAhead(lambda step: time.sleep(0.02) or [], 2, ahead=0) as ahead:
        ahead(0)
        assert ahead.waited_seconds > 0.01
