"""DeepMind Mathematics: 56 modules, 100 problems of each, zero-shot with reasoning, mean over modules (paper, Table 24). Unseen.

Source of the prompt and of the answer's pattern: OLMES's task `deepmind_math:0shot_cot::tulu3`. Deviations: OLMES reads a
sample of 100 rows of each module, which we do not have; here the first 100 rows of its test split count. Later versions of
that task also show example answers of the module, which we do not have either. An answer is right when it is the same text
without spaces, or equal by computer algebra.
"""

import ast
import re

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Format, Task
from tasks.verifiers.equivalence import ALGEBRA

MODULES = (
    *(f"algebra__{name}" for name in (
        "linear_1d", "linear_1d_composed", "linear_2d", "linear_2d_composed", "polynomial_roots", "polynomial_roots_composed",
        "sequence_next_term", "sequence_nth_term",
    )),
    *(f"arithmetic__{name}" for name in (
        "add_or_sub", "add_or_sub_in_base", "add_sub_multiple", "div", "mixed", "mul", "mul_div_multiple",
        "nearest_integer_root", "simplify_surd",
    )),
    *(f"calculus__{name}" for name in ("differentiate", "differentiate_composed")),
    *(f"comparison__{name}{end}" for name in ("closest", "kth_biggest", "pair", "sort") for end in ("", "_composed")),
    *(f"measurement__{name}" for name in ("conversion", "time")),
    "numbers__base_conversion",
    *(f"numbers__{name}{end}" for name in (
        "div_remainder", "gcd", "is_factor", "is_prime", "lcm", "list_prime_factors", "place_value", "round_number",
    ) for end in ("", "_composed")),
    *(f"polynomials__{name}" for name in (
        "add", "coefficient_named", "collect", "compose", "evaluate", "evaluate_composed", "expand", "simplify_power",
    )),
    *(f"probability__{name}" for name in ("swr_p_level_set", "swr_p_sequence")),
)  # fmt: skip
PER_MODULE = 100
_ENDING = "Therefore, the final answer is [answer]. I hope it is correct."
ANSWER = re.compile(r"(?i)therefore, the final answer is ([^\n]*?)\. I hope it is correct")
LOOSER = re.compile(r"(?i)answer is:? ([^\n]*)")
YES = {"yes": "true", "no": "false"}


def _plain(text: str) -> str:
    """A field of the hub's rows, some of which hold Python's way of writing bytes, such as b'Solve 2*x = 4.\\n'."""
    return (ast.literal_eval(text).decode() if re.match(r"b['\"]", text) else text).strip()


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `deepmind/math_dataset`."""
    gold = _plain(row["answer"])
    return Document(str(place), _plain(row["question"]), gold, references=(gold,))


def _query(document: Document, format: Format = "generate") -> str:
    """The problem between the instruction and the form of the answer."""
    return (
        f"Solve the following math problem efficiently:\n{document.question}\n\n"
        f'Show your work and conclude with the exact phrasing "{_ENDING}" where [answer] is just the final number or expression '
        f'that solves the problem. E.g., if the answer is 6, conclude with "{_ENDING.replace("[answer]", "6")}"\n'
        "Note the formatting for the following answer types:\n"
        "- If the answer is a list (e.g., when there are two solutions to an equation), unless otherwise specified, present the "
        "solutions in a list separated by commas ordering them from the smallest to biggest  e.g.: 2, 10\n"
        "- Powers should be written with **, for instance x to the power of 2 should be written as x**2\n"
        "- Use * for multiplication, e.g.: 2*x"
    )


def _normal(text: str) -> str:
    """Text without spaces, mathematics' delimiters and a final full stop, in lower case; yes and no as truth values."""
    # U+2212 is the minus sign that models write in formulas.
    text = re.sub(r"[\s$`]|\\[()\[\]]", "", text.replace("\u2212", "-").lower()).rstrip(".")
    return YES.get(text, text)


def equal(given: str, wanted: str) -> bool:
    """Whether two answers say the same: part by part where they are lists."""
    if _normal(given) == _normal(wanted):
        return True
    parts = given.split(","), wanted.split(",")
    # Without a digit two answers are equal as texts or not at all: algebra would compare words as symbols.
    if len(parts[0]) != len(parts[1]) or not any(letter.isdigit() for letter in given):
        return False
    pairs = [
        (_normal(one).replace("**", "^"), _normal(other).replace("**", "^")) for one, other in zip(*parts, strict=True)
    ]
    return all(one == other or ALGEBRA.equal(one, other) for one, other in pairs)


def _score(document: Document, text: str) -> tuple[dict[str, float], str]:
    """Whether the last answer in the asked form, else the last one in a looser form, is the gold one."""
    found = ANSWER.findall(text) or LOOSER.findall(text)
    given = found[-1].strip() if found else ""
    return {"exact_match": float(bool(given) and equal(given, document.references[0]))}, given


TASKS = (
    Task(
        name="deepmind_math",
        dataset="deepmind/math_dataset",
        subset="{group}",
        groups=MODULES,
        average="macro",
        split="test",
        # OLMES's own sample is not at hand, so the first rows stand for it.
        places=tuple(range(PER_MODULE)),
        count=len(MODULES) * PER_MODULE,
        read=_read_row,
        formats=("generate",),
        query=_query,
        score=_score,
        max_new_tokens=2048,
        max_context=4096,
        role="held_out",
        chat="turns",
    ),
)
