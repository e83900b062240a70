"""PopQA: 14,267 questions about entities, 15 shots in turns (RECIPE I.4).

OLMES has one exemplar for each of 16 relations and leaves out the item's own. Its exemplars are not at hand: here they are the
first row of every relation in the data set's only split, which stay questions of their own. An answer is right when it
contains an accepted one, or its lower-cased or capitalised form.
"""

import json

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Format, Task


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `akariasai/PopQA`; its answers are a list or a list written as JSON."""
    answers = row["possible_answers"]
    answers = tuple(json.loads(answers) if isinstance(answers, str) else answers)
    return Document(
        str(row.get("id", place)), f"Q: {row['question']}", answers[0], references=answers, group=row["prop"]
    )


def _query(document: Document, format: Format) -> str:
    """The question on one line with the cue "A:"."""
    return f"{document.question} A:"


def _score(document: Document, text: str) -> tuple[dict[str, float], str]:
    """Whether an accepted answer is in the text."""
    # A form of the answer in any case is accepted, as published.
    forms = {form for answer in document.references for form in (answer, answer.lower(), answer.capitalize())}
    return {"exact_match": float(any(form in text for form in forms))}, text.strip()


TASKS = (
    Task(
        name="popqa",
        dataset="akariasai/PopQA",
        split="test",
        count=14267,
        read=_read_row,
        formats=("generate",),
        shots=1,
        shot_split="test",
        other_groups=True,
        query=_query,
        score=_score,
        max_new_tokens=15,
        stop=("\n\n",),
        chat="turns",
        chat_stop=("\n\n",),
    ),
)
