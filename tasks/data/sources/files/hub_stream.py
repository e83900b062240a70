"""The hub: pinning a dataset or a checkpoint to a commit, and the bytes of a dataset's file at a commit. Shared by document
sources, by the sources of chats, prompts and benchmarks, and by rules that ask a checkpoint.

A file costs one request, two where its storage is elsewhere, however many files the dataset has: nothing is listed here.
"""

import io
import time
from typing import Any, Literal

HUB_ROOT = "hf://datasets/"
"""How the root of a hub file begins: this, the dataset's id, `@` and the commit."""
_COMMIT_LENGTH = 40
_TRIES = 5
_TIMEOUT_SECONDS = 60


def pin_revision(name: str, revision: str, kind: Literal["dataset", "model"] = "dataset") -> str:
    """The commit of a repository on the hub; a full commit is taken as it is. ValueError when the hub does not answer."""
    if len(revision) == _COMMIT_LENGTH:
        return revision
    # The hub's client takes seconds to import and is needed by hub sources only.
    from huggingface_hub import HfApi

    # The error base of whichever HTTP client the library uses; it changed between versions.
    from huggingface_hub.errors import HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        # One fact is asked for: without this the answer names every file of the repository.
        api = HfApi()
        ask = api.dataset_info if kind == "dataset" else api.model_info
        found = ask(name, revision=revision or None, expand=["sha"])
    except (HTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"{kind} {name!r} is neither a local folder nor reachable on the hub: {type(error).__name__}: {error}. Check the "
            "name and the connection, give its commit as `revision`, or download it and give the path"
        ) from error
    assert found.sha is not None, name
    return found.sha


def hub_root(dataset: str, revision: str) -> str:
    """The root of a dataset's files at a commit."""
    return f"{HUB_ROOT}{dataset}@{revision}"


def open_hub_file(root: str, name: str, size: int) -> "HubStream":
    """A seekable stream on a file of the hub."""
    from huggingface_hub import hf_hub_url

    dataset, _, revision = root.removeprefix(HUB_ROOT).rpartition("@")
    return HubStream(hf_hub_url(dataset, name, repo_type="dataset", revision=revision), revision, size)


class HubStream(io.RawIOBase):
    """The bytes of one file at one commit, asked for from where they are read; a lost connection is taken up again."""

    def __init__(self, url: str, revision: str, size: int):
        self._url, self._revision, self._size = url, revision, size
        self._position = 0
        self._etag = ""
        self._response: Any = None
        self._blocks: Any = iter(())
        self._held = b""

    def _connect(self) -> None:
        """Ask for the bytes from the present position on; a file of another commit or version is an OSError."""
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        # identity: a compressed transfer could not be taken up in its middle.
        session, headers = get_session(), {**build_hf_headers(), "Accept-Encoding": "identity"}
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
        request = session.build_request("GET", self._url, headers=headers, timeout=_TIMEOUT_SECONDS)
        self._response = session.send(request, stream=True, follow_redirects=True)
        try:
            hf_raise_for_status(self._response)
        except OSError:
            self._disconnect()
            raise
        answers = [*self._response.history, self._response]
        # Redirects lead to another storage; the hub's own headers are in the first answer.
        commit = next((one.headers["X-Repo-Commit"] for one in answers if "X-Repo-Commit" in one.headers), "")
        tag = next((one.headers[key] for one in answers for key in ("X-Linked-Etag", "ETag") if key in one.headers), "")
        # A commit or ETag that changed would join two files' bytes.
        if commit not in ("", self._revision) or self._etag not in ("", tag):
            raise OSError(f"the hub gave commit {commit} and version {tag}, not {self._revision} and {self._etag}")
        self._etag = tag
        self._blocks = self._response.iter_raw(1 << 17)
        self._held = b""

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response, self._held = None, b""

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; OSError when the hub does not give them after several tries."""
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import httpx

        for attempt in range(_TRIES):
            try:
                if self._response is None:
                    # A size of 0 means that nobody knows it, so only the stream's end tells.
                    if self._position >= self._size > 0:
                        return b""
                    self._connect()
                if not self._held:
                    self._held = next(self._blocks, b"")
                break
            except (httpx.TransportError, HfHubHTTPError) as error:
                self._disconnect()
                if attempt == _TRIES - 1 or not _may_pass(error):
                    raise (
                        error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")
                    ) from error
                # 0.5, 1, 2, 4 seconds: a busy server is given time.
                time.sleep(2**attempt / 2)
        data, self._held = (self._held, b"") if size < 0 else (self._held[:size], self._held[size:])
        self._position += len(data)
        return data

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move; the next read asks for what is there."""
        target = offset + (0, self._position, self._size)[whence]
        if target != self._position:
            # Moving drops the connection; the next read asks for bytes from the new place.
            self._disconnect()
            self._position = target
        return target

    def close(self) -> None:
        self._disconnect()
        super().close()


def _may_pass(error: Exception) -> bool:
    """Whether asking again may help: a lost connection, a server that is busy."""
    status = getattr(getattr(error, "response", None), "status_code", 503)
    # Without a status it was the connection that failed, which is worth another try.
    return status == 429 or status >= 500
