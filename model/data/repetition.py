"""Detects repeated n-grams: spans of one period repeated over and over (RECIPE C.4; paper section 3.1).

Used for removing documents at curation and for masking training instances in the loader. Results equal the
published detector's (tests/golden/repetition_filter.json), multiples of the true period included.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

MAX_PERIOD = 13
"""Longest period looked for, tokens."""
MAX_TIMES = 32
"""A span repeated this often removes a document, or masks an instance."""
MIN_TIMES = 3
"""Fewer repetitions are not reported at all."""


class Repetition(NamedTuple):
    """Tokens [start, end) have this period and hold it `times` whole times."""

    start: int
    end: int
    period: int
    times: int


def find_repetitions(
    ids: Int[np.ndarray, " tokens"], min_period: int = 1, max_period: int = MAX_PERIOD, min_times: int = MIN_TIMES
) -> Iterator[Repetition]:
    """Yields maximal spans of each period that repeat at least `min_times` times, three or more, in order of period, then of
    start.

    Raises ValueError where an id is negative.
    """
    array = np.asarray(ids)
    if array.size and array.min() < 0:
        raise ValueError(f"token ids hold {array.min()}; ids are 0 or more")
    for period in range(min_period, min(max_period, array.size // 3) + 1):
        yield from _of_period(array, period, max(min_times, MIN_TIMES))


def _of_period(array: Int[np.ndarray, " tokens"], period: int, min_times: int) -> Iterator[Repetition]:
    # Rows of one period each; the first equals no other, nor does the last, which at least one place of no token fills up.
    equal = np.zeros((array.size // period + 1) * period, dtype=bool)
    np.equal(array[period:], array[:-period], out=equal[period : array.size])
    rows = equal.reshape(-1, period)
    whole = np.logical_and.reduce(rows, axis=1)
    # Runs of whole rows begin and end where neighbours differ; neither the first row nor the last is whole.
    edges = np.flatnonzero(whole[1:] != whole[:-1])
    # Edges come in pairs: even ones start a run of whole rows, odd ones end it.
    firsts, lasts = edges[::2] + 1, edges[1::2]
    # A span begins and ends within the rows around its run, so it holds two periods more at most.
    long = lasts - firsts + 3 >= min_times
    for first, last in zip(firsts[long].tolist(), lasts[long].tolist(), strict=True):
        # A span begins one period before its first equal token, which may lie in the row before the run.
        start = (first - 1) * period - _run(rows[first - 1, ::-1])
        end = (last + 1) * period + _run(rows[last + 1])
        times = (end - start) // period
        if times >= min_times:
            yield Repetition(start, end, period, times)


def _run(equal: Bool[np.ndarray, " period"]) -> int:
    """Leading True values; 0 where all are (such a row belongs to the run of rows itself)."""
    different = np.flatnonzero(~equal)
    return int(different[0]) if different.size else 0


def is_repetitive(ids: Int[np.ndarray, " tokens"], max_times: int = MAX_TIMES) -> bool:
    """Whether any period up to 13 repeats `max_times` times or more."""
    return bool(repetitive_rows(np.asarray(ids)[None], max_times)[0])


def repetitive_rows(ids: Int[np.ndarray, "rows tokens"], max_times: int = MAX_TIMES) -> Bool[np.ndarray, " rows"]:
    """`is_repetitive` of every row.

    A span of n repetitions has (n - 1) * period tokens equal to the one a period earlier. Counting those first, for all rows
    at once, spares the detector on nearly all text.
    """
    found = np.zeros(len(ids), dtype=bool)
    for period in range(1, min(MAX_PERIOD, ids.shape[1] // 3) + 1):
        alike = np.count_nonzero(ids[:, period:] == ids[:, :-period], axis=1)
        # A necessary condition only: equal tokens may be scattered, so the exact detector decides.
        for row in np.flatnonzero((alike >= (max_times - 1) * period) & ~found).tolist():
            spans = find_repetitions(ids[row], period, period)
            found[row] = any(span.times >= max_times for span in spans)
    return found
