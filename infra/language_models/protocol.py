"""Requests to a language model and its answers in the OpenAI protocol, and the store's memory of them.

What a model says cannot be computed again, so every answer is kept in the store under the hash of its request. It is written
create-only: the first answer to a request is its answer for ever. That is what makes a rerun give equal bytes, and what
makes a killed stage go on without paying twice.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypedDict

import orjson

from infra.json_values import JsonObject
from infra.storage.store import Store

Route = Literal["chat/completions", "completions"]

_FOLDER = "_answers"
"""Area of the store that holds answers; a leading underscore keeps it apart from the stages' folders."""

TOKEN_ID = "token_id:"
"""How vLLM writes a token where its id is asked for (`return_tokens_as_token_ids`)."""


@dataclass(frozen=True)
class Request:
    """One request: everything that decides the answer, and nothing that says where it is asked."""

    route: Route
    body: dict[str, object]
    """The JSON body, the model's name included."""

    @cached_property
    def key(self) -> str:
        """Hash of the request: equal requests have one answer. Ask again by another `seed` in the body."""
        data = orjson.dumps([self.route, self.body], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(data).hexdigest()


def chat_request(model: str, messages: Sequence[dict[str, str]], **sampling: Any) -> Request:
    """A conversation to go on with. `sampling` are fields of the protocol: temperature, top_p, max_tokens, seed, stop."""
    return Request("chat/completions", {"model": model, "messages": list(messages), **sampling})


def completion_request(model: str, prompt: str | Sequence[int], **sampling: Any) -> Request:
    """A text, or its token ids, to go on with. `logprobs=0` asks for the log-probability of every sampled token."""
    return Request(
        "completions", {"model": model, "prompt": prompt if isinstance(prompt, str) else list(prompt), **sampling}
    )


class _TokenObject(TypedDict):
    """What the chat route says of one token."""

    token: str
    logprob: float


class _LogProbsObject(TypedDict, total=False):
    """Tokens of an answer: the chat route lists them under `content`, the completions route as two parallel lists."""

    content: list[_TokenObject] | None
    tokens: list[str] | None
    token_logprobs: list[float | None] | None


class _MessageObject(TypedDict, total=False):
    """An answer of the chat route."""

    content: str | None


class _ChoiceObject(TypedDict, total=False):
    """What is read of an entry of `choices`: `message` is the chat route's, `text` that of completions."""

    message: _MessageObject | None
    text: str | None
    finish_reason: str | None
    logprobs: _LogProbsObject | None
    token_ids: list[int] | None
    """Where the server gives them; the protocol does not ask for it."""


@dataclass(frozen=True)
class Choice:
    """One of the texts that answer a request."""

    text: str
    finish: str
    """`stop`, `length` (cut at the limit), or the server's word for anything else."""
    ids: tuple[int, ...] | None
    """Ids of the answer's tokens, where the server gives them."""
    logprobs: tuple[float | None, ...] | None
    """Natural log-probability of each token; None at a first echoed token, which has none."""


@dataclass(frozen=True)
class Answer:
    """The server's answer to one request."""

    body: JsonObject
    """The JSON it sent, or {"refused": reason}."""
    remembered: bool
    """It was in the store: nothing was sent or paid."""

    @property
    def refused(self) -> str:
        """Why the server will never answer this request (too long, not allowed); empty when it did."""
        return self.body.get("refused", "")

    @property
    def prompt_tokens(self) -> int:
        return usage_of(self.body).get("prompt_tokens", 0)

    @property
    def completion_tokens(self) -> int:
        return usage_of(self.body).get("completion_tokens", 0)

    @property
    def choices(self) -> list[Choice]:
        """As many as were asked for (`n`); none where the server refused."""
        return [read_choice(choice) for choice in self.body.get("choices", [])]

    @property
    def text(self) -> str:
        """The first choice's text; empty where the server refused."""
        return self.choices[0].text if self.choices else ""

    @property
    def finish(self) -> str:
        return self.choices[0].finish if self.choices else "refused"


def usage_of(body: Mapping[str, object]) -> dict[str, int]:
    """The counts of tokens that a server's JSON states, whatever else it holds."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return {}
    return {name: int(count) for name, count in usage.items() if isinstance(count, int | float)}


def read_choice(choice: _ChoiceObject) -> Choice:
    """One entry of `choices`, of either route."""
    message = choice.get("message")
    text = choice.get("text") if message is None else message.get("content")
    logprobs = choice.get("logprobs") or {}
    if "content" in logprobs:
        entries = logprobs["content"] or []
        tokens, values = [entry["token"] for entry in entries], [entry["logprob"] for entry in entries]
    else:
        tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    ids = choice.get("token_ids")
    # Texts of tokens do not tell their ids; without ids from the server there are none.
    if ids is None and tokens and all(token.startswith(TOKEN_ID) for token in tokens):
        ids = [int(token.removeprefix(TOKEN_ID)) for token in tokens]
    return Choice(
        text=text or "",
        finish=choice.get("finish_reason") or "stop",
        ids=None if ids is None else tuple(ids),
        logprobs=None if values is None else tuple(values),
    )


def check_body(body: Any) -> str:
    """What is wrong with a server's JSON; empty when it can be read as an answer."""
    if not isinstance(body, dict):
        return f"a JSON {type(body).__name__} instead of an object"
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        return f"no choices, but {', '.join(sorted(body)) or 'nothing'}"
    for choice in choices:
        message = choice.get("message", {}) if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            return "a choice that is not an object"
        text = message.get("content") if message else choice.get("text")
        if text is not None and not isinstance(text, str):
            return "a choice whose text is not a string"
    return ""


class AnswerMemory:
    """Answers in the store by request hash, each a small JSON object with its request."""

    def __init__(self, store: Store):
        self.store = store

    def recall(self, request: Request) -> JsonObject | None:
        """The body that answered this request, or None."""
        try:
            return self.store.read_json(self._path(request))["answer"]
        except FileNotFoundError:
            return None

    def keep(self, request: Request, body: JsonObject) -> JsonObject:
        """Remember an answer. Returns the one that counts: another process may have been first."""
        entry = {"route": request.route, "request": request.body, "answer": body}
        data = orjson.dumps(entry, option=orjson.OPT_SORT_KEYS)
        if self.store.create(self._path(request), data):
            return body
        kept = self.recall(request)
        assert kept is not None
        return kept

    @staticmethod
    def _path(request: Request) -> str:
        return f"{_FOLDER}/{request.key[:2]}/{request.key}.json"
