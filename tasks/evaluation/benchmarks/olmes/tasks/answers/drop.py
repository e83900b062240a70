"""DROP: reading with numbers, dates and spans, validation split (RECIPE I.3); 3-shot for instruct models (RECIPE I.4).

An answer is a number, a date, or spans; the validated answers count too. RECIPE I.3 gives 100 new tokens for the
configuration and 50 for the rendered requests; this follows the configuration. The bits are those of the gold spans as the
rendered requests write them, which is Python's form of a tuple.
"""

from collections.abc import Mapping
from typing import Any

from tasks.evaluation.benchmarks.olmes.answers import drop_exact, drop_f1
from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Task

_DESCRIPTION = (
    "The following are reading comprehension questions, where the answer to each question is either a segment of text from "
    "the corresponding passage, a number, or a date (containing any of the date, month, and/or year components). Some "
    "questions may require you to pull together information pieces from the passage and reason over them.\n\n"
)
_STOP = ("Passage:", "Question:", "\n\n")


def read_row(row: DatasetRow, place: int) -> Document:
    """A row of `EleutherAI/drop`."""
    answers = _accepted(row)
    question = f"Passage: {row['passage']}\nQuestion: {row['question']}"
    id = str(row.get("query_id", place))
    return Document(id, question, ", ".join(answers[0]), references=tuple(answers), group=row.get("section_id", ""))


def _accepted(row: DatasetRow) -> list[tuple[str, ...]]:
    """The gold answer and the validated ones, each as spans, without repetition."""
    found: list[tuple[str, ...]] = []
    for answer in [row["answer"], *unzipped(row.get("validated_answers") or {})]:
        spans = _read_answer(answer)
        if spans and spans not in found:
            found.append(spans)
    return found


def unzipped(validated: Any) -> list[Mapping[str, Any]]:
    """Validated answers, which the hub stores as a list per field, as a list of answers."""
    if not isinstance(validated, Mapping):
        return list(validated)
    # {field: [values]} -> [{field: value}]: the hub's columns back into answers.
    return [dict(zip(validated, values, strict=True)) for values in zip(*validated.values(), strict=True)]


def _read_answer(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """The number, the spans, or "day month year"."""
    # "0" is a number as well, so the test is for an empty text.
    if answer["number"] != "":
        return (str(answer["number"]),)
    if spans := list(answer["spans"]):
        return tuple(spans)
    date = answer["date"]
    # A date may lack its day or its year; the empty parts leave spaces at the ends.
    return (" ".join(str(date[part]) for part in ("day", "month", "year")).strip(),)


def _score(document: Document, text: str) -> tuple[dict[str, float], str]:
    """DROP's F1 and exact match, the best over the accepted answers."""
    given = text.strip()
    return {"f1": drop_f1(given, document.references), "exact_match": drop_exact(given, document.references)}, given


TASKS = tuple(
    Task(
        name=name,
        dataset="EleutherAI/drop",
        split="validation",
        count=9536,
        limit=1000,
        read=read_row,
        formats=("generate", "bits_per_byte"),
        shots=shots,
        description=lambda group: _DESCRIPTION,
        # The rendered requests write Python's tuple, and bits depend on every character.
        bits_answer=lambda document: str(document.references[0]),
        score=_score,
        primary="f1",
        max_new_tokens=100,
        stop=_STOP,
    )
    for name, shots in (("drop", 5), ("drop_3shot", 3))
)
