"""Oracles: Python itself on programs that are known to be harmless; a list of programs that must never run."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.synthetic.programs import MAX_MAGNITUDE, Refused, evaluate_program, written

SHOP = '''def simple_math_problem() -> int:
    """
    A shop has 3 boxes of 4 pens; how many does each of 5 children get?
    """
    boxes = 3  # bought in März
    pens: int = boxes * 4
    pens += (
        1 + 2
    )
    each = pens / 5
    result = each
    return result
'''


def test_every_assignment_is_annotated_and_nothing_else_changes():
    run = evaluate_program(SHOP)
    assert run.annotated == SHOP.replace("3  # bought", "3  # = 3; bought").replace(
        "boxes * 4", "boxes * 4  # = 12"
    ).replace("    )\n", "    )  # = 15\n").replace("pens / 5", "pens / 5  # = 3").replace(
        "= each", "= each  # = 3"
    ).strip("\n")
    assert run.answer == "3"
    assert run.values == {"boxes": 3, "pens": 15, "each": 3.0, "result": 3.0}


def test_line_ends_and_tabs_of_other_systems():
    run = evaluate_program("def f():\r\n\tx = 2\r\n\ty = x * 3\r\n\treturn y\r\n")
    assert run.annotated == "def f():\n    x = 2  # = 2\n    y = x * 3  # = 6\n    return y"


EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(str) | st.floats(0, 99, allow_nan=False).map(lambda x: f"{x:.2f}") | st.just("a"),
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        )
        | st.tuples(st.sampled_from(["abs", "int", "float", "round", "-", "min"]), inner).map(
            lambda parts: f"{parts[0]}({parts[1]}{', 7' if parts[0] == 'min' else ''})"
        )
    ),
    max_leaves=8,
)


@given(expression=EXPRESSIONS)
@settings(max_examples=150)
def test_values_are_those_of_python(expression):
    try:
        expected = eval(expression, {"a": 6})  # numbers, operators and four known functions, made above
    except ZeroDivisionError:
        with pytest.raises(Refused, match="division by zero"):
            evaluate_program(f"a = 6\nb = {expression}")
        return
    if abs(expected) > MAX_MAGNITUDE:
        return
    assert evaluate_program(f"a = 6\nb = {expression}").result == expected


REFUSED = {
    "import os\nx = 1": "no assignment: Import",
    "x = __import__('os')": "no arithmetic: Call",
    "x = (1).__class__": "no arithmetic: Attribute",
    "x = open(1)": "no arithmetic: Call",
    "x = eval(1)": "no arithmetic: Call",
    "x = [1, 2]": "no arithmetic: List",
    "x = [i for i in 3]": "no arithmetic: ListComp",
    "x = lambda: 1": "no arithmetic: Lambda",
    "x = (y := 3)": "no arithmetic: NamedExpr",
    "x = 1 if 2 else 3": "no arithmetic: IfExp",
    "x = 'a' * 9": "no number: str",
    "x = True": "no number: bool",
    "x = 1j": "no number: complex",
    "x = 1 << 5": "no arithmetic: LShift",
    "x = max(*[1])": "no arithmetic: Starred",
    "x = round(1.5, ndigits=1)": "no arithmetic: Call",
    "x = int(1, 2)": "a wrong call of int",
    "x = min()": "a wrong call of min",
    "x = 1\nfor i in x:\n    x = 2": "no assignment: For",
    "x = 1\nwhile x:\n    x = 2": "no assignment: While",
    "x = 1\nprint(x)": "no assignment: Expr",
    "x = 1\nif x:\n    x = 2": "no assignment: If",
    "x, y = 1, 2": "something else than one name",
    "x = y = 1": "something else than one name",
    "x = 1; y = 2": "several statements on a line",
    "x = y": "a name without a value",
    "x = 1 / 0": "a division by zero",
    "x = 0 ** -1": "a division by zero",
    "x = 9 ** 9 ** 9": "too large",
    "x = 10 ** 20": "too large",
    "x = 0.0000001 ** -64": "too large",
    "x = 10 ** 15 * 10 ** 15": "too large",
    "x = round(5, -999999999)": "too large",
    "x = (0 - 1) ** 0.5": "a root of a negative number",
    "x = " + "1 + " * 1_900 + "1": "too many steps or too deeply nested",
    "x = " + "(" * 3_000 + "1" + ")" * 3_000: "no Python",
    "x = " + "9" * 7_000: "",
    "x = 1\0": "no Python",
    "x = = 1": "no Python",
    "x = 1\n" * 2_000: "longer than 8,000 characters",
    "def f(a):\n    x = 1\n    return x": "arguments or decorators",
    "@f\ndef f():\n    x = 1\n    return x": "arguments or decorators",
    "def f():\n    x = 1": "does not return",
    "def f():\n    return 1": "no assignment",
    "def f():\n    x = 1\n    return\n": "returns nothing",
    "def f():\n    x = 1\n    return x\n    y = 2\n    return y": "statements after return",
    "def f():\n    x = 1\n    return x\nf()": "no assignment",
    "": "no assignment",
}


@pytest.mark.parametrize("source", REFUSED, ids=lambda source: source[:24])
def test_whatever_is_no_arithmetic_is_refused_with_its_reason(source):
    with pytest.raises(Refused) as caught:
        evaluate_program(source)
    assert REFUSED[source] in str(caught.value)


def test_mutated_programs_run_or_are_refused_and_nothing_else():
    rng = random.Random(1)
    outcomes = set()
    for _ in range(1_500):
        text = list(SHOP)
        for _ in range(rng.randint(1, 3)):
            text[rng.randrange(len(text))] = rng.choice("()[]=*/+-.:'\"#\n\t 019axé\0")
        try:
            outcomes.add(type(evaluate_program("".join(text))).__name__)
        except Refused:
            outcomes.add("Refused")
    assert outcomes == {"ProgramRun", "Refused"}


def test_numbers_are_written_as_people_do():
    values = [3.0, 3, 0.1 + 0.2, 12.5, -4.0, 1e-7, -1e-12, 99999999999.5, 1 / 3]
    assert [written(value) for value in values] == [
        "3", "3", "0.3", "12.5", "-4", "1e-07", "-1e-12", "99999999999.5", "0.3333333333",
    ]  # fmt: skip
