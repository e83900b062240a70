"""HellaSwag: four continuations of a situation, validation split (RECIPE I.2).

The cloze form has neither "Question:" nor "Answer:". The clean-up of bracketed marks is that of lm-evaluation-harness
(lm_eval/tasks/hellaswag/utils.py). The lettered form cleans the whole text once, so the space after a context without a
second part stays before the line break.
"""

import re

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Format, Task, lettered

BRACKETS = re.compile(r"\[.*?\]")


def _clean(text: str) -> str:
    """Strip, turn " [title]" into ". ", delete other marks in brackets, and halve double spaces."""
    text = text.strip().replace(" [title]", ". ")
    # Removing a mark leaves two spaces where it stood.
    return BRACKETS.sub("", text).replace("  ", " ")


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `Rowan/hellaswag`."""
    raw = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    choices = tuple(_clean(ending) for ending in row["endings"])
    gold = int(row["label"])
    return Document(str(row["ind"]), _clean(raw), choices[gold], choices, gold, details={"raw": raw})


def _query(document: Document, format: Format) -> str:
    """The situation alone, or with the lettered continuations."""
    if format != "multiple_choice":
        return document.question
    # Cleaned as a whole, as the published code does: this keeps its spaces.
    return _clean(f"{document.details['raw']}\nChoose the best continuation:\n{lettered(document)}Answer:")


TASKS = (
    Task(
        name="hellaswag",
        dataset="Rowan/hellaswag",
        split="validation",
        count=10042,
        limit=1000,
        read=_read_row,
        formats=("multiple_choice", "cloze", "bits_per_byte"),
        normalisation="per_char",
        shots=5,
        query=_query,
    ),
)
