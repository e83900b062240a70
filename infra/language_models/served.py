"""Which models a server of the OpenAI protocol has, by its `/models` route."""

import os
from dataclasses import dataclass
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import orjson

TIMEOUT_SECONDS = 30
MOST_BYTES = 4_000_000
"""Of a list of models; a server that sends without end is refused."""


@dataclass(frozen=True)
class ServedModel:
    """One model of a server."""

    name: str
    window: int | None
    """Tokens it takes (vLLM's `max_model_len`); None where the server does not say."""


def served_models(url: str, key_env: str = "") -> list[ServedModel]:
    """The models of a server. Raises ValueError where it cannot be reached or its answer is none of the protocol."""
    headers = {"Authorization": f"Bearer {os.environ[key_env]}"} if os.environ.get(key_env) else {}
    address = f"{url.rstrip('/')}/models"
    try:
        with urlopen(Request(address, headers=headers), timeout=TIMEOUT_SECONDS) as response:
            text = response.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(
                f"{address} lists more than {MOST_BYTES:,} bytes of models; give the URL of a model server"
            )
        body = orjson.loads(text)
        return [ServedModel(str(row["id"]), row.get("max_model_len")) for row in body["data"]]
    except HTTPError as error:
        raise ValueError(
            f"{address} answers HTTP {error.code}; give the URL up to /v1, and the model's name with --model"
        ) from error
    except (URLError, HTTPException, TimeoutError) as error:
        raise ValueError(
            f"nothing answers at {address}: {error}; is the server up, and the URL given up to /v1?"
        ) from error
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{address} does not list models in the OpenAI protocol; give its URL up to /v1") from error
