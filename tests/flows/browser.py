"""`olmo2 dashboard` with a real browser on it, for tests: forms, clicks, and what the API reports.

Screenshots go to OLMO2_SCREENSHOTS when it is set.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.conftest import free_port
from tests.flows.dashboards import FINAL

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")

WIDTH, HEIGHT = 1400, 1500
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    f"--disable-component-update --disable-sync --window-size={WIDTH},{HEIGHT}"
)
PAGE_SECONDS = 60
# A page that is still being built has elements that are replaced, covered or hidden a moment later.
UNSETTLED = (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)
CLICK_SECONDS = 20
ANSWER_SECONDS = 120
RUN_SECONDS = 400


class Dashboard:
    """A running `olmo2 dashboard` and a browser on it."""

    def __init__(self, port: int, process: subprocess.Popen, browser: webdriver.Chrome, store: Path):
        self.base = f"http://127.0.0.1:{port}"
        self.process = process
        self.browser = browser
        self.store = store
        self.deployments = {item["name"]: item["id"] for item in self.api("/deployments/filter", {})}

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.base + "/api" + path, data, {"content-type": "application/json"})
        # One server, its SQLite file and a whole recipe share two cores here: an answer may take a minute.
        with urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)

    def open(self, path: str) -> None:
        self.browser.get(self.base + path)

    def until(self, done: Callable[[], Any], what: str, seconds: float = PAGE_SECONDS) -> Any:
        """Try until `done` is true on a page that may still be being built."""
        wait = WebDriverWait(self.browser, seconds, ignored_exceptions=UNSETTLED)
        try:
            return wait.until(lambda _: done())
        except TimeoutException:
            page = self.browser.find_element(By.TAG_NAME, "body").text
            raise AssertionError(f"{what}: not within {seconds} s at {self.browser.current_url}:\n{page}") from None

    def text(self) -> str:
        """All text of the page."""
        return self.browser.find_element(By.TAG_NAME, "body").text

    def find(self, xpath: str) -> Any:
        return self.until(lambda: self.browser.find_element(By.XPATH, xpath), f"find {xpath}")

    def click(self, xpath: str) -> None:
        def clicked() -> bool:
            self.browser.find_element(By.XPATH, xpath).click()
            return True

        self.until(clicked, f"click {xpath}")

    def fill(self, label: str, value: str) -> None:
        """Type into the last field of a form that carries this label."""
        xpath = f"(//span[normalize-space()='{label}'])[last()]/following::*[self::textarea or self::input][1]"

        def filled() -> bool:
            field = self.browser.find_element(By.XPATH, xpath)
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(value)
            return field.get_attribute("value") == value

        self.until(filled, f"fill {label}")

    def button(self, text: str, label: str = "") -> str:
        """A button by its text: the first, or the first after the last place that carries a label."""
        after = f"(//span[normalize-space()='{label}'])[last()]/following::" if label else "//"
        return f"({after}button[normalize-space()='{text}'])[1]"

    def add_item(self, label: str) -> None:
        """Add an item to the list that follows a label, and wait until its first field is there."""
        fields = "//form//*[self::textarea or self::input]"
        before = len(self.browser.find_elements(By.XPATH, fields))
        self.click(self.button("Add item", label))
        self.until(lambda: len(self.browser.find_elements(By.XPATH, fields)) > before, f"add an item to {label}")

    def submit(self) -> None:
        """Send the form and wait until the page has left it. A click while the page still checks the fields does nothing."""
        here = self.browser.current_url

        def sent() -> bool:
            self.browser.find_element(By.XPATH, "//button[@type='submit' and normalize-space()='Submit']").click()
            with contextlib.suppress(TimeoutException):
                WebDriverWait(self.browser, CLICK_SECONDS).until(lambda browser: browser.current_url != here)
                return True
            return False

        self.until(sent, "send the form")

    def finished_run(self, deployment: str) -> dict[str, Any]:
        """The deployment's newest run, once it has ended."""
        query = {"deployments": {"id": {"any_": [self.deployments[deployment]]}}, "sort": "START_TIME_DESC"}

        def ended() -> dict[str, Any] | None:
            runs = [
                run for run in self.api("/flow_runs/filter", query) if run["state_type"] not in ("SCHEDULED", "PENDING")
            ]
            return next((run for run in runs if run["state_type"] in FINAL), None)

        return wait_for(ended, RUN_SECONDS, f"a finished run of {deployment}")

    def shot(self, name: str, height: int = HEIGHT) -> None:
        if folder := os.environ.get("OLMO2_SCREENSHOTS"):
            self.browser.set_window_size(WIDTH, height)
            self.browser.save_screenshot(f"{folder}/{name}.png")
            self.browser.set_window_size(WIDTH, HEIGHT)


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(f"no {what} within {seconds} s")


@contextlib.contextmanager
def opened_dashboard(folder: Path, *options: str, **more: str) -> Iterator[Dashboard]:
    """`olmo2 dashboard` in a folder, with a browser on it; stopped at the end."""
    port = free_port()
    # A relative store: the one in the folder where the dashboard was started.
    environment = os.environ | {
        "PREFECT_HOME": str(folder / "prefect"),
        "OLMO2_STORE": "store",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    for name in ("AWS_ENDPOINT_URL", "PREFECT_API_URL"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "flows.cli", "dashboard", "--port", str(port), *options]
    process = subprocess.Popen(
        command, cwd=folder, env=environment | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert f"http://127.0.0.1:{port}" in line, line + process.stdout.read()
    chrome = webdriver.ChromeOptions()
    chrome.binary_location = str(CHROMIUM)
    for flag in FLAGS.split():
        chrome.add_argument(flag)
    browser = webdriver.Chrome(options=chrome, service=Service(str(DRIVER)))
    browser.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "UTC"})
    try:
        yield Dashboard(port, process, browser, folder / "store")
    finally:
        browser.quit()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)
