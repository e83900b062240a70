"""What every family of benchmarks speaks: items, the requests they need, and the score of an item (RECIPE I.1)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Literal, TypeVar

from infra.json_values import JsonObject
from model.tokens.chat import Message

T = TypeVar("T")

SAMPLE_SEED = 1234
"""OLMES draws its sub-samples with this seed (RECIPE I.1)."""
LARGE_SET = 1_500
"""OLMES evaluates 1,000 items of any set larger than this."""
LARGE_SET_LIMIT = 1_000


Boundary = Literal["lm_eval", "in_loop"]
"""Where the tokens of a continuation begin: `lm_eval` gives it the whitespace that ends the context, as lm-evaluation-harness
and OLMES do; `in_loop` encodes both as they are, as OLMo's evaluation during training does. They differ for code."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model sees first: a text to continue, or messages to answer with an answer already begun."""

    text: str = ""
    messages: tuple[Message, ...] = ()
    cue: str = ""
    """Beginning of the answer that is forced on a chat model."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A continuation until a stop string or the length limit: greedy, or sampled at a temperature above 0."""

    prompt: Prompt
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Log-probability of a continuation."""

    prompt: Prompt
    continuation: str
    boundary: Boundary = "lm_eval"


@dataclass(frozen=True, slots=True)
class LikelihoodAnswer:
    """Sum of natural log-probabilities and the number of tokens they were summed over."""

    logprob: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a benchmark."""

    id: str
    text: str
    """Question and gold answer without shots or instructions: what must not occur in training data."""
    gold: str
    data: JsonObject = field(default_factory=dict)
    """What the family needs to ask and to score."""

    @property
    def question(self) -> str:
        """The question alone; the whole text where the answer cannot be told apart."""
        asked = self.data.get("question")
        # Some families keep no question of their own: then it is the text without its answer.
        return asked if isinstance(asked, str) else self.text.removesuffix(self.gold).strip() or self.text


@dataclass(frozen=True, slots=True)
class ItemScore:
    """Metrics of one item (each averaged over items) and what the model answered."""

    metrics: dict[str, float]
    answer: str
    extracted: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error over n items."""

    value: float
    stderr: float
    n: int


def subsample(items: Sequence[T], limit: int | None) -> list[T]:
    """The items to evaluate, in order: OLMES's seeded sample when there are more than the limit.

    `limit` None follows OLMES: 1,000 items of a set larger than 1,500, else all (golden/eval_sampling.json).
    """
    if limit is None:
        limit = LARGE_SET_LIMIT if len(items) > LARGE_SET else len(items)
    if len(items) <= limit:
        return list(items)
    # The same generator and seed as OLMES, so that the same items are drawn.
    return random.Random(SAMPLE_SEED).sample(list(items), limit)


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Mean and standard error. Right-or-wrong values get the binomial error with half a success and half a failure added, so
    that 0 of n and n of n have an error too. Other values get the sample deviation over √n (0 for a single value)."""
    n = len(values)
    if n == 0:
        raise ValueError("a benchmark without items has no score")
    mean = sum(values) / n
    if set(values) <= {0.0, 1.0}:
        # Half a success and half a failure more: 0 of 50 has an error of 1.4 points instead of none.
        share = (sum(values) + 0.5) / (n + 1)
        return Estimate(mean, sqrt(share * (1 - share) / (n + 1)), n)
    # n - 1, and 1 for a single value, whose deviation is 0 anyway.
    variance = sum((value - mean) ** 2 for value in values) / max(1, n - 1)
    return Estimate(mean, sqrt(variance / n), n)


def macro_average(estimates: Sequence[Estimate]) -> Estimate:
    """Plain mean of independent estimates, with their errors combined."""
    if not estimates:
        raise ValueError("a suite without benchmarks has no score")
    k = len(estimates)
    # Independent errors add in squares.
    stderr = sqrt(sum(estimate.stderr**2 for estimate in estimates)) / k
    return Estimate(sum(e.value for e in estimates) / k, stderr, sum(e.n for e in estimates))
