"""SQuAD: a span of a passage, validation split (RECIPE I.3), single newlines between title, background and question."""

from tasks.evaluation.benchmarks.answers import squad_f1, squad_match
from tasks.evaluation.benchmarks.task import Document, Row, Task

DESCRIPTION = (
    "The following are reading comprehension questions, where the answer to each question is a segment of text from the "
    "corresponding background text.\n\n"
)


def read_row(row: Row, place: int) -> Document:
    """A row of `rajpurkar/squad`."""
    answers = tuple(row["answers"]["text"])
    question = f"Title: {row['title']}\nBackground: {row['context']}\nQuestion: {row['question']}"
    return Document(row["id"], question, answers[0], references=answers)


def score(document: Document, text: str) -> tuple[dict[str, float], str]:
    """SQuAD's F1 and exact match, the best over the annotators' answers."""
    accepted = document.references
    return {"f1": squad_f1(text, accepted), "exact_match": squad_match(text, accepted)}, text.strip()


TASKS = (
    Task(
        name="squad",
        dataset="rajpurkar/squad",
        split="validation",
        count=10570,
        limit=1000,
        read=read_row,
        formats=("generate", "bits_per_byte"),
        shots=5,
        description=lambda group: DESCRIPTION,
        score=score,
        primary="f1",
        max_new_tokens=50,
        stop=("Title:", "\n\n"),
    ),
)
