"""Stage: rank the candidates of a micro-anneal sweep by one benchmark (paper §4.4.2; RECIPE E).

Candidates answer the same items, so two of them are compared by their paired differences where the items are stored, which
is sharper than comparing their errors. A candidate that is not worse than the best by more than `tie_errors` standard errors
is tied with it: the order among tied candidates is not evidence, and the ranking says so.
"""

from math import sqrt
from typing import Any

from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Ranking, Scores
from tasks.evaluation.benchmarks.items import estimate_mean


class RankConfig(Config):
    """Which candidates, by which benchmark."""

    benchmark: str
    """Benchmark or suite that ranks, by its name in the scores."""
    candidates: tuple[str, ...]
    """Names of the candidates, in the order of the scores given."""
    tie_errors: float = Field(default=2.0, ge=0)
    """Standard errors of the difference within which a candidate is tied with the best."""


def rank_candidates(ws: Workspace, scores: list[Scores], config: RankConfig) -> Ranking:
    """Order the candidates, best first; equal scores keep the order given. ValueError when names and scores do not match."""
    check_candidates(scores, config)
    rows = [benchmark_row(ws, score, config.benchmark) for score in scores]
    direction = -1 if rows[0]["lower_is_better"] else 1
    order = sorted(range(len(scores)), key=lambda place: (-direction * rows[place]["score"], place))
    best = order[0]
    table = []
    for rank, place in enumerate(order, 1):
        behind = direction * (rows[best]["score"] - rows[place]["score"])
        error = 0.0 if place == best else difference_error(ws, scores, rows, best, place)
        table.append(
            {
                "rank": rank,
                "candidate": config.candidates[place],
                "score": rows[place]["score"],
                "stderr": rows[place]["stderr"],
                "n": rows[place]["n"],
                "behind_best": behind,
                "behind_best_stderr": error,
                "tied_with_best": behind <= config.tie_errors * error,
            }
        )
    ws.write_json("ranking.json", {"benchmark": config.benchmark, "metric": rows[best]["primary"], "candidates": table})
    ws.table("ranking", table)
    return ws.artifact(
        Ranking,
        order=[row["candidate"] for row in table],
        scores={row["candidate"]: row["score"] for row in table},
        stderr={row["candidate"]: row["stderr"] for row in table},
    )


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


def benchmark_row(ws: Workspace, score: Scores, benchmark: str) -> dict[str, Any]:
    """The benchmark's row of `scores.json`."""
    rows = ws.read_json(score, "scores.json")["benchmarks"]
    row = next(row for row in rows if row["name"] == benchmark)
    if row.get("role") == "held_out":
        raise ValueError(
            f"candidates cannot be ranked by {benchmark!r}, which is held out (Table 20); rank by a development benchmark, "
            "such as {kind: olmes, task: gsm_star}"
        )
    return row


def difference_error(ws: Workspace, scores: list[Scores], rows: list[dict[str, Any]], first: int, second: int) -> float:
    """Standard error of the difference of two candidates: paired over items, or of independent errors for a suite."""
    name = f"items/{rows[first]['name']}.jsonl.zst"
    independent = sqrt(rows[first]["stderr"] ** 2 + rows[second]["stderr"] ** 2)
    if not all(name in ws.files(scores[place]) for place in (first, second)):
        return independent
    metric = rows[first]["primary"]
    values = [
        {row["id"]: row["metrics"][metric] for row in ws.read_jsonl(scores[place], name)} for place in (first, second)
    ]
    if values[0].keys() != values[1].keys():
        raise ValueError(
            f"candidates answered different items of {rows[first]['name']!r}; evaluate them with one config"
        )
    differences = [values[0][id] - values[1][id] for id in values[0]]
    # All differences equal says nothing about their spread: fall back on the independent errors' value.
    return estimate_mean(differences).stderr if len(set(differences)) > 1 else independent


rank = stage(rank_candidates, name="rank", version=1)
