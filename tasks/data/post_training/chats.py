"""Stage: chats for supervised finetuning (RECIPE F): synthetic maths, local files and hub datasets in `messages` format.

Rows that are not chats are counted by reason and kept in `bad/chats.jsonl.zst` with their place; above the source's share
of them the stage fails. Chats that a source's `filter` leaves out, or that repeat an earlier one where `duplicates` says so, are
kept in `dropped/chats.jsonl.zst`. A system turn without
text is left out of its chat. Roles other than system, user and assistant, and calls of tools, have no place in the chat format.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, Self

from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Chats
from tasks.data.documents.dolma_files import LineWriter
from tasks.data.documents.messages import clean_messages, unanswered
from tasks.data.filters.chats.answer_vote import AnswerVote, question_key, winners
from tasks.data.filters.chats.chat_filters import ChatFilterConfig, Messages, last_below_caps, over_cap, unwanted
from tasks.data.filters.chats.repeated import Duplicates, RepeatedRows
from tasks.data.sources.rows import RowSource, check_share, read_rows
from tasks.synthetic import KindConfig, generate_mixed

_Judge = Callable[[str, Messages, str], str]
"""(place, messages, origin) -> why a usable chat is left out, or ""."""


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
    filter: ChatFilterConfig = ChatFilterConfig()
    """Which usable chats to leave out."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of unusable rows above which the stage fails."""

    def pinned(self) -> Self:
        """The source with its rows pinned."""
        return self.model_copy(update={"rows": self.rows.pinned()})


ChatSource = Annotated[SyntheticChats | ChatRows, Field(discriminator="kind")]


class ChatsConfig(Config):
    """The finetuning mix: the sources one after another; training shuffles."""

    sources: tuple[ChatSource, ...] = (
        ChatRows(name="tulu", rows=RowSource(dataset="allenai/tulu-3-sft-olmo-2-mixture")),
    )
    duplicates: Duplicates = Field(default="keep", exclude_if=lambda value: value == "keep")
    """Chats that repeat an earlier one, of whichever source; they are looked for after filters and caps."""

    def pinned(self) -> Self:
        """The config with what each source will read pinned."""
        return self.model_copy(update={"sources": tuple(source.pinned() for source in self.sources)})


def build_chats(ws: Workspace, config: ChatsConfig) -> Chats:
    """All usable chats of all sources, in order. ValueError when a source has too many bad rows or no good one."""
    counts: dict[str, int] = {}
    dropped: Counter[str] = Counter()
    repeats = RepeatedRows(config.duplicates)
    with (
        LineWriter(ws, "chats.jsonl.zst") as good,
        LineWriter(ws, "bad/chats.jsonl.zst") as bad,
        LineWriter(ws, "dropped/chats.jsonl.zst") as out,
    ):
        for source in config.sources:
            if source.name in counts:
                raise ValueError(f"two chat sources are called {source.name!r}; give each its own name")
            reasons: Counter[str] = Counter()
            before = good.rows
            for place, messages, reason, left_out in read_wanted(source):
                if not (reason or left_out) and repeats.again(messages):
                    left_out = "repeats an earlier chat"
                if reason:
                    reasons[reason] += 1
                    bad.write({"place": place, "reason": reason, "source": source.name})
                elif left_out:
                    dropped[left_out] += 1
                    out.write({"place": place, "reason": left_out, "source": source.name})
                else:
                    # Numbered among the kept ones, so ids have no gaps.
                    id = f"{source.name}-{good.rows - before}"
                    good.write({"id": id, "messages": messages, "source": source.name})
            counts[source.name] = good.rows - before
            # Synthetic chats are all usable, so no share of bad ones can stop the stage.
            allowed = source.max_bad_fraction if isinstance(source, ChatRows) else 1.0
            check_share(f"chat source {source.name!r}", counts[source.name], reasons, allowed)
    ws.note(chats_left_out=dict(sorted(dropped.items())))
    return ws.artifact(Chats, chats=sum(counts.values()), sources=counts)


def read_wanted(source: SyntheticChats | ChatRows) -> Iterator[tuple[str, Messages, str, str]]:
    """(place, messages, reason why not usable or "", reason why its filter leaves it out or "") of every row."""
    if isinstance(source, SyntheticChats):
        for problem in generate_mixed(source.problems, "train", source.count, source.seed):
            yield problem.key, problem_chat(problem.question, problem.response), "", ""
        return
    rules = source.filter
    judged: _Judge = _by_themselves(rules)
    # Passes of their own find which chats stay, so that no pass need hold them.
    if vote := rules.majority:
        kept = winners(vote, ((place, talk) for place, talk, origin in _usable(source, judged) if vote.votes(origin)))
        judged = _outvoted(vote, kept, judged)
    if rules.caps:
        last = last_below_caps(rules, ((place, origin) for place, _, origin in _usable(source, judged)))
        judged = _beyond(rules, last, judged)
    for place, messages, origin, reason in _read_source(source):
        yield place, messages, reason, "" if reason else judged(place, messages, origin)


def _usable(source: ChatRows, judged: _Judge) -> Iterator[tuple[str, Messages, str]]:
    """(place, messages, origin) of the chats that nothing leaves out so far."""
    for place, messages, origin, reason in _read_source(source):
        if not reason and not judged(place, messages, origin):
            yield place, messages, origin


def _by_themselves(rules: ChatFilterConfig) -> _Judge:
    """Leaves out chats for what they say, whatever else there is."""
    return lambda place, messages, origin: unwanted(rules, messages)


def _outvoted(vote: AnswerVote, kept: dict[bytes, str], before: _Judge) -> _Judge:
    """Leaves out what `before` does, and of chats that vote all but the kept completion of their question."""

    def judged(place: str, messages: Messages, origin: str) -> str:
        reason = before(place, messages, origin)
        if reason or not vote.votes(origin):
            return reason
        winner = kept.get(question_key(messages))
        if winner is None:
            return f"no answer of more than half of {vote.completions} completions"
        return "" if winner == place else "another completion was kept"

    return judged


def _beyond(rules: ChatFilterConfig, last: dict[str, bytes], before: _Judge) -> _Judge:
    """Leaves out what `before` does, and what is over its origin's cap."""

    def judged(place: str, messages: Messages, origin: str) -> str:
        # Judged last, so that a chat which is left out for another reason uses up no place below the cap.
        return before(place, messages, origin) or over_cap(rules, last, place, origin)

    return judged


def _read_source(source: ChatRows) -> Iterator[tuple[str, Messages, str, str]]:
    """(place, messages, origin, reason why not usable or "") of every row of files or a dataset."""
    for place, row in read_rows(source.rows):
        if row is None:
            yield place, [], "", "not a JSON object"
            continue
        messages, reason = clean_messages(row.get(source.field))
        origin = str(row.get(source.filter.origin, ""))
        yield place, messages, origin, reason or unanswered(messages)


def problem_chat(question: str, response: str) -> list[dict[str, str]]:
    """One question with its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": response}]


chats = stage(build_chats, name="chats", version=4)
