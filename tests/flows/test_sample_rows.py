"""`olmo2 sample` against a stand-in for the hub that serves this project's own samples. Oracles: those files, and its counts."""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow.parquet as pq
import pytest

from flows.config.files import load
from flows.config.pinning import resolved
from flows.rehearsing.rehearsal import rehearsed
from flows.rehearsing.sample_rows import wanted

HUB = Path(__file__).parents[1] / "samples" / "hub"
COMMIT = "a" * 40


class HubOfFolder:
    """Listings and files of the data sets in a folder; counts what it is asked."""

    def __init__(self, folder: Path):
        self.counts: Counter[str] = Counter()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = unquote(urlparse(self.path).path)
                if path.startswith("/api/datasets/"):
                    name = "/".join(path.split("/")[3:5])
                    hub.counts[f"list {name}"] += 1
                    files = sorted(
                        str(item.relative_to(folder / name)) for item in (folder / name).rglob("*") if item.is_file()
                    )
                    siblings = [{"rfilename": file} for file in files]
                    return self.say(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
                dataset, _, name = path.removeprefix("/datasets/").partition(f"/resolve/{COMMIT}/")
                file = folder / dataset / name
                hub.counts[f"{self.command} {dataset}/{name}"] += 1
                return self.say(200, file.read_bytes()) if file.is_file() else self.say(404, b"{}")

            def say(self, status: int, data: bytes) -> None:
                asked = self.headers.get("Range")
                if asked and status == 200:
                    first, _, last = asked.removeprefix("bytes=").partition("-")
                    begin, end = int(first), min(int(last) if last else len(data) - 1, len(data) - 1)
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {begin}-{end}/{len(data)}")
                    data = data[begin : end + 1]
                else:
                    self.send_response(status)
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def hub() -> Iterator[HubOfFolder]:
    found = HubOfFolder(HUB)
    yield found
    found.http.shutdown()
    found.http.server_close()


def olmo2_sample(hub: HubOfFolder, *arguments: str) -> dict[str, int]:
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "flows.cli", "sample", *arguments, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_samples_have_the_names_columns_and_first_rows_of_the_data_sets(hub: HubOfFolder, tmp_path: Path) -> None:
    written = olmo2_sample(hub, "olmo2-7b-synthesis", str(tmp_path), "-n", "7")
    assert set(written.values()) == {7}
    for name in written:
        assert (HUB / name).is_file()
    table = pq.read_table(tmp_path / "openai/gsm8k/main/train-00000-of-00001.parquet")
    whole = pq.read_table(HUB / "openai/gsm8k/main/train-00000-of-00001.parquet")
    assert table.equals(whole.slice(0, 7))
    name = "allenai/dolmino-mix-1124/data/flan/flan-0000.json.gz"
    rows, all_rows = (gzip.decompress((folder / name).read_bytes()).splitlines() for folder in (tmp_path, HUB))
    assert rows == all_rows[:7]
    # One file of every folder below a subset: converters differ.
    web = [name for name in written if name.startswith("allenai/olmo-mix-1124/data/dclm/")]
    assert len(web) == 2
    # A rehearsal finds in the folder all that it reads.
    resolved(rehearsed(load("olmo2-7b-synthesis"), tmp_path, "nowhere"))


def test_a_data_set_is_listed_once_and_what_is_there_is_not_fetched_again(hub: HubOfFolder, tmp_path: Path) -> None:
    olmo2_sample(hub, "olmo2-7b", str(tmp_path))
    lists = {name: count for name, count in hub.counts.items() if name.startswith("list ")}
    assert set(lists) == {f"list {item.dataset}" for item in wanted(load("olmo2-7b"))}
    assert set(lists.values()) == {1}
    hub.counts.clear()
    assert olmo2_sample(hub, "olmo2-7b", str(tmp_path)) == {}
    assert not [name for name in hub.counts if name.startswith("GET")]
