"""MMLU: 57 subjects with four choices, test split; and MMLU CoT of the instruct suite (RECIPE I.2, I.4).

Shots are the first five rows of the subject's dev split. The score is the mean over subjects. MMLU CoT is zero-shot: the
model reasons and ends "Therefore, the answer is (X)"; the instruction is the one that the Tülu 3 paper prints
(arXiv 2411.15124). No rendered oracle of MMLU is at hand.
"""

import re
from collections.abc import Sequence

from tasks.evaluation.benchmarks.olmes.task import LETTERS, DatasetRow, Document, Format, Task

_ANSWERS = (
    r"[Tt]herefore, the answer is \(([A-{last}])\)",
    r"answer is:? \(?([A-{last}])\b",
    r"\(?\b([A-{last}])\)? is (?:the )?correct",
    r"\(([A-{last}])\)",
    r"\b([A-{last}])\b",
)
"""From the asked form, whose last match counts, to any letter that stands alone, whose first match counts."""


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `cais/mmlu`, subset all."""
    choices = tuple(row["choices"])
    gold = int(row["answer"])
    subject = row["subject"]
    id = f"{subject}-{place}"
    return Document(id, f"Question: {row['question']}", choices[gold], choices, gold, (LETTERS[gold],), subject)


def _description(subject: str) -> str:
    """The line before the shots, underscores of the subject as spaces."""
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def chain_ending(letters: str) -> str:
    """The asked end of an answer, with the letters that it may hold."""
    return f'"Therefore, the answer is (ANSWER_LETTER)" where (ANSWER_LETTER) is one of {letters}'


def chain_prompt(question: str, choices: Sequence[str], letters: str = "(A), (B), (C), (D), (E), etc.") -> str:
    """A question with its options in parentheses, and what form the answer must have."""
    options = "".join(f" ({letter}) {text}\n" for letter, text in zip(LETTERS, choices, strict=False))
    return (
        "Answer the following multiple-choice question by giving the correct answer letter in parentheses. Provide CONCISE "
        f"reasoning for the answer, and make sure to finish the response with {chain_ending(letters)}\n\n"
        f"{question}\n{options}\n"
        f"Answer the above question and REMEMBER to finish your response with the exact phrase {chain_ending(letters)}"
    )


def chain_query(document: Document, format: Format = "generate") -> str:
    """The prompt of a document with up to five or more options."""
    return chain_prompt(document.question, document.choices)


def extract_letter(text: str, choices: int) -> str:
    """The answer's letter among as many by progressively looser patterns, or an empty text."""
    for place, pattern in enumerate(_ANSWERS):
        # {last} bounds the letters, so that an "I" is no answer among four choices.
        if found := re.findall(pattern.replace("{last}", LETTERS[choices - 1]), text):
            return found[-1] if place == 0 else found[0]
    return ""


def score_chain(document: Document, text: str) -> tuple[dict[str, float], str]:
    """Whether the extracted letter is the gold one."""
    letter = extract_letter(text, len(document.choices))
    return {"exact_match": float(letter == LETTERS[document.gold])}, letter


def with_reasoning(task: Task) -> Task:
    """The same items of a multiple-choice task, asked without shots: the model reasons and then names a letter (Table 24)."""
    return Task(
        name=f"{task.name}_cot",
        dataset=task.dataset,
        subset=task.subset,
        split=task.split,
        count=task.count,
        read=task.read,
        groups=task.groups,
        average=task.average,
        role=task.role,
        formats=("generate",),
        query=chain_query,
        score=score_chain,
        max_new_tokens=2048,
        max_context=4096,
        chat="turns",
    )


MMLU = Task(
    name="mmlu",
    dataset="cais/mmlu",
    subset="all",
    split="test",
    count=14042,
    read=_read_row,
    formats=("multiple_choice", "cloze", "bits_per_byte"),
    normalisation="per_char",
    average="macro",
    shots=5,
    shot_split="dev",
    description=_description,
)
TASKS = (MMLU, with_reasoning(MMLU))
