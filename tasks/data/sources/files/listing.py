"""Finding and fingerprinting the files that a source names: paths, folders, globs and object-store URLs.

A stage's identity is a hash of its config, so the config must say which bytes it reads. A local file up to 64 MiB is pinned
by a hash of its content. A larger one is pinned by its time of change and a hash of samples (first, middle and last 4 MiB).
An object is pinned by the store's version of it, such as an ETag, without being read. The pin binds: `open` compares it with
the file before the first byte is read and again after the last, and a file that is another one ends the stage.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from infra.storage.store import Store
from model.config import Config
from tasks.data.sources.files.hub_stream import HUB_ROOT, open_hub_file
from tasks.data.sources.files.pin import Version, current_version, fingerprint, settled_version

_THREADS = 16
"""Files that are pinned at the same time: hashing and requests both wait outside Python."""
_PINNED_AT_ONCE = 1000
_PINNED_FIELDS = {"root", "name", "size", "sha256", "version"}
_SHOWN = 5
"""Files that a message names."""
_GLOB = re.compile(r"[*?\[]")
_AGAIN = "Run the same command again when nothing writes there any more: it plans anew, for what is there"


class SourceFailureError(Exception):
    """The medium of an input failed (network, disk, rights): unlike bad content, a reason to stop and to run again."""


class ChangedFileError(ValueError):
    """An input is another file than the one that the stage's identity names."""


class BrokenFileError(ValueError):
    """An input broke where nobody knows how many rows it has left, so its loss can be neither counted nor bounded."""

    def __init__(self, url: str, problem: str, row: int):
        super().__init__(url, problem, row)
        self.url, self.problem, self.row = url, problem, row

    def __str__(self) -> str:
        return (
            f"{self.url} breaks at row {self.row:,}: {self.problem}. How many rows it still holds is unknown, so their loss "
            "cannot be bounded. Fetch or write the file again, or leave it out by a glob under the source's `exclude`"
        )


class _Medium(io.RawIOBase):
    """The raw bytes of an input file; its failures do not look like those of a decompressor."""

    def __init__(self, stream: IO[bytes] | io.RawIOBase, url: str):
        self._stream = stream
        self._url = url

    def readinto(self, buffer: Any) -> int:
        try:
            # A decompressor raises OSError too, for bad content; the two must not be mixed up.
            data = self._stream.read(len(buffer)) or b""
        except OSError as error:
            raise SourceFailureError(
                f"cannot read {self._url}: {type(error).__name__}: {error}. Check that it is still there and may be read, "
                "then run the same command again."
            ) from error
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


class SourceFile(Config):
    """One input file, pinned."""

    root: str
    """Folder or URL that the name is relative to."""
    name: str
    """Path below the root, with forward slashes; documents without an id are named after it."""
    size: int
    """Bytes."""
    sha256: str = ""
    """Hash of the content, sampled for large files; empty where the version is enough."""
    version: str = ""
    """What the file system says of the content's version: an ETag, or the time of change of a large local file."""

    @property
    def url(self) -> str:
        return f"{self.root}/{self.name}"

    @contextmanager
    def open(self) -> "Iterator[io.BufferedReader[Any]]":
        """A seekable stream on the bytes of the file.

        Raises ChangedFileError when the file is not, or at the end is no longer, the one that was pinned; reading raises
        SourceFailureError when the medium fails.
        """
        if self.root.startswith(HUB_ROOT):
            with open_hub_file(self.root, self.name, self.size) as raw:
                yield io.BufferedReader(_Medium(raw, self.url), 1 << 17)
            return
        store = Store(self.root)
        before = self._checked(store)
        with io.BufferedReader(_Medium(store.open(self.name), self.url), 1 << 17) as stream:
            try:
                yield stream
            finally:
                # Compared after reading, even where the reader stopped early: what it read must be the pinned file.
                self._compare(before, current_version(store, self.name) if before.stamp else self._checked(store))

    def _checked(self, store: Store) -> Version:
        """The version that is there, which is the one that was pinned."""
        found = settled_version(store, self.name)
        if found is None:
            raise ChangedFileError(
                f"{self.url} is gone since the stage was planned; put it back, or run the command again"
            )
        size, sha256, version = fingerprint(store, self.name, found)
        if (size, sha256, version) != (self.size, self.sha256, self.version):
            raise ChangedFileError(
                f"{self.url} changed since the stage was planned: {self._pin(self.size, self.sha256, self.version)} then, "
                f"{self._pin(size, sha256, version)} now. {_AGAIN}"
            )
        return found

    def _compare(self, before: Version, after: Version | None) -> None:
        if after != before:
            raise ChangedFileError(f"{self.url} changed while it was read: {before} before, {after} after. {_AGAIN}")

    def _pin(self, size: int, sha256: str, version: str) -> str:
        return f"{size:,} bytes of {f'version {version}' if version else f'hash {sha256[:12]}'}"


def find_files(
    patterns: tuple[str, ...],
    suffixes: tuple[str, ...],
    *,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    strict: bool = False,
) -> tuple[SourceFile, ...]:
    """All files that the patterns name, in order of pattern and name, each once, pinned.

    A folder stands for every file below it whose name ends in one of `suffixes`, in any case; `include` and `exclude` are
    globs on the path below the folder. Raises ValueError for a pattern that matches nothing and, if `strict`, for files of a
    folder that have another ending and are not excluded.
    """
    found: dict[str, tuple[str, str]] = {}
    for pattern in patterns:
        root, names = _match(pattern.rstrip("/"), suffixes, include, exclude, strict)
        if not names:
            raise ValueError(
                f"{pattern!r} matches no file; give a file, a folder with files ending in "
                f"{', '.join(suffixes)}, or a glob, local or as a URL such as s3://bucket/folder/*.jsonl.zst"
            )
        # A dict keeps the first place of a file that two patterns name.
        found |= {f"{root}/{name}": (root, name) for name in names}
    return pin_files(found.values())


def list_names(root: str, suffixes: tuple[str, ...]) -> list[str]:
    """Paths below a folder or URL of the files with one of `suffixes`, sorted; hidden files are left out."""
    if "://" not in root:
        root = str(Path(root).expanduser().absolute())
    return sorted(name for name in _walk(root, suffixes) if name.endswith(suffixes))


def pin_files(places: Iterable[tuple[str, str]]) -> tuple[SourceFile, ...]:
    """The files (root, name) with their pins, several at a time."""
    rest, found = iter(places), []
    with ThreadPoolExecutor(_THREADS) as threads:
        # Some at a time: what a pool holds of each task waiting is ten times the pin.
        while some := list(islice(rest, _PINNED_AT_ONCE)):
            found += threads.map(_pinned, some)
    return tuple(found)


def _pinned(place: tuple[str, str]) -> SourceFile:
    root, name = place
    store = Store(root)
    version = settled_version(store, name)
    if version is None:
        raise ValueError(
            f"{root}/{name} is listed there but does not exist: it is a link to nothing, or was removed just now. Remove the "
            "link, or leave it out by a glob under `exclude`"
        )
    size, sha256, pin = fingerprint(store, name, version)
    # 100,000 pins are in the driver's memory: they share the note of which fields were given.
    return SourceFile.model_construct(_PINNED_FIELDS, root=root, name=name, size=size, sha256=sha256, version=pin)


def _match(
    pattern: str, suffixes: tuple[str, ...], include: tuple[str, ...], exclude: tuple[str, ...], strict: bool
) -> tuple[str, list[str]]:
    """The root of a pattern and the names below it."""
    root, rest, is_glob = _split(pattern)
    if not rest:
        names = chosen(_walk(root, suffixes), include, exclude)
        if strict:
            check_endings(root, names, suffixes)
        return root, [name for name in names if _ends_in(name, suffixes)]
    if is_glob:
        expression = re.compile(glob_expression(rest))
        return root, chosen([name for name in _walk(root, suffixes) if expression.fullmatch(name)], include, exclude)
    return root, chosen([rest], include, exclude)


def _ends_in(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(tuple(suffix.lower() for suffix in suffixes))


def chosen(names: Iterable[str], include: tuple[str, ...], exclude: tuple[str, ...]) -> list[str]:
    """The names that match a glob of `include` (all if it is empty) and none of `exclude`.

    A glob without a slash is compared with the last part of a name, as in `.gitignore`; `*` stays within a part, `**` goes
    through folders.
    """
    # Compiled once for all names: a listing may have 100,000.
    wanted, unwanted = ([re.compile(_anywhere(glob)) for glob in globs] for globs in (include, exclude))
    return [
        name
        for name in names
        if (not wanted or any(one.fullmatch(name) for one in wanted))
        and not any(one.fullmatch(name) for one in unwanted)
    ]


def _anywhere(glob: str) -> str:
    # As in .gitignore, a glob without a slash matches at any depth.
    return glob_expression(glob if "/" in glob else f"**/{glob}")


def check_endings(root: str, names: Sequence[str], suffixes: tuple[str, ...]) -> None:
    """ValueError that names the files of other endings and the glob that leaves them out."""
    unread = [name for name in names if not _ends_in(name, suffixes)]
    if not unread:
        return
    shown = ", ".join(unread[:_SHOWN]) + (f" and {len(unread) - _SHOWN:,} more" if len(unread) > _SHOWN else "")
    endings = sorted({f"*.{name.rsplit('.', 1)[-1]}" if "." in name.rsplit("/", 1)[-1] else name for name in unread})
    raise ValueError(
        f"{root} holds files that no reader knows: {shown}. Leave them out with `exclude: [{', '.join(endings[:_SHOWN])}]`, "
        f"or rename them; known endings are {', '.join(suffixes)}"
    )


def _split(pattern: str) -> tuple[str, str, bool]:
    """(root, what is below it, whether that is a glob): a folder has nothing below, a file or a glob the part after the last
    fixed folder."""
    if "://" not in pattern:
        pattern = str(Path(pattern).expanduser().absolute())
    # A path that is there is meant as it stands, even where it has the signs of a glob.
    literal = "://" not in pattern and Path(pattern).exists()
    glob = None if literal else _GLOB.search(pattern)
    # The root ends before the first sign of a glob, so that only what is below it is listed.
    cut = pattern.rfind("/", 0, glob.start() if glob else len(pattern))
    root, name = pattern[:cut] or "/", pattern[cut + 1 :]
    if glob is None and Store(root).size(name) is None:
        raise ValueError(f"{pattern!r} does not exist; check the path, or give a glob or a URL")
    if glob is None and _is_folder(root, name):
        return pattern, "", False
    return root, name, glob is not None


def _is_folder(root: str, name: str) -> bool:
    store = Store(root)
    return bool(store.fs.isdir(store.full(name)))


def _walk(root: str, suffixes: tuple[str, ...]) -> list[str]:
    """Names below a folder but for hidden ones (`.git`, the hub client's `.cache`). ValueError for a link to a folder."""
    store = Store(root)
    names = [name for name in store.walk("") if not re.search(r"(?:^|/)\.", name)]
    others = [name for name in names if not _ends_in(name, suffixes)] if store.is_local else []
    # Asked of names with another ending only, since each question is a call to the system.
    links = [name for name in others if Path(root, name).is_dir()]
    if links:
        raise ValueError(
            f"{root}/{links[0]} is a link to a folder. Links to folders are not followed, since they may lead in circles: put "
            "the folder itself there, or remove the link and give the folder that it leads to as a path of its own"
        )
    return names


def glob_expression(pattern: str) -> str:
    """The regular expression of a glob: `**/` any folders, a last `**` anything, `*` and `?` within a name, `[abc]` one
    character."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        # [!a] of globs is [^a] of regular expressions.
        special.get(part, part.replace("[!", "[^") if part.startswith("[") else re.escape(part))
        for part in parts
    )
