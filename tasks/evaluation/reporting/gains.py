"""What each step of a run gained, with its paired error: the report's `gains`.

A step's gain is the mean improvement over all benchmarks from the checkpoint it began with to the one it made, item by item
where both kept their items (`comparing/paired.py`). Positive is better, whatever a benchmark's direction. Every gain has `gain`,
`stderr`, `n` (items), `discordant` (items that changed) and `words`: "gain" or "loss" from 3 standard errors on, else "no effect
shown". The paper prints no errors; they are ours.
"""

from collections.abc import Sequence
from typing import Any

from infra.workspace import Workspace
from tasks.artifacts import RewardModel, Scores
from tasks.evaluation.comparing.comparison import Comparison
from tasks.evaluation.comparing.paired import NO_EFFECT, Comparer, gain_words, macro_gain
from tasks.evaluation.reporting.report_values import SOUP, ReportedBenchmark, benchmarks_of

Gain = dict[str, Any]

STEP_OF = {"ppo": "rlvr"}
"""Stages that count as a step of another name: reinforcement is one step, whatever its algorithm and however many its stages."""
ORDER = ("curation", "sweep", "soup", "sft", "dpo", "reward", "rlvr")
"""Steps in the order of a recipe; others come last."""


def stage_gains(
    main_line: Sequence[str],
    stages: dict[str, str],
    ingredients: Sequence[str],
    scores: dict[str, Scores],
    benchmarks: dict[str, ReportedBenchmark],
    compared: Comparer,
) -> dict[str, Gain]:
    """Per step of the main line, the gain over what it began with. A soup's also holds `over_mean` and `over_best`: against the
    mean of its ingredients, and against the one that it beats by least.
    """
    gains: dict[str, Gain] = {}
    began: dict[str, str] = {}
    line = [label for label in main_line if label in scores]
    for place, label in enumerate(line):
        step = STEP_OF.get(stages[label], stages[label])
        # Where a step has several stages, its gain is over what the first of them began with.
        started = began.setdefault(step, line[place - 1] if place else "")
        if started and (found := gain_over([scores[started]], scores[label], benchmarks, compared)):
            gains[step] = found
        if stages[label] == SOUP:
            gains |= _soup_gains(gains.get(step), [scores[one] for one in ingredients if one in scores],
                                 scores[label], benchmarks, compared)  # fmt: skip
    return gains


def _soup_gains(
    over_start: Gain | None,
    ingredients: list[Scores],
    soup: Scores,
    benchmarks: dict[str, ReportedBenchmark],
    compared: Comparer,
) -> dict[str, Gain]:
    over_mean = gain_over(ingredients, soup, benchmarks, compared)
    each = [found for one in ingredients if (found := gain_over([one], soup, benchmarks, compared))]
    over_best = min(each, key=lambda found: found["gain"], default=None)
    further = {name: found for name, found in (("over_mean", over_mean), ("over_best", over_best)) if found}
    # A run that starts past its base has nothing else to compare its soup with.
    own = over_start or over_best
    return {SOUP: own | further} if own else {}


def gain_over(
    before: Sequence[Scores], after: Scores, benchmarks: dict[str, ReportedBenchmark], compared: Comparer
) -> Gain | None:
    """The mean improvement over the benchmarks that all have; None where there is no common one."""
    names = [name for name in after.primary if before and all(name in score.primary for score in before)]
    if not names:
        return None
    lower = [benchmarks[name].lower_is_better for name in names]
    return macro_gain([compared(before, after, name) for name in names], lower)


def curation_gain(ws: Workspace, trial: Sequence[Scores], compared: Comparer) -> Gain | None:
    """What a small model gained by filtered text over unfiltered text; None without a trial. ValueError for one score alone."""
    if not trial:
        return None
    if len(trial) != 2:
        raise ValueError(f"a trial of curation has 2 scores, unfiltered and filtered; {len(trial)} are given")
    unfiltered, filtered = trial
    tables = [ws.read_json(score, "scores.json")["benchmarks"] for score in trial]
    return gain_over([unfiltered], filtered, benchmarks_of(tables), compared)


def reward_gain(reward: RewardModel) -> Gain | None:
    """The reward model's accuracy on held-out pairs over chance; None of an adopted one, for which no pair was held out."""
    if not reward.pairs_held_out:
        return None
    found = Comparison(reward.accuracy - 0.5, reward.accuracy_stderr, reward.pairs_held_out, 0)
    return _plain(found) | {"discordant": reward.pairs_held_out}


def sweep_gain(ranking: dict[str, Any]) -> Gain | None:
    """The best candidate over the second best, paired where the ranking was; None where only one was ranked."""
    if len(ranking["candidates"]) < 2:
        return None
    second = ranking["candidates"][1]
    found = Comparison(second["behind_best"], second["behind_best_stderr"], second["n"], second.get("discordant", 0))
    undecided = {"words": NO_EFFECT} if second["tied_with_best"] else {}
    return _plain(found) | {"metric": ranking["metric"]} | undecided


def in_order(gains: dict[str, Gain | None]) -> dict[str, Gain]:
    """The gains that there are, in the order of a recipe."""
    known = [name for name in ORDER if name in gains]
    found = {name: gains[name] for name in [*known, *(name for name in gains if name not in known)]}
    return {name: gain for name, gain in found.items() if gain}


def _plain(found: Comparison) -> Gain:
    return {
        "gain": found.difference,
        "stderr": found.stderr,
        "n": found.n,
        "discordant": found.discordant,
        "words": gain_words(found),
    }
