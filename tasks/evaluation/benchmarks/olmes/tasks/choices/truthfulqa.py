"""TruthfulQA MC2: the share of probability on true answers, 817 questions, six shots (RECIPE I.4).

The shots are the primer that the authors give (Lin et al. 2021, Apache-2.0). Of chats, all shots stand in one user message.
Choices are those of MC1 and MC2 without repetition.
"""

from collections.abc import Sequence
from math import exp

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Format, Task


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `truthfulqa/truthful_qa`, subset multiple_choice, or a shot with its answer."""
    if "answer" in row:
        return Document(str(place), f"Q: {row['question']}", row["answer"])
    labels: dict[str, int] = {}
    for targets in (row["mc1_targets"], row["mc2_targets"]):
        # MC2 holds the choices of MC1 too; a dict keeps each once, with its label.
        labels |= dict(zip(targets["choices"], targets["labels"], strict=True))
    choices = tuple(labels)
    gold = list(labels.values()).index(1)
    details = {"true": list(labels.values())}
    return Document(str(place), f"Q: {row['question']}", choices[gold], choices, gold, details=details)


def _query(document: Document, format: Format) -> str:
    """The question and the cue "A:"."""
    return f"{document.question}\nA:"


def _rank(document: Document, logprobs: Sequence[float]) -> dict[str, float]:
    """MC2: probability of the true choices over that of all."""
    highest = max(logprobs)
    # The largest is taken out, or exp() of long answers would be 0 for all.
    weights = [exp(value - highest) for value in logprobs]
    true = sum(weight for weight, label in zip(weights, document.details["true"], strict=True) if label)
    return {"mc2": true / sum(weights)}


TASKS = (
    Task(
        name="truthfulqa",
        dataset="truthfulqa/truthful_qa",
        subset="multiple_choice",
        split="validation",
        count=817,
        read=_read_row,
        formats=("cloze",),
        normalisation="raw",
        shots=6,
        query=_query,
        rank=_rank,
        rank_metric="mc2",
        chat="one_turn",
        chat_query=lambda document: _query(document, "cloze"),
    ),
)
