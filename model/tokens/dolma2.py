"""The vocabulary of OLMo 2 (RECIPE B), whole or cut to its first N ranks.

Byte-level BPE with cl100k's ranks and split, built on tiktoken. Merges are ordered by rank, so any prefix of the table from
256 ranks on is a complete vocabulary that encodes every text without loss. Toy models use a short one. The 22 added tokens
follow the ordinary ones at N, N+1, ... in the published order.

Deviations: a run of more than 65,536 whitespace characters is cut into pieces of that length before splitting. Otherwise the
split expression's backtracking limit would end in a crash. Ids differ from an uncut run at the cuts at most. Lone
surrogates, which no UTF-8 text can hold, are read as U+FFFD.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import tiktoken

from model.tokens import tokenizer_files
from model.tokens.surrogates import valid_text

FULL_RANKS = 100_256
"""Ordinary tokens of the full vocabulary (RECIPE B)."""

VOCABULARY = Path(__file__).parent / "vocabulary" / "cl100k_base.tiktoken"
VOCABULARY_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"

ADDED_TOKENS: tuple[tuple[str, bool], ...] = (
    ("<|extra_id_0|>", False),
    ("<|endoftext|>", True),
    ("<|fim_prefix|>", True),
    ("<|fim_middle|>", True),
    ("<|fim_suffix|>", True),
    ("|||PHONE_NUMBER|||", False),
    ("|||EMAIL_ADDRESS|||", False),
    ("|||IP_ADDRESS|||", False),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    *((f"<|extra_id_{index}|>", False) for index in range(1, 11)),
    ("<|endofprompt|>", True),
    ("<|pad|>", True),
)
"""(text, flagged special) in the order of their ids (RECIPE B)."""

_ATOMIC = frozenset(text for text, special in ADDED_TOKENS if not special)
_ALL_ADDED = frozenset(text for text, _ in ADDED_TOKENS)
_ATOMIC_PREFIXES = ("|||", "<|extra_id_")

# The split of cl100k (RECIPE B). All alternatives but the one that looks ahead stand in one group: the engine then hands
# them to its automaton at once instead of trying one after the other, which encodes 1.4 times as fast.
_SPLIT = (
    r"(?:'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+)"
    r"|\s+(?!\S)|\s+"
)
_LONGEST_WHITESPACE = 65_536
_WHITESPACE_RUN = re.compile(rf"\s{{{_LONGEST_WHITESPACE + 1},}}")


@lru_cache(maxsize=1)
def _rank_lines() -> tuple[bytes, ...]:
    """The verified lines of the rank file, "base64 rank" each. Raises ValueError for an altered file."""
    data = VOCABULARY.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != VOCABULARY_SHA256:
        raise ValueError(f"{VOCABULARY} has sha256 {digest}, not {VOCABULARY_SHA256}; reinstall olmo2-recipe")
    return tuple(data.splitlines())


@lru_cache(maxsize=8)
def rank_table(ranks: int) -> dict[bytes, int]:
    """Bytes of each ordinary token to its rank (= id), for the first `ranks` of cl100k. Do not modify."""
    return {base64.b64decode(line.split(b" ", 1)[0]): rank for rank, line in enumerate(_rank_lines()[:ranks])}


@lru_cache(maxsize=8)
def tiktoken_encoding(ranks: int) -> tiktoken.Encoding:
    """The same as tiktoken's encoding, with the added tokens."""
    return tiktoken.Encoding(
        f"olmo2-{ranks}",
        pat_str=_SPLIT,
        mergeable_ranks=rank_table(ranks),
        special_tokens={text: ranks + index for index, (text, _) in enumerate(ADDED_TOKENS)},
    )


class Dolma2:
    """The vocabulary of `ranks` ordinary tokens, as `model.tokens.tokenizer` asks it."""

    def __init__(self, ranks: int) -> None:
        self.added = {text: (ranks + index, special) for index, (text, special) in enumerate(ADDED_TOKENS)}
        """Id and flag "special" of each added token."""
        self._ranks = ranks
        self._encoding = tiktoken_encoding(ranks)

    def encode(self, text: str, control: bool) -> list[int]:
        """Ids of a text; `control` recognises the tokens flagged special too."""
        allowed = _ALL_ADDED if control else _atomic_in(text)
        # The quick way, for nearly all texts: nothing in them needs a second look.
        if not allowed and len(text) <= _LONGEST_WHITESPACE:
            return self._encoding.encode_ordinary(text)  # which itself reads lone surrogates as U+FFFD
        ids: list[int] = []
        for part in _bounded_parts(valid_text(text)):
            ids.extend(self._encoding.encode(part, allowed_special=allowed, disallowed_special=()))
        return ids

    def encode_array(self, text: str) -> np.ndarray:
        """As `encode` without control tokens, as a uint32 array."""
        atomic = _atomic_in(text)
        parts = [
            self._encoding.encode_to_numpy(part, allowed_special=atomic, disallowed_special=())
            for part in _bounded_parts(valid_text(text))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def token_bytes(self) -> list[bytes]:
        """UTF-8 bytes of the text of every id in use."""
        return [*rank_table(self._ranks), *(text.encode() for text, _ in ADDED_TOKENS)]

    def tokenizer_json(self) -> tokenizer_files.TokenizerJson:
        """The contents of `tokenizer.json`."""
        return tokenizer_files.tokenizer_json(rank_table(self._ranks), ADDED_TOKENS)


def _atomic_in(text: str) -> frozenset[str]:
    """The atomic tokens if the text may hold one: looking for them costs the splitter time, which almost no
    text needs.
    """
    return _ATOMIC if any(prefix in text for prefix in _ATOMIC_PREFIXES) else frozenset()


def _bounded_parts(text: str) -> Iterator[str]:
    """The text cut inside whitespace runs that are longer than the splitter can take; almost always the whole
    text.
    """
    start = 0
    # A longer run lies on one of these places; looking at them spares the search, a thirtieth of a long text's time.
    if len(text) > _LONGEST_WHITESPACE and any(map(str.isspace, text[::_LONGEST_WHITESPACE])):
        for run in _WHITESPACE_RUN.finditer(text):
            for cut in range(run.start() + _LONGEST_WHITESPACE, run.end(), _LONGEST_WHITESPACE):
                yield text[start:cut]
                start = cut
    yield text[start:]
