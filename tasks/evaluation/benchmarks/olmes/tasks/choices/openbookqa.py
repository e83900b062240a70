"""OpenBookQA: elementary science with four choices, test split (RECIPE I.2)."""

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Task


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `allenai/openbookqa`, subset main."""
    choices = tuple(row["choices"]["text"])
    gold = list(row["choices"]["label"]).index(row["answerKey"].strip())
    return Document(row["id"], f"Question: {row['question_stem']}", choices[gold], choices, gold)


TASKS = (
    Task(
        name="openbookqa",
        dataset="allenai/openbookqa",
        subset="main",
        split="test",
        count=500,
        read=_read_row,
        formats=("multiple_choice", "cloze", "bits_per_byte"),
        normalisation="pmi",
        shots=5,
    ),
)
