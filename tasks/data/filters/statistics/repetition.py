"""Documents with a span of 1 to 13 tokens repeated 32 times or more (RECIPE C.4; paper section 3.1).

What is found is what the detector finds in the document's token ids. Tokenising everything only to look for such spans would
double the cost of curation, so bytes are searched first. Tokens with period p make bytes with period P, the bytes of p
tokens. Hence 32 repetitions are a run of at least 32 P bytes in which every byte equals the one P before it. Runs like that
are rare; only text around them is tokenised, cut at places where the tokenizer always cuts. No repetition is missed (tests
compare with the detector on all tokens). Deviation: the published tagger looked at slices of 100,000 characters with a
GPT-NeoX tokenizer; this is OLMo 2's own tokenizer on whole documents.
"""

import re
from typing import Literal, NamedTuple, Self

import numpy as np
from jaxtyping import Int, UInt8
from pydantic import Field, model_validator

from model.config import Config
from model.data.repetition import MAX_PERIOD, MAX_TIMES, find_repetitions
from model.tokens.dolma2 import FULL_RANKS
from model.tokens.tokenizer import Tokenizer
from tasks.data.filters.attributes import DocumentScores, Limit, Span
from tasks.data.filters.batch import TextBatch

LONGEST_TOKEN_BYTES = 128
"""The longest of cl100k's tokens, a run of spaces; the added tokens are shorter."""

# Up to this byte period every position is compared; longer ones are looked for on a grid.
_DENSE_PERIODS = 16
# Those on one grid differ by this factor at most: a wider range would make the grid finer, or the search around each of its
# points longer, than most of its periods need.
_SPARSE_FACTOR = 4
_WINDOW = 16
# Most places that look like a period are told apart within so many bytes.
_GLANCE = 64
_BLOCK = 1024
_PIECE_TOKENS = 1 << 20
_ALL_EQUAL = np.uint64(0x0101010101010101)

# After the last newline of a run of white space the split expression always cuts, whatever stands around it: only spaces
# and tabs, then no white space, may follow. All of Unicode's white space begins with the bytes left out here.
_CUT = re.compile(rb"\n[ \t]*+(?:[\x21-\x7e\xc3-\xdf\xe4-\xf4]|\xe3[\x81-\xbf])")


class RepetitionScorer(Config):
    """Looks for spans of tokens that stand there over and over."""

    kind: Literal["repetition"] = "repetition"
    max_period: int = Field(default=MAX_PERIOD, ge=1)
    """Longest span looked for, tokens (RECIPE C.4)."""
    min_times: int = Field(default=MAX_TIMES, ge=3)
    """A span repeated this often is recorded: no limit can be lower. Below 16 every document is tokenised whole."""
    ranks: int = Field(default=FULL_RANKS, ge=256)
    """Ordinary tokens of the vocabulary whose ids are compared."""


class RepetitionRule(Config):
    """Drops documents that repeat a short span over and over."""

    kind: Literal["repetition"] = "repetition"
    scorer: RepetitionScorer = RepetitionScorer()
    """What is measured."""
    max_times: int = Field(default=MAX_TIMES, ge=3)
    """A span repeated this often removes the document (paper section 3.1)."""

    @model_validator(mode="after")
    def _is_recorded(self) -> Self:
        if self.max_times < self.scorer.min_times:
            raise ValueError(
                f"max_times={self.max_times} is below scorer.min_times={self.scorer.min_times}, so such spans are not "
                f"recorded; lower scorer.min_times to {self.max_times} too"
            )
        return self

    def limits(self) -> tuple[Limit, ...]:
        """Fewer times than the limit."""
        return (Limit("times", 0, self.max_times - 1, "count"),)


class RepeatedSpan(NamedTuple):
    """Characters [start, end) repeat a span of `period` tokens `times` times."""

    start: int
    end: int
    period: int
    times: int


def score_repetition(batch: TextBatch, scorer: RepetitionScorer) -> DocumentScores:
    """`times`: how often the most repeated span stands there, 0 below `min_times`; `repeats`: all such spans.

    Texts are searched together: the fixed costs of the search are per call.
    """
    # Lone surrogates are replaced at intake; whatever else calls this gets the same answer as the tokenizer.
    encoded = [text.encode("utf-8", errors="replace") for text in batch.texts]
    # One more for the zero byte that joins the texts and that no text holds.
    bounds = np.cumsum([0, *(len(data) + 1 for data in encoded)])
    suspects: dict[int, list[tuple[int, int]]] = {}
    for start, end in suspicious_runs(b"\0".join(encoded), scorer.max_period, scorer.min_times):
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        last = int(np.searchsorted(bounds, end - 1, side="right")) - 1
        for index in range(first, min(last, len(batch) - 1) + 1):
            # A run may reach over several texts; each gets its part.
            run = (max(0, start - int(bounds[index])), min(len(encoded[index]), end - int(bounds[index])))
            suspects.setdefault(index, []).append(run)
    times = [0] * len(batch)
    spans: list[list[Span]] = [[] for _ in encoded]
    for index, runs in suspects.items():
        found = repeated_spans(encoded[index], runs, scorer, Tokenizer(scorer.ranks))
        times[index] = max((span.times for span in found), default=0)
        spans[index] = [(span.start, span.end, float(span.times)) for span in found]
    return DocumentScores({"times": times}, {"repeats": spans})


def repeated_spans(
    data: bytes, runs: list[tuple[int, int]], scorer: RepetitionScorer, tokenizer: Tokenizer
) -> list[RepeatedSpan]:
    """Every repetition of at least `min_times` in a UTF-8 document, given the byte runs where one may be."""
    found = []
    characters = Characters(data)
    lengths = tokenizer.byte_lengths().astype(np.uint8)
    for start, end in _token_aligned(data, runs):
        ids = tokenizer.encode_array(data[start:end].decode("utf-8"))
        # Fewer tokens than repetitions cannot repeat so often.
        if ids.size < scorer.min_times:
            continue
        offsets = _offsets(ids, lengths, start)
        # A longer period does not fit in so often.
        longest = min(scorer.max_period, ids.size // scorer.min_times)
        for hit in find_repetitions(ids, 1, longest, scorer.min_times):
            first, last = characters.before(int(offsets[hit.start])), characters.before(int(offsets[hit.end]))
            found.append(RepeatedSpan(first, last, hit.period, hit.times))
    return found


def _offsets(
    ids: Int[np.ndarray, " tokens"], lengths: UInt8[np.ndarray, " ids"], start: int
) -> Int[np.ndarray, " tokens_and_one"]:
    """The byte before each token, and the one after the last; piece by piece, as NumPy holds indices in 64 bits."""
    offsets = np.empty(len(ids) + 1, dtype=np.int32)
    offsets[0] = start
    for begin in range(0, len(ids), _PIECE_TOKENS):
        piece = lengths[ids[begin : begin + _PIECE_TOKENS]]
        offsets[begin + 1 : begin + 1 + len(piece)] = offsets[begin] + np.cumsum(piece, dtype=np.int32)
    return offsets


class Characters:
    """Characters of a UTF-8 text by their bytes, in a time that does not grow with the place."""

    def __init__(self, data: bytes):
        self._bytes = np.frombuffer(data, dtype=np.uint8)
        self._blocks: np.ndarray | None = None

    def before(self, end: int) -> int:
        """Whole characters in the first `end` bytes."""
        if self._blocks is None:
            whole = self._bytes[: len(self._bytes) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
            counts = [0, *(int(_begun(block)) for block in whole)]
            self._blocks = np.cumsum(counts)
        # A character that begins before the end and goes on after it is not whole.
        first = end
        # Bytes 10xxxxxx continue a character, so the cut moves back to its first byte.
        while first > 0 and first < len(self._bytes) and self._bytes[first] & 0xC0 == 0x80:
            first -= 1
        block = first // _BLOCK
        return int(self._blocks[block]) + int(_begun(self._bytes[block * _BLOCK : first]))


def _begun(data: UInt8[np.ndarray, " bytes"]) -> np.integer:
    """How many of the bytes begin a character."""
    return np.count_nonzero((data & 0xC0) != 0x80)


def _token_aligned(data: bytes, runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The runs widened to places where a token surely begins, and merged."""
    slices: list[tuple[int, int]] = []
    for start, end in sorted(runs):
        floor = slices[-1][1] if slices else 0
        if slices and end <= floor:
            continue
        start = _cut_before(data, floor, start) if start > floor else floor
        # Widened to the next sure cut, so that the tokens are those of the whole text.
        cut = _CUT.search(data, end)
        end = cut.start() + 1 if cut else len(data)
        if slices and start == floor:
            slices[-1] = (slices[-1][0], end)
        else:
            slices.append((start, end))
    return slices


def _cut_before(data: bytes, floor: int, position: int) -> int:
    """The last cut up to `position`; `floor`, which is one, if none lies between."""
    while (newline := data.rfind(b"\n", floor, position)) >= 0:
        if _CUT.match(data, newline):
            return newline + 1
        position = newline
    return floor


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
    shortest = _DENSE_PERIODS + 1
    while shortest <= longest:
        periods = range(shortest, min(shortest * _SPARSE_FACTOR, longest + 1))
        runs += _sparse_runs(data, array, periods, equal_periods)
        shortest = periods.stop
    return runs


def _dense_runs(array: UInt8[np.ndarray, " bytes"], period: int, equal_periods: int) -> list[tuple[int, int]]:
    """Runs of one short period, by comparing every byte with the one a period later, eight comparisons at a
    time."""
    equal = array[period:] == array[:-period]
    # Eight comparisons are one 64-bit word, which equals 0x0101... where all hold.
    groups = equal[: equal.size // 8 * 8].view(np.uint64)
    whole = np.flatnonzero(groups == _ALL_EQUAL)
    needed = equal_periods * period
    if whole.size == 0:
        return []
    breaks = np.flatnonzero(np.diff(whole) != 1)
    firsts = whole[np.concatenate([[0], breaks + 1])]
    lasts = whole[np.concatenate([breaks, [whole.size - 1]])]
    # A run of groups may be up to 7 bytes longer at either end, hence 14.
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
    data: bytes, array: UInt8[np.ndarray, " bytes"], periods: range, equal_periods: int
) -> list[tuple[int, int]]:
    """Runs of longer periods: each holds a grid point whose window occurs again one period later. The grid may be as
    wide as the shortest period allows.
    """
    # As wide as the shortest period allows: a run that long must cover a point of the grid.
    stride = equal_periods * periods.start - _WINDOW + 1
    runs: list[tuple[int, int]] = []
    done = 0
    for point in range(0, len(data) - _WINDOW - periods.start, stride):
        if point < done:
            continue
        window = data[point : point + _WINDOW]
        limit = point + periods.stop - 1 + _WINDOW
        again = data.find(window, point + periods.start, limit)
        while again >= 0:
            period = again - point
            # The run goes on for this long after the grid point, at least.
            ahead = max(_WINDOW, equal_periods * period - stride + 1)
            glance = min(ahead, _GLANCE)
            if data[point : point + glance] == data[again : again + glance] and (
                data[point : point + ahead] == data[again : again + ahead]
            ):
                start, end = _extent(array, point, period)
                if end - start >= (equal_periods + 1) * period:
                    runs.append((start, end))
                    # Points inside a run that was found need no search of their own.
                    done = max(done, end - equal_periods * periods.start)
                    break
            again = data.find(window, again + 1, limit)
    return runs


def _extent(array: UInt8[np.ndarray, " bytes"], point: int, period: int) -> tuple[int, int]:
    """The longest run around `point` in which each byte equals the one a period later."""
    count = len(array) - period
    # Steps that double: the time is that of the run, wherever in a long text it stands.
    end, step = point, _WINDOW
    while end < count:
        stop = min(count, end + step)
        differ = array[end + period : stop + period] != array[end:stop]
        if differ.any():
            end += int(np.argmax(differ))
            break
        end, step = stop, step * 2
    start, step = point, _WINDOW
    while start > 0:
        begin = max(0, start - step)
        differ = array[begin + period : start + period] != array[begin:start]
        if differ.any():
            start = begin + len(differ) - int(np.argmax(differ[::-1]))
            break
        start, step = begin, step * 2
    return start, end + period
