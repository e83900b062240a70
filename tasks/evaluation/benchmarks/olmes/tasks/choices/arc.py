"""ARC-Challenge and ARC-Easy: grade-school science with four choices, test split (RECIPE I.2)."""

from tasks.evaluation.benchmarks.olmes.task import LETTERS, DatasetRow, Document, Task

_DIGITS = {str(place + 1): letter for place, letter in enumerate(LETTERS[:5])}
"""Some questions number their options; keys 1 to 5 stand for A to E."""


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `allenai/ai2_arc`."""
    labels = [_DIGITS.get(label, label) for label in row["choices"]["label"]]
    gold = labels.index(_DIGITS.get(row["answerKey"], row["answerKey"]))
    choices = tuple(row["choices"]["text"])
    return Document(row["id"], f"Question: {row['question']}", choices[gold], choices, gold)


TASKS = (
    Task(
        name="arc_challenge",
        dataset="allenai/ai2_arc",
        subset="ARC-Challenge",
        split="test",
        count=1172,
        read=_read_row,
        formats=("multiple_choice", "cloze", "bits_per_byte"),
        normalisation="pmi",
        shots=5,
    ),
    Task(
        name="arc_easy",
        dataset="allenai/ai2_arc",
        subset="ARC-Easy",
        split="test",
        count=2376,
        limit=1000,
        read=_read_row,
        formats=("multiple_choice", "cloze", "bits_per_byte"),
        normalisation="per_char",
        shots=5,
    ),
)
