"""The local server and worker against other websites, and against runs that carry commands.

Oracle: the statuses and headers that a raw client sees, the files that a planted command would make, and what the scripts of
a page of another origin get in a real browser.
"""

import asyncio
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import websockets
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from tests.conftest import free_port
from tests.flows.dashboards import RunningDashboard, running_dashboard, until

pytestmark = pytest.mark.slow

EVIL = "https://evil.example"


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDashboard]:
    with running_dashboard(tmp_path_factory.mktemp("dashboard"), free_port()) as running:
        yield running


FOREIGN = {
    "another origin": {"Origin": EVIL},
    "a sandboxed frame or a local file": {"Origin": "null"},
    "another port of this machine": {"Origin": "http://127.0.0.1:1"},
    "this port under https": {"Origin": "https://127.0.0.1:{port}"},
    "this address as a beginning": {"Origin": "http://127.0.0.1:{port}.evil.example"},
    "an empty origin": {"Origin": ""},
    "a rebound name": {"Host": "evil.example:{port}"},
    "a rebound name with its own origin": {"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"},
    "this address with another port": {"Host": "127.0.0.1:1"},
    "this address without a port": {"Host": "127.0.0.1"},
    "all addresses": {"Host": "0.0.0.0:{port}"},
    "a name that ends like ours": {"Host": "evil.localhost:{port}"},
    "another site without an origin": {"Sec-Fetch-Site": "cross-site"},
    "another port without an origin": {"Sec-Fetch-Site": "same-site"},
    "a picture": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    "a link into the API": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    "the other loopback": {"Host": "[::1]:{port}"},
    "the other loopback's origin": {"Origin": "http://[::1]:{port}"},
    "our origin with a name before it": {"Origin": "http://user@127.0.0.1:{port}"},
    "our origin with a path": {"Origin": "http://127.0.0.1:{port}/"},
    "two origins": {"Origin": "http://127.0.0.1:{port} https://evil.example"},
    "this address as one number": {"Host": "2130706433:{port}"},
    "this address in short": {"Host": "127.1:{port}"},
    "localhost with a dot": {"Host": "localhost.:{port}"},
    "this address with a dot": {"Host": "127.0.0.1.:{port}"},
    "this address as a beginning of a host": {"Host": "127.0.0.1.evil.example:{port}"},
    "a name before a host": {"Host": "127.0.0.1:{port}@evil.example"},
    "an empty host": {"Host": ""},
    "a forwarded host": {"Host": "evil.example", "X-Forwarded-Host": "127.0.0.1:{port}"},
    "a form of another page": {
        "Origin": EVIL,
        "Content-Type": "text/plain",
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    },
    "a form of another page that hides its origin": {
        "Origin": "null",
        "Content-Type": "application/x-www-form-urlencoded",
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    },
    "our origin from another site": {"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "cross-site"},
}
REQUESTS = {
    "GET": ("/api/admin/version", None, {}),
    "HEAD": ("/api/health", None, {}),
    "OPTIONS": ("/api/deployments/filter", None, {"Access-Control-Request-Method": "POST"}),
    "POST": ("/api/deployments/filter", {}, {}),
    "PUT": ("/api/concurrency_limits/", {}, {}),
    "PATCH": ("/api/work_pools/olmo2", {}, {}),
    "DELETE": ("/api/work_pools/olmo2", None, {}),
}


@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize("source", FOREIGN)
def test_what_is_from_elsewhere_is_refused(dashboard: RunningDashboard, method: str, source: str):
    path, body, headers = REQUESTS[method]
    foreign = {name: value.format(port=dashboard.port) for name, value in FOREIGN[source].items()}
    reply = dashboard.request(method, path, body, headers | foreign)
    assert reply.status == 403
    assert not [name for name in reply.headers if name.startswith("access-control-")]


def test_two_host_headers_are_refused(dashboard: RunningDashboard):
    with socket.create_connection(("127.0.0.1", dashboard.port)) as line:
        host = f"127.0.0.1:{dashboard.port}"
        line.sendall(f"GET /api/health HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n\r\n".encode())
        assert line.recv(100).split()[1] in (b"400", b"403")


def test_the_own_page_and_programs_are_answered(dashboard: RunningDashboard):
    own = {"Origin": dashboard.origin, "Sec-Fetch-Site": "same-origin"}
    for headers in ({}, own, {"Host": f"localhost:{dashboard.port}"}, {"Sec-Fetch-Site": "none"}):
        assert dashboard.request("POST", "/api/deployments/filter", {}, headers).status == 200
    reply = dashboard.request(
        "OPTIONS", "/api/deployments/filter", None, own | {"Access-Control-Request-Method": "POST"}
    )
    assert reply.headers["access-control-allow-origin"] == dashboard.origin


def test_pages_can_be_linked_to_but_not_framed(dashboard: RunningDashboard):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    link["Accept"] = "text/html"
    reply = dashboard.request("GET", "/runs", None, link)
    assert reply.status == 200
    assert reply.headers["x-frame-options"] == "SAMEORIGIN"
    assert "frame-ancestors 'self'" in reply.headers["content-security-policy"]
    assert dashboard.request("GET", "/runs", None, link | {"Sec-Fetch-Dest": "iframe"}).status == 403
    moved = dashboard.request("GET", "/runs?a=1", None, link | {"Host": f"localhost:{dashboard.port}"})
    assert (moved.status, moved.headers["location"]) == (307, f"{dashboard.origin}/runs?a=1")


@pytest.mark.parametrize("path", ["/api/events/out", "/api/events/in", "/api/logs/out"])
def test_websockets_of_other_pages_are_refused(dashboard: RunningDashboard, path: str):
    async def opened(origin: str | None) -> int:
        address = f"ws://127.0.0.1:{dashboard.port}{path}"
        try:
            async with websockets.connect(address, origin=origin, subprotocols=["prefect"]):  # type: ignore[arg-type]
                return 101
        except websockets.InvalidStatus as error:
            return error.response.status_code

    assert [asyncio.run(opened(origin)) for origin in (EVIL, "null")] == [403, 403]
    assert [asyncio.run(opened(origin)) for origin in (dashboard.origin, None)] == [101, 101]


def plant(dashboard: RunningDashboard) -> tuple[Path, dict[str, Any]]:
    """A file that must never be, and job variables whose command would make it."""
    target = dashboard.folder / f"planted-{uuid4()}"
    return target, {"command": f"touch {target}"}


def start(dashboard: RunningDashboard, deployment: str, **more: Any) -> str:
    """A run of the recipe up to a stage it does not have: it ends in seconds where it is started at all."""
    body = {"parameters": {"recipe": "smoke", "until": "none", "store": str(dashboard.folder / "none")}} | more
    return dashboard.api(f"/deployments/{deployment}/create_flow_run", body)["id"]


OVERRIDES = {
    "command": {"command": "touch {file}"},
    "environment": {"env": {"PYTHONSTARTUP": "{file}", "PREFECT_API_URL": EVIL}},
    "environment by a dotted name": {"env.LD_PRELOAD": "{file}"},
    "folder": {"working_dir": "/tmp"},
    "name": {"name": "{file}"},
    "another name": {"image": "evil"},
}


@pytest.mark.parametrize("kind", OVERRIDES)
def test_a_run_with_job_variables_is_refused(dashboard: RunningDashboard, kind: str):
    target = dashboard.folder / f"planted-{uuid4()}"
    variables = json.loads(json.dumps(OVERRIDES[kind]).replace("{file}", str(target)))
    body = {"parameters": {"recipe": "smoke"}, "job_variables": variables}
    reply = dashboard.request("POST", f"/api/deployments/{dashboard.deployment('recipe')}/create_flow_run", body)
    if reply.status < 300:  # the server may take it; the worker does not
        run = dashboard.ended(reply.json()["id"])
        assert run["state_type"] == "CRASHED"
        assert "job variables" in run["state"]["message"]
    else:
        assert reply.status in (409, 422)
    assert not target.exists()


def changed_deployment(dashboard: RunningDashboard, **change: Any) -> str:
    """Another deployment of the recipe in our pool, made through the API with something changed."""
    kept = dashboard.api(f"/deployments/{dashboard.deployment('recipe')}")
    names = ("flow_id", "entrypoint", "pull_steps", "parameter_openapi_schema", "work_pool_name")
    body = {name: kept[name] for name in names} | {"name": f"planted-{uuid4()}", "enforce_parameter_schema": False}
    return dashboard.api("/deployments/", body | change)["id"]


def test_a_deployment_that_carries_a_command_is_refused(dashboard: RunningDashboard):
    """The pool's own rule is lifted first, so that only the worker stands in the way."""
    template = dashboard.api("/work_pools/olmo2")["base_job_template"]
    target, variables = plant(dashboard)
    lax = {
        "job_configuration": {"command": "{{ command }}"},
        "variables": {"properties": {"command": {"type": "string"}}},
    }
    dashboard.api("/work_pools/olmo2", {"base_job_template": lax}, "PATCH")
    try:
        planted = changed_deployment(dashboard, job_variables=variables)
        runs = [start(dashboard, planted), start(dashboard, dashboard.deployment("recipe"), job_variables=variables)]
        messages = [dashboard.ended(run)["state"]["message"] for run in runs]
    finally:
        dashboard.api("/work_pools/olmo2", {"base_job_template": template}, "PATCH")
    assert "the deployment sets job variables (command)" in messages[0]
    assert "the run sets job variables (command)" in messages[1]
    assert not target.exists()


def test_a_command_by_another_door_of_the_api_is_refused(dashboard: RunningDashboard):
    """The pool's own rule is lifted, and a run gets its command where neither a form nor a deployment is asked."""
    template = dashboard.api("/work_pools/olmo2")["base_job_template"]
    recipe, (target, variables) = dashboard.deployment("recipe"), plant(dashboard)
    flow = dashboard.api(f"/deployments/{recipe}")["flow_id"]
    lax = {
        "job_configuration": {"command": "{{ command }}"},
        "variables": {"properties": {"command": {"type": "string"}}},
    }
    dashboard.api("/work_pools/olmo2", {"base_job_template": lax}, "PATCH")
    try:
        scheduled = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2000-01-01T00:00:00Z"}}
        later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}
        bare = {
            "flow_id": flow,
            "parameters": {"recipe": "smoke"},
            "work_pool_name": "olmo2",
            "work_queue_name": "default",
        }
        runs = {
            "no deployment": dashboard.api("/flow_runs/", bare | {"job_variables": variables, "state": scheduled})["id"]
        }
        edited = start(dashboard, recipe, state=later)
        dashboard.api(f"/flow_runs/{edited}", {"job_variables": variables}, "PATCH")
        dashboard.api(f"/flow_runs/{edited}/set_state", {"state": scheduled, "force": True})
        runs["a run that waited"] = edited
        runs["an automation"] = started_by_automation(dashboard, recipe, variables)
        states = {name: until_refused(dashboard, run) for name, run in runs.items()}
    finally:
        dashboard.api("/work_pools/olmo2", {"base_job_template": template}, "PATCH")
    assert not target.exists()
    assert "the run sets job variables (command)" in states["a run that waited"]
    assert "the run sets job variables (command)" in states["an automation"]
    assert "job variables" in states["no deployment"] or "deployment" in states["no deployment"]


def until_refused(dashboard: RunningDashboard, run: str) -> str:
    """What the state of a run says once the worker has refused it."""
    until(lambda: dashboard.api(f"/flow_runs/{run}")["state_type"] in ("CRASHED", "FAILED"), 120, "a refusal")
    return dashboard.api(f"/flow_runs/{run}")["state"]["message"]


def started_by_automation(dashboard: RunningDashboard, recipe: str, variables: dict[str, Any]) -> str:
    """The run of the recipe that an automation starts with a command, when another run is made."""
    name = f"planted-{uuid4()}"
    parameters = {"recipe": "smoke", "until": "none", "store": str(dashboard.folder / name)}
    action = {
        "type": "run-deployment", "source": "selected", "deployment_id": recipe, "parameters": parameters,
        "job_variables": variables,
    }  # fmt: skip
    trigger = {
        "type": "event", "posture": "Reactive", "threshold": 1, "within": 0, "expect": [f"planted.{name}"],
        "match": {"prefect.resource.id": "planted.*"},
    }  # fmt: skip
    dashboard.api("/automations/", {"name": name, "trigger": trigger, "actions": [action]})
    event = {
        "id": str(uuid4()), "occurred": datetime.now(UTC).isoformat(), "event": f"planted.{name}", "payload": {},
        "resource": {"prefect.resource.id": f"planted.{name}"}, "related": [],
    }  # fmt: skip

    def started() -> list[dict[str, Any]]:
        made = dashboard.api("/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"})
        return [run for run in made if run["parameters"].get("store") == parameters["store"]]

    def asked_and_started() -> bool:
        # The server takes the automation up some moments later; an event before that is nobody's.
        dashboard.request(
            "POST", "/api/events", [event | {"id": str(uuid4()), "occurred": datetime.now(UTC).isoformat()}]
        )
        return bool(started())

    until(asked_and_started, 120, "the run of the automation")
    return started()[0]["id"]


def test_code_from_elsewhere_is_refused(dashboard: RunningDashboard):
    target, _ = plant(dashboard)
    shell = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {target}"}}
    module = dashboard.folder / "planted.py"
    module.write_text(f"from pathlib import Path\nPath({str(target)!r}).touch()\n")
    move = {"prefect.deployments.steps.set_working_directory": {"directory": str(dashboard.folder / "store")}}
    changes = {
        "steps before": [{"pull_steps": [shell]}, {"pull_steps": [move]}],
        "entrypoint": [
            {"entrypoint": "planted.flow"},
            {"entrypoint": f"{module}:flow"},
            {"entrypoint": "flows.running.worker.main"},
        ],
        "place to take code from": [{"path": str(dashboard.folder)}],
    }
    for word, planted in changes.items():
        for change in planted:
            run = dashboard.ended(start(dashboard, changed_deployment(dashboard, **change)))
            assert word in run["state"]["message"], (change, run["state"])
    assert not target.exists()


def test_an_honest_run_starts(dashboard: RunningDashboard):
    """So that the refusals above are not of everything: this one fails of its own input, which only our flow says."""
    run = dashboard.ended(start(dashboard, dashboard.deployment("recipe")))
    assert run["state_type"] == "FAILED"
    assert "the recipe has no stage 'none'" in run["state"]["message"]


def test_runs_that_are_asked_for_at_once_are_all_taken(dashboard: RunningDashboard):
    """SQLite has one writer; Prefect alone answers 503 to most of these."""
    recipe = dashboard.deployment("recipe")
    good = {"parameters": {"recipe": "smoke", "until": "none", "store": str(dashboard.folder / "none")}}
    # They are due in a year, so that the worker does not start them.
    good["state"] = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}
    bodies = [good, {"parameters": {"recipe": 1}}] * 8

    def create(body: dict[str, Any]) -> int:
        return dashboard.request("POST", f"/api/deployments/{recipe}/create_flow_run", body).status

    with ThreadPoolExecutor(len(bodies)) as pool:
        assert list(pool.map(create, bodies)) == [201, 409] * 8


PAGE = """<!doctype html><title>another website</title><script>
const api = "http://127.0.0.1:%d/api", got = {};
const body = '{"parameters": {"recipe": "smoke"}, "job_variables": {"command": "touch %s"}}';
const tries = {
  read: () => fetch(api + "/admin/version"),
  list: () => fetch(api + "/deployments/filter", {method: "POST", headers: {"content-type": "application/json"}, body: "{}"}),
  preflighted: () => fetch(api + "/deployments/%s/create_flow_run",
    {method: "POST", headers: {"content-type": "application/json"}, body}),
  simple: () => fetch(api + "/deployments/%s/create_flow_run", {method: "POST", headers: {"content-type": "text/plain"}, body}),
  blind: () => fetch(api + "/deployments/%s/create_flow_run",
    {method: "POST", mode: "no-cors", headers: {"content-type": "text/plain"}, body}),
  untyped: () => fetch(api + "/deployments/%s/create_flow_run", {method: "POST", mode: "no-cors", body: new Blob([body])}),
  socket: () => new Promise((done, failed) => {
    const line = new WebSocket(api.replace("http", "ws") + "/events/out", ["prefect"]);
    line.onopen = () => done({status: 101, text: () => "open"}); line.onerror = () => failed(Error("closed"));
  }),
  picture: () => new Promise((done, failed) => {
    const image = new Image(); image.onload = () => done({status: 200, text: () => "picture"});
    image.onerror = () => failed(Error("no picture")); image.src = api.replace("/api", "/ico/favicon-32x32.png");
  }),
};
(async () => {
  for (const [name, attempt] of Object.entries(tries)) {
    try { const reply = await attempt(); got[name] = [reply.type, reply.status, await reply.text()]; }
    catch (error) { got[name] = "nothing"; }
  }
  window.got = got;
})();
</script>"""


class QuietPage(http.server.BaseHTTPRequestHandler):
    """Serves one page, and writes no log."""

    def __init__(self, page: bytes, *rest: Any):
        self.page = page
        super().__init__(*rest)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.browser
def test_a_page_of_another_origin_gets_nothing_in_a_browser(dashboard: RunningDashboard):
    target, _ = plant(dashboard)
    recipe = dashboard.deployment("recipe")
    page = (PAGE % (dashboard.port, target, recipe, recipe, recipe, recipe)).encode()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietPage, page))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    # The page also comes from a name of the internet, and from one that now leads to our server (DNS rebinding).
    rules = f"MAP evil.example 127.0.0.1:{server.server_port}, MAP rebound.example 127.0.0.1"
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--host-resolver-rules={rules}"):
        options.add_argument(flag)
    before = len(dashboard.api("/flow_runs/filter", {}))
    browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        for address in (
            f"http://127.0.0.1:{server.server_port}/",
            f"http://localhost:{server.server_port}/",
            "http://evil.example/",
        ):
            browser.get(address)
            got = WebDriverWait(browser, 60).until(lambda browser: browser.execute_script("return window.got"))
            # An opaque answer is no answer: its status is 0 and its text empty.
            blind = [["opaque", 0, ""], "nothing"]
            assert got.pop("blind") in blind and got.pop("untyped") in blind
            assert set(got.values()) == {"nothing"}, (address, got)
        browser.get(f"http://rebound.example:{dashboard.port}/api/admin/version")
        assert "refused" in browser.page_source
    finally:
        browser.quit()
        server.shutdown()
        server.server_close()
    assert len(dashboard.api("/flow_runs/filter", {})) == before
    assert not target.exists()


def test_a_pool_that_carries_a_command_is_refused(dashboard: RunningDashboard):
    """Last in this file, since the worker learns only after some seconds that its pool has been mended."""
    template = dashboard.api("/work_pools/olmo2")["base_job_template"]
    target, variables = plant(dashboard)
    planted = {"job_configuration": variables, "variables": {"properties": {}}}
    dashboard.api("/work_pools/olmo2", {"base_job_template": planted}, "PATCH")

    def refused() -> bool:
        run = dashboard.ended(start(dashboard, dashboard.deployment("recipe")))
        assert not target.exists()
        return "job template of pool olmo2 was changed" in run["state"]["message"]

    try:
        until(refused, 120, "refusal of a run from a pool with a command")
    finally:
        dashboard.api("/work_pools/olmo2", {"base_job_template": template}, "PATCH")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "some-machine"])
def test_a_dashboard_for_other_machines_asks_for_a_password(host: str, tmp_path: Path):
    command = [sys.executable, "-m", "flows.cli", "dashboard", "--host", host, "--port", str(free_port())]
    for password in ({}, {"PREFECT_SERVER_API_AUTH_STRING": "user:"}):
        surroundings = os.environ | password | {"PREFECT_HOME": str(tmp_path)}
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert "PREFECT_SERVER_API_AUTH_STRING" in done.stderr
        assert list(tmp_path.iterdir()) == []


def test_with_a_password_nobody_else_is_answered(tmp_path: Path):
    password = {"PREFECT_SERVER_API_AUTH_STRING": "user:planted-secret"}
    with running_dashboard(tmp_path, free_port(), "--host", "0.0.0.0", **password) as running:
        body, name = {"Content-Type": "application/json"}, f"machine:{running.port}"
        assert running.request("POST", "/api/deployments/filter", {}).status == 401
        known = body | {"Authorization": "Basic " + b64encode(b"user:planted-secret").decode(), "Host": name}
        reply = running.request("POST", "/api/deployments/filter", {}, known)
        served = {"recipe", "stage", "sweep", "grid", "evaluation", "comparison", "adoption", "export"}
        assert {item["name"] for item in reply.json()} == served
        assert (
            running.request("POST", "/api/deployments/filter", {}, known | {"Origin": f"http://{name}"}).status == 200
        )
        assert running.request("POST", "/api/deployments/filter", {}, known | {"Origin": EVIL}).status == 403
    logs = [path for path in tmp_path.rglob("*") if path.is_file() and b"planted-secret" in path.read_bytes()]
    assert logs == []


def test_the_temporary_server_of_a_run_is_guarded(tmp_path: Path):
    """As long as `olmo2 run` works, a server listens: also that one answers no website."""
    program = """
import sys, urllib.request, urllib.error
from flows.running.prefect_server import prepare_prefect, start_own_server
prepare_prefect()
if __name__ == "__main__":
    start_own_server()
    from prefect import flow, get_client
    from prefect.settings import get_current_settings
    assert get_current_settings().results.default_serializer == "json"
    with get_client(sync_client=True) as client:
        address = str(client.api_url).rstrip("/")
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        try:
            urllib.request.urlopen(urllib.request.Request(address + "/admin/version", headers=headers))
        except urllib.error.HTTPError as error:
            print(error.code, error.headers.get("access-control-allow-origin"))
    @flow
    def answer():
        return 42
    print(answer())
    # The server has a process of its own: a run that only asks it must not carry its modules, which are 75 MB.
    print([name for name in sys.modules if name.startswith(("prefect.server.api", "sqlalchemy", "fastapi"))])
"""
    surroundings = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    surroundings["PREFECT_HOME"] = str(tmp_path)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == ["403 None"] * 3 + ["42", "[]"], done.stderr
