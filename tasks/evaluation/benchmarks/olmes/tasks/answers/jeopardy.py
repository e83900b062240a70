"""Jeopardy (MosaicML's gauntlet): a category and a clue, all 2,116 rows (RECIPE I.3). The context is cut at its first ": "."""

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Task, squad_score


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `soldni/jeopardy`, subset mosaicml_gauntlet."""
    category, _, clue = row["context"].partition(": ")
    question = f"Category: {category}\nQuestion: {clue}"
    return Document(str(place), question, row["continuation"], references=(row["continuation"],))


TASKS = (
    Task(
        name="jeopardy",
        dataset="soldni/jeopardy",
        subset="mosaicml_gauntlet",
        split="train",
        count=2116,
        read=_read_row,
        formats=("generate", "bits_per_byte"),
        shots=5,
        score=squad_score,
        primary="f1",
        max_new_tokens=50,
        stop=("\n\n", "Question:", "Category:"),
    ),
)
