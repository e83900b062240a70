"""The copies of remote objects that this machine keeps: known by their hash, bounded in size, the least recently used go.

A copy that a process uses is held: a lock on the byte of a common file that the copy's hash names. The kernel takes such a
lock away at any kind of end of the process, SIGKILL too, and one open file serves any number of copies. Who makes room takes
the same lock alone, without waiting, so that what is in use stays. Where a file system knows no locks, nothing is removed.
"""

import errno
import fcntl
import os
import re
import shutil
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.storage.scratch import locked

IN_USE = "in-use"
"""The file whose bytes are locked; it holds nothing."""
KEPT_SHARE = 0.8
"""Of the limit, what is kept when room is made, so that it is not made at every copy."""
_FETCHING = 16
"""Processes that may fetch at once within what was seen to be free."""
_STORE = re.compile(r"[0-9a-f]{12}")
"""How the folder of a store's copies is named."""
_DIGEST = re.compile(r"[0-9a-f]{32,64}")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


class _Locks:
    """The locks of this process on the copies of one folder. POSIX locks belong to a process, so its threads share them."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT, 0o600)
        self._held: Counter[str] = Counter()
        self._one = threading.Lock()

    def hold(self, digest: str) -> None:
        """Keep others from removing a copy; waits while one of them is removing it."""
        with self._one:
            if not self._held[digest]:
                with _without_locks():
                    # One byte of the file stands for a copy, so any number of copies need one descriptor.
                    fcntl.lockf(self._file, fcntl.LOCK_SH, 1, _byte_of(digest))
            self._held[digest] += 1

    def let_go(self, digest: str) -> None:
        """The end of one `hold`."""
        with self._one:
            self._held[digest] -= 1
            if not self._held[digest]:
                del self._held[digest]
                # Another copy may have the same byte; that is as unlikely as two equal hashes of 60 bits.
                with _without_locks():
                    fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _byte_of(digest))

    @contextmanager
    def alone(self, digest: str) -> Iterator[bool]:
        """Whether nobody uses a copy, and if so, nobody can begin to until the end."""
        with self._one:
            if self._held[digest]:
                yield False
                return
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte_of(digest))
            except OSError:
                yield False
                return
            try:
                yield True
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _byte_of(digest))


@contextmanager
def _without_locks() -> Iterator[None]:
    """Go on where the file system knows no locks: `alone` fails there too, so nothing is removed."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


_locks: dict[tuple[int, Path], _Locks] = {}
_making = threading.Lock()


def _locks_of(folder: Path) -> _Locks:
    """A process has the locks that it took itself: a fork has none."""
    # A fork inherits the descriptor but none of the POSIX locks.
    key = (os.getpid(), folder)
    with _making:
        if key not in _locks:
            _locks[key] = _Locks(folder)
        return _locks[key]


def _byte_of(digest: str) -> int:
    # 15 hex digits are 60 bits: a file offset has 63.
    return int(digest[:15], 16)


class Holds:
    """Copies that somebody uses, until `close` or the end of this object."""

    def __init__(self) -> None:
        self._held: dict[tuple[Path, str], _Locks] = {}
        # So that a hold ends with its owner even where nobody calls `close`.
        weakref.finalize(self, _let_go, self._held)

    def add(self, folder: Path, digest: str) -> None:
        """Hold one more copy of a folder."""
        if (folder, digest) not in self._held:
            locks = _locks_of(folder)
            locks.hold(digest)
            self._held[folder, digest] = locks

    def close(self) -> None:
        """Let all go."""
        _let_go(self._held)


def _let_go(held: dict[tuple[Path, str], _Locks]) -> None:
    while held:
        (_, digest), locks = held.popitem()
        locks.let_go(digest)


_for_ever = Holds()
"""What is used by somebody who does not say until when."""


class Copies:
    """The copies of one store; those of all stores together are bounded, where they lie side by side as they do unless told
    otherwise.
    """

    def __init__(self, folder: Path, limit_bytes: int | None):
        self.folder = folder
        self.base = folder.parent if _STORE.fullmatch(folder.name) else folder
        self._limit = limit_bytes
        self._free = 0

    def place(self, digest: str, name: str, holds: Holds | None) -> Path:
        """Where a copy is or will be; it is held from now on, and is the most recently used."""
        (holds or _for_ever).add(self.base, digest)
        place = self.folder / digest[:2] / digest / name
        # The folder's time is its last use: file systems often do not keep times of reading.
        with suppress(FileNotFoundError):
            os.utime(place.parent)
        return place

    def make_room(self, size: int, reserved: Path) -> None:
        """Remove the least recently used copies, as far as nobody uses them, until one of `size` bytes fits the limit.

        `reserved` is a name next to the copy, which stands for its bytes until it is there: others count it.
        """
        # Within what was free at the last look nobody lists the cache: it may have 100,000 copies.
        if size > self._free:
            with locked(self.base):
                found = self._found()
                total, limit = sum(bytes for _, bytes, _ in found), self.limit_bytes
                if total + size > limit:
                    total -= self._remove(sorted(found), total + size - int(KEPT_SHARE * limit))
                # Shared out, because other processes count on the same free room.
                self._free = max(0, limit - total - size) // _FETCHING
                _reserve(reserved, size)
        else:
            self._free -= size
            _reserve(reserved, size)

    @property
    def limit_bytes(self) -> int:
        """The most bytes of all copies; half of the disk where nothing is said."""
        if self._limit is not None:
            return self._limit
        self.base.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.base).total // 2

    def _found(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, folder) of every copy."""
        stores = (
            [self.base] if self.base == self.folder else [x for x in self.base.iterdir() if _STORE.fullmatch(x.name)]
        )
        found = []
        for folder in (folder for store in stores for folder in store.glob("[0-9a-f][0-9a-f]/*")):
            # Another process may remove it at the same time.
            with suppress(FileNotFoundError):
                if _DIGEST.fullmatch(folder.name):
                    bytes = sum(entry.stat().st_size for entry in os.scandir(folder))
                    found.append((folder.stat().st_mtime, bytes, folder))
        return found

    def _remove(self, oldest_first: list[tuple[float, int, Path]], wanted: int) -> int:
        """Remove copies that nobody uses until `wanted` bytes are gone; returns the bytes that went."""
        locks, removed = _locks_of(self.base), 0
        for _, bytes, folder in oldest_first:
            if removed >= wanted:
                break
            with locks.alone(folder.name) as unused:
                if unused:
                    shutil.rmtree(folder)
                    removed += bytes
        return removed


def _reserve(place: Path, size: int) -> None:
    """A file of so many bytes that takes no room."""
    place.touch()
    # A sparse file: its size is told by `stat`, and no block is taken.
    os.truncate(place, size)
