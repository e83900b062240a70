"""Natural Questions (open): short factual questions, validation split (RECIPE I.3). A shot joins several answers by ", "."""

from tasks.evaluation.benchmarks.olmes.answers import drop_exact, drop_f1
from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Task


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `google-research-datasets/nq_open`; the bits are those of the first answer."""
    answers = tuple(row["answer"])
    question = f"Question: {row['question']}"
    return Document(str(place), question, ", ".join(answers), references=answers, details={"first": answers[0]})


def _score(document: Document, text: str) -> tuple[dict[str, float], str]:
    """F1 by DROP's rules, the best over the answers."""
    given = text.strip()
    spans = [[answer] for answer in document.references]
    return {"f1": drop_f1(given, spans), "exact_match": drop_exact(given, spans)}, given


TASKS = (
    Task(
        name="naturalqs",
        dataset="google-research-datasets/nq_open",
        split="validation",
        count=3610,
        limit=1000,
        read=_read_row,
        formats=("generate", "bits_per_byte"),
        shots=5,
        bits_answer=lambda document: document.details["first"],
        score=_score,
        primary="f1",
        max_new_tokens=50,
        stop=("Question:", "Q:", "\n\n"),
    ),
)
