"""MMLU-Pro: 14 categories with up to ten choices, all 12,032 of the test split, mean over items (RECIPE I.2). Held out.

Shots are the first five validation rows of the category. No rendered oracle is at hand: the line before the shots is MMLU's,
with the category in place of the subject. `mmlu_pro_cot` is zero-shot with reasoning (Table 24); its prompt is that of OLMES's
`mmlu_pro:0shot_cot::tulu3`.
"""

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Task
from tasks.evaluation.benchmarks.olmes.tasks.choices.mmlu import with_reasoning


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `TIGER-Lab/MMLU-Pro`."""
    choices = tuple(row["options"])
    gold = int(row["answer_index"])
    id, category = str(row.get("question_id", place)), row["category"]
    return Document(id, f"Question: {row['question']}", choices[gold], choices, gold, group=category)


MMLU_PRO = Task(
    name="mmlu_pro",
    dataset="TIGER-Lab/MMLU-Pro",
    split="test",
    count=12032,
    read=_read_row,
    formats=("multiple_choice", "bits_per_byte"),
    shots=5,
    shot_split="validation",
    description=lambda category: f"The following are multiple choice questions (with answers) about {category}.\n\n",
    role="held_out",
)
TASKS = (MMLU_PRO, with_reasoning(MMLU_PRO))
