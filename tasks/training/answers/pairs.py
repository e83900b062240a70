"""Preference pairs as rows of tokens, for DPO and the reward model; masked as in finetuning (RECIPE G)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations

from infra.json_values import JsonObject
from infra.workspace import Workspace
from model.data.chat_batches import LabelledRow, make_row
from model.tokens.chat import Message, encode_chat
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Preferences

PreferencePair = tuple[LabelledRow, LabelledRow]
"""(chosen, rejected)"""


def read_pairs(ws: Workspace, pairs: Preferences) -> Iterable[tuple[list[Message], list[Message]]]:
    """(chosen, rejected) conversations, in the order of the file."""
    for row in ws.read_jsonl(pairs, "preferences.jsonl.zst"):
        yield row["chosen"], row["rejected"]


def cut_pairs(
    tokenizer: Tokenizer, pairs: Iterable[tuple[list[Message], list[Message]]], max_tokens: int
) -> tuple[list[PreferencePair], int]:
    """Pairs with both sides cut after `max_tokens` (DPO), and how many had a side without a trained token."""
    kept, dropped = [], 0
    for chosen, rejected in pairs:
        pair = (
            make_row(*encode_chat(tokenizer, chosen, max_tokens)),
            make_row(*encode_chat(tokenizer, rejected, max_tokens)),
        )
        # A pair without a trained token on one side has no log-probability to compare.
        if all(row.trained_tokens for row in pair):
            kept.append(pair)
        else:
            dropped += 1
    return kept, dropped


Conversations = tuple[str, list[Message], list[Message]]
"""(id of the prompt, chosen, rejected)"""


def prompt_pairs(ws: Workspace, pairs: Preferences) -> Iterator[Conversations]:
    """Every row with the id of its prompt, in the order of the file."""
    for row in ws.read_jsonl(pairs, "preferences.jsonl.zst"):
        yield row["id"], row["chosen"], row["rejected"]


def every_pair(ws: Workspace, pairs: Preferences, prompts: set[str]) -> Iterator[Conversations]:
    """All pairs of differently rated answers to these prompts, where all answers are kept (`samples/`); else their rows."""
    kept = ws.files(pairs, "samples/")
    if not kept:
        # Without kept samples (released pairs) only the file's own rows exist.
        yield from (row for row in prompt_pairs(ws, pairs) if row[0] in prompts)
        return
    samples: dict[str, list[JsonObject]] = defaultdict(list)
    for name in kept:
        for sample in ws.read_jsonl(pairs, name):
            if sample["id"] in prompts:
                samples[sample["id"]].append(sample)
    for id, chosen, _ in prompt_pairs(ws, pairs):
        for one, other in combinations(samples.get(id, []), 2):
            # Equal ratings teach nothing about order.
            if one["rating"] != other["rating"]:
                better, worse = (one, other) if one["rating"] > other["rating"] else (other, one)
                yield (
                    id,
                    [*chosen[:-1], {"role": "assistant", "content": better["text"]}],
                    [*chosen[:-1], {"role": "assistant", "content": worse["text"]}],
                )


def whole_pairs(
    tokenizer: Tokenizer, pairs: Iterable[Conversations], max_tokens: int
) -> tuple[list[tuple[str, PreferencePair]], int]:
    """(prompt, pair) where both sides fit in `max_tokens` (reward model), and how many are left out."""
    kept, dropped = [], 0
    for id, chosen, rejected in pairs:
        # One token more than allowed is enough to see that a side is too long.
        cut, _ = cut_pairs(tokenizer, [(chosen, rejected)], max_tokens + 1)
        if cut and max(len(row.ids) for row in cut[0]) <= max_tokens:
            kept.append((id, cut[0]))
        else:
            dropped += 1
    return kept, dropped
