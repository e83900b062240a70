"""Stage: rank the candidates of a micro-anneal sweep by one benchmark (paper §4.4.2; RECIPE E).

Candidates answer the same items, so two of them are compared by their paired differences where the items are stored, which
is sharper than comparing their errors. A candidate is tied with the best unless the difference is significant after Holm's
correction for the number of candidates: the order among tied candidates is not evidence, and the outcome is "undecided".
Next to a tied candidate stands how many items would decide, if the difference is what was measured (`items_to_decide`).
A score that is not finite never ranks; its candidate is named in `ranking.json`.
"""

from math import ceil, hypot, isfinite
from statistics import NormalDist
from typing import Any

from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Ranking, Scores
from tasks.evaluation.comparing.comparison import Comparison, compare, holm, two_sided

POWER = 0.8
"""How often the number of items that is asked for finds a difference of the measured size."""


class RankConfig(Config):
    """Which candidates, by which benchmark."""

    benchmark: str
    """Benchmark or suite that ranks, by its name in the scores."""
    candidates: tuple[str, ...]
    """Names of the candidates, in the order of the scores given."""
    tie_errors: float = Field(default=2.0, ge=0)
    """Standard errors of a single difference within which a candidate is tied with the best; Holm's correction turns this
    into a level for all candidates together."""


def rank_candidates(ws: Workspace, scores: list[Scores], config: RankConfig) -> Ranking:
    """Order the candidates, best first; equal scores keep the order given. ValueError when names and scores do not match."""
    check_candidates(scores, config)
    rows = [_benchmark_row(ws, score, config.benchmark) for score in scores]
    direction = -1 if rows[0]["lower_is_better"] else 1
    # JSON has no NaN: it is stored as null.
    finite = [place for place, row in enumerate(rows) if row["score"] is not None and isfinite(row["score"])]
    unranked = [config.candidates[place] for place in range(len(rows)) if place not in finite]
    if not finite:
        raise ValueError(
            f"no candidate has a finite score of {config.benchmark!r}: {', '.join(unranked)}; look at their trainings"
        )
    order = sorted(finite, key=lambda place: (-direction * rows[place]["score"], place))
    found = [difference(ws, scores, rows, order[0], place) for place in order[1:]]
    adjusted = holm([two_sided(one.difference, one.stderr) for one in found])
    alpha = two_sided(config.tie_errors, 1.0)
    table = []
    for rank, place in enumerate(order, 1):
        one, p = (found[rank - 2], adjusted[rank - 2]) if rank > 1 else (None, 1.0)
        table.append(
            {
                "rank": rank,
                "candidate": config.candidates[place],
                "score": rows[place]["score"],
                "stderr": rows[place]["stderr"],
                "n": rows[place]["n"],
                "behind_best": 0.0 - direction * one.difference if one else 0.0,
                "behind_best_stderr": one.stderr if one else 0.0,
                "discordant": one.discordant if one else 0,
                "p_holm": p,
                "tied_with_best": p >= alpha,
                "items_to_decide": items_to_decide(one, alpha / max(1, len(found))) if one and p >= alpha else 0,
            }
        )
    decided = not any(row["tied_with_best"] for row in table[1:])
    outcome = table[0]["candidate"] if decided else "undecided"
    facts = {
        "benchmark": config.benchmark,
        "metric": rows[order[0]]["primary"],
        "outcome": outcome,
        "unranked": unranked,
    }
    ws.write_json("ranking.json", facts | {"candidates": table})
    ws.table("ranking", table)
    return ws.artifact(
        Ranking,
        order=[row["candidate"] for row in table],
        scores={row["candidate"]: row["score"] for row in table},
        stderr={row["candidate"]: row["stderr"] for row in table},
        outcome=outcome,
    )


def items_to_decide(found: Comparison, level: float) -> int | None:
    """Items with which a difference of this size is significant at the level four times in five; None where there is no
    difference, or no item was paired.
    """
    if not found.n or found.difference == 0:
        return None
    law = NormalDist()
    errors = law.inv_cdf(1 - level / 2) + law.inv_cdf(POWER)
    return ceil(found.n * (errors * found.stderr / found.difference) ** 2)


def check_candidates(scores: list[Scores], config: RankConfig) -> None:
    """As many different names as scores, and every score has the benchmark."""
    names = config.candidates
    if len(names) != len(scores) or len(set(names)) != len(names) or not names:
        raise ValueError(f"{len(scores)} scores for candidates {names}; give one distinct name per score")
    for name, score in zip(names, scores, strict=True):
        if config.benchmark not in score.primary:
            raise ValueError(
                f"candidate {name!r} has no benchmark {config.benchmark!r}; it has {', '.join(sorted(score.primary))}"
            )


def _benchmark_row(ws: Workspace, score: Scores, benchmark: str) -> dict[str, Any]:
    """The benchmark's row of `scores.json`."""
    rows = ws.read_json(score, "scores.json")["benchmarks"]
    row = next(row for row in rows if row["name"] == benchmark)
    if row.get("role") == "held_out":
        raise ValueError(
            f"candidates cannot be ranked by {benchmark!r}, which is held out (Table 20); rank by a development benchmark, "
            "such as {kind: olmes, task: gsm_star}"
        )
    return row


def difference(ws: Workspace, scores: list[Scores], rows: list[dict[str, Any]], first: int, second: int) -> Comparison:
    """Second candidate minus first: paired over items, or with independent errors for a suite."""
    name = f"items/{rows[first]['name']}.jsonl.zst"
    if not all(name in ws.files(scores[place]) for place in (first, second)):
        value = rows[second]["score"] - rows[first]["score"]
        return Comparison(value, hypot(rows[first]["stderr"], rows[second]["stderr"]), 0, 0)
    metric = rows[first]["primary"]
    values = [
        {row["id"]: row["metrics"][metric] for row in ws.read_jsonl(scores[place], name)} for place in (first, second)
    ]
    if values[0].keys() != values[1].keys():
        raise ValueError(
            f"candidates answered different items of {rows[first]['name']!r}; evaluate them with one config"
        )
    return compare(values[0], values[1])


rank = stage(rank_candidates, name="rank", version=3)
