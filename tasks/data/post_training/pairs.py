"""Stage: preference pairs as they were released, in the place of pairs that are sampled and judged (RECIPE G).

Read are rows with `chosen` and `rejected`: message lists (allenai/olmo-2-*-preference-mix, UltraFeedback binarised, with or
without their `prompt` and ratings), single answers with a `prompt`, `question` or `instruction`, and HH-RLHF's transcripts.
Both sides must answer the same question. Rows that do not are counted by reason and kept in `bad/preferences.jsonl.zst`;
above `max_bad_fraction` of them the stage fails. Pairs that `filter`, `margin` or `duplicates` leave out are kept, by their
place, in `dropped/preferences.jsonl.zst`; as published nothing is left out. Deviation: the published mixes also hold pairs
of the policy's own answers, which the `preferences` stage makes.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import ROUNDING, Preferences
from tasks.data.documents.dolma_files import LineWriter, Row
from tasks.data.documents.messages import clean_messages
from tasks.data.filters.chats.chat_filters import ChatFilterConfig, Messages, last_below_caps, over_cap, unwanted
from tasks.data.filters.chats.repeated import Duplicates, RepeatedRows
from tasks.data.sources.rows import RowSource, check_share, read_rows

QUESTIONS = ("prompt", "question", "instruction")
"""Fields that hold the question where the answers stand alone, the first that a row has."""
RATINGS = ("{side}_rating", "score_{side}", "{side}_score", "{side}-rating")
"""Fields that hold a side's rating, the first that a row has."""
TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
"""How a turn of an HH-RLHF transcript begins."""
TIE = "tie"
"""Why a pair with equal ratings is left out where ties are dropped."""
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


class PairsConfig(Config):
    """Released preference pairs; no answer is sampled and no judge asked."""

    kind: Literal["pairs"] = "pairs"
    rows: RowSource = RowSource(dataset="allenai/olmo-2-1124-7b-preference-mix")
    """Rows with `chosen` and `rejected`."""
    ties: Literal["keep", "drop"] = "keep"
    """Pairs whose sides have the same rating, where the rows hold ratings."""
    margin: float = Field(default=0.0, ge=0, exclude_if=lambda value: value == 0)
    """How much higher the chosen answer is rated at least, where the rows hold ratings."""
    filter: ChatFilterConfig = Field(default=ChatFilterConfig(), exclude_if=lambda value: value == ChatFilterConfig())
    """Which usable pairs to leave out."""
    duplicates: Duplicates = Field(default="keep", exclude_if=lambda value: value == "keep")
    """Pairs that repeat an earlier one, question and both answers."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of unusable rows above which the stage fails."""

    @model_validator(mode="after")
    def _no_votes(self) -> Self:
        if self.filter.majority is not None:
            raise ValueError(
                "preferences.filter.majority votes over the chats of a question, and a pair has two; leave it out"
            )
        return self

    def pinned(self) -> Self:
        """The config with what it will read pinned."""
        return self.model_copy(update={"rows": self.rows.pinned()})


def build_pairs(ws: Workspace, config: PairsConfig) -> Preferences:
    """All usable pairs in order. ValueError when too many rows are unusable, or none is left."""
    reasons, left_out = Counter[str](), Counter[str]()
    ties, ratings = 0, []
    judged, repeats = _judge_of(config), RepeatedRows(config.duplicates)
    with (
        LineWriter(ws, "preferences.jsonl.zst") as good,
        LineWriter(ws, "bad/preferences.jsonl.zst") as bad,
        LineWriter(ws, "dropped/preferences.jsonl.zst") as out,
    ):
        for place, id, origin, pair, reason in _read_source(config):
            # Each bad row is written with its place, so that it can be found in the file.
            if reason:
                reasons[reason] += 1
                bad.write({"place": place, "reason": reason})
                continue
            rated = pair["chosen_rating"] is not None
            tied = rated and pair["chosen_rating"] == pair["rejected_rating"]
            ties += tied
            why = judged(place, origin, pair)
            if why == TIE:
                continue
            if not why and repeats.again(pair["chosen"], pair["rejected"]):
                why = "repeats an earlier pair"
            if why:
                left_out[why] += 1
                out.write({"place": place, "reason": why})
                continue
            if rated:
                # Means are over rated pairs alone; unrated ones have no number to add.
                ratings.append((pair["chosen_rating"], pair["rejected_rating"]))
            good.write({"id": id, **pair})
        pairs = good.rows
    if left_out:
        ws.note(pairs_left_out=dict(sorted(left_out.items())))
    if not pairs and ties:
        raise ValueError(f"all {ties:,} pairs are ties, and ties={config.ties!r}; use ties: keep")
    if not pairs and left_out:
        raise ValueError(f"every usable pair is left out ({dict(left_out)}); loosen filter or margin")
    # What is left out could be used: it counts among the good rows.
    check_share("preference pairs", pairs + left_out.total(), reasons, config.max_bad_fraction)
    chosen, rejected = (sum(side) / len(ratings) for side in zip(*ratings, strict=True)) if ratings else (None, None)
    return ws.artifact(Preferences, pairs=pairs, ties=ties, mean_chosen=chosen, mean_rejected=rejected)


def _read_source(config: PairsConfig) -> Iterator[tuple[str, str, str, Row, str]]:
    """(place, id, origin, pair, reason why not usable or "") of every row."""
    for place, row in read_rows(config.rows):
        if row is None:
            yield place, place, "", {}, "not a JSON object"
            continue
        pair, reason = read_pair(row)
        yield place, str(row.get("id", place)), str(row.get(config.filter.origin, "")), pair, reason


def _judge_of(config: PairsConfig) -> Callable[[str, str, Row], str]:
    """(place, origin, pair) -> why a usable pair is left out, or ""."""

    def alone(pair: Row) -> str:
        rated = pair["chosen_rating"] is not None
        if rated and config.ties == "drop" and pair["chosen_rating"] == pair["rejected_rating"]:
            return TIE
        # As published no margin is asked for: then a rejected answer may even be rated higher. Means of several aspects are
        # no binary fractions, so a margin of a third has to forgive their rounding.
        if config.margin and rated and pair["chosen_rating"] - pair["rejected_rating"] < config.margin - ROUNDING:
            return "below the margin"
        return unwanted(config.filter, pair["chosen"]) or unwanted(config.filter, pair["rejected"])

    # A pass of its own finds where each cap ends, so that no pass need hold the pairs.
    usable = (
        (place, origin)
        for place, _, origin, pair, reason in (_read_source(config) if config.filter.caps else ())
        if not reason and not alone(pair)
    )
    last = last_below_caps(config.filter, usable)
    return lambda place, origin, pair: alone(pair) or over_cap(config.filter, last, place, origin)


def read_pair(row: Row) -> tuple[Row, str]:
    """({dataset, chosen, rejected, ratings} as the `preferences` stage writes them, reason why not usable or "")."""
    question, reason = _question_of(row)
    if reason:
        return {}, reason
    sides: dict[str, Messages] = {}
    for side in ("chosen", "rejected"):
        sides[side], reason = conversation(row.get(side), question)
        if reason:
            return {}, f"{side}: {reason}"
    chosen, rejected = sides["chosen"], sides["rejected"]
    # Everything before the answers must be equal, or the pair compares two questions.
    if chosen[:-1] != rejected[:-1]:
        return {}, "chosen and rejected answer different questions"
    if chosen[-1]["content"] == rejected[-1]["content"]:
        return {}, "chosen and rejected are the same"
    ratings = {side: _rating_of(row, side) for side in sides}
    if None in ratings.values():
        # One rating alone says nothing about the pair.
        ratings = dict.fromkeys(sides)
    source = row.get("dataset") or row.get("source") or ""
    return {"dataset": str(source), **sides, **{f"{side}_rating": value for side, value in ratings.items()}}, ""


def _question_of(row: Row) -> tuple[Messages, str]:
    """The messages before the answers where they have a field of their own, none otherwise; or why they cannot be read."""
    found = next((row[name] for name in QUESTIONS if row.get(name)), None)
    if found is None:
        return [], ""
    if isinstance(found, str):
        system = row.get("system")
        before = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
        return [*before, {"role": "user", "content": found}], ""
    messages, reason = clean_messages(found)
    return messages, reason and f"prompt: {reason}"


def conversation(side: Any, question: Messages) -> tuple[Messages, str]:
    """One side with what it answers, or the reason why it is none."""
    if isinstance(side, str):
        messages, reason = transcript(side) if TURN.match(side) else ([{"role": "assistant", "content": side}], "")
    else:
        messages, reason = clean_messages(side)
    if reason:
        return [], reason
    if messages[-1]["role"] != "assistant":
        return [], "the last message is not the assistant's"
    if not messages[-1]["content"].strip():
        return [], "the answer is empty"
    # Answers that stand alone get the question of their own field in front.
    if all(message["role"] == "assistant" for message in messages):
        messages = [*question, *messages]
    return (messages, "") if len(messages) > 1 else ([], "no question")


def transcript(text: str) -> tuple[Messages, str]:
    """The turns of an HH-RLHF transcript: `\\n\\nHuman: …\\n\\nAssistant: …`."""
    pieces = TURN.split(text)
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return clean_messages([{"role": SPEAKERS[who], "content": said.strip()} for who, said in turns])


def _rating_of(row: Row, side: str) -> float | None:
    """The rating of a side, None where the row has none or one that is no finite number."""
    found = next((row[name] for form in RATINGS if (name := form.format(side=side)) in row), None)
    # bool is an int in Python, and True is no rating.
    if isinstance(found, bool) or not isinstance(found, int | float) or not isfinite(found):
        return None
    return float(found)


pairs = stage(build_pairs, name="pairs", version=3)
