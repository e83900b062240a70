"""Gives a server of the OpenAI protocol other weights of the model it serves, by the endpoint that its documentation names.

vLLM reloads by `/collective_rpc` (its development mode, `VLLM_SERVER_DEV_MODE=1`), and forgets cached prefixes by
`/reset_prefix_cache`. SGLang has `/update_weights_from_disk`, which does both. Each reads a Hugging Face folder that it has to
see under the same path as we do. The routes are next to `/v1`, and nobody but the trainer should reach them.
"""

from typing import Any, Literal, Protocol
from urllib.request import Request

import orjson

from infra.language_models.client import EndpointError, bearer
from infra.language_models.routes import ask_route
from infra.settings import EndpointSettings


class WeightServer(Protocol):
    """A server whose weights can be changed while it runs."""

    def load(self, folder: str) -> None:
        """Answer with the weights of this folder from now on. Raises EndpointError where the server does not."""
        ...


class VLLMWeights:
    """vLLM in development mode."""

    def __init__(self, settings: EndpointSettings):
        self._settings = settings

    def load(self, folder: str) -> None:
        """See WeightServer."""
        call = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        _post(self._settings, "collective_rpc", call)
        # Cached prefixes were computed with the weights before.
        _post(self._settings, "reset_prefix_cache", None)


class SGLangWeights:
    """SGLang."""

    def __init__(self, settings: EndpointSettings):
        self._settings = settings

    def load(self, folder: str) -> None:
        """See WeightServer."""
        said = _post(self._settings, "update_weights_from_disk", {"model_path": folder, "flush_cache": True})
        # It answers 200 to what it could not load, too.
        if not (isinstance(said, dict) and said.get("success")):
            raise EndpointError(f"{self._settings.url} did not take the weights of {folder}: {said}")


SERVERS: dict[Literal["vllm", "sglang"], type[VLLMWeights] | type[SGLangWeights]] = {
    "vllm": VLLMWeights,
    "sglang": SGLangWeights,
}


def weight_server(settings: EndpointSettings) -> WeightServer:
    """The server of an endpoint that has `weights`."""
    assert settings.weights is not None, settings
    return SERVERS[settings.weights.server](settings)


def _post(settings: EndpointSettings, route: str, body: Any) -> Any:
    """The JSON that a route answers. Raises EndpointError as `ask_route` does, ValueError where the key is not set."""
    url = f"{settings.url.rstrip('/').removesuffix('/v1')}/{route}"
    headers = {"Content-Type": "application/json"} | bearer(settings.served_name or settings.url, settings)
    data = b"" if body is None else orjson.dumps(body)
    way_out = "is the server up, vLLM started with VLLM_SERVER_DEV_MODE=1, and does it read the folder of the weights?"
    return ask_route(Request(url, data, headers, method="POST"), settings.timeout_seconds, way_out)
