"""BoolQ: yes or no about a passage, validation split (RECIPE I.2). Choices are yes and no, so the gold index is 1 − label."""

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Task

CHOICES = ("yes", "no")


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `aps/super_glue`, subset boolq."""
    # Label 1 means yes, which is the first choice.
    gold = 1 - row["label"]
    question = f"{row['passage']}\nQuestion: {row['question']}?"
    return Document(str(row.get("idx", place)), question, CHOICES[gold], CHOICES, gold)


TASKS = (
    Task(
        name="boolq",
        dataset="aps/super_glue",
        subset="boolq",
        split="validation",
        count=3270,
        limit=1000,
        read=_read_row,
        formats=("multiple_choice", "cloze", "bits_per_byte"),
        normalisation="raw",
        shots=5,
    ),
)
