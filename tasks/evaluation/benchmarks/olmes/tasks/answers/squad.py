"""SQuAD: a span of a passage, validation split (RECIPE I.3), single newlines between title, background and question."""

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Task, squad_score

_DESCRIPTION = (
    "The following are reading comprehension questions, where the answer to each question is a segment of text from the "
    "corresponding background text.\n\n"
)


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `rajpurkar/squad`."""
    answers = tuple(row["answers"]["text"])
    question = f"Title: {row['title']}\nBackground: {row['context']}\nQuestion: {row['question']}"
    return Document(row["id"], question, answers[0], references=answers)


TASKS = (
    Task(
        name="squad",
        dataset="rajpurkar/squad",
        split="validation",
        count=10570,
        limit=1000,
        read=_read_row,
        formats=("generate", "bits_per_byte"),
        shots=5,
        description=lambda group: _DESCRIPTION,
        score=squad_score,
        primary="f1",
        max_new_tokens=50,
        stop=("Title:", "\n\n"),
    ),
)
