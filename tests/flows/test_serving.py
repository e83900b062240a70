"""The run page shows a store and changes nothing. Oracles: records read by themselves, an HTML parser, bytes of the store."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from flows.serving import views
from flows.serving.app import make_app
from infra.execution.attempt import Outcome, run_stage
from infra.execution.pages import page_address
from infra.records.artifact import Artifact
from infra.records.marks import add_note, set_tag
from infra.session import Session
from infra.settings import Execution
from infra.stage import stage
from infra.storage.store import Store
from infra.workspace import Workspace
from model.config import Config
from tests.conftest import free_port
from tests.infra.stages_for_tests import NumberConfig, number, total

PLANTED = "<img src=x onerror=alert(1)>\"'><script>alert(1)</script></svg></title>"


class RowsConfig(Config):
    text: str
    rows: int = 45


class Rows(Artifact):
    said: str


def make_rows(ws: Workspace, config: RowsConfig) -> Rows:
    ws.write_jsonl("rows.jsonl.zst", ({"id": place, "text": config.text} for place in range(config.rows)))
    ws.write_jsonl("metrics.jsonl", ({"step": step, "loss": 3.0 - step / 10} for step in range(10)))
    ws.write("report.html", f"<h1>made</h1>{config.text}".encode())
    ws.note(said=config.text)
    return ws.artifact(Rows, said=config.text)


rows = stage(make_rows, name="rows", version=1)


def run(store: Store, made, **arguments) -> Outcome:
    return run_stage(made, Session(store, Execution(ray="off")), arguments, lambda event: None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("serving")
    store = Store(str(folder / "store"), folder / "cache")
    first = run(store, number, config=NumberConfig(value=7)).artifact
    run(store, number, config=NumberConfig(value=8))
    run(store, total, numbers=[first], config=NumberConfig(value=1))
    planted = run(store, rows.labelled(f"rows:{PLANTED}"), config=RowsConfig(text=PLANTED)).record
    add_note(store, planted, PLANTED)
    set_tag(store, "best", planted)
    return store


@pytest.fixture
def client(store: Store) -> TestClient:
    return TestClient(make_app(store), raise_server_exceptions=True)


def ids(store: Store) -> dict[str, str]:
    return {row["stage"]: row["id"] for row in views.listing(store, "", "", 1)["rows"]}


class Links(HTMLParser):
    """Links of a page, its elements, and whether they nest."""

    VOID = ("meta", "br", "input", "rect", "path", "polyline")

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.events: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.events += [name for name, _ in attrs if name.startswith("on")]
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def test_every_link_leads_to_a_page_and_no_text_becomes_markup(store: Store, client: TestClient):
    """A walk over all pages from the first one on: planted markup in labels, rows, facts, notes and files' names stays text."""
    waiting, seen = ["/"], set()
    while waiting:
        link = waiting.pop()
        if link in seen:
            continue
        seen.add(link)
        answer = client.get(link)
        assert answer.status_code == 200, (link, answer.text)
        if "/report" in link:
            continue
        page = Links(answer.text)
        assert not page.tags & {"script", "img"} and page.events == [], link
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        waiting += [str(answer.url.join(place)).removeprefix("http://testserver") for place in page.links]
    assert any("samples" in link and "page=3" in link for link in seen)
    assert len([link for link in seen if link.startswith("/artifact/")]) >= 8


def test_pages_tell_what_the_records_tell(store: Store, client: TestClient):
    known = ids(store)
    text = client.get(f"/artifact/{known['total'][:10]}").text
    assert "total" in text and "<svg" in text
    assert f"olmo2 verify {known['total']} --store {store.url}" in text
    ends = client.get("/").text
    assert known["total"] in ends and known["rows"] in ends
    assert ends.count("/artifact/") == 4, (
        "total, the other number, rows and its tag: what others were made from is no end"
    )
    found = client.get("/artifacts", params={"stage": "number"}).text
    assert "2 found" in found
    assert "0 found" in client.get("/artifacts", params={"words": "nobody"}).text
    tagged = client.get("/artifact/best").text
    assert "polyline" in tagged, "its loss is drawn"


def test_rows_of_a_file_are_paged(store: Store, client: TestClient):
    place = f"/artifact/{ids(store)['rows']}/samples"
    pages = [client.get(place, params={"file": "rows.jsonl.zst", "page": page}).text for page in (1, 3, 4)]
    assert [page.count('class="row"') for page in pages] == [20, 5, 0]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/artifact/nobody", 404),
        ("/artifact/..%2f..%2fetc", 404),
        ("/artifact/ID?generation=9", 404),
        ("/artifact/ID?generation=x", 400),
        ("/artifact/ID/samples?file=../../secret.json", 404),
        ("/artifact/ID/samples?file=/etc/passwd", 404),
        ("/artifact/ID/samples?file=number.json&page=99999999999999999999", 400),
        ("/artifact/ID/report", 404),
        ("/compare?first=nobody&second=ID", 404),
        ("/artifacts?stage=%00%ff&words=%3Cb%3E&page=7", 200),
        ("/no/such/page", 404),
    ],
)
def test_what_is_not_there_is_told(store: Store, client: TestClient, path: str, status: int):
    answer = client.get(path.replace("ID", ids(store)["number"]))
    assert answer.status_code == status, answer.text
    assert "Traceback" not in answer.text and "root:" not in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(client: TestClient, method: str):
    assert client.request(method, "/").status_code == 405


def test_a_report_runs_no_script(store: Store, client: TestClient):
    answer = client.get(f"/artifact/{ids(store)['rows']}/report")
    assert answer.content.startswith(b"<h1>made</h1>")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "sandbox" in policy and "allow-scripts" not in policy


def test_damage_is_told_and_not_shown(tmp_path: Path):
    store = Store(str(tmp_path / "store"), tmp_path / "cache")
    record = run(store, rows, config=RowsConfig(text="a")).record
    store.write(f"{record.payload}/metrics.jsonl", b"{}\n")
    answer = TestClient(make_app(store)).get(f"/artifact/{record.id}")
    assert answer.status_code == 502
    assert "olmo2 repair" in answer.text


def test_the_command_serves_its_own_page_only_and_says_where(store: Store, tmp_path: Path):
    port = free_port()
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", str(port), "--store", store.url]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        address = f"http://127.0.0.1:{port}/"
        for _ in range(100):
            try:
                assert urllib.request.urlopen(address, timeout=30).status == 200
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30)
        policy = urllib.request.urlopen(address, timeout=30).headers.get_all("content-security-policy")
        assert any("default-src 'none'" in value for value in policy)
        assert any("frame-ancestors 'self'" in value for value in policy)
        told = next(tmp_path.rglob("pages.json"))
        assert page_address(Store(store.url, told.parent), "abc") == f"{address}artifact/abc"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert page_address(Store(store.url, told.parent), "abc") == ""
