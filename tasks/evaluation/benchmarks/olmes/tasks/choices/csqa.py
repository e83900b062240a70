"""CommonsenseQA: five choices, validation split (RECIPE I.2)."""

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Task


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `tau/commonsense_qa`."""
    choices = tuple(row["choices"]["text"])
    gold = list(row["choices"]["label"]).index(row["answerKey"])
    return Document(row["id"], f"Question: {row['question']}", choices[gold], choices, gold)


TASKS = (
    Task(
        name="csqa",
        dataset="tau/commonsense_qa",
        split="validation",
        count=1221,
        read=_read_row,
        formats=("multiple_choice", "cloze", "bits_per_byte"),
        normalisation="pmi",
        shots=5,
    ),
)
