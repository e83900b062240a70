"""Answers made to break verifiers: no exception for any, and time that is linear in their length.

Oracles: Minerva's own patterns for what the scans replace; limits that quadratic patterns miss by hours. Times are those of the
thread's processor, the least of several runs, and the limits are several times what they take; benchmarks/verifiers.py prints
them.
"""

import random
import re
import time
from collections.abc import Callable, Iterator

import pytest

from tasks.verifiers import verify
from tasks.verifiers.competition_math import candidates
from tasks.verifiers.ifeval import CHECKS, check_instruction, has_title, judge_instructions
from tasks.verifiers.ifeval_ood import check_constraint
from tasks.verifiers.latex_strings import normalise_minerva, unwrapped
from tasks.verifiers.punkt_sentences import count_sentences
from tasks.verifiers.verdict import Rules
from tests.tasks.verifiers.hostile_answers import CONSTRAINTS, INSTRUCTIONS, UNSEEN, long_answers, short_answers

RULES: tuple[Rules, ...] = ("correct", "published")
LIMIT = 0.1
"""Seconds of the processor that a verifier may take for one answer."""


def judge(number: int, text: str) -> None:
    """One constraint and one instruction of each kind after the other, and all verifiers of numbers."""
    name, arguments, *_ = CONSTRAINTS[number % len(CONSTRAINTS)]
    instruction, kwargs, *_ = INSTRUCTIONS[number % len(INSTRUCTIONS)]
    unseen, unseen_kwargs, *_ = UNSEEN[number % len(UNSEEN)]
    for rules in RULES:
        verify("gsm8k", text, "7", rules)
        # Algebra takes a process of its own: one answer in a hundred reaches it.
        verify("math", text, "7" if number % 100 == 0 else "eastern", rules)
        verify("ifeval", text, {"func_name": name, **arguments}, rules)
    judge_instructions([instruction], [kwargs], text)
    judge_instructions([unseen], [unseen_kwargs], text, check_constraint)


def took(number: int, text: str) -> float:
    begun = time.thread_time()
    judge(number, text)
    return time.thread_time() - begun


def test_10_000_hostile_answers_raise_nothing_and_none_takes_long():
    judge(0, "warm-up. Languages and sentences have models to load.")
    for number, text in enumerate(short_answers(10_000)):
        # What else the machine does may fall upon one run; the least of several is the verifier's own.
        seconds = next((s for s in (took(number, text) for _ in range(4)) if s < LIMIT), None)
        assert seconds is not None, f"answer {number} takes over {LIMIT} s each time: {text!r}"
    assert {case[0] for case in INSTRUCTIONS} == set(CHECKS)


def verifiers() -> Iterator[tuple[str, Callable[[str], object]]]:
    """Every verifier by its name; a truth that is a word asks no algebra."""
    for rules in RULES:
        yield f"gsm8k {rules}", lambda text, rules=rules: verify("gsm8k", text, "5", rules)
        yield f"math {rules}", lambda text, rules=rules: verify("math", text, "eastern", rules)
        for name, arguments, *_ in CONSTRAINTS:
            truth = {"func_name": name, **arguments}
            yield f"{name} {rules}", lambda text, truth=truth, rules=rules: verify("ifeval", text, truth, rules)
    for name, kwargs, *_ in INSTRUCTIONS:
        yield name, lambda text, name=name, kwargs=kwargs: check_instruction(name, kwargs, text)
    for name, kwargs, *_ in UNSEEN:
        yield name, lambda text, name=name, kwargs=kwargs: check_constraint(name, kwargs, text)


@pytest.mark.parametrize("kind", sorted(long_answers(1)))
def test_130_000_characters_take_no_longer(kind):
    """Quadratic patterns take hours here."""
    text = long_answers(130_000)[kind]
    for name, verifier in verifiers():
        verifier("warm-up. Languages and sentences have models to load.")
        assert least_seconds(verifier, text) < LIMIT, name


def least_seconds(verifier: Callable[[str], object], text: str) -> float:
    """The verifier's processor time: the least of four runs, or the first below the limit."""
    best = float("inf")
    for _ in range(4):
        begun = time.thread_time()
        verifier(text)
        best = min(best, time.thread_time() - begun)
        if best < LIMIT:
            break
    return best


def test_readings_of_8_000_characters_take_a_few_milliseconds():
    """The inputs that took about a second each."""
    inputs: dict[str, Callable[[], object]] = {
        "sentences": lambda: count_sentences("a" * 8_000),
        "candidates": lambda: candidates("a" * 8_000),
        "text": lambda: normalise_minerva("\\text{" * 1_300),
        "title": lambda: has_title("<" * 8_000),
        "newlines": lambda: count_sentences("a" + "\n" * 8_000 + "b"),
        "newlines of mathematics": lambda: verify("math", "a" + "\n" * 8_000 + "b", "eastern"),
    }
    for name, read in inputs.items():
        read()
        seconds = [least_seconds(lambda _, read=read: read(), "") for _ in range(5)]
        assert min(seconds) < 0.01, f"{name}: {1e3 * min(seconds):.1f} ms"


MINERVA = (
    (r"(.*?)(\$)(.*?)(\$)(.*)", r"$\3$"),
    (r"(\\text\{)(.*?)(\})", r"\2"),
    (r"(\\textbf\{)(.*?)(\})", r"\2"),
    (r"(\\overline\{)(.*?)(\})", r"\2"),
    (r"(\\boxed\{)(.*)(\})", r"\2"),
)


def test_scans_equal_minervas_patterns():
    draw = random.Random(1)
    pieces = ("$", "\\text{", "\\textbf{", "\\overline{", "\\boxed{", "{", "}", "a", "1", "\n")
    for _ in range(20_000):
        text = expected = "".join(draw.choices(pieces, k=draw.randint(0, 12)))
        for pattern, replacement in MINERVA:
            expected = re.sub(pattern, replacement, expected)
        assert unwrapped(text) == expected, repr(text)
    assert candidates("") == [""]
