"""LAMBADA (OpenAI's version): the last word of a passage, all 5,153 rows of the test split.

The score is the bits per byte of the word, or whether the model's greedy text begins with it.
"""

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Format, Task


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `EleutherAI/lambada_openai`."""
    text, _, word = row["text"].rpartition(" ")
    return Document(str(place), text, word, references=(word,))


def _query(document: Document, format: Format) -> str:
    """The passage without its last word."""
    return document.question


def _score(document: Document, text: str) -> tuple[dict[str, float], str]:
    """Whether the first word is the passage's last one."""
    # The model may put a mark after the word, which the gold word lacks.
    first = next(iter(text.split()), "").strip(".,;:!?\"'”’")
    return {"exact_match": float(first == document.answer)}, first


TASKS = (
    Task(
        name="lambada",
        dataset="EleutherAI/lambada_openai",
        split="test",
        count=5153,
        read=_read_row,
        formats=("bits_per_byte", "generate"),
        query=_query,
        score=_score,
        max_new_tokens=8,
    ),
)
