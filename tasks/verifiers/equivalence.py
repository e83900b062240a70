"""Whether two LaTeX expressions are equal by computer algebra, within a time limit (RECIPE H.4: sympy, 5 s, failure = no).

Simplification may run for ever in C-level loops that no signal handler or thread can interrupt, so it runs in a child
process. The kernel ends the child when its time is over, and it is started again at the next question. The child is a plain
interpreter reading lines, so this works in threads, in Ray workers and in daemonic processes alike. Its time is processor
time: verdicts do not depend on what else the machine does, and a child whose parent is gone ends as well.

Deviation: parsed by latex2sympy2_extended (of math-verify), because sympy's own parser needs an older ANTLR runtime.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

LIMIT_SECONDS = 5.0
"""Of processor time (RECIPE H.4)."""

PATIENCE = 60.0
"""Times the limit: what a child may take by the clock, on however busy a machine, before it is killed."""

_START_SECONDS = 60.0
"""Importing sympy takes about a second; a loaded machine may take much longer."""

_MAX_CHARACTERS = 1_000
"""Longer expressions are not parsed: no truth of MATH is near this, and runaway answers are not worth the time."""

_CHILD = Path(__file__).with_name("equivalence_child.py")


class AlgebraProcess:
    """One child that answers equality questions, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def equal(self, left: str, right: str, limit_seconds: float = LIMIT_SECONDS) -> bool:
        """False when the expressions differ, cannot be parsed or take too long."""
        if max(len(left), len(right)) > _MAX_CHARACTERS:
            return False
        # One question at a time: the child answers in the order of the lines.
        with self._lock:
            child = self._running()
            assert child.stdin is not None
            try:
                child.stdin.write(json.dumps([left, right, limit_seconds]).encode() + b"\n")
                child.stdin.flush()
                answer = self._read_line(child, PATIENCE * limit_seconds)
            except BaseException:
                # The answer to this question must not be taken for that to the next.
                self._kill()
                raise
            if not answer:
                self._kill()
            return answer == b"true"

    def close(self) -> None:
        with self._lock:
            self._kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # after a fork the parent's child is not ours to talk to
            self._child = None
        if self._child is None or self._child.poll() is not None:
            self._child = subprocess.Popen(
                # -P: the folder of the file is no place to import from.
                [sys.executable, "-P", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self._owner = os.getpid()
            if self._read_line(self._child, _START_SECONDS) != b"ready":
                self._kill()
                raise RuntimeError(
                    f"the algebra process did not start within {_START_SECONDS:.0f} s; "
                    "check that `python -c 'import latex2sympy2_extended'` works"
                )
        return self._child

    @staticmethod
    def _read_line(child: subprocess.Popen[bytes], limit_seconds: float) -> bytes | None:
        assert child.stdout is not None
        # Patience is by the clock and long; the child's own limit is processor time.
        ready, _, _ = select.select([child.stdout], [], [], limit_seconds)
        return child.stdout.readline().strip() if ready else None

    def _kill(self) -> None:
        if self._child is not None and self._owner == os.getpid():
            self._child.kill()
            # communicate() reaps the child, which would stay a zombie otherwise.
            self._child.communicate()
        self._child = None


ALGEBRA = AlgebraProcess()
atexit.register(ALGEBRA.close)
