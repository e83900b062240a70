"""Questions in the shape of ARC-C with five shots, and of GSM8K with eight: made, so that no data set is needed.

Lengths follow the rendered sets: questions of 10 to 35 words, four choices of 1 to 9 words.
"""

import random
from dataclasses import dataclass

WORDS = [
    "water",
    "energy",
    "plant",
    "animal",
    "rock",
    "heat",
    "light",
    "planet",
    "force",
    "mass",
    "cell",
    "gas",
    "liquid",
    "solid",
    "metal",
    "magnet",
    "motion",
    "speed",
    "soil",
    "air",
    "ocean",
    "river",
    "season",
    "sun",
    "moon",
    "star",
    "crust",
    "fossil",
    "erosion",
    "weather",
    "climate",
    "food",
    "chain",
    "sugar",
    "oxygen",
    "carbon",
    "the",
    "a",
    "of",
    "in",
    "which",
    "when",
    "most",
    "likely",
    "best",
    "explains",
    "causes",
    "during",
    "after",
    "because",
    "between",
    "increases",
    "decreases",
    "scientist",
    "student",
    "observes",
    "measures",
    "temperature",
    "pressure",
    "volume",
    "distance",
    "sound",
    "electric",
    "current",
    "gravity",
]
LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """One item."""

    text: str
    choices: tuple[str, ...]
    gold: int


def questions(count: int, seed: int) -> list[Question]:
    draw = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))

    return [
        Question(f"{words(10, 35).capitalize()}?", tuple(words(1, 9) for _ in LETTERS), draw.randrange(4))
        for _ in range(count)
    ]


def lettered(question: Question) -> str:
    options = "\n".join(f" {letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=True))
    return f"Question: {question.text}\n{options}\nAnswer:"


def cloze(question: Question) -> str:
    return f"Question: {question.text}\nAnswer:"


def ranked_requests(kind: str, count: int) -> list[tuple[str, str]]:
    """(context, continuation) of every choice of `count` items, in order; `kind` is cloze or multiple_choice."""
    ask = cloze if kind == "cloze" else lettered
    answers = [q.choices if kind == "cloze" else tuple(LETTERS) for q in questions(5, seed=1)]
    shots = [f"{ask(q)} {choices[q.gold]}" for q, choices in zip(questions(5, seed=1), answers, strict=True)]
    return [
        ("\n\n".join([*shots, ask(question)]), f" {choice}")
        for question in questions(count, seed=2)
        for choice in (question.choices if kind == "cloze" else LETTERS)
    ]


def worked_problems(count: int) -> list[str]:
    """Prompts of eight worked problems and a new one."""
    draw = random.Random(3)

    def problem() -> tuple[str, str]:
        a, b = draw.randint(2, 90), draw.randint(2, 9)
        names = " ".join(draw.choice(WORDS) for _ in range(30))
        return (
            f"Question: {names} has {a} and each of {b} boxes holds {a} more. How many are there?",
            f"There are {b} boxes of {a}, which is {a * b}. {a} + {a * b} = {a + a * b}. So the answer is {a + a * b}.",
        )

    shots = "\n\n".join(f"{question}\nAnswer: {answer}" for question, answer in (problem() for _ in range(8)))
    return [f"{shots}\n\n{problem()[0]}\nAnswer:" for _ in range(count)]
