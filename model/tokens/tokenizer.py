"""The dolma2 tokenizer of OLMo 2 (RECIPE B), whole or cut to its first N ranks.

Byte-level BPE with cl100k's ranks and split, built on tiktoken. Merges are ordered by rank, so any prefix of the table from
256 ranks on is a complete vocabulary that encodes every text without loss. Toy models use a short one. The 22 added tokens
follow the ordinary ones at N, N+1, ... in the published order.

Which added tokens are recognised in text: the three markers of removed personal data and the `<|extra_id_*|>`. They are
atomic but carry no control, so `encode` gives them their single id, as in OLMo 2's data. The eight tokens flagged special
(EOS, pad, ...) are plain text to `encode`: no document or user can place a control token. `encode_with_special` recognises
all 22.

Deviations: a run of more than 65,536 whitespace characters is cut into pieces of that length before splitting. Otherwise the
split expression's backtracking limit would end in a crash. Ids differ from an uncut run at the cuts at most. Lone
surrogates, which no UTF-8 text can hold, are read as U+FFFD.
"""

import base64
import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import tiktoken

from model.tokens import tokenizer_files

FULL_RANKS = 100_256
"""Ordinary tokens of the full vocabulary (RECIPE B)."""

PADDING_MULTIPLE = 128
"""Embedding rows are padded to a multiple of this (RECIPE B)."""

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
_ADDED_PLACES = {text: place for place, (text, _) in enumerate(ADDED_TOKENS)}
_ALL_ADDED = frozenset(text for text, _ in ADDED_TOKENS)
_ATOMIC_PREFIXES = ("|||", "<|extra_id_")

# The split of cl100k (RECIPE B). Possessive where that changes no match: the engine then keeps no
# backtracking states for long runs.
_SPLIT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]+|\s+(?!\S)|\s+"
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
def _encoding(ranks: int) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        f"olmo2-{ranks}",
        pat_str=_SPLIT,
        mergeable_ranks=rank_table(ranks),
        special_tokens={text: ranks + index for index, (text, _) in enumerate(ADDED_TOKENS)},
    )


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. Equal `ranks` means equal tokenizers; tables are shared within a process.

    Raises ValueError for `ranks` outside 256 to 100,256.
    """

    ranks: int = FULL_RANKS

    def __post_init__(self) -> None:
        if not 256 <= self.ranks <= FULL_RANKS:
            raise ValueError(
                f"ranks={self.ranks:,} is not between 256 (single bytes) and {FULL_RANKS:,} (all of cl100k)"
            )

    @property
    def vocab_size(self) -> int:
        """Ids in use: the ordinary tokens and the 22 added ones."""
        return self.ranks + len(ADDED_TOKENS)

    @property
    def padded_vocab_size(self) -> int:
        """Embedding rows: `vocab_size` rounded up to a multiple of 128."""
        return -(-self.vocab_size // PADDING_MULTIPLE) * PADDING_MULTIPLE

    @property
    def eos_id(self) -> int:
        """`<|endoftext|>`: end of document and answer, beginning of a chat."""
        return self.special("<|endoftext|>")

    @property
    def bos_id(self) -> int:
        """The same id as EOS; only chats begin with it (RECIPE B)."""
        return self.eos_id

    @property
    def pad_id(self) -> int:
        """`<|pad|>`, never equal to EOS."""
        return self.special("<|pad|>")

    @cached_property
    def control_ids(self) -> np.ndarray:
        """Ids of the eight tokens flagged special, ascending."""
        return np.array([self.special(text) for text, special in ADDED_TOKENS if special])

    def special(self, name: str) -> int:
        """Id of an added token by its text, for example "<|pad|>". Raises ValueError for any other text."""
        if name in _ADDED_PLACES:
            return self.ranks + _ADDED_PLACES[name]
        raise ValueError(f"{name!r} is not an added token; known are {', '.join(text for text, _ in ADDED_TOKENS)}")

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Tokens flagged special are plain text; markers of personal data and extra ids are
        atomic.
        """
        return self._encode(text, _atomic_in(text))

    def encode_with_special(self, text: str) -> list[int]:
        """Ids of a text in which all 22 added tokens are recognised, as Hugging Face tokenizers do. Not for
        untrusted text.
        """
        return self._encode(text, _ALL_ADDED)

    def encode_array(self, text: str) -> np.ndarray:
        """As `encode`, as a uint32 array: the fast way for documents."""
        encoding = _encoding(self.ranks)
        atomic = _atomic_in(text)
        parts = [
            encoding.encode_to_numpy(part, allowed_special=atomic, disallowed_special=())
            for part in _bounded_parts(valid_text(text))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _encode(self, text: str, recognised: Collection[str]) -> list[int]:
        encoding = _encoding(self.ranks)
        allowed = frozenset(recognised)
        if not allowed and len(text) <= _LONGEST_WHITESPACE:
            return encoding.encode_ordinary(text)  # which itself reads lone surrogates as U+FFFD
        ids: list[int] = []
        for part in _bounded_parts(valid_text(text)):
            ids.extend(encoding.encode(part, allowed_special=allowed, disallowed_special=()))
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = True) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD. `skip_special` leaves out the eight tokens
        flagged special.

        The padding rows of the embedding have no text and decode to nothing. Raises ValueError for an id
        beyond them.
        """
        return self.decode_bytes(ids, skip_special).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int] | np.ndarray, skip_special: bool = True) -> bytes:
        """As `decode`, before the bytes are read as UTF-8: pieces of a text can be joined without loss."""
        tokens = np.asarray(ids, dtype=np.int64).reshape(-1)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.padded_vocab_size:
            wrong = int(tokens.min() if tokens.min() < 0 else tokens.max())
            raise ValueError(f"id {wrong:,} is outside the vocabulary of {self.padded_vocab_size:,} rows")
        kept = tokens < self.vocab_size
        if skip_special:
            kept &= ~np.isin(tokens, self.control_ids)
        return _encoding(self.ranks).decode_bytes(tokens[kept].tolist())

    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes of every id's text, shape `[padded_vocab_size]`, int64, 0 for padding rows. Shared and
        read-only.
        """
        return _byte_lengths(self.ranks, self.padded_vocab_size)

    def token_bytes(self) -> list[bytes]:
        """UTF-8 bytes of every id's text, control tokens included; padding rows are empty. Shared: do not
        modify.
        """
        return _token_bytes(self.ranks, self.padded_vocab_size)

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json` (with the chat template), readable by
        transformers' AutoTokenizer.
        """
        tokenizer_files.save(Path(folder), rank_table(self.ranks), ADDED_TOKENS)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a checkpoint folder, ours or a published OLMo 2 one.

        Raises ValueError when the folder's vocabulary is not a prefix of cl100k with the added tokens of OLMo
        2.
        """
        tokenizer = cls(tokenizer_files.read_ranks(Path(folder)))
        tokenizer_files.check_tokenizer_file(Path(folder), rank_table(tokenizer.ranks), ADDED_TOKENS)
        return tokenizer


def valid_text(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced by U+FFFD, so that it can be written
    as UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


@lru_cache(maxsize=8)
def _token_bytes(ranks: int, rows: int) -> list[bytes]:
    tokens = [*rank_table(ranks), *(text.encode() for text, _ in ADDED_TOKENS)]
    return tokens + [b""] * (rows - len(tokens))


@lru_cache(maxsize=8)
def _byte_lengths(ranks: int, rows: int) -> np.ndarray:
    lengths = np.array([len(token) for token in _token_bytes(ranks, rows)], dtype=np.int64)
    lengths.setflags(write=False)
    return lengths


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
