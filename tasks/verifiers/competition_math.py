"""The MATH verifier: any of several readings of the answer equals the truth by string or by algebra (RECIPE H.4)."""

from tasks.verifiers.equivalence import ALGEBRA
from tasks.verifiers.latex_strings import normalise_hendrycks, normalise_minerva
from tasks.verifiers.verdict import Verdict

MINERVA_START = "Final Answer: The final answer is"
MINERVA_END = ". I hope it is correct"


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{…}` or `\fbox{…}` by brace matching, or of `\boxed x` up to the next `$`."""
    if "\\boxed " in text:
        return text.rpartition("\\boxed ")[2].split("$")[0]
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox") if "\\boxed" not in text else -1)
    if start < 0:
        return None
    opening = text.find("{", start)
    if opening < 0:
        return None
    depth = 0
    for place in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[opening + 1 : place]
    return None


def minerva_answer(text: str) -> str | None:
    """What stands between Minerva's two phrases; the closing one may be missing."""
    _, found, rest = (text + MINERVA_END).partition(MINERVA_START)
    return rest.partition(MINERVA_END)[0].strip() if found else None


def candidates(text: str) -> list[str]:
    """Readings of the answer in order: boxed, Minerva's phrase; only without these the last `$…$`; else the whole text."""
    found = []
    boxed = last_boxed(text)
    if boxed is not None:
        found.append(boxed)
    phrase = minerva_answer(text)
    if phrase is not None:
        found.append(normalise_minerva(phrase))
    if not found:
        pieces = text.split("$")
        if len(pieces) >= 3:
            found.append(normalise_minerva(pieces[-2]))
    return found or [normalise_minerva(text)]


def equivalent(candidate: str, truth: str) -> str:
    """Which test finds the two equal: "string", "algebra", or "" for neither. The cheap test goes first."""
    if normalise_hendrycks(candidate) == normalise_hendrycks(truth):
        return "string"
    return "algebra" if ALGEBRA.equal(candidate, truth) else ""


def verify_math(text: str, truth: str) -> Verdict:
    """Accept the first reading that is equivalent to the truth; the truth itself is not Minerva-normalised."""
    found = candidates(text.strip())
    for candidate in found:
        test = equivalent(candidate, truth)
        if test:
            return Verdict(True, candidate, f"equal by {test}")
    return Verdict(False, found[0], f"{len(found)} readings, none equal to {truth!r}")
