"""The MATH verifier: any of several readings of the answer equals the truth by string or by algebra (RECIPE H.4)."""

import re

from tasks.verifiers.equivalence import ALGEBRA
from tasks.verifiers.latex_strings import normalise_hendrycks, normalise_minerva, with_braces
from tasks.verifiers.verdict import Rules, Verdict

MINERVA_START = "Final Answer: The final answer is"
MINERVA_END = ". I hope it is correct"
PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{5,}")


BRACE = re.compile(r"[{}]")
BARE_ARGUMENT = re.compile(r"[^\s$]+")


def last_boxed(text: str, rules: Rules = "correct") -> str | None:
    r"""Content of the last `\boxed{…}`, or `\fbox{…}` where there is none, by brace matching.

    Of `\boxed x` without a brace it is what stands before the next white space or `$`; None where a brace stays open. The
    published rule takes all up to the next `$` after `\boxed `, and the next brace group wherever it stands.
    """
    # The published rule takes what follows "\boxed " up to a dollar sign.
    if rules == "published" and "\\boxed " in text:
        return text.rpartition("\\boxed ")[2].split("$")[0]
    # \fbox counts only where no \boxed stands.
    command = "\\boxed" if "\\boxed" in text else "\\fbox"
    start = text.rfind(command)
    if start < 0:
        return None
    start += len(command)
    if rules == "published":
        opening = text.find("{", start)
    # LaTeX allows white space between a command and its argument.
    else:
        while start < len(text) and text[start].isspace():
            start += 1
        opening = start if text.startswith("{", start) else -1
        if opening < 0:
            bare = BARE_ARGUMENT.match(text, start)
            return bare[0].rstrip(".,;:!?") or None if bare else None
    return _brace_group(text, opening) if opening >= 0 else None


def _brace_group(text: str, opening: int) -> str | None:
    """What stands between the brace at `opening` and the one that closes it."""
    depth = 0
    for brace in BRACE.finditer(text, opening):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[opening + 1 : brace.start()]
    return None


def minerva_answer(text: str, rules: Rules = "correct") -> str | None:
    """What stands between Minerva's two phrases, at their last occurrence (published: the first); the closing one may be
    missing.
    """
    text += MINERVA_END
    # The last occurrence: a model may quote the phrase before it answers.
    _, found, rest = text.partition(MINERVA_START) if rules == "published" else text.rpartition(MINERVA_START)
    return rest.partition(MINERVA_END)[0].strip() if found else None


def candidates(text: str, rules: Rules = "correct") -> list[str]:
    """Readings of the answer in order: boxed, Minerva's phrase; only without these the last `$…$`; else the whole text.

    Under `correct` the first of them counts alone: who writes two answers has not decided.
    """
    found = []
    boxed = last_boxed(text, rules)
    if boxed is not None:
        found.append(boxed if rules == "published" else boxed.strip().removesuffix("."))
    phrase = minerva_answer(text, rules)
    if phrase is not None:
        found.append(normalise_minerva(phrase))
    if not found:
        pieces = text.split("$")
        # Three pieces are two dollar signs, which enclose a formula.
        if len(pieces) >= 3:
            found.append(normalise_minerva(pieces[-2]))
    found = found or [normalise_minerva(text)]
    return found if rules == "published" else found[:1]


def equivalent(candidate: str, truth: str) -> str:
    """Which test finds the two equal: "string", "algebra", or "" for neither. The cheap test goes first."""
    if normalise_hendrycks(candidate) == normalise_hendrycks(truth):
        return "string"
    # Prose would cost the time limit of the algebra and never be equal.
    if is_prose(candidate) or is_prose(truth):
        return ""
    return "algebra" if ALGEBRA.equal(with_braces(candidate), with_braces(truth)) else ""


def is_prose(answer: str) -> bool:
    """Whether a word stands in an answer that is not a command: no algebra makes it equal to anything."""
    return PROSE.search(answer) is not None


def verify_math(text: str, truth: str, rules: Rules = "correct") -> Verdict:
    """Accept the first reading that is equivalent to the truth; the truth itself is not Minerva-normalised."""
    found = candidates(text.strip(), rules)
    for candidate in found:
        test = equivalent(candidate, truth)
        if test:
            return Verdict(True, candidate, f"equal by {test}")
    return Verdict(False, found[0], f"{len(found)} readings, none equal to {truth!r}")
