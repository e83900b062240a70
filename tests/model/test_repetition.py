"""The n-gram repetition detector. Oracle: golden/repetition_filter.json, made by the published code; a naive
search.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.repetition import find_repetitions, is_repetitive

CASES = json.loads((Path(__file__).parents[1] / "golden/repetition_filter.json").read_text())["cases"]


def tokens_of(case: dict) -> np.ndarray:
    if case["tokens"] is not None:
        return np.array(case["tokens"])
    words = case["description"].split()  # "period P block repeated N times (...)"
    return np.tile(np.arange(int(words[1])), int(words[4]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_equals_golden(case: dict) -> None:
    ids = tokens_of(case)
    assert [found._asdict() for found in find_repetitions(ids)] == case["found"]
    assert is_repetitive(ids) == case["masked_by_loader_rule_times_ge_32"]


@settings(max_examples=60)
@given(st.integers(1, 13), st.integers(3, 45), st.integers(0, 20), st.integers(0, 20), st.integers(0, 9))
def test_planted_span_is_found_exactly(period: int, times: int, before: int, after: int, seed: int) -> None:
    block = np.arange(1000, 1000 + period)
    ids = np.concatenate([np.arange(before), np.tile(block, times), np.arange(100, 100 + after)])
    found = [f for f in find_repetitions(ids) if f.period == period]
    if before + after + period * times >= 3 * period and times > 3:
        assert [(f.start, f.end, f.times) for f in found] == [(before, before + period * times, times)]
    assert is_repetitive(ids) == any(f.times >= 32 for f in find_repetitions(ids))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=200), st.integers(3, 12))
def test_screen_never_changes_the_verdict(ids: list[int], times: int) -> None:
    array = np.array(ids)
    assert is_repetitive(array, times) == any(f.times >= times for f in find_repetitions(array))


def test_negative_id_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        list(find_repetitions(np.array([1, -1, 1])))


@given(st.lists(st.integers(0, 2), max_size=120), st.integers(3, 12))
def test_asking_for_more_times_leaves_out_the_others(ids: list[int], times: int):
    array = np.array(ids + [1, 2] * 20, dtype=np.uint32)
    assert list(find_repetitions(array, min_times=times)) == [
        span for span in find_repetitions(array) if span.times >= times
    ]
