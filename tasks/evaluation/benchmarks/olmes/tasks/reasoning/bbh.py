"""BIG-Bench Hard: 27 tasks with three worked shots (RECIPE I.3, I.4). Held out.

The shots and descriptions are the authors' own prompts (Suzgun et al. 2022, MIT licence). `bbh` takes the mean over tasks;
`bbh_chat` asks in turns, without the phrase in the shots' answers, and takes the mean over items. No rendered oracle is at
hand.
"""

import re

from tasks.evaluation.benchmarks.olmes.shots import curated_rows
from tasks.evaluation.benchmarks.olmes.task import Average, DatasetRow, Document, Format, Task

THINK = "Let's think step by step."
YES_NO = ("causal_judgement", "navigate", "web_of_lies", "sports_understanding")
_ANSWERS = {
    **dict.fromkeys(YES_NO, r"(?:[Yy]es|[Nn]o)"),
    "boolean_expressions": r"(?:True|False|true|false)",
    "formal_fallacies": r"(?:[Vv]alid|[Ii]nvalid)",
    "multistep_arithmetic_two": r"-?\d+",
    "object_counting": r"-?\d+",
    "dyck_languages": r"[\[\](){}<> ]+",
    "word_sorting": r"[a-z][a-z ]*",
}
LETTER = r"\([A-R]\)"
PREFIXES = (r"[Ss]o the answer is:?\s*", r"answer is:?\s*", r"answer:\s*", r"answer\D{0,20}?", "")
DELIMITERS = str.maketrans("", "", "\"'*`$")
_PUNCTUATION = re.compile(r"[^\w\s]")
BBH_TASKS = (
    "boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa", "dyck_languages", "formal_fallacies",
    "geometric_shapes", "hyperbaton", "logical_deduction_five_objects", "logical_deduction_seven_objects",
    "logical_deduction_three_objects", "movie_recommendation", "multistep_arithmetic_two", "navigate", "object_counting",
    "penguins_in_a_table", "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection", "snarks",
    "sports_understanding", "temporal_sequences", "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects", "web_of_lies", "word_sorting",
)  # fmt: skip


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `lukaemon/bbh`, or a shot whose target holds the working."""
    return Document(str(place), f"Q: {row['input']}", row["target"], references=(row["target"],))


def _query(document: Document, format: Format = "generate") -> str:
    """The question and the phrase that begins the working."""
    return f"{document.question}\nA: {THINK}"


def _shot(task: Task, document: Document, format: Format) -> str:
    """A query with its working on the next line, as in the authors' prompts."""
    return f"{_query(document)}\n{document.answer}"


def _description(group: str) -> str:
    """The sentence that the authors' prompt begins with."""
    rows = curated_rows("bbh")[group]
    return f"{rows[0]['description']}\n\n"


def extract(group: str, text: str) -> str:
    """The last match of the task's answer after the first of the prefixes that has one."""
    text = text.translate(DELIMITERS)
    for prefix in PREFIXES:
        # From the asked phrase to the bare answer: the first pattern that matches anything decides.
        if found := re.findall(prefix + f"({_ANSWERS.get(group, LETTER)})", text):
            return found[-1].strip()
    letters = re.findall(r"\b([A-R])\b", text) if group not in _ANSWERS else []
    return f"({letters[-1]})" if letters else text.strip()


def _normal(group: str, text: str) -> str:
    """Lower case, and without punctuation except in the task about brackets."""
    text = " ".join(text.lower().split())
    # Brackets are the answer in that task, so they are no punctuation there.
    return text.replace(" ", "") if group == "dyck_languages" else _PUNCTUATION.sub("", text).strip()


def _score(document: Document, text: str) -> tuple[dict[str, float], str]:
    """Exact match of the extracted answer."""
    group = document.group
    extracted = extract(group, text)
    return {"exact_match": float(_normal(group, extracted) == _normal(group, document.references[0]))}, extracted


AVERAGES: tuple[tuple[str, Average], ...] = (("bbh", "macro"), ("bbh_chat", "micro"))
TASKS = tuple(
    Task(
        name=name,
        dataset="lukaemon/bbh",
        subset="{group}",
        groups=BBH_TASKS,
        split="test",
        average=average,
        count=6511,
        read=_read_row,
        formats=("generate",),
        shots=3,
        description=_description,
        query=_query,
        shot=_shot,
        score=_score,
        max_new_tokens=512,
        stop=("\n\n",),
        max_context=4096,
        role="held_out",
        chat="turns",
    )
    for name, average in AVERAGES
)
