"""Jeopardy (MosaicML's gauntlet): a category and a clue, all 2,116 rows (RECIPE I.3). The context is cut at its first ": "."""

from tasks.evaluation.benchmarks.answers import squad_f1, squad_match
from tasks.evaluation.benchmarks.task import Document, Row, Task


def read_row(row: Row, place: int) -> Document:
    """A row of `soldni/jeopardy`, subset mosaicml_gauntlet."""
    category, _, clue = row["context"].partition(": ")
    question = f"Category: {category}\nQuestion: {clue}"
    return Document(str(place), question, row["continuation"], references=(row["continuation"],))


def score(document: Document, text: str) -> tuple[dict[str, float], str]:
    """SQuAD's F1 and exact match."""
    accepted = document.references
    return {"f1": squad_f1(text, accepted), "exact_match": squad_match(text, accepted)}, text.strip()


TASKS = (
    Task(
        name="jeopardy",
        dataset="soldni/jeopardy",
        subset="mosaicml_gauntlet",
        split="train",
        count=2116,
        read=read_row,
        formats=("generate", "bits_per_byte"),
        shots=5,
        score=score,
        primary="f1",
        max_new_tokens=50,
        stop=("\n\n", "Question:", "Category:"),
    ),
)
