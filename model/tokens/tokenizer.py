"""The tokenizers of a recipe: OLMo 2's (RECIPE B), and OLMo 1's to compare with (paper Table 2).

`TOKENIZERS` is the one table of them. Either may be cut to its first N ordinary tokens, which toy models use.

Which added tokens are recognised in text: those that carry no control, such as the markers of removed personal data. They
are atomic, so `encode` gives them their single id, as in the published data. The tokens flagged special (EOS, padding, ...) are
plain text to `encode`: no document or user can place a control token. `encode_with_special` recognises all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, Protocol, TypedDict

import numpy as np

from model.tokens import dolma2, olmo1, tokenizer_files

PADDING_MULTIPLE = 128
"""Embedding rows are padded to a multiple of this (RECIPE B)."""

TokenizerName = Literal["dolma2", "olmo-1"]


class Vocabulary(Protocol):
    """What a tokenizer asks of a vocabulary of so many ordinary tokens."""

    added: dict[str, tuple[int, bool]]
    """Id and flag "special" of each added token."""

    def encode(self, text: str, control: bool) -> list[int]: ...
    def encode_array(self, text: str) -> np.ndarray: ...
    def token_bytes(self) -> list[bytes]: ...
    def tokenizer_json(self) -> tokenizer_files.TokenizerJson: ...


class TokenizerFacts(TypedDict):
    """The two fields by which artifacts say their vocabulary."""

    ranks: int
    tokenizer: TokenizerName


@dataclass(frozen=True)
class TokenizerKind:
    """One row of the table of tokenizers."""

    vocabulary: Callable[[int], Vocabulary]
    """The vocabulary of so many ordinary tokens."""
    full: int
    """Ordinary tokens of the whole one."""
    pad: str
    """The token that pads; EOS is `<|endoftext|>` in all."""
    of: str
    """What its prefixes are cut from, for errors."""


TOKENIZERS: dict[TokenizerName, TokenizerKind] = {
    "dolma2": TokenizerKind(dolma2.Dolma2, dolma2.FULL_RANKS, "<|pad|>", "cl100k"),
    "olmo-1": TokenizerKind(olmo1.Olmo1, olmo1.OLMO1_RANKS, "<|padding|>", "GPT-NeoX's with OLMo 1's markers"),
}
EOS = "<|endoftext|>"


@lru_cache(maxsize=8)
def _vocabulary(name: TokenizerName, ranks: int) -> Vocabulary:
    return TOKENIZERS[name].vocabulary(ranks)


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. Equal `ranks` and names mean equal tokenizers; tables are shared within a process.

    Raises ValueError for `ranks` outside 256 to those of the whole vocabulary.
    """

    ranks: int = dolma2.FULL_RANKS
    name: TokenizerName = "dolma2"

    def __post_init__(self) -> None:
        kind = TOKENIZERS[self.name]
        if not 256 <= self.ranks <= kind.full:
            raise ValueError(
                f"ranks={self.ranks:,} is not between 256 (single bytes) and {kind.full:,} (all of {kind.of})"
            )

    @property
    def vocab_size(self) -> int:
        """Ids in use: the ordinary tokens and the added ones."""
        return self.ranks + len(self._vocabulary.added)

    @property
    def padded_vocab_size(self) -> int:
        """Embedding rows: `vocab_size` rounded up to a multiple of 128."""
        # A multiple of 128 keeps the head's matmul aligned.
        return -(-self.vocab_size // PADDING_MULTIPLE) * PADDING_MULTIPLE

    @property
    def eos_id(self) -> int:
        """`<|endoftext|>`: end of document and answer, beginning of a chat."""
        return self.special(EOS)

    @property
    def bos_id(self) -> int:
        """The same id as EOS; only chats begin with it (RECIPE B)."""
        return self.eos_id

    @property
    def pad_id(self) -> int:
        """The padding token, never equal to EOS."""
        return self.special(TOKENIZERS[self.name].pad)

    @cached_property
    def control_ids(self) -> np.ndarray:
        """Ids of the tokens flagged special, ascending."""
        return np.array(sorted(id for id, special in self._vocabulary.added.values() if special))

    @property
    def added_ids(self) -> set[int]:
        """Ids of the added tokens."""
        return {id for id, _ in self._vocabulary.added.values()}

    @property
    def facts(self) -> TokenizerFacts:
        """The two fields by which artifacts say their vocabulary."""
        return {"ranks": self.ranks, "tokenizer": self.name}

    def __str__(self) -> str:
        return f"{self.name} at {self.ranks:,} ranks"

    def special(self, name: str) -> int:
        """Id of an added token by its text, for example "<|endoftext|>". Raises ValueError for any other text."""
        added = self._vocabulary.added
        if name in added:
            return added[name][0]
        raise ValueError(f"{name!r} is not an added token; known are {', '.join(added)}")

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Tokens flagged special are plain text; the other added tokens are atomic."""
        return self._vocabulary.encode(text, control=False)

    def encode_with_special(self, text: str) -> list[int]:
        """Ids of a text in which all added tokens are recognised, as Hugging Face tokenizers do. Not for
        untrusted text.
        """
        return self._vocabulary.encode(text, control=True)

    def encode_array(self, text: str) -> np.ndarray:
        """As `encode`, as a uint32 array: the fast way for documents."""
        return self._vocabulary.encode_array(text)

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = True) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD. `skip_special` leaves out the tokens flagged special.

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
        # Control tokens are dropped before decoding, so texts that quote them are kept.
        kept = tokens[~np.isin(tokens, self.control_ids)] if skip_special else tokens
        texts = self.token_bytes()
        return b"".join([texts[id] for id in kept.tolist()])

    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes of every id's text, shape `[padded_vocab_size]`, int64, 0 for padding rows. Shared and
        read-only.
        """
        return _byte_lengths(self)

    def token_bytes(self) -> list[bytes]:
        """UTF-8 bytes of every id's text, control tokens included; padding rows are empty. Shared: do not
        modify.
        """
        return _token_bytes(self)

    def tokenizer_json(self) -> tokenizer_files.TokenizerJson:
        """The contents of `tokenizer.json`."""
        return self._vocabulary.tokenizer_json()

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json` (with the chat template), readable by
        transformers' AutoTokenizer.
        """
        tokenizer_files.save(Path(folder), self.name, self.ranks, self.tokenizer_json(), EOS, TOKENIZERS[self.name].pad)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a checkpoint folder, ours or a published OLMo 2 one.

        Raises ValueError when the folder's vocabulary is not a prefix of a known one with its added tokens.
        """
        name, ranks = tokenizer_files.read_kind(Path(folder), set(TOKENIZERS))
        tokenizer = cls(ranks, name)  # type: ignore[arg-type] - one of the table's, or refused
        tokenizer_files.check_tokenizer_file(Path(folder), ranks, tokenizer.tokenizer_json())
        return tokenizer

    @property
    def _vocabulary(self) -> Vocabulary:
        return _vocabulary(self.name, self.ranks)


@lru_cache(maxsize=8)
def _token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    tokens = _vocabulary(tokenizer.name, tokenizer.ranks).token_bytes()
    # Padding rows have no text: model outputs may still name them.
    return tokens + [b""] * (tokenizer.padded_vocab_size - len(tokens))


@lru_cache(maxsize=8)
def _byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    lengths = np.array([len(token) for token in tokenizer.token_bytes()], dtype=np.int64)
    # Shared by all callers of a cached table, so nobody may write to it.
    lengths.setflags(write=False)
    return lengths
