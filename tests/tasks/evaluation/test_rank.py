"""Oracles: hand-computed paired errors; scores artifacts written to a real store in the published row format."""

import json
from math import nan, sqrt
from pathlib import Path
from random import Random
from typing import Any

import pytest

from infra.execution.attempt import run_stage
from infra.session import Session
from infra.settings import Execution
from infra.stage import stage
from infra.storage.store import Store
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Scores
from tasks.evaluation.rank import RankConfig, rank


class Answers(Config):
    """What the pretended evaluation found."""

    label: str
    values: tuple[float, ...]
    metric: str = "exact_match"
    lower_is_better: bool = False
    items: bool = True
    role: str = "dev"
    broken: bool = False


def make_scores(ws: Workspace, config: Answers) -> Scores:
    n = len(config.values)
    mean = sum(config.values) / n
    row = {"name": "maths", "primary": config.metric, "score": nan if config.broken else mean, "stderr": 0.05, "n": n,
           "lower_is_better": config.lower_is_better, "role": config.role}  # fmt: skip
    ws.write_json("scores.json", {"label": config.label, "checkpoint": "", "benchmarks": [row]})
    if config.items:
        rows = [{"id": str(i), "metrics": {config.metric: v}} for i, v in enumerate(config.values)]
        ws.write_jsonl("items/maths.jsonl.zst", rows)
    return ws.artifact(Scores, label=config.label, checkpoint="", primary={"maths": mean}, stderr={"maths": 0.05})


class Desk:
    def __init__(self, root: Path):
        self.session = Session(Store(str(root)), Execution(store=str(root), ray="off", cores=1))

    def scores(self, label: str, values: list[float], **fields: Any) -> Scores:
        arguments = {"config": Answers(label=label, values=tuple(values), **fields)}
        made = run_stage(stage(make_scores, name="evaluate", version=1), self.session, arguments, lambda event: None)
        assert isinstance(made.artifact, Scores)
        return made.artifact

    def rank(self, scores: list[Scores], names: tuple[str, ...], **fields: Any) -> tuple[Any, list[dict[str, Any]]]:
        config = RankConfig(benchmark="maths", candidates=names, **fields)
        made = run_stage(rank, self.session, {"scores": scores, "config": config}, lambda event: None).artifact
        table = json.loads(self.session.store.read(f"{made.address}/ranking.json"))["candidates"]
        return made, table


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "store")


def test_best_first_with_paired_errors(desk):
    weak = desk.scores("weak", [0, 0, 0, 1] * 10)
    strong = desk.scores("strong", [1, 1, 0, 1] * 10)
    made, table = desk.rank([weak, strong], ("a", "b"))
    assert made.order == ["b", "a"]
    assert made.scores == {"b": 0.75, "a": 0.25}
    assert table[1]["behind_best"] == pytest.approx(0.5)
    # 20 of 40 paired differences are 1: the sample deviation over the root of their number.
    assert table[1]["behind_best_stderr"] == pytest.approx(sqrt(0.25 / 39))
    assert table[1]["discordant"] == 20
    assert made.outcome == "b"
    assert [row["tied_with_best"] for row in table] == [True, False]


def test_near_equals_are_tied_and_equals_keep_their_order(desk):
    one = desk.scores("one", [1, 0] * 20)
    two = desk.scores("two", [0, 1] * 20)
    three = desk.scores("three", [1, 0] * 19 + [1, 1])
    made, table = desk.rank([one, two, three], ("x", "y", "z"))
    assert made.order == ["z", "x", "y"]
    assert all(row["tied_with_best"] for row in table)
    assert made.outcome == "undecided"


def test_what_is_not_finite_never_ranks_and_is_named(desk):
    broken, good, worse = (
        desk.scores("nan", [1] * 4, broken=True),
        desk.scores("good", [1] * 4),
        desk.scores("worse", [0.9] * 4),
    )
    made, _ = desk.rank([broken, good, worse], ("broken", "good", "worse"))
    assert made.order == ["good", "worse"]
    assert "broken" not in made.scores
    assert json.loads(desk.session.store.read(f"{made.address}/ranking.json"))["unranked"] == ["broken"]
    with pytest.raises(ValueError, match="no candidate has a finite score of 'maths': broken"):
        desk.rank([broken], ("broken",))


def test_many_candidates_need_more_evidence(desk):
    random = Random(0)
    base = [float(random.random() < 0.5) for _ in range(400)]
    best = [1.0] * 20 + base[20:]
    scores = [desk.scores("best", best), *(desk.scores(f"c{n}", base) for n in range(40))]
    names = ("best", *(f"c{n}" for n in range(40)))
    made, table = desk.rank(scores[:2], names[:2], tie_errors=3.2)
    assert made.outcome == "undecided" if table[1]["p_holm"] >= 0.00137 else made.outcome == "best"
    _, many = desk.rank(scores, names, tie_errors=3.2)
    assert many[1]["p_holm"] == pytest.approx(min(1.0, 40 * table[1]["p_holm"]))


def test_bits_rank_downwards_and_suites_use_independent_errors(desk):
    fields = {"metric": "bits_per_byte", "lower_is_better": True, "items": False}
    low = desk.scores("low", [1.0, 1.0], **fields)
    high = desk.scores("high", [2.0, 2.0], **fields)
    made, table = desk.rank([high, low], ("high", "low"))
    assert made.order == ["low", "high"]
    assert table[1]["behind_best"] == pytest.approx(1.0)
    assert table[1]["behind_best_stderr"] == pytest.approx(0.05 * sqrt(2))


def test_names_must_fit(desk):
    one, two = desk.scores("one", [1, 0]), desk.scores("two", [1, 1, 0])
    with pytest.raises(ValueError, match="2 scores for candidates"):
        desk.rank([one, two], ("a",))
    with pytest.raises(ValueError, match="one distinct name per candidate"):
        desk.rank([one, two], ("a", "a"))
    with pytest.raises(ValueError, match="answered different items"):
        desk.rank([one, two], ("a", "b"))
    with pytest.raises(ValueError, match="candidate 'a' has no benchmark 'physics'; it has maths"):
        run_stage(
            rank,
            desk.session,
            {"scores": [one], "config": RankConfig(benchmark="physics", candidates=("a",))},
            lambda event: None,
        )


def test_candidates_are_not_ranked_by_a_held_out_benchmark(tmp_path):
    desk = Desk(tmp_path)
    scores = [desk.scores(name, values, role="held_out") for name, values in (("a", [1.0, 0.0]), ("b", [1.0, 1.0]))]
    with pytest.raises(ValueError, match="cannot be ranked by 'maths', which is held out"):
        desk.rank(scores, ("a", "b"))


def answers(chance: Random, items: int, skills: list[float]) -> list[list[float]]:
    """Answers of candidates to the same items: an item is hard or easy for all, and each candidate has luck of its own."""
    ease = [chance.betavariate(1, 1.5) for _ in range(items)]
    return [[float(chance.random() < min(1.0, e + skill)) for e in ease] for skill in skills]


def decided(tmp_path: Path, skills: list[float], seed: int) -> tuple[str, str]:
    """(outcome, first of the order) for candidates of these skills, on 4,000 items."""
    desk = Desk(tmp_path / str(seed))
    names = tuple("abc"[: len(skills)])
    tables = answers(Random(seed), 4_000, skills)
    made, _ = desk.rank([desk.scores(name, values) for name, values in zip(names, tables, strict=True)], names)
    return made.outcome, made.order[0]


def test_three_equal_candidates_are_undecided(tmp_path):
    outcomes = [decided(tmp_path, [0.0, 0.0, 0.0], seed)[0] for seed in range(20)]
    assert outcomes.count("undecided") >= 19


def test_a_candidate_that_is_two_points_better_is_ranked_first(tmp_path):
    first = [decided(tmp_path, [0.0, 0.02, 0.0], seed)[1] for seed in range(20)]
    assert first.count("b") >= 18


def test_an_undecided_sweep_says_how_many_items_would_decide(tmp_path):
    """By hand: with an error of a third of what is needed, nine times the items."""
    desk = Desk(tmp_path)
    base = [float(n % 2) for n in range(400)]
    better = [1.0 if n in (0, 2, 4) else value for n, value in enumerate(base)]
    worse = [0.0 if n in (1, 3) else value for n, value in enumerate(better)]
    made, table = desk.rank([desk.scores("a", better), desk.scores("b", worse)], ("a", "b"))
    assert made.outcome == "undecided"
    row = table[1]
    errors = 2.0 + 0.8416212
    assert row["items_to_decide"] == pytest.approx(
        400 * (errors * row["behind_best_stderr"] / row["behind_best"]) ** 2, abs=1
    )
    same, rows = desk.rank([desk.scores("a", base), desk.scores("c", base)], ("a", "c"))
    assert same.outcome == "undecided"
    assert rows[1]["items_to_decide"] is None


def test_several_seeds_bring_the_noise_floor_into_the_error(desk):
    """Runs of 0.6 and 0.4, and of 0.65 and 0.45, by hand: the variance between the two of a candidate is 0.02."""
    runs = [desk.scores(f"run{n}", [1.0] * n + [0.0] * (100 - n)) for n in (60, 40, 65, 45)]
    made, table = desk.rank(runs, ("a", "b"), seeds=2, tokens=64)
    stored = json.loads(desk.session.store.read(f"{made.address}/ranking.json"))
    assert made.order == ["b", "a"] and made.outcome == "undecided"
    assert stored["noise_floor"] == pytest.approx(sqrt(0.02)) and stored["seeds"] == 2
    # Per item the means over runs differ by a half on 10 items; between seeds two means of two runs differ by sqrt(0.02).
    items = sqrt((10 * 0.45**2 + 90 * 0.05**2) / 99 / 100)
    assert table[1]["behind_best"] == pytest.approx(0.05)
    assert table[1]["behind_best_stderr"] == pytest.approx(sqrt(items**2 + 0.02), rel=1e-3)
    assert table[1]["items_to_decide"] is None, "no number of items outweighs the seeds"
    assert table[1]["seeds_to_decide"] > 2
    with pytest.raises(ValueError, match="3 scores for candidates"):
        desk.rank(runs[:3], ("a", "b"), seeds=2)


def test_what_a_smaller_budget_stopped_follows_and_is_named(desk):
    bad = desk.scores("bad", [0.0] * 100)
    good, better = desk.scores("good", [1.0] * 90 + [0.0] * 10), desk.scores("better", [1.0] * 92 + [0.0] * 8)
    first, _ = desk.rank([bad, good, better], ("bad", "good", "better"), tokens=10)
    assert first.hopeless == ["bad"]
    config = RankConfig(benchmark="maths", candidates=("good", "better"), tokens=20)
    arguments = {"scores": [good, better], "config": config, "earlier": first}
    made: Any = run_stage(rank, desk.session, arguments, lambda event: None).artifact
    table = json.loads(desk.session.store.read(f"{made.address}/ranking.json"))["candidates"]
    assert made.order == ["better", "good", "bad"]
    assert [(row["stopped"], row["tokens"], row["rank"]) for row in table] == [
        (False, 20, 1),
        (False, 20, 2),
        (True, 10, 3),
    ]
