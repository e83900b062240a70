"""Ends a process whose training step hangs (a dead peer, a stuck disk), so that it can be started again and resume
(RECIPE J). A group of workers is started again by Ray Train; a single process when the same command is given again.
"""

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

STALLED_EXIT_CODE = os.EX_TEMPFAIL
"""Exit status of a stalled process: 75, "try again" in sysexits.h."""
OTHERS_SECONDS = 20.0
"""A stalled process of a group ends so long after it has printed its stacks: the first that ends takes the others with it, and
theirs say who waits for whom.
"""


class Watchdog:
    """Context manager around a loop that calls `beat` at least every `seconds`, in process `rank` of a group of `world`."""

    def __init__(self, seconds: float, rank: int = 0, world: int = 1) -> None:
        self.seconds = seconds
        self._rank, self._world = rank, world
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
                who = f"rank {self._rank} of {self._world}: " if self._world > 1 else ""
                print(f"{who}no training step finished in {self.seconds:g} s; ending the process", file=sys.__stderr__)
                faulthandler.dump_traceback(file=2, all_threads=True)  # the file descriptor of stderr
                if self._world > 1:
                    time.sleep(min(OTHERS_SECONDS, self.seconds))
                # os._exit and not sys.exit: the main thread hangs, so no exception would reach it.
                os._exit(STALLED_EXIT_CODE)
            self._beat.clear()
