"""What each step of a run gained, with its paired error: the report's `gains`.

A step's gain is the mean improvement over all benchmarks of one unit, from the checkpoint it began with to the one it made, item
by item where both kept their items (`comparing/paired.py`). Positive is better, whatever a benchmark's direction. Every gain has
`gain`, `stderr`, `n` (items), `discordant` (items that changed) and `words`: "gain" or "loss" from 3 standard errors on, else "no
effect shown". The paper prints no errors; they are ours.
"""

from collections.abc import Sequence

from infra.workspace import Workspace
from tasks.artifacts import RankingTable, RewardModel, Scores
from tasks.evaluation.benchmarks import LOWER_IS_BETTER
from tasks.evaluation.comparing.comparison import Comparison
from tasks.evaluation.comparing.paired import NO_EFFECT, Comparer, Gain, gain_words, macro_gain
from tasks.evaluation.reporting.report_values import SOUP, ReportedBenchmark, benchmarks_of

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
    *,
    ranked_by: str = "",
) -> dict[str, Gain]:
    """Per step of the main line, the gain over what it began with. A soup's also holds `over_mean` and `over_best`: against the
    mean of its ingredients, and against the one that it beats by least.

    `ranked_by` is the metric that ranked the sweep. Where it is in bits per byte, so is the soup's gain: what tells candidates
    apart tells mid-trained models apart.
    """
    in_bits = ranked_by in LOWER_IS_BETTER
    gains: dict[str, Gain] = {}
    began: dict[str, str] = {}
    line = [label for label in main_line if label in scores]
    for place, label in enumerate(line):
        step = STEP_OF.get(stages[label], stages[label])
        # Where a step has several stages, its gain is over what the first of them began with.
        started = began.setdefault(step, line[place - 1] if place else "")
        bits = in_bits and step == SOUP
        if started and (found := gain_over([scores[started]], scores[label], benchmarks, compared, in_bits=bits)):
            gains[step] = found
        if stages[label] == SOUP:
            known = [scores[one] for one in ingredients if one in scores]
            gains |= _soup_gains(gains.get(step), known, scores[label], benchmarks, compared, in_bits)
    return gains


def _soup_gains(
    over_start: Gain | None,
    ingredients: list[Scores],
    soup: Scores,
    benchmarks: dict[str, ReportedBenchmark],
    compared: Comparer,
    in_bits: bool,
) -> dict[str, Gain]:
    over_mean = gain_over(ingredients, soup, benchmarks, compared, in_bits=in_bits)
    each = [found for one in ingredients if (found := gain_over([one], soup, benchmarks, compared, in_bits=in_bits))]
    over_best = min(each, key=lambda found: found["gain"], default=None)
    # A run that starts past its base has nothing else to compare its soup with.
    own = over_start or over_best
    if own is None:
        return {}
    whole: Gain = {**own}
    if over_mean:
        whole["over_mean"] = over_mean
    if over_best:
        whole["over_best"] = over_best
    return {SOUP: whole}


def gain_over(
    before: Sequence[Scores],
    after: Scores,
    benchmarks: dict[str, ReportedBenchmark],
    compared: Comparer,
    *,
    in_bits: bool = False,
) -> Gain | None:
    """The mean improvement over the benchmarks that all have; None where there is no common one.

    Shares and bits per byte have no common mean. Of models that are asked both, shares count, or with `in_bits` the bits. A
    gain in bits names its `metric`.
    """
    common = [name for name in after.primary if before and all(name in score.primary for score in before)]
    bits = [name for name in common if benchmarks[name].lower_is_better]
    shares = [name for name in common if name not in bits]
    names = (bits or shares) if in_bits else (shares or bits)
    if not names:
        return None
    lower = [benchmarks[name].lower_is_better for name in names]
    found = macro_gain([compared(before, after, name) for name in names], lower)
    if lower[0]:
        found["metric"] = benchmarks[names[0]].metric
    return found


def curation_gain(ws: Workspace, trial: Sequence[Scores], compared: Comparer) -> Gain | None:
    """What a small model gained by filtered text over unfiltered text; None without a trial. ValueError for one score alone."""
    if not trial:
        return None
    if len(trial) != 2:
        raise ValueError(f"a trial of curation has 2 scores, unfiltered and filtered; {len(trial)} are given")
    unfiltered, filtered = trial
    tables = [ws.read_json(score, "scores.json")["benchmarks"] for score in trial]
    return gain_over([unfiltered], filtered, benchmarks_of(tables), compared, in_bits=True)


def reward_gain(reward: RewardModel) -> Gain | None:
    """The reward model's accuracy on held-out pairs over chance; None of an adopted one, for which no pair was held out."""
    if not reward.pairs_held_out:
        return None
    found = Comparison(reward.accuracy - 0.5, reward.accuracy_stderr, reward.pairs_held_out, 0)
    gain = _plain(found)
    # Chance knows none of the pairs, so each of them counts as one that differs.
    gain["discordant"] = reward.pairs_held_out
    return gain


def sweep_gain(ranking: RankingTable) -> Gain | None:
    """The best candidate over the second best, paired where the ranking was; None where only one was ranked."""
    if len(ranking["candidates"]) < 2:
        return None
    second = ranking["candidates"][1]
    found = Comparison(second["behind_best"], second["behind_best_stderr"], second["n"], second.get("discordant", 0))
    gain: Gain = {**_plain(found), "metric": ranking["metric"]}
    if second["tied_with_best"]:
        gain["words"] = NO_EFFECT
    return gain


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
