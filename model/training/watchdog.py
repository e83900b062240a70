"""Ends a process whose training step hangs (a dead peer, a stuck disk), so that it can be started again and resume
(RECIPE J). A group of workers is started again by Ray Train; a single process when the same command is given again.
"""

import faulthandler
import os
import sys
import threading
from types import TracebackType

STALLED_EXIT_CODE = os.EX_TEMPFAIL
"""Exit status of a stalled process: 75, "try again" in sysexits.h."""


class Watchdog:
    """Context manager around a loop that calls `beat` at least every `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._beat = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop = True
        self._beat.set()
        self._thread.join()

    def beat(self) -> None:
        """Say that the loop is alive."""
        self._beat.set()

    def _watch(self) -> None:
        while not self._stop:
            # An Event and no sleep, so that the end of a training is not delayed by the poll.
            if not self._beat.wait(self.seconds):
                print(
                    f"no training step finished in {self.seconds:g} s; ending the process",
                    file=sys.__stderr__,
                )
                faulthandler.dump_traceback(file=2, all_threads=True)  # the file descriptor of stderr
                # os._exit and not sys.exit: the main thread hangs, so no exception would reach it.
                os._exit(STALLED_EXIT_CODE)
            self._beat.clear()
