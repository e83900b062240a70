"""A store: one root of objects on any fsspec file system. The only code that knows how paths are made and written.

Every write is atomic: a reader sees the old object, the new one or none. `create` is the one conditional operation
(all S3 services have it; compare-and-swap they have not): it succeeds for exactly one of many callers.
"""

import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
import orjson
from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem

from infra.secrets import refuse_password, without_secrets
from infra.storage.cache import cache_folder
from infra.storage.copies import Copies, Holds
from infra.storage.retries import PATIENCE_SECONDS, first_answer, http_status, s3_options, with_retries
from infra.storage.scratch import Scratch, locked
from infra.storage.uploads import Upload, end_upload, unfinished_uploads

R = TypeVar("R")

TEMPORARY = ".tmp-"
"""How names begin that are no objects yet."""
TEMPORARY_NAME = re.compile(rf"{re.escape(TEMPORARY)}([0-9a-f]{{32}}|[a-z0-9_]{{8}})")
"""The names that a store gives, to files and to folders; a cleaner touches no others."""
UNSAFE_NAME = re.compile(r"[\\\x00-\x1f\x7f]")
"""Characters that no name has: Windows reads a backslash as a slash, and control characters mislead terminals and logs."""

PASSWORD_ADVICE = (
    "give it in the environment instead, as FSSPEC_FTP_PASSWORD (or that of the scheme in place of FTP), or in "
    "~/.config/fsspec"
)
FIRST_ANSWER_SECONDS = 15
"""A store that has not said whether it is there after so long is told as one that does not answer."""
_WRITING = ("write", "create", "remove")
"""What needs a right to write, and where something absent is an error."""


class StoreError(OSError):
    """The store could not do what was asked: the message names the object, the cause and the way out."""


class CorruptObject(StoreError):
    """An object that is there, or should be, and is not what was written."""


def is_name(name: str) -> bool:
    """Whether a name is relative and stays below its folder."""
    return UNSAFE_NAME.search(name) is None and not any(part in ("", ".", "..") for part in name.split("/"))


def checked_name(name: str) -> str:
    """A relative name that stays below its folder, with forward slashes.

    Raises ValueError for one that leads elsewhere: records, listings and recipes give names, and anybody may write those.
    """
    if not is_name(name):
        raise ValueError(
            f"{name[:200]!r} is no name of a file below a folder: it must be relative, with / between its parts and none of "
            "them empty, . or .."
        )
    return name


def sha256_file(path: Path) -> str:
    """Hex digest of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Store:
    """Objects under one root URL, named by relative paths with forward slashes.

    Cheap to pickle: only the URL travels. Remote objects are copied to a local cache when a path is asked for; the cache of all
    stores is kept below `cache_bytes` (None: half of its disk).
    """

    def __init__(self, url: str, cache: Path | None = None, cache_bytes: int | None = None):
        refuse_password(url, "store", PASSWORD_ADVICE)
        # `s3:/bucket` would else become a folder named `s3:` below the working one.
        if re.match(r"[A-Za-z][\w+.-]+:/?[^/]", url) and "://" not in url:
            scheme, _, rest = url.partition(":")
            raise ValueError(
                f"store {url!r} is neither a folder nor a URL; a URL has two slashes, such as {scheme}://{rest.lstrip('/')}"
            )
        if "://" not in url:
            url = str(Path(url).expanduser().absolute())
        self.url = url.rstrip("/")
        # A listing cache would hide what other processes wrote.
        options: dict[str, object] = {} if "://" not in url else {"use_listings_cache": False}
        if self.url.startswith(("s3://", "s3a://")):
            options |= s3_options()
        try:
            self.fs, root = fsspec.core.url_to_fs(self.url, **options)
        except (ValueError, ImportError) as error:
            raise ValueError(f"store {url!r} is not a folder or a known fsspec URL: {error}") from error
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self._failures = _failures(self.fs)
        self.patience_seconds = PATIENCE_SECONDS
        self._answered = False
        self.cache = cache or default_cache(self.url)
        self.cache_bytes = cache_bytes
        self._copies = Copies(self.cache, cache_bytes)

    def __reduce__(self):
        return (Store, (self.url, self.cache, self.cache_bytes))

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def full(self, path: str) -> str:
        """The file system's own name of an object. Raises ValueError for a name that leads out of the store."""
        if not path or path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path[:200]!r} leads out of store {self.url}; names are relative to it and have no ..")
        return f"{self.root}/{path}"

    def write(self, path: str, data: bytes) -> None:
        """Write an object whole, replacing what was there."""
        target = self.full(path)
        if not self.is_local:
            self._ask("write", path, partial(self.fs.pipe_file, target, data))
            return
        with self._telling("write", path), self._temporary(target) as temporary:
            temporary.write_bytes(data)
            os.replace(temporary, target)

    def create(self, path: str, data: bytes) -> bool:
        """Write an object only if it is absent. True for the one caller that made it, False for all others.

        A caller whose reply was lost finds its own body there and is told True; so a body that must have one winner has
        something in it that no other's has.
        """
        target = self.full(path)
        if self.is_local:
            with self._telling("create", path):
                return self._create_local(target, data)
        return self._ask("create", path, partial(self._create_remote, target, data))

    def _create_remote(self, target: str, data: bytes) -> bool:
        try:
            self.fs.pipe_file(target, data, mode="create")
            return True
        except FileExistsError:
            pass
        except self._failures as error:
            # 412: the condition `If-None-Match` was not met, so the object is there.
            if http_status(error) != 412:
                raise
        return self.fs.cat_file(target) == data

    def _create_local(self, target: str, data: bytes) -> bool:
        with self._temporary(target) as temporary:
            with temporary.open("wb") as file:
                # On the disk before the link, or a power cut could leave an empty record.
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                # A hard link fails if the name exists, and the name appears with its whole content.
                os.link(temporary, target)
            except FileExistsError:
                # Two names: the link was made, and a network file system lost the reply.
                return temporary.stat().st_nlink == 2
            return True

    @contextmanager
    def _temporary(self, target: str) -> Iterator[Path]:
        """A name next to the target to write under; nothing stays there, so that a full disk is not filled with halves."""
        folder = Path(target).parent
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def put(self, local: Path, path: str) -> None:
        """Copy a local file into the store."""
        target = self.full(path)
        if not self.is_local:
            self._ask("write", path, partial(self.fs.put_file, str(local), target))
            return
        with self._telling("write", path), self._temporary(target) as temporary:
            shutil.copyfile(local, temporary)
            os.replace(temporary, target)

    def link(self, source: str, path: str) -> None:
        """Give an object a second name whose content no later write to the first changes. FileNotFoundError if it is absent."""
        target = self.full(path)
        if not self.is_local:
            self._ask("copy", source, partial(self.fs.cp_file, self.full(source), target))
            return
        with self._telling("copy", source), self._temporary(target) as temporary:
            os.link(self.full(source), temporary)
            os.replace(temporary, target)

    def settle(self, paths: Sequence[str]) -> None:
        """Return when objects and their folders survive a power cut. An object store promises that at each write."""
        if not self.is_local or not paths:
            return
        files = [Path(self.full(path)) for path in paths]
        root = Path(self.root)
        folders = {folder for file in files for folder in file.parents if folder == root or root in folder.parents}
        with self._telling("write", f"{paths[0]}{' and others' if paths[1:] else ''}"), ThreadPoolExecutor(8) as pool:
            # Files first, then folders from the deepest up: a name is safe only after what it names.
            for settled in (pool.map(_fsync, files), pool.map(_fsync, sorted(folders, reverse=True))):
                list(settled)

    @contextmanager
    def staging(self, folder: str) -> Iterator[Path]:
        """A temporary local folder for large files that `move` takes from: on the store's own disk if it has one."""
        with self._telling("write", folder):
            made, remove = self._staging_folder(folder)
        try:
            yield made
        except StoreError:
            raise
        except self._failures as error:
            raise self._failed("write", folder, error) from error
        finally:
            remove()

    def _staging_folder(self, folder: str) -> tuple[Path, Callable[[], None]]:
        """A new temporary folder, and what removes it."""
        if not self.is_local:
            scratch = Scratch("staging")
            return scratch.path, scratch.remove
        above = Path(self.full(folder))
        above.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=above))
        return made, partial(shutil.rmtree, made, ignore_errors=True)

    def move(self, local: Path, path: str) -> None:
        """Take a file out of a staging folder into the store, without copying it where that is possible."""
        if not self.is_local:
            self.put(local, path)
            return
        target = self.full(path)
        with self._telling("write", path):
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            os.replace(local, target)

    def read(self, path: str) -> bytes:
        """The whole object. FileNotFoundError if it is absent, StoreError if the store does not answer."""
        return self._ask("read", path, partial(self.fs.cat_file, self.full(path)))

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Bytes [start, end) of objects, in the order asked; a remote store is asked for all of them at once."""
        if not ranges:
            return []
        paths = [self.full(path) for path, _, _ in ranges]
        starts, ends = [start for _, start, _ in ranges], [end for _, _, end in ranges]
        told = f"{len(ranges):,} ranges of {ranges[0][0]} and others"
        return self._ask("read", told, partial(self.fs.cat_ranges, paths, starts, ends, on_error="raise"))

    def read_json(self, path: str) -> Any:
        """The JSON value of an object. FileNotFoundError if it is absent, StoreError if it is something else."""
        try:
            # Records, leases and marks are small, unlike what `read` is asked for.
            return orjson.loads(self._ask("read", path, self._small("cat_file", self.full(path))))
        except orjson.JSONDecodeError as error:
            raise CorruptObject(
                f"{path} in store {self.url} is corrupt: it is not JSON ({error}). Every object is written whole, so it "
                "was changed from outside: restore it from a copy, or remove it to make it anew."
            ) from error

    def open(self, path: str) -> IO[bytes]:
        """A seekable stream on the object."""
        return self._ask("read", path, partial(self.fs.open, self.full(path), "rb"))

    def size(self, path: str) -> int | None:
        """Bytes of the object, None if it is absent."""
        try:
            return int(self._ask("look at", path, self._small("info", self.full(path)))["size"])
        except FileNotFoundError:
            return None

    def modified(self, path: str) -> float | None:
        """When an object was written by the store's clock, in seconds since 1970; None where the file system does not tell."""
        try:
            return self._ask("look at", path, partial(self.fs.modified, self.full(path))).timestamp()
        except NotImplementedError:
            return None

    def is_there(self) -> bool:
        """Whether the folder is there, or below a URL an object. StoreError if the store does not answer."""
        try:
            with self._telling("read", ""):
                if self.is_local:
                    return Path(self.root).is_dir()
                self._first_listing()
                return True
        except FileNotFoundError:
            return False

    def _first_listing(self) -> None:
        """List the root once. FileNotFoundError if nothing is below it, TimeoutError if no answer comes in time."""
        if not self.fs.async_impl:
            self.fs.ls(self.root, detail=False)
            return
        # s3fs tries again by itself for minutes where a server takes connections and never answers.
        try:
            sync(self.fs.loop, self.fs._ls, self.root, detail=False, timeout=FIRST_ANSWER_SECONDS)
        except FSTimeoutError as error:
            raise TimeoutError(f"no answer within {FIRST_ANSWER_SECONDS} s") from error

    def exists(self, path: str) -> bool:
        return self.size(path) is not None

    def names(self, folder: str) -> list[str]:
        """Names directly below a folder, sorted; empty if there is none. Temporary names are left out."""
        full = self.full(folder) if folder else self.root
        try:
            found = self._ask("list", folder, self._small("ls", full, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in found)
        # Some file systems list a folder as its own first member.
        return [name for name in names if not name.startswith(TEMPORARY) and name != full.rsplit("/", 1)[-1]]

    def stamp(self, folder: str) -> str:
        """What changes when an object directly below a folder comes, goes or is replaced; empty if that cannot be told."""
        try:
            found = self._ask("list", folder, self._small("ls", self.full(folder), detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return ""
        files = [item for item in found if item["type"] == "file"]
        # Local file systems tell `mtime`, S3 an ETag, others `created`.
        marks = [(item["name"], item.get("ETag") or item.get("mtime") or item.get("created")) for item in files]
        if any(mark is None for _, mark in marks):
            return ""
        return hashlib.sha256(repr(sorted(map(str, marks))).encode()).hexdigest()

    def remove(self, folder: str) -> None:
        """Delete an object or everything below a folder; nothing happens if it is absent."""
        full = self.full(folder)

        def remove() -> None:
            # Asked first, since removing what is absent is an error in some file systems and none in others.
            if self.fs.exists(full):
                self.fs.rm(full, recursive=True)

        self._ask("remove", folder, remove)

    def unfinished_uploads(self) -> list[Upload]:
        """Uploads in parts that nobody has completed; none where objects are not sent so."""
        if "s3" not in self.fs.protocol:
            return []
        return self._ask("list", "", partial(unfinished_uploads, self.fs, self.root))

    def end_upload(self, upload: Upload) -> None:
        """Remove the parts of an upload that nobody will complete."""
        self._ask("remove", upload.key, partial(end_upload, self.fs, upload))

    def walk(self, folder: str) -> Iterator[str]:
        """Relative paths of all objects below a folder, sorted."""
        found = self._ask("list", folder, partial(self.fs.find, self.full(folder) if folder else self.root))
        for full in sorted(found):
            yield str(full)[len(self.root) + 1 :]

    def local(self, path: str, digest: str, holds: Holds | None = None) -> Path:
        """A local file with the object's name and content, known by its hash: the object itself, or a cached copy.

        A copy stays until `holds` is closed; without it, until the process ends.
        """
        if self.is_local:
            return Path(self.full(path))
        # Readers go by the name's suffix.
        cached = self._copies.place(digest, path.rsplit("/", 1)[-1], holds)
        if not cached.exists():
            # The workers of a node ask at once for the same tens of gigabytes: the first to come fetches them for all.
            with self._telling("copy", path), locked(cached.parent):
                # Another process may have fetched it while this one waited for the lock.
                if not cached.exists():
                    self._copy(path, cached)
        return cached

    def _copy(self, path: str, target: Path) -> None:
        """Fetch an object whole to a place of the cache, for which room is made."""
        with self._temporary(str(target)) as reserved, self._temporary(str(target)) as temporary:
            self._copies.make_room(self.size(path) or 0, reserved)
            self._ask("copy", path, partial(self.fs.get_file, self.full(path), str(temporary)))
            os.replace(temporary, target)

    def check_writable(self) -> None:
        """Fail early, with a clear message, when nothing can be written here; leave nothing, not even the store's folder."""
        name = f"_progress/probe-{uuid.uuid4().hex}"
        if not self.is_local:
            self.write(name, b"")
            self.remove(name)
            return
        with self._telling("write", name), tempfile.TemporaryFile(dir=_nearest(Path(self.full(name)).parent)) as probe:
            probe.write(b"0")

    def _ask(self, verb: str, path: str, call: Callable[[], R]) -> R:
        """Do one thing with the file system; a remote one is asked again while its faults are of the passing kind."""
        with self._telling(verb, path):
            if self.is_local or "s3" not in self.fs.protocol:
                return call()
            # A server that has answered once is waited for; one that never did may be a wrong address.
            answer = with_retries(call, self.patience_seconds, retry_refused=self._answered)
            self._answered = True
            return answer

    def _small(self, method: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
        """A call of the file system that reads little; S3 is asked a second time where its answer is late."""
        if "s3" not in self.fs.protocol:
            return partial(getattr(self.fs, method), *arguments, **options)
        ask = partial(getattr(self.fs, f"_{method}"), *arguments, **options)
        return partial(sync, self.fs.loop, first_answer, ask)

    @contextmanager
    def _telling(self, verb: str, path: str) -> Iterator[None]:
        """What the file system raises becomes a StoreError with a way out; only absence of what is read keeps its own."""
        try:
            yield
        except self._failures as error:
            if verb not in _WRITING and isinstance(error, FileNotFoundError | NotADirectoryError):
                raise
            raise self._failed(verb, path, error) from error

    def _failed(self, verb: str, path: str, error: Exception) -> StoreError:
        if isinstance(error, StoreError):
            return error
        found = without_secrets(f"{type(error).__name__}: {error}")
        writing = "has room and that you may write to it" if verb in _WRITING else "that you may read it"
        return StoreError(
            f"cannot {verb} {path or 'what is'} in store {self.url}{self._endpoint()}: {found}. "
            f"Check that the store exists, {writing}, then run the same command again."
        )

    def _endpoint(self) -> str:
        """Which server a remote store is on, where that is not its vendor's."""
        if self.is_local or "s3" not in self.fs.protocol:
            return ""
        url = self.fs.endpoint_url
        # A name and password in it are nobody's affair.
        return f" at {url.rpartition('@')[2] if '@' in url else url}" if url else ""


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there. OSError where no folder can be made."""
    while True:
        try:
            folder.lstat()
            return folder
        except FileNotFoundError:
            folder = folder.parent


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failures(fs: AbstractFileSystem) -> tuple[type[Exception], ...]:
    """What a file system raises when it cannot do its work; S3's transport has errors that are no OSError."""
    if "s3" not in fs.protocol:
        return (OSError,)
    import http.client

    import aiohttp
    from botocore.exceptions import BotoCoreError
    from botocore.parsers import ResponseParserError

    return (OSError, BotoCoreError, aiohttp.ClientError, ResponseParserError, http.client.IncompleteRead)


def default_cache(url: str) -> Path:
    """Where copies of remote objects are kept: content-addressed, safe to delete."""
    return cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:12]
