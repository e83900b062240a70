"""Comparisons of stored scores: paired over the items that both models answered, wherever both kept their items."""

from collections.abc import Callable, Sequence
from math import fsum, hypot, sqrt
from typing import NotRequired, TypedDict

from infra.records.reader import Reader
from tasks.artifacts import Scores
from tasks.evaluation.comparing.comparison import Comparison, clustered_error, compare

_Items = dict[str, float]
Comparer = Callable[[Sequence[Scores], Scores, str], Comparison]
"""(first models, second model, benchmark) -> second minus the mean of the first ones"""


CLEAR = 3.0
"""Standard errors from which a step's gain is called one."""
POWER_ERRORS = 0.841621
"""Standard errors above that limit which a gain needs to be found four times in five."""
NO_EFFECT = "no effect shown"


def comparer(reader: Reader) -> Comparer:
    """Comparisons by benchmark name. Items are read once. Where one side kept none (a suite), or none is common, the errors
    are taken as independent, and `n` is 0.
    """
    known: dict[tuple[str, str], tuple[_Items, dict[str, str] | None] | None] = {}

    def items(score: Scores, benchmark: str) -> tuple[_Items, dict[str, str] | None] | None:
        key = (score.address, benchmark)
        if key not in known:
            known[key] = read_items(reader, score, benchmark)
        return known[key]

    def found(first: Sequence[Scores], second: Scores, benchmark: str) -> Comparison:
        sides = [side for score in (*first, second) if (side := items(score, benchmark)) is not None]
        # A side without items leaves the means only.
        if len(sides) <= len(first):
            return independent(first, second, benchmark)
        *before, after = sides
        common = {id for id in after[0] if all(id in side[0] for side in before)}
        if not common:
            return independent(first, second, benchmark)
        # fsum: means over seeds must not depend on their order.
        mean = {id: fsum(side[0][id] for side in before) / len(before) for id in after[0] if id in common}
        return compare(mean, after[0], after[1])

    return found


def read_items(reader: Reader, score: Scores, benchmark: str) -> tuple[_Items, dict[str, str] | None] | None:
    """Primary metric per item, and the cluster of each where the benchmark has clusters; None where no items are kept."""
    name = f"items/{benchmark}.jsonl.zst"
    if name not in reader.files(score):
        return None
    metric = next(
        row["primary"] for row in reader.read_json(score, "scores.json")["benchmarks"] if row["name"] == benchmark
    )
    rows = list(reader.read_jsonl(score, name))
    clusters = {row["id"]: row["group"] for row in rows if row.get("group")}
    # Clusters count only where every item has one.
    return {row["id"]: row["metrics"][metric] for row in rows}, clusters if len(clusters) == len(rows) else None


def independent(first: Sequence[Scores], second: Scores, benchmark: str) -> Comparison:
    """From means and their errors alone."""
    mean = fsum(score.primary[benchmark] for score in first) / len(first)
    error = hypot(*(score.stderr[benchmark] for score in first)) / len(first)
    return Comparison(second.primary[benchmark] - mean, hypot(error, second.stderr[benchmark]), 0, 0)


class Gain(TypedDict):
    """What a step gained, with its error, in numbers and in words."""

    gain: float
    """Positive is better, whatever a benchmark's direction."""
    stderr: float
    n: int
    """Items."""
    discordant: int
    """Items that changed."""
    words: str
    metric: NotRequired[str]
    """What a sweep was ranked by, or the metric of a gain in bits per byte."""
    over_mean: NotRequired["Gain"]
    """Of a soup: against the mean of its ingredients."""
    over_best: NotRequired["Gain"]
    """Of a soup: against the ingredient that it beats by least."""


def macro_gain(comparisons: Sequence[Comparison], lower_is_better: Sequence[bool]) -> Gain:
    """The plain mean of improvements over benchmarks (positive is better), with its error, in numbers and in words."""
    signed = [
        -one.difference if lower else one.difference for one, lower in zip(comparisons, lower_is_better, strict=True)
    ]
    total = Comparison(
        fsum(signed) / len(signed),
        sqrt(fsum(one.stderr**2 for one in comparisons)) / len(signed),
        sum(one.n for one in comparisons),
        sum(one.discordant for one in comparisons),
    )
    return {
        "gain": total.difference,
        "stderr": total.stderr,
        "n": total.n,
        "discordant": total.discordant,
        "words": gain_words(total),
    }


def gain_words(found: Comparison) -> str:
    """What a gain shows: "gain" or "loss" from `CLEAR` standard errors on."""
    if found.difference and abs(found.difference) >= CLEAR * found.stderr:
        return "gain" if found.difference > 0 else "loss"
    if not found.n:
        return NO_EFFECT
    return f"{NO_EFFECT} (these {found.n:,} items would show {(CLEAR + POWER_ERRORS) * found.stderr:.2g})"


def error_of_mean(values: Sequence[float], clusters: Sequence[str | None]) -> float | None:
    """The clustered error of a benchmark's mean; None where its items name no clusters or all lie in one."""
    named = [cluster for cluster in clusters if cluster is not None]
    # Clusters of one item each are no clusters.
    if len(named) < len(values) or len(set(named)) < 2 or len(set(named)) == len(values):
        return None
    return clustered_error(values, named)
