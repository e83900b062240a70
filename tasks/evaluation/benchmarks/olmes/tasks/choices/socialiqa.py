"""Social IQa: three choices about a situation, validation split (RECIPE I.2). The context and the question share a line."""

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Task


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `allenai/social_i_qa`."""
    choices = (row["answerA"], row["answerB"], row["answerC"])
    gold = int(row["label"]) - 1
    question = f"Question: {row['context']} {row['question']}"
    return Document(str(place), question, choices[gold], choices, gold)


TASKS = (
    Task(
        name="socialiqa",
        dataset="allenai/social_i_qa",
        split="validation",
        count=1954,
        limit=1000,
        read=_read_row,
        formats=("multiple_choice", "cloze", "bits_per_byte"),
        normalisation="per_char",
        shots=5,
    ),
)
