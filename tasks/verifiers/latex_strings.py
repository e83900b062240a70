"""Normal forms of LaTeX answers: Hendrycks' (MATH) and Minerva's (Lewkowycz et al. 2022, Appendix D); RECIPE H.4."""

import re
from collections.abc import Callable
from functools import partial

MINERVA_SUBSTITUTIONS: tuple[tuple[str, str], ...] = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    (r"\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
MINERVA_REMOVED: tuple[str, ...] = (
    "square", "ways", "integers", "dollars", "mph", "inches", "ft", "hours", "km", "units", "\\ldots", "sue", "points",
    "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students",
    "childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}",
    "\\text{}", r"\mathrm{th}", r"^\circ", r"^{\circ}", r"\;", r",\!", "{,}", '"', "\\dots",
)  # fmt: skip
BOXED = "\\boxed{"
MINERVA_WRAPPERS = ("\\text{", "\\textbf{", "\\overline{")

TEXT_UNITS = re.compile(r"\\text\{ .*$", re.DOTALL)


def normalise_minerva(answer: str) -> str:
    """Minerva's final-answer normal form: what follows the last "=", without units, wrappers and digit commas."""
    # A chain of equations ends with its result.
    answer = answer.split("=")[-1]
    for old, new in MINERVA_SUBSTITUTIONS:
        answer = answer.replace(old, new)
    for removed in MINERVA_REMOVED:
        answer = answer.replace(removed, "")
    answer = unwrapped(answer)
    answer = re.sub(r"(frac)([^{])(.)", r"frac{\2}{\3}", answer)
    answer = re.sub(r"(sqrt)([^{\[])", r"sqrt{\2}", answer)
    answer = answer.replace("$", "")
    without_commas = answer.replace(",", "")
    # Commas separate thousands in a number, and entries anywhere else.
    return without_commas if without_commas.isdigit() else answer


def unwrapped(answer: str) -> str:
    """Each line's first formula between dollars, without wrappers. Scans, because Minerva's patterns (`(.*?)(\\$)(.*?)…`) take
    time quadratic in the length where nothing matches. What occurs nowhere is looked for in no line.
    """
    if "$" in answer:
        answer = _each_line(answer, "$", _first_formula)
    for wrapper in MINERVA_WRAPPERS:
        if wrapper in answer:
            answer = _each_line(answer, wrapper, partial(_without, wrapper=wrapper))
    return _each_line(answer, BOXED, _unboxed) if BOXED in answer else answer


def _each_line(answer: str, mark: str, change: Callable[[str], str]) -> str:
    """The answer with every line changed that holds the mark."""
    return "\n".join([change(line) if mark in line else line for line in answer.split("\n")])


def _first_formula(line: str) -> str:
    """What stands between the first two dollars, with them; the line where there are not two."""
    pieces = line.split("$", 2)
    return f"${pieces[1]}$" if len(pieces) == 3 else line


def _unboxed(line: str) -> str:
    """A line without its first box and its last closing brace."""
    opening, end = line.find(BOXED), line.rfind("}")
    if opening >= end:
        return line
    return line[:opening] + line[opening + len(BOXED) : end] + line[end + 1 :]


def _without(line: str, wrapper: str) -> str:
    """A line with every wrapper and the first closing brace after it taken away."""
    kept, start = [], 0
    while (opening := line.find(wrapper, start)) >= 0 and (end := line.find("}", opening + len(wrapper))) >= 0:
        kept += [line[start:opening], line[opening + len(wrapper) : end]]
        start = end + 1
    return "".join([*kept, line[start:]])


def with_braces(answer: str) -> str:
    r"""`\sqrt 2` as `\sqrt{2}` and `\frac 12` as `\frac{1}{2}`, white space kept elsewhere: for a parser."""
    return brace_fractions(brace_roots(answer))


def normalise_hendrycks(answer: str) -> str:
    """The MATH authors' normal form for comparing answers as strings."""
    answer = answer.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    answer = answer.replace("tfrac", "frac").replace("dfrac", "frac")
    answer = answer.replace("\\left", "").replace("\\right", "")
    answer = answer.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    answer = TEXT_UNITS.sub("", answer)
    answer = answer.replace("\\%", "").replace("%", "")
    answer = lead_decimals(answer)
    sides = answer.split("=")
    # "x = 5" and "n=5" are their right sides; longer left sides belong to the answer.
    if len(sides) == 2 and len(sides[0]) <= 2:
        answer = sides[1]
    answer = brace_fractions(brace_roots(answer).replace(" ", ""))
    if answer == "0.5":
        return "\\frac{1}{2}"
    return stack_fraction(answer)


def lead_decimals(answer: str) -> str:
    """`.5` as `0.5`, also inside braces and after a space."""
    answer = answer.replace(" .", " 0.").replace("{.", "{0.")
    return "0" + answer if answer.startswith(".") else answer


TOKEN = r"(\\[A-Za-z]+|[^\s{}\[\\])"
"""What a LaTeX command without braces takes: one command or one character."""


def brace_roots(answer: str) -> str:
    r"""`\sqrt3` and `\sqrt 3` as `\sqrt{3}`."""
    # \sqrt takes one command or one character where no brace follows.
    return re.sub(r"\\sqrt\s*" + TOKEN, r"\\sqrt{\1}", answer)


def brace_fractions(answer: str) -> str:
    r"""`\frac12` as `\frac{1}{2}` and `\frac1{72}` as `\frac{1}{72}`."""
    answer = re.sub(r"\\frac\s*" + TOKEN + r"\s*" + TOKEN, r"\\frac{\1}{\2}", answer)
    return re.sub(r"\\frac\s*" + TOKEN + r"\s*\{", r"\\frac{\1}{", answer)


def stack_fraction(answer: str) -> str:
    r"""A whole answer `a/b` of integers as `\frac{a}{b}`."""
    match = re.fullmatch(r"(-?)0*(\d+)/(-?)0*(\d+)", answer)
    return f"\\frac{{{match[1]}{match[2]}}}{{{match[3]}{match[4]}}}" if match else answer
