"""Garbage collection in a thread of its own, so that it never stops the server's event loop.

Garbage may hold a cursor of SQLite whose statement was not read to its end: that of a request that was cancelled. Freeing it
waits for whoever uses the cursor's connection, and that may be a thread which waits for the write lock, for up to a minute.
Collected in the loop's own thread, the loop stands still meanwhile and cannot end the transaction that holds the lock.
"""

import gc
import threading
import time

EVERY_SECONDS = 1.0
"""Between two collections."""
_OLDER_EVERY, _ALL_EVERY = 10, 60
"""Of so many collections one is of the middle-aged objects, and one of all."""


def collect_in_thread() -> None:
    """From now on garbage is collected by a thread that ends with the process, and by nobody else."""
    gc.disable()
    threading.Thread(target=_collect, name="garbage", daemon=True).start()


def _collect() -> None:
    count = 0
    while True:
        time.sleep(EVERY_SECONDS)
        count += 1
        gc.collect(2 if count % _ALL_EVERY == 0 else 1 if count % _OLDER_EVERY == 0 else 0)
