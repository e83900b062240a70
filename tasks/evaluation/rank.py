"""Stage: rank the candidates of a micro-anneal sweep by one benchmark or suite (paper §4.4.2; RECIPE E).

Candidates answer the same items, so two of them are compared by their paired differences where the items are stored, which
is sharper than comparing their errors. Where candidates were trained with several seeds, chance between seeds counts too
(`comparing/runs.py`). A candidate is tied with the best unless the difference is significant after Holm's correction for the
number of candidates: the order among tied candidates is not evidence, and the outcome is "undecided". Next to a tied candidate
stands what would decide, if the difference is what was measured: items (`items_to_decide`) or seeds (`seeds_to_decide`).

A sweep with several token budgets ranks once per budget. Candidates that are not tied with the best are hopeless and are not
tried with the next budget; they follow those that were. A score that is not finite never ranks; its candidate is named in
`ranking.json`.
"""

from collections.abc import Mapping, Sequence
from math import ceil, fsum, isfinite
from statistics import NormalDist
from typing import Any, NamedTuple

from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import RankedCandidate, Ranking, RankingTable, Scores
from tasks.evaluation.comparing.comparison import Comparison, holm, two_sided
from tasks.evaluation.comparing.runs import Floor, RunsCompared, noise_floor, seeds_to_decide
from tasks.evaluation.comparing.suite_pairs import difference_of_runs
from tasks.evaluation.reporting.figures import Point, dots
from tasks.evaluation.scoring.suites import ScoreRow

POWER = 0.8
"""How often the number of items or seeds that is asked for finds a difference of the measured size."""


class RankConfig(Config):
    """Which candidates, by which benchmark."""

    benchmark: str
    """Benchmark or suite that ranks, by its name in the scores."""
    candidates: tuple[str, ...]
    """Names of the candidates, in the order of the scores given."""
    seeds: int = Field(default=1, ge=1)
    """Scores of each candidate, one after the other: of trainings that differ in their seed."""
    tokens: int | None = Field(default=None, gt=0)
    """Token budget that these scores are of."""
    tie_errors: float = Field(default=2.0, ge=0)
    """Standard errors of a single difference within which a candidate is tied with the best; Holm's correction turns this
    into a level for all candidates together."""


class Candidate(NamedTuple):
    """What is known of one candidate at this budget."""

    name: str
    scores: list[Scores]
    rows: list[ScoreRow]
    """The benchmark's row of `scores.json`, of each seed."""

    @property
    def mean(self) -> float:
        return fsum(row["score"] for row in self.rows) / len(self.rows)

    @property
    def finite(self) -> bool:
        # JSON has no NaN: it is stored as null.
        return all(row["score"] is not None and isfinite(row["score"]) for row in self.rows)


def rank_candidates(ws: Workspace, scores: list[Scores], config: RankConfig, earlier: Ranking | None = None) -> Ranking:
    """Order the candidates, best first; equal scores keep the order given. `earlier` is the ranking by the budget before, whose
    other candidates follow.

    Raises ValueError when names and scores do not match.
    """
    check_candidates(scores, config)
    tried = candidates_of(ws, scores, config)
    finite = [one for one in tried if one.finite]
    unranked = [one.name for one in tried if not one.finite]
    if not finite:
        raise ValueError(
            f"no candidate has a finite score of {config.benchmark!r}: {', '.join(unranked)}; look at their trainings"
        )
    lower = bool(finite[0].rows[0]["lower_is_better"])
    ordered = sorted(finite, key=lambda one: one.mean if lower else -one.mean)
    floor = noise_floor([[row["score"] for row in one.rows] for one in finite])
    table = ranked_rows(ws, ordered, floor, config, lower)
    decided = not any(row["tied_with_best"] for row in table[1:])
    outcome = table[0]["candidate"] if decided else "undecided"
    # Candidates stopped by an earlier budget follow, in the order in which they were stopped.
    stopped = stopped_rows(ws, earlier, {*config.candidates}, len(table)) if earlier else []
    ranking: RankingTable = {
        "benchmark": config.benchmark,
        "metric": ordered[0].rows[0]["primary"],
        "outcome": outcome,
        "unranked": unranked,
        "seeds": config.seeds,
        "noise_floor": floor.deviation if floor else None,
        "tokens": config.tokens,
        "candidates": table + stopped,
    }
    ws.write_json("ranking.json", ranking)
    ws.table("ranking", table + stopped)
    ws.write("ranking.svg", figure_of(table + stopped, config.benchmark).encode())
    return ws.artifact(
        Ranking,
        order=[row["candidate"] for row in table + stopped],
        scores={row["candidate"]: row["score"] for row in table + stopped},
        stderr={row["candidate"]: row["stderr"] for row in table + stopped},
        outcome=outcome,
        hopeless=[row["candidate"] for row in table[1:] if not row["tied_with_best"]] + unranked,
    )


def figure_of(rows: Sequence[Mapping[str, Any]], benchmark: str) -> str:
    """The candidates' scores with one standard error each, best first, as an SVG."""
    drawn = [
        (row["candidate"], [Point(row["score"], row["stderr"], "soup" if row["rank"] == 1 else "anneal")])
        for row in rows
    ]
    return dots(f"Candidates by {benchmark}, best first, with one standard error", drawn, benchmark)


def candidates_of(ws: Workspace, scores: list[Scores], config: RankConfig) -> list[Candidate]:
    """The scores by candidate, with their rows."""
    found = []
    for place, name in enumerate(config.candidates):
        own = scores[place * config.seeds : (place + 1) * config.seeds]
        found.append(Candidate(name, own, [_benchmark_row(ws, score, config.benchmark) for score in own]))
    return found


def ranked_rows(
    ws: Workspace, ordered: list[Candidate], floor: Floor | None, config: RankConfig, lower: bool
) -> list[RankedCandidate]:
    """A row of the ranking for each candidate, best first, with its distance from the best."""
    best = ordered[0]
    # All are compared with the best, and Holm's correction counts these comparisons.
    found = [difference_of_runs(ws, best.scores, one.scores, config.benchmark, floor) for one in ordered[1:]]
    adjusted = holm([one.p_value for one in found])
    alpha = two_sided(config.tie_errors, 1.0)
    # The first step of Holm's correction is the strictest; a tie must pass that one.
    level = alpha / max(1, len(found))
    table: list[RankedCandidate] = []
    for rank, candidate in enumerate(ordered, 1):
        one, p = (found[rank - 2], adjusted[rank - 2]) if rank > 1 else (None, 1.0)
        tied = p >= alpha
        table.append(
            {
                "rank": rank,
                "candidate": candidate.name,
                "score": candidate.mean,
                "stderr": fsum(row["stderr"] for row in candidate.rows) / len(candidate.rows),
                "n": candidate.rows[0]["n"],
                # 0.0 + avoids a negative zero, which JSON would write as -0.0.
                "behind_best": 0.0 + (1 if lower else -1) * one.difference if one else 0.0,
                "behind_best_stderr": one.stderr if one else 0.0,
                "discordant": one.items.discordant if one else 0,
                "p_holm": p,
                "tied_with_best": tied,
                "items_to_decide": items_to_decide(one, level) if one and tied else 0,
                "seeds_to_decide": seeds_to_decide(one, level, POWER) if one and tied else 0,
                "tokens": config.tokens,
                "stopped": False,
            }
        )
    return table


def stopped_rows(ws: Workspace, earlier: Ranking, tried: set[str], ranked: int) -> list[RankedCandidate]:
    """The rows of candidates that an earlier budget stopped, in its order, behind those that were tried with this one."""
    rows = [row for row in ws.read_json(earlier, "ranking.json")["candidates"] if row["candidate"] not in tried]
    return [row | {"rank": ranked + place, "stopped": True} for place, row in enumerate(rows, 1)]


def items_to_decide(found: RunsCompared, level: float) -> int | None:
    """Items with which a difference of this size is significant at the level four times in five; None where there is no
    difference, no item was paired, or chance between seeds alone is too large.
    """
    items: Comparison = found.items
    if not items.n or found.difference == 0:
        return None
    law = NormalDist()
    errors = law.inv_cdf(1 - level / 2) + law.inv_cdf(POWER)
    room = (found.difference / errors) ** 2 - found.seed_variance
    # The error falls with the root of n: n * stderr^2 is the variance of one item.
    return ceil(items.n * items.stderr**2 / room) if room > 0 else None


def check_candidates(scores: list[Scores], config: RankConfig) -> None:
    """As many different names as scores, and every score has the benchmark."""
    names = config.candidates
    if len(names) * config.seeds != len(scores) or len(set(names)) != len(names) or not names:
        raise ValueError(
            f"{len(scores)} scores for candidates {names} with {config.seeds} seeds each; give one distinct name per "
            "candidate, and a score per seed"
        )
    for place, score in enumerate(scores):
        if config.benchmark not in score.primary:
            raise ValueError(
                f"candidate {names[place // config.seeds]!r} has no benchmark {config.benchmark!r}; it has "
                f"{', '.join(sorted(score.primary))}"
            )


def _benchmark_row(ws: Workspace, score: Scores, benchmark: str) -> ScoreRow:
    """The benchmark's row of `scores.json`."""
    rows = ws.read_json(score, "scores.json")["benchmarks"]
    row = next(row for row in rows if row["name"] == benchmark)
    if row.get("role") == "held_out":
        raise ValueError(
            f"candidates cannot be ranked by {benchmark!r}, which is held out (Table 20); rank by a development benchmark, "
            "such as {kind: olmes, task: gsm_star}"
        )
    return row


rank = stage(rank_candidates, name="rank", version=5)
