"""The process that answers whether two LaTeX expressions are equal: one question a line, as JSON, and one answer.

`equivalence.AlgebraProcess` runs this as a file and says what the limit means.
"""

import json
import signal
import sys
import warnings
from typing import Any


def answer_questions() -> None:
    """Answer until standard input ends. A question that takes longer than its limit ends the process."""
    warnings.simplefilter("ignore")
    # Imported before "ready" is said: this takes the second that the parent waits for.
    from latex2sympy2_extended import latex2sympy
    from sympy import simplify

    print("ready", flush=True)
    for line in sys.stdin:
        left, right, limit = json.loads(line)
        # Its signal is not handled, so it ends the process even in a loop of C.
        signal.setitimer(signal.ITIMER_PROF, limit)
        try:
            first: Any = latex2sympy(left)
            equal = simplify(first - latex2sympy(right)) == 0
        except Exception:  # the rule: any failure of parser or algebra means "not equal"
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(bool(equal)), flush=True)


if __name__ == "__main__":
    answer_questions()
