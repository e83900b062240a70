"""Programs of assignments, run by walking their syntax tree (paper §4.4.1, TinyGSM; RECIPE C.7).

The paper keeps a solution if its code executes and consists of assignments, and annotates every assignment with its value.
Foreign code is never handed to Python. The parser gives a tree, and the few kinds of node that are known here are evaluated
one by one, on numbers of bounded size, in a bounded number of steps. There are no names but the program's own and a few
arithmetic functions, no attributes, no loops, no text. Anything else is a reason to leave the program out.
"""

import ast
import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from infra import python_ast

Number = int | float

_MAX_CHARACTERS = 8_000
"""A longer program is not parsed: Python's parser takes memory in proportion and fails on deep nesting."""
MAX_STEPS = 1_000
"""Nodes evaluated; a program without loops cannot have more than its characters anyway."""
_MAX_DEPTH = 100
"""Nesting of an expression."""
MAX_MAGNITUDE = 10**15
"""Every intermediate value stays below this: sums of money and counts do, towers of powers do not. Below 2^53, so that
whole numbers survive a division."""
MAX_EXPONENT = 64
MAX_ROUNDED_PLACES = 15
MAX_DIGITS = 10
"""Significant digits of an annotated fraction: enough for prices, few enough to hide binary rounding (0.1 + 0.2)."""

BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "int": int,
    "float": float,
    "round": round,
    "min": min,
    "max": max,
}
"""What a program may call: arithmetic that needs no state."""


class Refused(Exception):
    """A program that is left out; the text is the reason."""


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """A program that ran."""

    annotated: str
    """Its text, every assignment followed by its value as a comment."""
    values: dict[str, Number]
    """Its variables at the end."""
    result: Number
    """What it returns; without a `return`, its last assignment's value."""

    @property
    def answer(self) -> str:
        """The result as one would write it."""
        return written(self.result)


def evaluate_program(source: str) -> ProgramRun:
    """Check and evaluate a program: assignments of numbers, alone or as the body of one function without arguments, which
    may have a docstring and ends by returning. Raises Refused with the reason.
    """
    # Python's own line ends, and no tabs, so that places in the tree are places in the lines that are annotated.
    source = source.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
    body = program_body(_parse(source))
    evaluator = Evaluator()
    lines = source.split("\n")
    result: Number | None = None
    for place, statement in enumerate(body):
        if isinstance(statement, ast.Return):
            if place != len(body) - 1:
                raise Refused("statements after return")
            # `return` alone gives nothing to annotate.
            if statement.value is None:
                raise Refused("returns nothing")
            result = evaluator.value(statement.value)
        else:
            result = evaluator.assign(statement)
            annotate(lines, statement, result)
    assert result is not None
    return ProgramRun("\n".join(line.rstrip() for line in lines).strip("\n"), evaluator.values, result)


def _parse(source: str) -> ast.Module:
    """The syntax tree. Raises Refused for what is too long or no Python."""
    if len(source) > _MAX_CHARACTERS:
        raise Refused("longer than 8,000 characters")
    try:
        with warnings.catch_warnings():
            # Of doubtful code that is refused anyway.
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return python_ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Refused("no Python") from error


def program_body(module: ast.Module) -> list[ast.stmt]:
    """The statements that count: of the module, or of the one function in it."""
    body = module.body
    if len(body) == 1 and isinstance(body[0], ast.FunctionDef):
        function = body[0]
        if function.decorator_list or any(ast.iter_child_nodes(function.args)):
            raise Refused("a function with arguments or decorators")
        body = function.body
        if not isinstance(body[-1], ast.Return):
            raise Refused("a function that does not return")
        if (
            isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            body = body[1:]
    if not any(isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign) for statement in body):
        raise Refused("no assignment")
    # Two statements on a line have no line ends of their own to write the values on.
    if any(one.end_lineno == other.lineno for one, other in pairwise(body)):
        raise Refused("several statements on a line")
    return body


class Evaluator:
    """Values of a program's variables, and the arithmetic on them."""

    def __init__(self) -> None:
        self.values: dict[str, Number] = {}
        self._steps = 0

    def assign(self, statement: ast.stmt) -> Number:
        """Carry out one assignment to one name; returns the value."""
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=expression):
                value = self.value(expression)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as expression):
                value = self.value(expression)
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=expression):
                # An augmented assignment reads its name first, which must have a value.
                value = self.binary(op, self.variable(name), self.value(expression))
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                raise Refused("an assignment to something else than one name")
            case _:
                raise Refused(f"a statement that is no assignment: {type(statement).__name__}")
        self.values[name] = value
        return value

    def value(self, expression: ast.expr, depth: int = 0) -> Number:
        """The value of an expression."""
        self._steps += 1
        if self._steps > MAX_STEPS or depth > _MAX_DEPTH:
            raise Refused("too many steps or too deeply nested")
        depth += 1
        match expression:
            # A truth value is an int to Python; here it is none.
            case ast.Constant(value=bool()):
                raise Refused("a value that is no number: bool")
            case ast.Constant(value=number) if isinstance(number, int | float):
                return bounded(number)
            case ast.Constant(value=other):
                raise Refused(f"a value that is no number: {type(other).__name__}")
            case ast.Name(id=name):
                return self.variable(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.value(operand, depth)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.value(operand, depth)
            case ast.BinOp(left=left, op=op, right=right):
                return self.binary(op, self.value(left, depth), self.value(right, depth))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
                return call(name, [self.value(argument, depth) for argument in arguments])
        raise Refused(f"an expression that is no arithmetic: {type(expression).__name__}")

    def variable(self, name: str) -> Number:
        if name not in self.values:
            raise Refused("a name without a value")
        return self.values[name]

    @staticmethod
    def binary(op: ast.operator, left: Number, right: Number) -> Number:
        if isinstance(op, ast.Pow):
            return _power(left, right)
        if type(op) not in BINARY:
            raise Refused(f"an operator that is no arithmetic: {type(op).__name__}")
        try:
            return bounded(BINARY[type(op)](left, right))
        except ZeroDivisionError as error:
            raise Refused("a division by zero") from error


def _power(base: Number, exponent: Number) -> Number:
    """A power whose size is known to be small before it is computed."""
    # The size of a power is known from logarithms before it is computed: 9**9**9 would not end.
    if abs(exponent) > MAX_EXPONENT or (abs(base) > 1 and math.log10(abs(base)) * exponent > math.log10(MAX_MAGNITUDE)):
        raise Refused("a number that is too large")
    try:
        value = base**exponent
    except ZeroDivisionError as error:
        raise Refused("a division by zero") from error
    except OverflowError as error:
        raise Refused("a number that is too large") from error
    # A negative base with a fraction as exponent is complex.
    if isinstance(value, complex):
        raise Refused("a root of a negative number")
    return bounded(value)


def call(name: str, arguments: list[Number]) -> Number:
    """One of the arithmetic functions."""
    if name == "round" and len(arguments) == 2 and abs(arguments[1]) > MAX_ROUNDED_PLACES:
        # Rounding a whole number to a place far to the left would first make that power of ten.
        raise Refused("a number that is too large")
    try:
        value = _FUNCTIONS[name](*arguments)
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(f"a wrong call of {name}") from error
    return bounded(value)


def bounded(value: Number) -> Number:
    """The value if it is finite and small enough."""
    if not math.isfinite(value) or abs(value) > MAX_MAGNITUDE:
        raise Refused("a number that is too large")
    return value


def annotate(lines: list[str], statement: ast.stmt, value: Number) -> None:
    """Append `# = value` to the line on which an assignment ends, before any comment that is there."""
    assert statement.end_lineno is not None and statement.end_col_offset is not None
    line = lines[statement.end_lineno - 1]
    # Columns of the tree count bytes.
    code = line.encode()[: statement.end_col_offset].decode()
    comment = line[len(code) :].strip().lstrip("#").strip()
    lines[statement.end_lineno - 1] = f"{code}  # = {written(value)}{f'; {comment}' if comment else ''}"


def written(value: Number) -> str:
    """A number as one would write it: 3.0 is 3, 0.30000000000000004 is 0.3."""
    if isinstance(value, float) and not value.is_integer():
        # Small numbers keep significant digits instead of decimals.
        text = f"{value:.{MAX_DIGITS}f}".rstrip("0").rstrip(".") if abs(value) >= 1e-4 else f"{value:.{MAX_DIGITS}g}"
        # Rounding may leave "-0" of a tiny negative number.
        return text if text not in ("-0", "") else "0"
    return str(int(value))
