"""Maths problems made from a seed, without a language model, in four splits that cannot overlap (RECIPE C.7).

`generate(config, split, count, seed)` gives one kind, `generate_mixed` several by their weights.
"""

from collections.abc import Sequence
from random import Random
from typing import Annotated

from pydantic import Field

from tasks.synthetic.arithmetic import ArithmeticConfig, draw_arithmetic
from tasks.synthetic.multi_addition import MultiAdditionConfig, draw_multi_addition
from tasks.synthetic.problems import Draft, Problem, Split, draw_problems, split_of
from tasks.synthetic.word_problems import WordProblemsConfig, draw_word_problem

__all__ = [
    "ArithmeticConfig",
    "KindConfig",
    "MultiAdditionConfig",
    "Problem",
    "Split",
    "WordProblemsConfig",
    "generate_mixed",
    "generate_problems",
    "share_out",
    "split_of",
]

KindConfig = Annotated[
    ArithmeticConfig | MultiAdditionConfig | WordProblemsConfig,
    Field(discriminator="kind"),
]


def generate_problems(
    config: ArithmeticConfig | MultiAdditionConfig | WordProblemsConfig,
    split: Split,
    count: int,
    seed: int | str,
    *,
    distinct: bool = False,
) -> list[Problem]:
    """`count` problems of one kind from one split; the first n are those of a call with count n.

    `distinct` gives no key twice, which evaluation sets want. ValueError when the ranges hold too few problems.
    """

    def draw(rng: Random) -> Draft | None:
        match config:
            case ArithmeticConfig():
                return draw_arithmetic(config, rng)
            case MultiAdditionConfig():
                return draw_multi_addition(config, rng)
            case WordProblemsConfig():
                return draw_word_problem(config, rng)

    # Kind and split are part of the seed, so the sets of two splits are drawn independently.
    rng = Random(f"{config.kind}/{split}/{seed}")
    return draw_problems(draw, split, count, rng, distinct=distinct, what=config.kind)


def generate_mixed(
    configs: Sequence[ArithmeticConfig | MultiAdditionConfig | WordProblemsConfig],
    split: Split,
    count: int,
    seed: int | str,
    *,
    distinct: bool = False,
) -> list[Problem]:
    """`count` problems of several kinds in proportion to their weights, in one seeded shuffle."""
    if not configs:
        raise ValueError("problems is empty; name at least one kind of problem")
    shares = share_out([config.weight for config in configs], count)
    problems = [
        problem
        for place, (config, share) in enumerate(zip(configs, shares, strict=True))
        # A seed per place in the list: two entries of one kind must not give the same problems.
        for problem in generate_problems(config, split, share, f"{seed}/{place}", distinct=distinct)
    ]
    Random(f"mixed/{split}/{seed}").shuffle(problems)
    return problems


def share_out(weights: Sequence[float], count: int) -> list[int]:
    """`count` shared in proportion to the weights, by largest remainder; earlier weights win ties."""
    exact = [weight * count / sum(weights) for weight in weights]
    shares = [int(value) for value in exact]
    # The most negative difference is the largest remainder.
    by_remainder = sorted(range(len(weights)), key=lambda place: (shares[place] - exact[place], place))
    for place in by_remainder[: count - sum(shares)]:
        shares[place] += 1
    return shares
