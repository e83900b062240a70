"""Oracles: worked cases of the MATH and Minerva rules (RECIPE H.4); sympy for algebra; the clock for the time limit."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tasks.verifiers import verify
from tasks.verifiers.competition_math import candidates, last_boxed, verify_math
from tasks.verifiers.equivalence import AlgebraProcess
from tasks.verifiers.latex_strings import normalise_hendrycks, normalise_minerva


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"$\boxed 7$ done", "7"),
        (r"\fbox{9}", "9"),
        (r"\boxed{1", None),
        (r"\boxed5 is it, where f=\frac{1}{2}", "5"),
        (r"\boxed\frac{1}{2}$ and {x}", r"\frac{1}{2}"),
        (r"\boxed 12. So {it} is", "12"),
        ("\\boxed\n{3}", "3"),
        (r"so \boxed", None),
        (r"\fbox{1} and \boxed{2}", "2"),
        ("none", None),
    ],
)
def test_last_boxed(text, boxed):
    assert last_boxed(text) == boxed


def test_candidates_follow_the_published_order():
    both = r"\boxed{3} Final Answer: The final answer is $4$. I hope it is correct."
    assert candidates(both, "published") == ["3", "4"]
    assert candidates(both) == ["3"], "one answer counts"
    assert candidates("Final Answer: The final answer is $4$") == ["4"], "a missing suffix still matches"
    assert candidates("It is $x=5$ here") == ["5"]
    assert candidates("about 6 apples") == ["about6apples"]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        (".5", "0.5"),
        ("3/4", r"\frac{3}{4}"),
        (r"10\%", "10"),
        (r"90^\circ", "90"),
        ("x = 5", "5"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\left(1, 2\right)", "(1,2)"),
        (r"12\text{ cm}", "12"),
    ],
)
def test_hendrycks_forms_agree(left, right):
    assert normalise_hendrycks(left) == normalise_hendrycks(right)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("x = 12", "12"),
        (r"$12$ square feet", "12"),
        ("1,234 dollars", "1234"),
        (r"\text{east}", "east"),
        (r"\frac12", r"\frac{1}{2}"),
        (r"\boxed{7}", "7"),
        (r"90^{\circ}", "90"),
    ],
)
def test_minerva_forms(text, form):
    assert normalise_minerva(text) == form


@pytest.mark.parametrize(
    ("text", "truth", "correct"),
    [
        (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", True),
        (r"\boxed{2x+2}", r"2(x+1)", True),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", True),
        (r"\boxed{3}", "4", False),
        (r"\boxed5 is it, where f=\frac{1}{2}", "5", True),
        (r"\boxed5 is it, where f=\frac{1}{2}", "1", False),
        (r"\boxed{5.}", "5", True),
        (r"\boxed{10\sqrt 2}", r"10\sqrt{2}", True),
        (r"\boxed{10\sqrt{2}}", r"10\sqrt 2", True),
        (r"\boxed{1 \cdot 10\sqrt 2}", r"10\sqrt{2}", True),
        (r"\boxed{1 \cdot 10\sqrt{2}}", r"10\sqrt 2", True),
        (r"\boxed{2 \cdot \sqrt \pi}", r"2\sqrt{\pi}", True),
        (r"\boxed{\frac 12}", r"\frac{1}{2}", True),
        (r"\boxed{\frac \pi 2}", r"\frac{\pi}{2}", True),
        (r"\boxed{\sqrt[3]{8}}", "2", True),
        (r"\boxed{10\sqrt 3}", r"10\sqrt{2}", False),
        ("1" * 6_000 + "/1", "4", False),
        (r"\boxed{\frac{{}", "4", False),
        ("", "4", False),
    ],
)
def test_verdicts(text, truth, correct):
    assert verify("MATH", text, truth).correct is correct


HEDGES = [
    "\\boxed{1}. The final answer is 2",
    "\\boxed{1} Final Answer: The final answer is $2$. I hope it is correct.",
    "Final Answer: The final answer is $2$. I hope it is correct. \\boxed{1}",
    "\\boxed{2} no, \\boxed{1}",
]


@pytest.mark.parametrize("text", HEDGES)
def test_one_answer_counts(text):
    assert [verify("math", text, truth).correct for truth in "12"] == [True, False]


def test_the_published_rule_accepts_any_of_several_answers():
    assert [verify("math", HEDGES[1], truth, "published").correct for truth in "12"] == [True, True]
    assert not verify("math", r"\boxed5 is it, where f=\frac{1}{2}", "5", "published").correct


def test_algebra_is_killed_at_its_limit_and_starts_anew():
    algebra = AlgebraProcess()
    assert algebra.equal("x+x", "2x")
    assert not algebra.equal(r"\int_0^1 \sin(x^{x^{x}}) \cos(e^{x^2}) dx", r"\frac{17}{23}", limit_seconds=0.5)
    assert algebra.equal("y+y", "2y")
    algebra.close()


def test_an_interrupted_question_is_not_answered_in_the_place_of_the_next(monkeypatch):
    algebra = AlgebraProcess()
    assert algebra.equal("1+1", "2")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AlgebraProcess, "_read_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            algebra.equal("2+2", "4")
    assert not algebra.equal("1", "2")
    assert algebra.equal("1+1", "2")
    algebra.close()


ASKER = """
from tasks.verifiers.equivalence import AlgebraProcess
algebra = AlgebraProcess()
algebra.equal("1", "1")
print(algebra._child.pid, flush=True)
algebra.equal("9^{9^{9}}", "1", limit_seconds=1.0)
"""


def test_a_child_whose_parent_was_killed_ends():
    asker = subprocess.Popen([sys.executable, "-c", ASKER], stdout=subprocess.PIPE, text=True)
    assert asker.stdout is not None
    child = psutil.Process(int(asker.stdout.readline()))
    asker.kill()
    asker.wait()
    _, alive = psutil.wait_procs([child], timeout=60)
    assert alive == []


def test_algebra_works_from_threads():
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda n: verify_math(rf"\boxed{{{n}+x+{n}}}", f"{2 * n}+x").correct, range(8)))
    assert verdicts == [True] * 8
    assert threading.active_count() >= 1
