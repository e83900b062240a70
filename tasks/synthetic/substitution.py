"""Worked word problems with other numbers and recomputed answers (paper §4.4.1; RECIPE C.7: 7,924 GSM8K examples, "resample 6x").

GSM8K's solutions carry calculator annotations, `<<48/2=24>>`. Every number of a calculation is traced to the digits of the
question, to an earlier result, or to words of the question ("half", "week", "%"). Whole numbers of the question are then
redrawn, and the calculations are evaluated again. Question and solution are written with the new numbers. A problem in which
a number could be two things, or none, is refused, since a wrong example is worse than none. The paper does not say how it
substituted.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from tasks.synthetic.programs import Number, Refused, evaluate_program, written

NUMBER = re.compile(r"(?<![\w.,/:])\d+(?:,\d{3})*(?:\.\d+)?(?![\w/:]|[.,]\d)")
"""A number by itself: no part of a word, a date, a time or a fraction written in the text."""
ANY_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+")
ANNOTATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
_FINAL = re.compile(r"\n####\s*(\S+)\s*$")
ARITHMETIC = re.compile(r"[-+*/(). \d]+")

_TERM = r"\(*\s*\$?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)%?\s*\)*"
EQUATION = re.compile(
    rf"(?<![\w.])({_TERM}(?:\s*[-+*/x×÷]\s*{_TERM})+)\s*=\s*(\$?\d+(?:,\d{{3}})*(?:\.\d+)?)(?![\w/]|[.,]\d|\s*[-+*/x×÷]\s*\d)"
)
"""Arithmetic that a solution writes out with its result, not one that goes on."""
FRACTION = re.compile(r"(?<![\w./])(\d{1,3})/(\d{1,3})(?![\w/])")

IMPLIED: dict[str, tuple[Number, ...]] = {
    r"half|halves|halved": (2, 0.5),
    r"twice|doubl\w*|both|pairs?|couple|two": (2,),
    r"thrice|tripl\w*|three|thirds?": (3,),
    r"four|fourth|quadrupl\w*": (4,),
    r"quarters?": (4, 0.25),
    r"five|fifths?": (5,),
    r"six|sixths?": (6,),
    r"seven": (7,),
    r"eight|eighths?": (8,),
    r"nine": (9,),
    r"ten|tenths?": (10,),
    r"eleven": (11,),
    r"twelve|dozens?": (12,),
    r"fifteen": (15,),
    r"twenty": (20,),
    r"thirty": (30,),
    r"fifty": (50,),
    r"hundred": (100,),
    r"thousand": (1000,),
    r"weeks?|weekly": (7, 52),
    r"days?|daily": (7, 24, 365),
    r"months?|monthly": (12, 30, 4),
    r"years?|yearly|annual\w*": (12, 365, 52),
    r"hours?|hourly|minutes?|seconds?|mph": (60,),
    r"weekdays?|workdays?": (5,),
    r"feet|foot|inch\w*": (12,),
    r"yards?": (3,),
    r"kilo\w*|km|kg|mm|ml|milli\w*|liters?|litres?|grams?|meters?|metres?": (1000,),
    r"centi\w*|cm|cents?|percent\w*|percentage": (100, 0.01),
}
"""Words of a question, and the numbers which a solution may use because of them."""
IMPLIED_BY_SIGN: dict[str, tuple[Number, ...]] = {"%": (100, 0.01)}
ALWAYS: frozenset[Number] = frozenset({0, 1})
_DRAWS = 200
"""Attempts at numbers with which every result is as whole and as positive as the original's."""
SMALLEST = 2


@dataclass(frozen=True, slots=True)
class SolutionStep:
    """One calculation: its expression with `{q:value}` and `{r:place}` where numbers may change."""

    pattern: str
    result: str
    """As the solution writes it."""


@dataclass(frozen=True, slots=True)
class Worked:
    """A problem whose numbers are traced."""

    question: str
    solution: str
    """Without the annotations and the last line."""
    changing: tuple[str, ...]
    """Numbers of the question that calculations use, as written, in order."""
    steps: tuple[SolutionStep, ...]
    constants: frozenset[Number]
    """Numbers of the question, in digits or words, which stay."""


@dataclass(frozen=True, slots=True)
class Variant:
    """The same problem with other numbers."""

    question: str
    solution: str
    answer: str


def without_annotations(answer: str) -> tuple[str, str]:
    """A GSM8K answer without its annotations, and the final answer. Raises Refused if it states none."""
    final = _FINAL.search(answer)
    if final is None:
        raise Refused("no final answer")
    return ANNOTATION.sub("", answer[: final.start()]).strip(), final[1].replace(",", "")


def trace(question: str, answer: str) -> Worked:
    """Find out what each number is. Raises Refused with the reason when that is not certain."""
    solution, final = without_annotations(answer)
    # dict.fromkeys keeps each number once, in the order of the question.
    texts = list(dict.fromkeys(match[0] for match in NUMBER.finditer(question)))
    values = {value_of(text): text for text in texts}
    # "1,000" and "1000" in one question could mean two things, so they are refused.
    if len(values) < len(texts):
        raise Refused("a number written in two ways")
    words = implied(question, values)
    free: set[Number] = {
        value for value in values if isinstance(value, int) and value >= SMALLEST and value not in words
    }
    results: list[Number] = []
    used: set[Number] = set()
    kept: set[Number] = set()
    steps: list[SolutionStep] = []
    for expression, result in ANNOTATION.findall(answer):
        pattern = bind(expression, values.keys() | words, free, results, used, kept)
        # Some annotations are wrong in the data set itself.
        if abs(_evaluate(expression) - value_of(result)) > 1e-9:
            raise Refused("an annotation that does not compute")
        steps.append(SolutionStep(pattern, result.strip()))
        results.append(value_of(result))
    if not steps or value_of(final) != results[-1]:
        raise Refused("the final answer is not the last result")
    if not used:
        raise Refused("no number to change")
    # 20 % and 0.2 would have to change together, and only one of them is known.
    if any(round(value / 100, 4) in kept for value in used if f"{values[value]}%" in question):
        raise Refused("a percentage that is also used as a fraction")
    known = {*values, *results, *words}
    if any(value_of(match[0]) not in known for match in ANY_NUMBER.finditer(solution)):
        raise Refused("a number that comes from nowhere")
    changing = tuple(values[value] for value in values if value in used)
    return Worked(question.strip(), solution, changing, tuple(steps), frozenset((values.keys() | words) - used))


def implied(question: str, values: Mapping[Number, str]) -> set[Number]:
    """Numbers that a solution may use though the question does not write them in digits of their own."""
    found: set[Number] = set(ALWAYS)
    for pattern, numbers in IMPLIED.items():
        if re.search(rf"\b(?:{pattern})\b", question, re.IGNORECASE):
            found.update(numbers)
    for sign, numbers in IMPLIED_BY_SIGN.items():
        if sign in question:
            found.update(numbers)
            # 20 % may be calculated with as 0.2.
            found.update(round(value / 100, 4) for value, text in values.items() if f"{text}{sign}" in question)
    for upper, lower in FRACTION.findall(question):
        found.update({int(upper), int(lower)})
        if int(lower):
            found.add(int(upper) / int(lower))
    return found


def bind(
    expression: str,
    fixed: set[Number],
    free: set[Number],
    results: list[Number],
    used: set[Number],
    kept: set[Number],
) -> str:
    """The expression with what may change marked; adds to `used` or `kept`. Refused: two things or none."""
    expression = expression.replace(",", "")
    if not ARITHMETIC.fullmatch(expression):
        raise Refused("an annotation that is no arithmetic")

    def mark(match: re.Match[str]) -> str:
        value = value_of(match[0])
        # A value that is both given and computed could change in two ways.
        if value in results and value in fixed | free:
            raise Refused("a number that is given and computed")
        if results.count(value) > 1:
            raise Refused("a number that is computed twice")
        if value in free:
            used.add(value)
            return f"{{q:{value}}}"
        if value in results:
            return f"{{r:{results.index(value)}}}"
        if value not in fixed:
            raise Refused("a number that comes from nowhere")
        kept.add(value)
        return match[0]

    return ANY_NUMBER.sub(mark, expression)


def substitute(worked: Worked, rng: Random) -> Variant:
    """The problem with new numbers. Raises Refused when no draw fits."""
    originals = [value_of(text) for text in worked.changing]
    for _ in range(_DRAWS):
        drawn = {value: redrawn(int(value), rng) for value in originals}
        # A draw that changes nothing is no variant.
        if drawn == {value: value for value in originals}:
            continue
        results = _recompute(worked, drawn)
        replaced = None if results is None else replacements(worked, drawn, results)
        if replaced is not None:
            question = replace(NUMBER, worked.question, replaced)
            solution = replace(ANY_NUMBER, worked.solution, replaced)
            if not still_right(worked.solution, solution):
                continue
            return Variant(question, solution, written(value_of(replaced[worked.steps[-1].result])))
    raise Refused("no numbers fit")


def still_right(original: str, solution: str) -> bool:
    """Whether every equation that a solution writes out holds, where the original's at its place does."""
    before, after = equations(original), equations(solution)
    return len(before) == len(after) and all(now or not then for then, now in zip(before, after, strict=True))


def equations(solution: str) -> list[bool]:
    """Of every equation in the text, such as `$3 x 4 = $12`, whether it holds to the digits that it writes."""
    found = []
    for match in EQUATION.finditer(solution):
        left, right = (re.sub(r"[$,\s]", "", side) for side in match.groups())
        left = re.sub(r"[x×]", "*", left).replace("÷", "/")
        left = re.sub(r"(\d+(?:\.\d+)?)%", r"(\1/100)", left)
        places = len(right.partition(".")[2])
        try:
            # Half a unit of the last written digit, or nothing for whole numbers.
            found.append(abs(_evaluate(left) - float(right)) <= 0.5 * 10.0**-places * bool(places) + 1e-9)
        except Refused:
            # No arithmetic after all, such as unbalanced brackets of a sentence.
            found.append(False)
    return found


def replace(numbers: re.Pattern[str], text: str, replaced: Mapping[str, str]) -> str:
    """A text with its numbers exchanged."""
    return numbers.sub(lambda match: replaced.get(match[0], match[0]), text)


def redrawn(value: int, rng: Random) -> int:
    """A number of the same size and roundness: 25 gives a multiple of 5 from 15 to 50."""
    # Roundness is kept: 25 stays a multiple of 5, 300 one of 100.
    step = next((step for step in (1000, 100, 10, 5) if value % step == 0 and value > step), 1)
    # At least half the value, rounded up to a whole step.
    low = max(SMALLEST, -(-value // (2 * step)) * step)
    return low + step * int(rng.random() * ((2 * value - low) // step + 1))


def _recompute(worked: Worked, drawn: Mapping[Number, int]) -> list[Number] | None:
    """Results with the new numbers; None when one is not positive, or not as whole as it was."""
    results: list[Number] = []
    for step in worked.steps:
        expression = re.sub(r"\{q:(\d+)\}", lambda match: str(drawn[int(match[1])]), step.pattern)
        expression = re.sub(r"\{r:(\d+)\}", lambda match: str(results[int(match[1])]), expression)
        value = _evaluate(expression)
        # As many places as the original's result has.
        places = len(step.result.partition(".")[2])
        rounded = round(value, places) if places else round(value)
        if value <= 0 or abs(rounded - value) > 1e-9:
            return None
        results.append(rounded)
    return results


def replacements(worked: Worked, drawn: Mapping[Number, int], results: list[Number]) -> dict[str, str] | None:
    """Old texts of numbers to new ones; None when an old text would have to become two different ones."""
    new: dict[str, str] = {}
    pairs = [(text, drawn[value_of(text)]) for text in worked.changing]
    pairs += [(step.result, result) for step, result in zip(worked.steps, results, strict=True)]
    for text, value in pairs:
        # A constant stays, so a changing number with its value cannot be told from it.
        if value_of(text) in worked.constants and value != value_of(text):
            return None
        for form in forms(text):
            styling = styled(value, form)
            # A new text that does not read back as its number would be a wrong solution.
            if value_of(styling) != value or new.setdefault(form, styling) != styling:
                return None
    return new


def forms(text: str) -> set[str]:
    """Ways in which a solution may write a number: with and without commas and the zeros of cents."""
    value = value_of(text)
    found = {text, text.replace(",", "")}
    if isinstance(value, int) and "." not in text:
        found |= {f"{value:,}", f"{value}.00"}
    elif "." in text:
        found |= {f"{value:.2f}", f"{value:g}"} if round(value, 2) == value else set()
    return found


def styled(value: Number, like: str) -> str:
    """A number written with the commas and decimals of another."""
    places = len(like.partition(".")[2])
    return f"{value:,.{places}f}" if "," in like else f"{value:.{places}f}"


def value_of(text: str) -> Number:
    """The value of a written number."""
    text = text.replace(",", "").replace("$", "").replace("%", "").strip()
    try:
        value = float(text)
    except ValueError as error:
        raise Refused("a result that is no number") from error
    return int(value) if value.is_integer() else value


def _evaluate(expression: str) -> Number:
    """The value of an arithmetic expression. Raises Refused."""
    return evaluate_program(f"x = {expression.replace(',', '').strip()}").result
