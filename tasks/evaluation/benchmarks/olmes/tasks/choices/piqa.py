"""PIQA: two ways to a goal, validation split (RECIPE I.2). Its label is "Goal:" in place of "Question:"."""

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Task


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `ybisk/piqa`."""
    choices = (row["sol1"], row["sol2"])
    gold = int(row["label"])
    return Document(str(place), f"Goal: {row['goal']}", choices[gold], choices, gold)


TASKS = (
    Task(
        name="piqa",
        dataset="ybisk/piqa",
        split="validation",
        count=1838,
        limit=1000,
        read=_read_row,
        formats=("multiple_choice", "cloze", "bits_per_byte"),
        normalisation="per_char",
        shots=5,
    ),
)
