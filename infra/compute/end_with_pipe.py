"""A process that ends another one when the pipe at its standard input is closed: `python end_with_pipe.py PID`.

Run as a file by `processes.end_with_this_process`, so it imports nothing of ours and starts in milliseconds.
"""

import sys
from contextlib import suppress

import psutil

_SECONDS = 5
"""How long a process that was asked to end has."""


def end_when_closed(pid: int) -> None:
    """Wait for the end of standard input, then ask the process to end, and kill it when it does not."""
    # Looked up at once: a later process of the same number has another start time and is left alone.
    process = psutil.Process(pid)
    sys.stdin.read()
    if process.is_running():
        process.terminate()
        try:
            process.wait(_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()


if __name__ == "__main__":
    # One that has ended by itself, as early as before it was looked up, is what was wanted.
    with suppress(psutil.NoSuchProcess):
        end_when_closed(int(sys.argv[1]))
