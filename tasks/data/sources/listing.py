"""Finding and fingerprinting the files that a source names: paths, folders, globs and object-store URLs.

A stage's identity is a hash of its config, so the config must say which bytes it reads: each found file is
pinned by size and a hash of its content. Files above 64 MiB are hashed by samples (first, middle and last 4
MiB), which sees every appended, cut or regenerated file, but not an edit in place elsewhere that keeps the
length.
"""

import hashlib
import io
import re
from pathlib import Path
from typing import IO, Any

from infra.storage.store import Store
from model.config import Config

_WHOLE_BYTES = 64 << 20
_SAMPLE_BYTES = 4 << 20
_GLOB = re.compile(r"[*?\[]")


class SourceFailureError(Exception):
    """The medium of an input failed (network, disk, rights): unlike bad content, a reason to stop and to run again."""


class _Medium(io.RawIOBase):
    """The raw bytes of an input file; its failures do not look like those of a decompressor."""

    def __init__(self, stream: IO[bytes], url: str):
        self._stream = stream
        self._url = url

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
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
    sha256: str
    """Hash of the content, sampled for large files."""

    @property
    def url(self) -> str:
        return f"{self.root}/{self.name}"

    def open(self) -> io.BufferedReader:
        """A seekable stream on the bytes of the file. Reading raises SourceFailureError when the medium fails."""
        return io.BufferedReader(_Medium(Store(self.root).open(self.name), self.url), 1 << 17)


def find_files(patterns: tuple[str, ...], suffixes: tuple[str, ...]) -> tuple[SourceFile, ...]:
    """All files that the patterns name, in order of pattern and name, each once.

    A folder stands for every file below it whose name ends in one of `suffixes`. Raises ValueError for a
    pattern that matches nothing.
    """
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        files = _match(pattern.rstrip("/"), suffixes)
        if not files:
            raise ValueError(
                f"{pattern!r} matches no file; give a file, a folder with files ending in "
                f"{', '.join(suffixes)}, or a glob, local or as a URL such as s3://bucket/folder/*.jsonl.zst"
            )
        found |= {file.url: file for file in files}
    return tuple(found.values())


def list_names(root: str, suffixes: tuple[str, ...]) -> list[str]:
    """Paths below a folder or URL of the files with one of `suffixes`, sorted; hidden files are left out."""
    if "://" not in root:
        root = str(Path(root).expanduser().absolute())
    return sorted(name for name in _walk(root) if name.endswith(suffixes))


def _match(pattern: str, suffixes: tuple[str, ...]) -> list[SourceFile]:
    root, rest = _split(pattern)
    if not rest:
        names = [name for name in _walk(root) if name.endswith(suffixes)]
    elif _GLOB.search(rest):
        expression = re.compile(_glob_expression(rest))
        names = [name for name in _walk(root) if expression.fullmatch(name)]
    else:
        names = [rest]
    store = Store(root)
    return [_fingerprint(store, root, name) for name in names]


def _split(pattern: str) -> tuple[str, str]:
    """(root, what is below it): a folder has nothing below, a file or a glob the part after the last fixed
    folder."""
    if "://" not in pattern:
        pattern = str(Path(pattern).expanduser().absolute())
    glob = _GLOB.search(pattern)
    cut = pattern.rfind("/", 0, glob.start() if glob else len(pattern))
    root, name = pattern[:cut] or "/", pattern[cut + 1 :]
    if glob is None and Store(root).size(name) is None:
        raise ValueError(f"{pattern!r} does not exist; check the path, or give a glob or a URL")
    if glob is None and _is_folder(root, name):
        return pattern, ""
    return root, name


def _is_folder(root: str, name: str) -> bool:
    store = Store(root)
    return bool(store.fs.isdir(store.full(name)))


def _walk(root: str) -> list[str]:
    return [name for name in Store(root).walk("") if not name.rsplit("/", 1)[-1].startswith(".")]


def _glob_expression(pattern: str) -> str:
    """`**/` any folders, `*` and `?` within a name, `[abc]` one character."""
    parts = re.split(r"(\*\*/|\*|\?|\[[^\]]*\])", pattern)
    special = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        special.get(part, part.replace("[!", "[^") if part.startswith("[") else re.escape(part)) for part in parts
    )


def _fingerprint(store: Store, root: str, name: str) -> SourceFile:
    size = store.size(name)
    assert size is not None, (root, name)
    digest = hashlib.sha256(str(size).encode())
    with store.open(name) as file:
        if size <= _WHOLE_BYTES:
            while chunk := file.read(_SAMPLE_BYTES):
                digest.update(chunk)
        else:
            for offset in (0, size // 2, size - _SAMPLE_BYTES):
                file.seek(offset)
                digest.update(file.read(_SAMPLE_BYTES))
    return SourceFile(root=root, name=name, size=size, sha256=digest.hexdigest())
