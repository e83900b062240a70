"""The address of an artifact's page where somebody serves the store's pages (`olmo2 serve`), for links from the dashboard.

A server on this machine leaves its address in the store's cache folder; one elsewhere is named by OLMO2_PAGES.
"""

import os
from pathlib import Path
from urllib.parse import quote

import orjson
import psutil

from infra.execution.markdown import code
from infra.records.record import Record
from infra.storage.store import Store

PAGES = "OLMO2_PAGES"
"""Environment variable: where a served store's pages are, such as https://runs.example."""

_REPORT = "report.html"


def pages_file(store: Store) -> Path:
    """Where a running server leaves its address."""
    return store.cache / "pages.json"


def page_address(store: Store, id: str) -> str:
    """The page of an artifact; empty where none is served."""
    site = os.environ.get(PAGES) or _local(store)
    return f"{site.rstrip('/')}/artifact/{quote(id)}" if site else ""


def ways_on(store: Store, record: Record) -> str:
    """Markdown under an artifact's summary: its page and report, and the commands that look at it or rerun it."""
    page = page_address(store, record.id)
    report = f", [the report]({page}/report)" if _REPORT in record.files else ""
    lines = [
        f"[Its page in the store]({page}){report}" if page else f"Its page: {code(f'olmo2 serve --store {store.url}')}",
        f"Look at it: {code(f'olmo2 show {record.id} --store {store.url}')}",
        f"Make it anew: {code(f'olmo2 rerun RECIPE {record.label} --store {store.url}')}",
    ]
    return "\n\n".join(lines)


def _local(store: Store) -> str:
    """The address that a server of this machine left, if its process is alive."""
    try:
        said = orjson.loads(pages_file(store).read_bytes())
        return str(said["url"]) if psutil.pid_exists(int(said["pid"])) else ""
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return ""
