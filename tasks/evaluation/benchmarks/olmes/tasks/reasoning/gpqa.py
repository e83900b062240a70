"""GPQA: graduate questions with four choices, zero-shot with reasoning; part of the unseen suite (paper, Table 24).

The data set has the right answer first. The order in which OLMES shows the options is not at hand: here each question's
options are shuffled by its own text, the same in every run. The prompt is that of OLMES's `gpqa:0shot_cot::tulu3`, which
is MMLU CoT's with the four letters named.
"""

from random import Random

from tasks.evaluation.benchmarks.olmes.task import LETTERS, DatasetRow, Document, Format, Task
from tasks.evaluation.benchmarks.olmes.tasks.choices.mmlu import chain_prompt, score_chain

_FIELDS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `Idavidrein/gpqa`."""
    options = [row[field].strip() for field in _FIELDS]
    order = list(range(len(options)))
    # Seeded by the question's own text, so the order does not depend on its place.
    Random(row["Question"]).shuffle(order)
    choices, gold = tuple(options[place] for place in order), order.index(0)
    return Document(str(place), f"Question: {row['Question'].strip()}", choices[gold], choices, gold, (LETTERS[gold],))


def _query(document: Document, format: Format = "generate") -> str:
    """The question with its options, and the four letters of which one is asked for."""
    return chain_prompt(document.question, document.choices, "(A), (B), (C), (D).")


TASKS = (
    Task(
        name="gpqa",
        dataset="Idavidrein/gpqa",
        subset="gpqa_main",
        split="train",
        count=448,
        read=_read_row,
        formats=("generate",),
        query=_query,
        score=score_chain,
        max_new_tokens=2048,
        max_context=4096,
        role="held_out",
        chat="turns",
    ),
)
