"""GSM8K: grade-school maths with eight worked shots (RECIPE I.3, I.4, golden/eval_sampling.json).

The shots are the chains of Wei et al. (2022), rewritten to end "So the answer is N.". `gsm_star` is GSM*: the 200 items drawn
with seed 42, on which decisions may be made. `gsm8k_held_out` is the other 1,119, and `gsm8k` all 1,319; both are held out.
Of chats, every shot has turns of its own, and the cue "Answer:" opens each answer.
"""

import re
from random import Random

from tasks.evaluation.benchmarks.olmes.answers import gsm8k_match
from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Role, Task
from tasks.verifiers import verify

_CALCULATOR = re.compile(r"<<.*?>>")
OPERATOR = re.compile(r"([-+*/=])")
_STOP = ("Question:", "</s>", "<|im_end|>")
COUNT = 1319
STAR_SEED, STAR_ITEMS = 42, 200
STAR_PLACES = tuple(Random(STAR_SEED).sample(range(COUNT), STAR_ITEMS))
"""Places of GSM* in the test split, in evaluation order."""


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `openai/gsm8k`, subset main; a row whose answer has no "####" is a shot that is written out already."""
    working, mark, number = row["answer"].rpartition("####")
    # Curated shots are written out already and have no mark.
    if not mark:
        return Document(str(place), f"Question: {row['question']}", row["answer"], references=(row["number"],))
    question = f"Question: {row['question']}"
    return Document(str(place), question, _worked(working, number.strip()), references=(number.strip(),))


def _worked(working: str, number: str) -> str:
    """The working on one line without calculator notes, then the number; every operator and hyphen between spaces."""
    text = spaced(_CALCULATOR.sub("", working))
    text = text[:1].upper() + text[1:]
    # Every shot ends with a full stop before "So the answer is".
    return f"{text if text.endswith('.') else f'{text}.'} So the answer is {spaced(number)}."


def spaced(text: str) -> str:
    """Text on one line with spaces around operators."""
    return " ".join(OPERATOR.sub(r" \1 ", text).split())


def _score(document: Document, text: str) -> tuple[dict[str, float], str]:
    """Exact match of the last number."""
    correct, extracted = gsm8k_match(text, document.references[0])
    return {"exact_match": float(correct)}, extracted


def published_score(document: Document, text: str) -> tuple[dict[str, float], str]:
    """The same as open-instruct of December 2024 read numbers: signs after letters are lost, numbers are compared as texts."""
    verdict = verify("gsm8k", text, document.references[0], rules="published")
    return {"exact_match": float(verdict.correct)}, verdict.extracted


HELD_OUT_PLACES = tuple(sorted(set(range(COUNT)) - set(STAR_PLACES)))
_PARTS: tuple[tuple[str, tuple[int, ...] | None, Role], ...] = (
    ("gsm8k", None, "held_out"),
    ("gsm_star", STAR_PLACES, "dev"),
    ("gsm8k_held_out", HELD_OUT_PLACES, "held_out"),
)
TASKS = tuple(
    Task(
        name=name,
        dataset="openai/gsm8k",
        subset="main",
        split="test",
        count=COUNT,
        places=places,
        read=_read_row,
        formats=("generate", "bits_per_byte"),
        shots=8,
        score=_score,
        published_score=published_score,
        max_new_tokens=512,
        stop=(*_STOP, "\n\n"),
        role=role,
        chat="turns",
        chat_query=lambda document: document.question,
        chat_stop=_STOP,
        chat_cue="Answer:",
    )
    for name, places, role in _PARTS
)
