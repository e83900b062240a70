"""Normal forms of LaTeX answers: Hendrycks' (MATH) and Minerva's (Lewkowycz et al. 2022, Appendix D); RECIPE H.4."""

import re

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
MINERVA_UNWRAPPED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(.*?)(\$)(.*?)(\$)(.*)", r"$\3$"),
        (r"(\\text\{)(.*?)(\})", r"\2"),
        (r"(\\textbf\{)(.*?)(\})", r"\2"),
        (r"(\\overline\{)(.*?)(\})", r"\2"),
        (r"(\\boxed\{)(.*)(\})", r"\2"),
        (r"(frac)([^{])(.)", r"frac{\2}{\3}"),
        (r"(sqrt)([^{])", r"sqrt{\2}"),
    )
)

TEXT_UNITS = re.compile(r"\\text\{ .*$", re.DOTALL)


def normalise_minerva(answer: str) -> str:
    """Minerva's final-answer normal form: what follows the last "=", without units, wrappers and digit commas."""
    answer = answer.split("=")[-1]
    for old, new in MINERVA_SUBSTITUTIONS:
        answer = answer.replace(old, new)
    for removed in MINERVA_REMOVED:
        answer = answer.replace(removed, "")
    for pattern, replacement in MINERVA_UNWRAPPED:
        answer = pattern.sub(replacement, answer)
    answer = answer.replace("$", "")
    without_commas = answer.replace(",", "")
    return without_commas if without_commas.isdigit() else answer


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


def brace_roots(answer: str) -> str:
    r"""`\sqrt3` as `\sqrt{3}`."""
    return re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", answer)


def brace_fractions(answer: str) -> str:
    r"""`\frac12` as `\frac{1}{2}` and `\frac1{72}` as `\frac{1}{72}`."""
    answer = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", answer)
    return re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", answer)


def stack_fraction(answer: str) -> str:
    r"""A whole answer `a/b` of integers as `\frac{a}{b}`."""
    match = re.fullmatch(r"(-?\d+)/(-?\d+)", answer)
    return f"\\frac{{{int(match[1])}}}{{{int(match[2])}}}" if match else answer
