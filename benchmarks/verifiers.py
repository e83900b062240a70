"""Time of every verifier on long hostile answers: `python benchmarks/verifiers.py [--characters 130000] [--answers 10000]`.

Answers of one repeated piece reach what quadratic patterns would choke on. For every verifier: the worst processor time over
all of them, its answer, and the ratio of times when the length doubles (2 is linear). Then so many short random answers go
through all verifiers, and the slowest is named. Processor time of the thread is counted, the least of three runs, so that other
load hardly enters. Algebra runs in a process of its own with a limit of processor time (5 s), and is not counted here.

The checks of IFEval and IFEval-OOD are timed on one reading of an answer (`check`) and on its eight loose readings together
(`loose`).

The last line is one JSON object: `worst_ms`, `worst_verifier`, `worst_loose_ms`, `slowest_answer_ms`, `characters`, `answers`,
`processor`.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial

from infra.processor import processor_name
from tasks.verifiers import verify
from tasks.verifiers.ifeval import check_instruction, judge_instructions
from tasks.verifiers.ifeval_ood import check_constraint
from tests.tasks.verifiers.hostile_answers import CONSTRAINTS, INSTRUCTIONS, UNSEEN, long_answers, short_answers

LOOSE = "loose "
TRUTH = "eastern"
"""A word: no algebra is asked whether it equals an answer."""


def verifiers() -> Iterator[tuple[str, Callable[[str], object]]]:
    """Every verifier by its name, as a function of the answer."""
    for rules in ("correct", "published"):
        yield f"gsm8k, {rules}", partial(lambda rules, text: verify("gsm8k", text, "5", rules), rules)
        yield f"math, {rules}", partial(lambda rules, text: verify("math", text, TRUTH, rules), rules)
    for name, arguments, *_ in CONSTRAINTS:
        truth = {"func_name": name, **arguments}
        yield f"constraint {name}", partial(lambda truth, text: verify("ifeval", text, truth), truth)
    for name, arguments, *_ in INSTRUCTIONS:
        yield f"check {name}", partial(check_instruction, name, arguments)
        judge = partial(lambda name, arguments, text: judge_instructions([name], [arguments], text), name, arguments)
        yield f"{LOOSE}{name}", judge
    for name, arguments, *_ in UNSEEN:
        yield f"check {name}", partial(check_constraint, name, arguments)
        judge = partial(
            lambda name, arguments, text: judge_instructions([name], [arguments], text, check_constraint),
            name,
            arguments,
        )
        yield f"{LOOSE}{name}", judge


def milliseconds(verifier: Callable[[str], object], text: str, runs: int = 3) -> float:
    """Least processor time of several runs."""
    best = float("inf")
    for _ in range(runs):
        begun = time.thread_time()
        verifier(text)
        best = min(best, time.thread_time() - begun)
    return 1e3 * best


def worst(verifier: Callable[[str], object], answers: dict[str, str]) -> tuple[float, str]:
    """The longest time and the name of its answer."""
    return max((milliseconds(verifier, text), name) for name, text in answers.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=130_000)
    parser.add_argument("--answers", type=int, default=10_000)
    arguments = parser.parse_args()
    print(f"processor: {processor_name()}")
    full, half = long_answers(arguments.characters), long_answers(arguments.characters // 2)
    slowest: dict[str, float] = {}
    for label, verifier in verifiers():
        verifier("A warm-up answer of some words. " * 20)
        took, answer = worst(verifier, full)
        ratio = took / max(1e-6, milliseconds(verifier, half[answer]))
        slowest[label] = max(slowest.get(label, 0.0), took)
        print(f"{label:60} {took:8.2f} ms on {answer:12} x{ratio:4.1f} for twice the length", flush=True)
    everyone, longest = list(verifiers()), (0.0, "", "")
    for text in short_answers(arguments.answers):
        for label, verifier in everyone:
            took = milliseconds(verifier, text, runs=1)
            if took > longest[0]:
                longest = (min(took, milliseconds(verifier, text)), label, text)
    print(f"slowest of {arguments.answers:,} short answers: {longest[0]:.2f} ms, {longest[1]}, {longest[2]!r}")
    loose = {label: took for label, took in slowest.items() if label.startswith(LOOSE)}
    single = {label: took for label, took in slowest.items() if label not in loose}
    name = max(single, key=lambda label: single[label])
    print(
        json.dumps(
            {
                "worst_ms": single[name],
                "worst_verifier": name,
                "worst_loose_ms": max(loose.values()),
                "slowest_answer_ms": longest[0],
                "characters": arguments.characters,
                "answers": arguments.answers,
                "processor": processor_name(),
            }
        )
    )


if __name__ == "__main__":
    main()
