"""AGIEval in English: eight exams, mean over exams (RECIPE I.2); with reasoning in the unseen suite (Table 24). Held out.

The one shot is the exam's first official exemplar, as its file has it: the passage of sat-en ends in mid-sentence there. Options
lose their "(A)", and runs of line breaks become one. Rows may have the fields of the official files (passage, question, options,
label) or of the hub's copies (query, choices, gold). `agi_eval_cot` has the prompt of OLMES's `agi_eval:0shot_cot::tulu3`.
"""

import re

from tasks.evaluation.benchmarks.olmes.task import LETTERS, DatasetRow, Document, Task
from tasks.evaluation.benchmarks.olmes.tasks.choices.mmlu import with_reasoning

EXAMS = ("aqua-rat", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc", "sat-en", "sat-math", "gaokao-english")
"""Without sat-en-without-passage."""
OPTION = re.compile(r"^\s*\(?[A-Z]\)\s*")
QUERY = re.compile(r"^(?P<passage>.*?)\s*Q: (?P<question>.*?)\s*Answer Choices:", re.S)
BREAKS = re.compile(r"\n+")


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of an exam. Raises ValueError for a question without a gold letter."""
    official = "question" in row
    passage, question = (row.get("passage") or "", row["question"]) if official else split_query(row["query"])
    choices = tuple(squeezed(OPTION.sub("", option)) for option in row["options" if official else "choices"])
    # Official files give a letter, the hub's copies a place.
    gold = LETTERS.index(row["label"]) if official else int(row["gold"][0])
    before = f"{squeezed(passage)}\n" if passage.strip() else ""
    return Document(str(place), f"{before}Question: {squeezed(question)}", choices[gold], choices, gold)


def split_query(query: str) -> tuple[str, str]:
    """Passage and question of a query in the hub's copies."""
    found = QUERY.match(query)
    if not found:
        raise ValueError(f"query {query[:60]!r} has no 'Q: … Answer Choices:'")
    return found["passage"], found["question"]


def squeezed(text: str) -> str:
    """Text with single line breaks."""
    return BREAKS.sub("\n", text.strip())


AGI_EVAL = Task(
    name="agi_eval",
    dataset="dmayhem93/agieval-{group}",
    split="test",
    groups=EXAMS,
    average="macro",
    count=2646,
    read=_read_row,
    formats=("multiple_choice", "bits_per_byte"),
    shots=1,
    role="held_out",
)
TASKS = (AGI_EVAL, with_reasoning(AGI_EVAL))
