"""A server on this machine that answers as the hub does for one dataset, and counts what it is asked. The dataset has many files
of the same kind, or those that are given.

It runs in a process of its own, so that its work is not taken for the client's.
"""

import gzip
import hashlib
import json
import multiprocessing
from collections.abc import Iterable
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlencode, urlparse

COMMIT = "a" * 40
DATASET = "allenai/counted-mix"
README = b"---\nconfigs:\n- config_name: dclm\n  data_files:\n  - split: train\n    path: data/dclm/**\n---\n"
PAGE = 1000
ROWS = 20


@lru_cache(64)
def content(number: int) -> bytes:
    """The bytes of a file: 20 rows of JSON lines, gzip."""
    rows = ({"id": f"{number:06d}-{row}", "text": f"document {row} " * 5} for row in range(ROWS))
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0)


class CountingHub:
    """The server, for the time of a `with`; `counts` are requests by kind."""

    dataset = DATASET

    def __init__(self, files: int, contents: dict[str, bytes] | None = None):
        self.files = files
        self.contents = contents
        self._manager = multiprocessing.get_context("spawn").Manager()
        self.counts: Any = self._manager.dict()
        self._port = self._manager.Value("i", 0)
        self._ready = self._manager.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port.value}"

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(
            target=serve,
            args=(self.files, self.contents, self.counts, self._port, self._ready),
            daemon=True,
        )
        self._process.start()
        assert self._ready.wait(60), "the counting server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()
        self._manager.shutdown()


def serve(files: int, contents: dict[str, bytes] | None, counts: Any, port: Any, ready: Any) -> None:
    """Answer until terminated."""
    names = {f"data/dclm/{number // 1000:04d}/dclm-{number:05d}.json.gz": number for number in range(files)}
    sizes = {name: len(body) for name, body in contents.items()} if contents else dict.fromkeys(names, len(content(0)))
    entries = [
        {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(name.encode()).hexdigest()}
        for name, size in sizes.items()
    ]
    parts = {"names": names, "contents": contents or {"README.md": README}, "entries": entries, "counts": counts}
    handler = type("Handler", (_Handler,), parts)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    port.value = server.server_address[1]
    ready.set()
    server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    names: dict[str, int]
    contents: dict[str, bytes]
    entries: list[dict[str, Any]]
    counts: Any

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlparse(self.path)
        path = unquote(url.path)
        if "/tree/" in path:
            self._tree(url.path, parse_qs(url.query))
        elif "/resolve/" in path:
            self._file(path.split("/resolve/", 1)[1].split("/", 1)[1])
        else:
            self._note("info")
            self._send(200, json.dumps({"id": DATASET, "sha": COMMIT}).encode())

    def _tree(self, path: str, query: dict[str, list[str]]) -> None:
        self._note("tree")
        start = int(query.get("cursor", ["0"])[0])
        more = {}
        if start + PAGE < len(self.entries):
            rest = urlencode({key: values[0] for key, values in query.items()} | {"cursor": start + PAGE})
            more = {"Link": f'<http://{self.headers["Host"]}{path}?{rest}>; rel="next"'}
        self._send(200, json.dumps(self.entries[start : start + PAGE]).encode(), more.items())

    def _file(self, name: str) -> None:
        self._note("README" if name == "README.md" else "file")
        if name not in self.contents and name not in self.names:
            self._send(404, b"{}", [("X-Error-Code", "EntryNotFound")])
            return
        body = self.contents[name] if name in self.contents else content(self.names[name])
        self._send(200, body, [("ETag", f'"{hashlib.sha1(body).hexdigest()}"'), ("X-Repo-Commit", COMMIT)])

    def _note(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def _send(self, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
