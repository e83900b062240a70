"""Documents with a span of 1 to 13 tokens repeated 32 times or more (RECIPE C.4; paper section 3.1).

The verdict is that of the detector on the document's token ids. Tokenising everything only to look for such
spans would double the cost of curation, so bytes are searched first: tokens with period p make bytes with
period P, the bytes of p tokens, hence 32 repetitions are a run of at least 32 P bytes in which every byte
equals the one P before it. Runs like that are rare; only text around them is tokenised, cut at places where
the tokenizer always cuts. No repetition is missed (tests compare with the detector on all tokens). Deviation:
the published tagger looked at slices of 100,000 characters with a GPT-NeoX tokenizer; this is OLMo 2's own
tokenizer on whole documents.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from model.config import Config
from model.repetition import MAX_PERIOD, MAX_TIMES, find_repetitions
from model.tokenizer import FULL_RANKS, Tokenizer
from tasks.data.filters.judgement import Judgement

LONGEST_TOKEN_BYTES = 128
"""The longest of cl100k's tokens, a run of spaces; the added tokens are shorter."""

# Up to this byte period every position is compared; longer ones are looked for on a grid.
_DENSE_PERIODS = 16
_WINDOW = 16
_ALL_EQUAL = np.uint64(0x0101010101010101)


class RepetitionRule(Config):
    """Drops documents that repeat a short span over and over."""

    kind: Literal["repetition"] = "repetition"
    max_period: int = Field(default=MAX_PERIOD, ge=1)
    """Longest span looked for, tokens (RECIPE C.4)."""
    max_times: int = Field(default=MAX_TIMES, ge=3)
    """A span repeated this often removes the document (paper section 3.1)."""
    ranks: int = Field(default=FULL_RANKS, ge=256)
    """Ordinary tokens of the vocabulary whose ids are compared."""


class RepeatedSpan(NamedTuple):
    """Characters [start, end) repeat a span of `period` tokens `times` times."""

    start: int
    end: int
    period: int
    times: int


def judge_repetition(texts: Sequence[str], rule: RepetitionRule) -> list[Judgement]:
    """A judgement of each text. Texts are searched together: the fixed costs of the search are per call."""
    tokenizer = Tokenizer(rule.ranks)
    # Lone surrogates are replaced at intake; whatever else calls this gets the same answer as the tokenizer.
    encoded = [text.encode("utf-8", errors="replace") for text in texts]
    bounds = np.cumsum([0, *(len(data) + 1 for data in encoded)])
    suspects: dict[int, list[tuple[int, int]]] = {}
    for start, end in suspicious_runs(b"\0".join(encoded), rule.max_period, rule.max_times):
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        last = int(np.searchsorted(bounds, end - 1, side="right")) - 1
        for index in range(first, min(last, len(texts) - 1) + 1):
            run = (max(0, start - int(bounds[index])), min(len(encoded[index]), end - int(bounds[index])))
            suspects.setdefault(index, []).append(run)
    judgements = []
    for index, data in enumerate(encoded):
        spans = repeated_spans(data, suspects[index], rule, tokenizer) if index in suspects else []
        attributes = {"repeats": [(span.start, span.end, float(span.times)) for span in spans]}
        worst = max(spans, key=lambda span: span.times, default=None)
        detail = (
            f"{worst.period} tokens repeated {worst.times} times, limit {rule.max_times}" if worst is not None else ""
        )
        judgements.append(Judgement(attributes, detail))
    return judgements


def repeated_spans(
    data: bytes, runs: list[tuple[int, int]], rule: RepetitionRule, tokenizer: Tokenizer
) -> list[RepeatedSpan]:
    """Every repetition of at least `max_times` in a UTF-8 document, given the byte runs where one may be."""
    found = []
    for start, end in _token_aligned(data, runs):
        ids = tokenizer.encode_array(data[start:end].decode("utf-8"))
        if ids.size < rule.max_times:
            continue
        offsets = start + np.concatenate([[0], np.cumsum(tokenizer.byte_lengths()[ids])])
        for hit in find_repetitions(ids, 1, rule.max_period):
            if hit.times >= rule.max_times:
                first, last = _characters(data, offsets[hit.start]), _characters(data, offsets[hit.end])
                found.append(RepeatedSpan(first, last, hit.period, hit.times))
    return found


def _characters(data: bytes, end: int) -> int:
    """Whole characters in the first `end` bytes."""
    return len(data[:end].decode("utf-8", errors="ignore"))


def _token_aligned(data: bytes, runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The runs widened to places where a token surely begins, and merged.

    Between a newline and a printable ASCII character the split expression always cuts, whatever stands around
    them.
    """
    slices: list[tuple[int, int]] = []
    for start, end in sorted(runs):
        start, end = _cut_before(data, start), _cut_after(data, end)
        if slices and start <= slices[-1][1]:
            slices[-1] = (slices[-1][0], max(end, slices[-1][1]))
        else:
            slices.append((start, end))
    return slices


def _cut_before(data: bytes, position: int) -> int:
    while (newline := data.rfind(b"\n", 0, position)) >= 0:
        if newline + 1 < len(data) and 0x21 <= data[newline + 1] <= 0x7E:
            return newline + 1
        position = newline
    return 0


def _cut_after(data: bytes, position: int) -> int:
    while (newline := data.find(b"\n", position)) >= 0:
        if newline + 1 < len(data) and 0x21 <= data[newline + 1] <= 0x7E:
            return newline + 1
        position = newline + 1
    return len(data)


def suspicious_runs(data: bytes, max_period: int = MAX_PERIOD, max_times: int = MAX_TIMES) -> list[tuple[int, int]]:
    """Byte runs [start, end) that have a period of P bytes for at least `max_times` periods.

    Complete for every P up to `max_period` of the longest tokens; the whole text if `max_times` is too small
    to search for.
    """
    equal_periods = max_times - 1
    # A run must hold one aligned group of eight equal comparisons wherever it begins.
    if equal_periods < 15:
        return [(0, len(data))] if data else []
    array = np.frombuffer(data, dtype=np.uint8)
    runs: list[tuple[int, int]] = []
    for period in range(1, min(_DENSE_PERIODS, len(data) // max_times) + 1):
        runs += _dense_runs(array, period, equal_periods)
    longest = min(max_period * LONGEST_TOKEN_BYTES, len(data) // max_times)
    if longest > _DENSE_PERIODS:
        runs += _sparse_runs(data, array, longest, equal_periods)
    return runs


def _dense_runs(array: UInt8[np.ndarray, " bytes"], period: int, equal_periods: int) -> list[tuple[int, int]]:
    """Runs of one short period, by comparing every byte with the one a period later, eight comparisons at a
    time."""
    equal = array[period:] == array[:-period]
    groups = equal[: equal.size // 8 * 8].view(np.uint64)
    whole = np.flatnonzero(groups == _ALL_EQUAL)
    needed = equal_periods * period
    if whole.size == 0:
        return []
    breaks = np.flatnonzero(np.diff(whole) != 1)
    firsts = whole[np.concatenate([[0], breaks + 1])]
    lasts = whole[np.concatenate([breaks, [whole.size - 1]])]
    enough = (lasts - firsts + 1) * 8 + 14 >= needed
    runs = []
    for first, last in zip((firsts[enough] * 8).tolist(), (lasts[enough] * 8 + 8).tolist(), strict=True):
        while first > 0 and equal[first - 1]:
            first -= 1
        while last < equal.size and equal[last]:
            last += 1
        if last - first >= needed:
            runs.append((first, last + period))
    return runs


def _sparse_runs(
    data: bytes, array: UInt8[np.ndarray, " bytes"], longest: int, equal_periods: int
) -> list[tuple[int, int]]:
    """Runs of periods above the dense ones: each holds a grid point whose window occurs again one period
    later."""
    shortest = _DENSE_PERIODS + 1
    stride = equal_periods * shortest - _WINDOW + 1
    runs: list[tuple[int, int]] = []
    done = 0
    for point in range(0, len(data) - _WINDOW - shortest, stride):
        if point < done:
            continue
        window = data[point : point + _WINDOW]
        limit = point + longest + _WINDOW
        again = data.find(window, point + shortest, limit)
        while again >= 0:
            period = again - point
            # The run goes on for this long after the grid point, at least.
            ahead = max(_WINDOW, equal_periods * period - stride + 1)
            if data[point : point + ahead] == data[again : again + ahead]:
                start, end = _extent(array, point, period)
                if end - start >= (equal_periods + 1) * period:
                    runs.append((start, end))
                    done = max(done, end - equal_periods * shortest)
                    break
            again = data.find(window, again + 1, limit)
    return runs


def _extent(array: UInt8[np.ndarray, " bytes"], point: int, period: int) -> tuple[int, int]:
    """The longest run around `point` in which each byte equals the one a period later."""
    equal = array[period:] == array[:-period]
    after = np.flatnonzero(~equal[point:])
    before = np.flatnonzero(~equal[:point])
    end = point + int(after[0]) if after.size else equal.size
    start = int(before[-1]) + 1 if before.size else 0
    return start, end + period
