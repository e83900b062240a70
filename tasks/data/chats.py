"""Stage: chats for supervised finetuning (RECIPE F): synthetic maths, local files and hub datasets in `messages` format.

Rows that are not chats are counted by reason and kept in `bad/chats.jsonl.zst` with their place; above the source's share
of them the stage fails.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Chats
from tasks.data.documents.dolma_files import LineWriter
from tasks.data.sources.rows import RowSource, check_share, read_rows, resolve_rows
from tasks.synthetic import KindConfig, generate_mixed

ROLES = ("system", "user", "assistant")


class SyntheticChats(Config):
    """Problems of the training split as one-turn chats."""

    kind: Literal["synthetic"] = "synthetic"
    name: str = "synthetic_math"
    """Source name of the chats."""
    problems: tuple[KindConfig, ...]
    """Kinds of problem, mixed by their weights."""
    count: int = Field(ge=1)
    """Chats to make."""
    seed: int = 6198


class ChatRows(Config):
    """Rows with a `messages` list of {role, content}."""

    kind: Literal["rows"] = "rows"
    name: str
    """Source name of the chats."""
    rows: RowSource
    field: str = "messages"
    """Field that holds the messages."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of unusable rows above which the stage fails."""


ChatSource = Annotated[SyntheticChats | ChatRows, Field(discriminator="kind")]


class ChatsConfig(Config):
    """The finetuning mix: the sources one after another; training shuffles."""

    sources: tuple[ChatSource, ...] = (
        ChatRows(name="tulu", rows=RowSource(dataset="allenai/tulu-3-sft-olmo-2-mixture")),
    )


def resolve(config: ChatsConfig) -> ChatsConfig:
    """The config with what it will read pinned."""
    return ChatsConfig(
        sources=tuple(
            source.model_copy(update={"rows": resolve_rows(source.rows)}) if isinstance(source, ChatRows) else source
            for source in config.sources
        )
    )


def build_chats(ws: Workspace, config: ChatsConfig) -> Chats:
    """All usable chats of all sources, in order. ValueError when a source has too many bad rows or no good one."""
    counts: dict[str, int] = {}
    with LineWriter(ws, "chats.jsonl.zst") as good, LineWriter(ws, "bad/chats.jsonl.zst") as bad:
        for source in config.sources:
            if source.name in counts:
                raise ValueError(f"two chat sources are called {source.name!r}; give each its own name")
            reasons: Counter[str] = Counter()
            before = good.rows
            for place, messages, reason in read_source(source):
                if reason:
                    reasons[reason] += 1
                    bad.write({"place": place, "reason": reason, "source": source.name})
                else:
                    id = f"{source.name}-{good.rows - before}"
                    good.write({"id": id, "messages": messages, "source": source.name})
            counts[source.name] = good.rows - before
            allowed = source.max_bad_fraction if isinstance(source, ChatRows) else 1.0
            check_share(f"chat source {source.name!r}", counts[source.name], reasons, allowed)
    return ws.artifact(Chats, chats=sum(counts.values()), sources=counts)


def read_source(source: SyntheticChats | ChatRows) -> Iterator[tuple[str, list[dict[str, str]], str]]:
    """(place, messages, reason why not usable or "") of every row."""
    if isinstance(source, SyntheticChats):
        for problem in generate_mixed(source.problems, "train", source.count, source.seed):
            yield problem.key, problem_chat(problem.question, problem.response), ""
        return
    for place, row in read_rows(source.rows):
        if row is None:
            yield place, [], "not a JSON object"
            continue
        messages, reason = clean_messages(row.get(source.field))
        yield place, messages, reason or ("" if any_answer(messages) else "no assistant message")


def problem_chat(question: str, response: str) -> list[dict[str, str]]:
    """One question with its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": response}]


def clean_messages(messages: Any) -> tuple[list[dict[str, str]], str]:
    """Role and content of every message, or the reason why this is not a list of messages."""
    if not isinstance(messages, list) or not messages:
        return [], "no messages"
    cleaned = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return [], "a message without text"
        if message.get("role") not in ROLES:
            return [], f"role {str(message.get('role'))[:20]!r}"
        cleaned.append({"role": message["role"], "content": message["content"]})
    return cleaned, ""


def any_answer(messages: list[dict[str, str]]) -> bool:
    """Whether there is something to train on."""
    return any(message["role"] == "assistant" and message["content"].strip() for message in messages)


chats = stage(build_chats, name="chats", version=2)
