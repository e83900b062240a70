"""Preference pairs as rows of tokens, for DPO and the reward model; masked as in finetuning (RECIPE G)."""

from collections.abc import Iterable

from infra.workspace import Workspace
from model.data.chat_batches import Row, make_row
from model.tokens.chat import Message, encode_chat
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Preferences

Pair = tuple[Row, Row]
"""(chosen, rejected)"""


def read_pairs(ws: Workspace, pairs: Preferences) -> Iterable[tuple[list[Message], list[Message]]]:
    """(chosen, rejected) conversations, in the order of the file."""
    for row in ws.read_jsonl(pairs, "preferences.jsonl.zst"):
        yield row["chosen"], row["rejected"]


def cut_pairs(
    tokenizer: Tokenizer, pairs: Iterable[tuple[list[Message], list[Message]]], max_tokens: int
) -> tuple[list[Pair], int]:
    """Pairs with both sides cut after `max_tokens` (DPO), and how many had a side without a trained token."""
    kept, dropped = [], 0
    for chosen, rejected in pairs:
        pair = (
            make_row(*encode_chat(tokenizer, chosen, max_tokens)),
            make_row(*encode_chat(tokenizer, rejected, max_tokens)),
        )
        if all(row.trained_tokens for row in pair):
            kept.append(pair)
        else:
            dropped += 1
    return kept, dropped


def whole_pairs(
    tokenizer: Tokenizer, pairs: Iterable[tuple[list[Message], list[Message]]], max_tokens: int
) -> tuple[list[Pair], int]:
    """Pairs whose sides both fit in `max_tokens` (reward model), and how many are left out."""
    # One token more than allowed is enough to see that a side is too long.
    cut, dropped = cut_pairs(tokenizer, pairs, max_tokens + 1)
    kept = [pair for pair in cut if max(len(row.ids) for row in pair) <= max_tokens]
    return kept, dropped + len(cut) - len(kept)
