"""Rows of preferences: answers with their ratings, and the pair that a prompt's answers make (RECIPE G)."""

from typing import NotRequired, TypedDict

import numpy as np

from tasks.training.answers.model_judge import Ratings
from tasks.training.answers.rule_judge import binarise, mean_rating, observe, rate
from tasks.training.answers.verified_answers import EncodedPrompt, VerifiedAnswer


class UnratedPrompt(TypedDict):
    """A prompt whose judgements cannot be read, or that has fewer than two answers."""

    id: str
    reason: str
    said: list[str]


class RatedSample(TypedDict):
    """One answer with its verdict and its ratings."""

    model: NotRequired[str]
    """Who gave it, where a pool answers."""
    id: str
    text: str
    finished: bool
    correct: bool | None
    """None without a verdict."""
    ratings: Ratings
    """Per aspect."""
    rating: float
    """Their mean."""


class BinarisedPair(TypedDict):
    """The binarised row of one prompt."""

    chosen_model: NotRequired[str]
    rejected_model: NotRequired[str]
    """Who gave them, where a pool answers."""
    id: str
    dataset: str
    chosen: list[dict[str, str]]
    """The conversation with the better answer."""
    rejected: list[dict[str, str]]
    chosen_rating: float
    rejected_rating: float
    chosen_ratings: Ratings
    rejected_ratings: Ratings


def instruction_of(prompt: EncodedPrompt) -> str:
    """What the answers reply to: the message, or the conversation with its roles."""
    messages = prompt.row["messages"]
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def rated_by_rules(prompt: EncodedPrompt, answer: VerifiedAnswer) -> Ratings:
    """The rule-based judge's ratings of one answer."""
    verdict, text = answer.verdict, answer.completion.text
    facts = observe(prompt.row["dataset"], text, verdict.extracted, correct=verdict.correct, finished=answer.finished)
    return dict(rate(facts))


def rated_sample(prompt: EncodedPrompt, answer: VerifiedAnswer, ratings: Ratings, by: str | None = None) -> RatedSample:
    """One answer with its verdict, if it has one, its ratings per aspect and their mean; `by`: who gave it, of a pool."""
    sample: RatedSample = {
        "id": prompt.row["id"],
        "text": answer.completion.text,
        "finished": answer.finished,
        "correct": answer.judged and answer.judged.correct,
        "ratings": ratings,
        "rating": mean_rating(ratings),
    }
    return sample if by is None else {"model": by, **sample}


def make_pair(
    prompt: EncodedPrompt, samples: list[RatedSample], generator: np.random.Generator, margin: float = 0.0
) -> BinarisedPair | None:
    """The binarised row of one prompt; None where no answer is rated so much lower than the best."""
    found = binarise([sample["rating"] for sample in samples], generator, margin)
    if found is None:
        return None
    best, other = found
    chosen, rejected = samples[best], samples[other]

    def conversation(text: str) -> list[dict[str, str]]:
        return [*prompt.row["messages"], {"role": "assistant", "content": text}]

    pair: BinarisedPair = {
        "id": prompt.row["id"],
        "dataset": prompt.row["dataset"],
        "chosen": conversation(chosen["text"]),
        "rejected": conversation(rejected["text"]),
        "chosen_rating": chosen["rating"],
        "rejected_rating": rejected["rating"],
        "chosen_ratings": chosen["ratings"],
        "rejected_ratings": rejected["ratings"],
    }
    if "model" in chosen and "model" in rejected:
        pair["chosen_model"], pair["rejected_model"] = chosen["model"], rejected["model"]
    return pair
