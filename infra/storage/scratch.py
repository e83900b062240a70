"""Temporary folders of this machine, and how to tell those that a killed process left from those in use; locks on folders.

A scratch folder is locked by the process that made it. The kernel takes the lock away at any kind of end, SIGKILL too, so a
folder without a lock is nobody's, whatever its age. A process id in its name could belong to another process by now, or to
one in another container.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "olmo2-scratch-"
"""How names of scratch folders begin."""
UNLOCKED_SECONDS = 60.0
"""A folder younger than this may not have its lock yet."""


class Scratch:
    """A private folder below the system's temporary one, for as long as its process wants it."""

    def __init__(self, label: str):
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{label}-"))
        self._lock = os.open(self.path, os.O_RDONLY)
        # Where a file system knows no locks, `is_abandoned` fails in the same way and takes the folder for used.
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def remove(self) -> None:
        """Delete the folder."""
        # Removed before the lock is given back, so that no cleaner takes half of it for abandoned.
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made if need be, alone among the processes and threads of this machine; others wait for it.

    The kernel lets go for a holder that is killed. Where a file system knows no locks, nobody waits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def scratch_folders() -> list[Path]:
    """All scratch folders of this user on this machine, sorted."""
    found = Path(tempfile.gettempdir()).glob(f"{PREFIX}*")
    return sorted(path for path in found if path.is_dir() and path.stat().st_uid == os.getuid())


def is_abandoned(folder: Path) -> bool:
    """Whether the process that made a scratch folder has ended; False for one that is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        if time.time() - os.fstat(descriptor).st_ctime < UNLOCKED_SECONDS:
            return False
        # The lock is free only if nobody lives who made the folder; closing gives it back.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
