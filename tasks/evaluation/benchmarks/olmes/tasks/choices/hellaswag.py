"""HellaSwag: four continuations of a situation, validation split (RECIPE I.2).

The cloze form has neither "Question:" nor "Answer:". The clean-up of bracketed marks is that of lm-evaluation-harness
(lm_eval/tasks/hellaswag/utils.py). The lettered form cleans the whole text once, so the space after a context without a
second part stays before the line break.
"""

import re

from tasks.evaluation.benchmarks.olmes.task import Document, Format, Row, Task, lettered

BRACKETS = re.compile(r"\[.*?\]")


def clean(text: str) -> str:
    """Strip, turn " [title]" into ". ", delete other marks in brackets, and halve double spaces."""
    text = text.strip().replace(" [title]", ". ")
    return BRACKETS.sub("", text).replace("  ", " ")


def read_row(row: Row, place: int) -> Document:
    """A row of `Rowan/hellaswag`."""
    raw = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    choices = tuple(clean(ending) for ending in row["endings"])
    gold = int(row["label"])
    return Document(str(row["ind"]), clean(raw), choices[gold], choices, gold, details={"raw": raw})


def query(document: Document, format: Format) -> str:
    """The situation alone, or with the lettered continuations."""
    if format != "multiple_choice":
        return document.question
    return clean(f"{document.details['raw']}\nChoose the best continuation:\n{lettered(document)}Answer:")


TASKS = (
    Task(
        name="hellaswag",
        dataset="Rowan/hellaswag",
        split="validation",
        count=10042,
        limit=1000,
        read=read_row,
        formats=("multiple_choice", "cloze", "bits_per_byte"),
        normalisation="per_char",
        shots=5,
        query=query,
    ),
)
