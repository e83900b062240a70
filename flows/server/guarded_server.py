"""Prefect's server behind our guard: `python -m flows.server.guarded_server --host HOST --port PORT`.

Prefect alone answers every website that the user's browser has open. The dashboard and the temporary server of a run are
both started through this module.
"""

import argparse
import ipaddress
import os
from typing import TYPE_CHECKING

from flows.server.busy_retry import BusyRetry
from flows.server.garbage import collect_in_thread
from flows.server.origin_guard import LOOPBACK_NAMES, OriginGuard, host_headers

if TYPE_CHECKING:
    from starlette.types import ASGIApp

PASSWORD = "PREFECT_SERVER_API_AUTH_STRING"
CLIENT_PASSWORD = "PREFECT_API_AUTH_STRING"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # A name is resolved by whoever uses it; only this one is known to stay here.
        return host == "localhost"


def check_host(host: str) -> None:
    """Raise ValueError for an address that other machines reach, unless a password is asked for."""
    if is_loopback(host):
        return
    password = os.environ.get(PASSWORD, "")
    user, colon, secret = password.partition(":")
    if not (user and colon and secret):
        raise ValueError(
            f"--host {host} is reached by other machines, and whoever reaches the server can start runs: set {PASSWORD} to "
            "user:password (and put TLS in front of it), or leave --host out to serve this machine only"
        )
    if os.environ.get(CLIENT_PASSWORD, password) != password:
        raise ValueError(
            f"{CLIENT_PASSWORD} and {PASSWORD} differ; the worker needs the password that the server asks for"
        )


def server_origin(host: str, port: int) -> str:
    """The server's own origin, as a program on this machine reaches it."""
    # A wildcard is no address that anybody can call.
    reached = "127.0.0.1" if _is_wildcard(host) or host == "localhost" else host
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def guard(app: "ASGIApp", host: str, port: int) -> OriginGuard:
    """An app behind the guard for the address it is bound to."""
    # Behind a wildcard the server is reached under names that it does not know.
    names = None if _is_wildcard(host) else {*LOOPBACK_NAMES, host} if is_loopback(host) else {host}
    hosts = None if names is None else host_headers(names, port)
    # The guard stands outside: what it refuses must not reach Prefect even once.
    return OriginGuard(BusyRetry(app), hosts, server_origin(host, port))


def _is_wildcard(host: str) -> bool:
    return host in ("0.0.0.0", "::")


def own_settings(host: str, port: int) -> dict[str, str]:
    """Environment of the server: its page asks it, and no other origin has leave to read."""
    return {
        # Without this the pages of a server on another port than 4200 ask the wrong address.
        "PREFECT_UI_API_URL": "/api" if _is_wildcard(host) else f"{server_origin(host, port)}/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": server_origin(host, port),
    }


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    check_host(asked.host)
    os.environ.update(own_settings(asked.host, asked.port))
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_SERVER_API_KEEPALIVE_TIMEOUT, PREFECT_SERVER_LOGGING_LEVEL

    collect_in_thread()
    uvicorn.run(
        guard(create_app(final=True), asked.host, asked.port),
        host="127.0.0.1" if asked.host == "localhost" else asked.host,
        port=asked.port,
        timeout_keep_alive=PREFECT_SERVER_API_KEEPALIVE_TIMEOUT.value(),
        log_level=PREFECT_SERVER_LOGGING_LEVEL.value().lower(),
        lifespan="on",
        # A forwarded header must not decide what scheme or client a request has.
        proxy_headers=False,
        server_header=False,
    )


if __name__ == "__main__":
    main()
