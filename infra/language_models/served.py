"""Which models a server of the OpenAI protocol has, by its `/models` route."""

from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import Request

from infra.language_models.client import EndpointError, bearer
from infra.language_models.routes import ask_route
from infra.settings import EndpointSettings

TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class ServedModel:
    """One model of a server."""

    name: str
    window: int | None
    """Tokens it takes (vLLM's `max_model_len`); None where the server does not say."""


def served_models(url: str, key_env: str = "") -> list[ServedModel]:
    """The models of a server. Raises ValueError where it cannot be reached, its key is not set or its answer is none of the
    protocol.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{url!r} is no URL of a model server; give one such as http://localhost:8000/v1")
    address = f"{url.rstrip('/')}/models"
    headers = bearer(url, EndpointSettings(url=url, key_env=key_env))
    way_out = "is the server up, the URL given up to /v1, its key named with --key-env, and the model with --model?"
    try:
        body = ask_route(Request(address, headers=headers), TIMEOUT_SECONDS, way_out)
    except EndpointError as error:
        # For a command, an address that is no model server is wrong input.
        raise ValueError(str(error)) from error
    try:
        return [ServedModel(str(row["id"]), row.get("max_model_len")) for row in body["data"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{address} does not list models in the OpenAI protocol; give its URL up to /v1") from error
