"""Ranked classification and bits per byte from log-probabilities (RECIPE I.1)."""

from collections.abc import Sequence
from math import log
from typing import Literal

from tasks.evaluation.benchmarks.items import ItemScore, LikelihoodAnswer

Normalisation = Literal["raw", "per_char", "per_token", "pmi"]


def normalised(
    continuations: Sequence[str],
    answers: Sequence[LikelihoodAnswer],
    unconditional: Sequence[LikelihoodAnswer] | None,
) -> dict[str, list[float]]:
    """Score of every choice under each normalisation; pmi only when the unconditional log-probabilities are given.

    Characters include the continuation's leading space.
    """
    logprobs = [answer.logprob for answer in answers]
    scores = {
        "raw": logprobs,
        "per_char": [p / max(1, len(text)) for p, text in zip(logprobs, continuations, strict=True)],
        "per_token": [p / max(1, answer.tokens) for p, answer in zip(logprobs, answers, strict=True)],
    }
    if unconditional is not None:
        scores["pmi"] = [p - base.logprob for p, base in zip(logprobs, unconditional, strict=True)]
    return scores


def score_ranked(
    continuations: Sequence[str],
    gold: int,
    answers: Sequence[LikelihoodAnswer],
    unconditional: Sequence[LikelihoodAnswer] | None,
    primary: Normalisation,
) -> ItemScore:
    """Accuracy under each normalisation; the first of equal choices wins."""
    metrics = {}
    picked = 0
    for name, scores in normalised(continuations, answers, unconditional).items():
        best = max(range(len(scores)), key=lambda place: (scores[place], -place))
        metrics[f"acc_{name}"] = float(best == gold)
        if name == primary:
            picked = best
    metrics |= score_bits(continuations[gold], answers[gold]).metrics
    return ItemScore(metrics, continuations[picked].strip(), str(picked))


def score_bits(continuation: str, answer: LikelihoodAnswer) -> ItemScore:
    """Bits per UTF-8 byte of the gold continuation, its leading space included. Lower is better."""
    # Per byte and not per token, so that tokenizers can be compared.
    bits = -answer.logprob / (log(2) * max(1, len(continuation.encode())))
    return ItemScore({"bits_per_byte": bits}, "", "")
