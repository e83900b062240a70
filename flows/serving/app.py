"""The web application of `olmo2 serve`: Starlette and Jinja over `views.py`. It reads only, has no script, escapes all text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from flows.serving import views
from infra.records.reader import Reader
from infra.secrets import without_secrets
from infra.storage.store import Store, StoreError

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'self'"
"""What a page may load: nothing but its own styles."""
REPORT_POLICY = f"{_POLICY}; sandbox allow-same-origin"
"""A report comes from the store: whoever wrote it, no script in it runs."""
_REPORT = "report.html"


class Pages:
    """The handlers, for one store. `dashboard` is the address of a Prefect page, where one is known."""

    def __init__(self, store: Store, dashboard: str = ""):
        self._store = store
        self._dashboard = dashboard
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(number=_number, size=_size)

    def routes(self) -> list[Route]:
        pages = {
            "/": self.runs,
            "/artifacts": self.artifacts,
            "/artifact/{id}": self.artifact,
            "/artifact/{id}/report": self.report,
            "/artifact/{id}/samples": self.samples,
            "/compare": self.compare,
        }
        return [Route(path, self._answering(page), methods=["GET"]) for path, page in pages.items()]

    def _answering(self, page: Callable[[Request], Response]) -> Callable[[Request], Response]:
        """The page, or one that says in words what is wrong."""

        def answer(request: Request) -> Response:
            try:
                return page(request)
            except views.NotFound as error:
                return self._page("error", 404, text=str(error))
            except ValueError as error:
                return self._page("error", 400, text=without_secrets(str(error)))
            except StoreError as error:
                return self._page("error", 502, text=without_secrets(str(error)))

        return answer

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        text = self._templates.get_template(f"{template}.html.j2").render(
            store=self._store.url, dashboard=self._dashboard, **values
        )
        # A store changes while it is looked at, so no answer is kept by the browser.
        return HTMLResponse(text, status, headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-store"})

    # -- pages --------------------------------------------------------------------------------------------

    def runs(self, request: Request) -> Response:
        return self._page("runs", **views.runs(self._store))

    def artifacts(self, request: Request) -> Response:
        asked = request.query_params
        shown = views.listing(
            self._store, asked.get("stage", ""), asked.get("words", ""), whole(asked.get("page", "1"))
        )
        return self._page("artifacts", **shown)

    def artifact(self, request: Request) -> Response:
        return self._page("artifact", **views.artifact(self._store, self._record(request)))

    def report(self, request: Request) -> Response:
        record = self._record(request)
        if _REPORT not in record.files:
            raise views.NotFound(f"{record.label} {record.id} is no report")
        data = Reader(self._store).path(record.artifact(), _REPORT).read_bytes()
        return HTMLResponse(data, headers={"Content-Security-Policy": REPORT_POLICY})

    def samples(self, request: Request) -> Response:
        asked = request.query_params
        page = whole(asked.get("page", "1"))
        return self._page("samples", **views.samples(self._store, self._record(request), asked.get("file", ""), page))

    def compare(self, request: Request) -> Response:
        asked = request.query_params
        if not asked.get("first") or not asked.get("second"):
            return self._page("compare", first=None, second=None, differences={}, scores=[])
        records = [views.record_named(self._store, asked[name], None) for name in ("first", "second")]
        return self._page("compare", **views.comparison_page(self._store, *records))

    def _record(self, request: Request) -> Any:
        given = request.query_params.get("generation")
        return views.record_named(self._store, request.path_params["id"], None if given is None else whole(given))


def make_app(store: Store, dashboard: str = "") -> Starlette:
    """The application for one store."""
    return Starlette(routes=Pages(store, dashboard).routes())


def whole(text: str) -> int:
    """A whole number of an address. Raises ValueError."""
    # Nine digits bound the number, and `isdigit` alone takes digits of other scripts.
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError(f"{text[:40]!r} is no whole number from 0")
    return int(text)


def _number(value: Any) -> str:
    """A value for people: thousands apart, four digits of a fraction."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _size(count: int) -> str:
    """Bytes for people."""
    for unit, amount in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= amount:
            return f"{count / amount:,.2f} {unit}"
    return f"{count:,} B"
