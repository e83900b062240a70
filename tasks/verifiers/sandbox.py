"""Run a generated program where it can do no harm: a process of its own, without network, processes and writable files.

The child limits its memory, time and files, then installs a seccomp filter, which no program can take off again. The filter
refuses sockets, new processes, other programs, signals to others, and every way to open a file for writing. No rights and no
container are needed. What a program prints is thrown away. A program passed when it ran to its end: leaving early does not
count, since only the child's last step sends the word that the parent gave it.
"""

import os
import secrets
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_CHILD = Path(__file__).with_name("sandbox_child.py")
SECONDS = 3.0
"""Of a program, as in the authors' harness of HumanEval."""
MEMORY_BYTES = 1 << 30
WORD_BYTES = 32

_Outcome = Literal["passed", "failed", "timed out"]


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended."""

    outcome: _Outcome
    detail: str
    """The last line of its error, or an empty text."""

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def run_program(code: str, *, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> Ran:
    """Run Python source to its end. Raises OSError where the system has no seccomp filters, never for what the program does."""
    # A word that the program cannot know: only the child's last step sends it.
    word = secrets.token_hex(WORD_BYTES // 2)
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory(prefix="olmo2-sandbox-") as folder, tempfile.TemporaryFile() as source:
        # surrogatepass: generated text may hold lone surrogates, and the program fails by itself then.
        source.write(f"{word}\n{code}".encode("utf-8", "surrogatepass"))
        source.seek(0)
        # -I -S: no user site, no environment, no packages.
        command = [sys.executable, "-I", "-S", str(_CHILD), str(writing), str(memory_bytes), str(int(seconds) + 1)]
        process = subprocess.Popen(
            command,
            stdin=source,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"OMP_NUM_THREADS": "1"},
            pass_fds=(writing,),
            # A session of its own, so that a signal to our terminal's group does not reach it.
            start_new_session=True,
        )
        # Closed here, or the read below would wait for our own end.
        os.close(writing)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return Ran("timed out", f"still running after {seconds:g} seconds")
        finally:
            # Also after a time-out: the pipe is closed in any case.
            said = os.read(reading, 4096)
            os.close(reading)
    return _judged(said, word, process.returncode)


def _judged(said: bytes, word: str, code: int) -> Ran:
    """What the child's last words mean. Raises OSError when it could not build the sandbox."""
    if said == word.encode():
        return Ran("passed", "")
    if said.startswith(b"sandbox:"):
        raise OSError(
            f"no sandbox for generated programs: {said.decode(errors='replace')}; Linux with seccomp is needed"
        )
    return Ran("failed", said.decode(errors="replace") or f"ended with status {code}")
