"""`olmo2 serve` on the loopback interface, behind the guard that the dashboard has: no other website may ask it anything."""

import json
import os
from collections.abc import Callable

from flows.running.dashboard import check_free
from flows.running.prefect_server import running_dashboard
from flows.server.guarded_server import server_origin
from flows.server.origin_guard import LOOPBACK_NAMES, OriginGuard, host_headers
from flows.serving.app import make_app
from infra.execution.pages import pages_file
from infra.storage.store import Store

HOST = "127.0.0.1"


def serve(store: Store, port: int, tell: Callable[[str, str], None]) -> None:
    """Answer until Ctrl-C; `tell` gets the store's URL and the pages' address before.

    Raises DashboardError where the port is taken.
    """
    import uvicorn

    check_free(HOST, port)
    origin = server_origin(HOST, port)
    dashboard = (running_dashboard() or "").removesuffix("/api")
    app = OriginGuard(make_app(store, dashboard), host_headers(LOOPBACK_NAMES, port), origin, keep_policy=True)
    told = pages_file(store)
    told.parent.mkdir(parents=True, exist_ok=True)
    # Left for the links of the dashboard, which name this address while the process lives.
    told.write_text(json.dumps({"url": origin, "pid": os.getpid()}))
    tell(store.url, origin)
    try:
        uvicorn.run(app, host=HOST, port=port, log_level="warning", proxy_headers=False, server_header=False)
    finally:
        told.unlink(missing_ok=True)
