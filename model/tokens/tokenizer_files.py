"""Writes the tokenizer as Hugging Face files: `tokenizer.json` and `tokenizer_config.json` (RECIPE B).

tokenizers stores a byte-level BPE as pairs to merge, tiktoken as ranks of merged tokens. The pair behind a token is what BPE
leaves of its bytes when only lower ranks may merge. For the full vocabulary this gives dolma2's own 100,000 merges, tested
by digest. Byte-level mapping keeps its own regex disabled: falling back to it is the defect that forced the OLMo 2 instruct
models to be retrained (paper C.3).
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NotRequired, TypedDict

from pydantic import BaseModel, Field

from model.json_files import read_json
from model.tokens.chat_template import CHAT_TEMPLATE

# The split as tokenizers' regex engine needs it; model/tokens/tokenizer.py has the same split for tiktoken's.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_RANKS_KEY = "olmo2_tokenizer"
_MAX_LENGTH = 4096
"""Context of OLMo 2 (RECIPE A); informative only."""


class AddedToken(TypedDict):
    """An entry of `added_tokens` in `tokenizer.json`."""

    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class BPEModel(TypedDict):
    """`model` in `tokenizer.json`."""

    type: str
    dropout: float | None
    unk_token: str | None
    continuing_subword_prefix: str | None
    end_of_word_suffix: str | None
    fuse_unk: bool
    byte_fallback: bool
    ignore_merges: NotRequired[bool]
    vocab: dict[str, int]
    """Id of each token, as the byte alphabet shows it."""
    merges: list[str]
    """Both sides with a space between them, in rank order."""


class TokenizerJson(TypedDict):
    """The contents of `tokenizer.json`."""

    version: str
    truncation: None
    padding: None
    added_tokens: list[AddedToken]
    normalizer: Mapping[str, object] | None
    pre_tokenizer: Mapping[str, object]
    post_processor: Mapping[str, object] | None
    decoder: Mapping[str, object]
    model: BPEModel


class _Recorded(BaseModel):
    ranks: int
    name: str = "dolma2"


class _TokenizerConfig(BaseModel):
    """What is read of tokenizer_config.json."""

    recorded: _Recorded | None = Field(default=None, alias=_RANKS_KEY)


class _Added(BaseModel):
    content: str
    id: int


class _Model(BaseModel):
    vocab: dict[str, int]


class _TokenizerFile(BaseModel):
    """What is read of tokenizer.json."""

    model: _Model
    added_tokens: list[_Added] = []


def save(folder: Path, name: str, ranks: int, content: TokenizerJson, eos: str, pad: str) -> None:
    """Writes both files; `content` is that of `tokenizer.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "tokenizer.json", content)
    _write(folder / "tokenizer_config.json", _tokenizer_config(name, ranks, content["added_tokens"], eos, pad))


def read_kind(folder: Path, known: set[str]) -> tuple[str, int]:
    """Name and ordinary tokens of a folder's vocabulary: as we recorded them, else counted in `tokenizer.json`
    (published OLMo 2 folders).

    Raises ValueError when neither says so, one of them is broken, or the name is none of the known.
    """
    config = folder / "tokenizer_config.json"
    if config.is_file() and (recorded := read_json(config, _TokenizerConfig).recorded) is not None:
        if recorded.name not in known:
            raise ValueError(f"{config} names the tokenizer {recorded.name!r}; known are {', '.join(sorted(known))}")
        return recorded.name, recorded.ranks
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no tokenizer.json; a checkpoint folder needs its tokenizer beside the weights"
        )
    value = read_json(path, _TokenizerFile)
    extra = {token.content for token in value.added_tokens}
    # Published folders record no ranks: the ordinary tokens are what is not added.
    return "dolma2", sum(text not in extra for text in value.model.vocab)


def check_tokenizer_file(folder: Path, ranks: int, content: TokenizerJson) -> None:
    """Raises ValueError unless `tokenizer.json` has exactly the tokens of this content under their ids."""
    value = read_json(folder / "tokenizer.json", _TokenizerFile)
    stored = value.model.vocab | {token.content: token.id for token in value.added_tokens}
    wanted = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    # Compared as whole tables, since a single exchanged pair of ids would ruin a model silently.
    if stored != wanted:
        different = sorted(text for text in stored.keys() | wanted.keys() if stored.get(text) != wanted.get(text))
        raise ValueError(
            f"{folder / 'tokenizer.json'} is not the vocabulary that it should be at {ranks:,} ranks: "
            f"{len(different):,} tokens differ, first {different[0]!r}; "
            "only prefixes of cl100k with OLMo 2's added tokens are supported"
        )


def tokenizer_json(table: dict[bytes, int], added: Sequence[tuple[str, bool]]) -> TokenizerJson:
    """The contents of `tokenizer.json`."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(table) + index,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }
            for index, (text, special) in enumerate(added)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": _vocabulary(table, added),
            "merges": [f"{_visible(left)} {_visible(right)}" for left, right in merges(table)],
        },
    }


def merges(table: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that BPE joins last to make each token of two bytes or more, in rank order."""
    return [_last_merge(table, token, rank) for token, rank in table.items() if len(token) > 1]


def _last_merge(table: dict[bytes, int], token: bytes, rank: int) -> tuple[bytes, bytes]:
    absent = rank  # a token that may not be merged yet counts as one of its own rank
    splits = [
        (token[:cut], token[cut:])
        for cut in range(1, len(token))
        if table.get(token[:cut], absent) < rank and table.get(token[cut:], absent) < rank
    ]
    if len(splits) == 1:  # three in four tokens: no need to merge them up
        return splits[0]
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 2:
        candidates = [table.get(left + right, absent) for left, right in pairwise(parts)]
        best = min(range(len(candidates)), key=candidates.__getitem__)
        assert candidates[best] < rank, f"token {token!r} cannot be merged from lower ranks"
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _tokenizer_config(name: str, ranks: int, added: Sequence[AddedToken], eos: str, pad: str) -> dict[str, object]:
    recorded: dict[str, int | str] = {"ranks": ranks}
    # A folder without a name is of the tokenizer that there was before there were two.
    recorded |= {} if name == "dolma2" else {"name": name}
    return {
        "added_tokens_decoder": {
            str(token["id"]): {field: value for field, value in token.items() if field != "id"} for token in added
        },
        "bos_token": eos,
        "eos_token": eos,
        "unk_token": eos,
        "pad_token": pad,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": _MAX_LENGTH,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        _RANKS_KEY: recorded,
    }


def _vocabulary(table: dict[bytes, int], added: Sequence[tuple[str, bool]]) -> dict[str, int]:
    vocabulary = {_visible(token): rank for token, rank in table.items()}
    vocabulary.update({text: len(table) + index for index, (text, _) in enumerate(added)})
    return vocabulary


def _byte_alphabet() -> dict[int, str]:
    """Byte-level BPE's alphabet: printable Latin-1 bytes stand for themselves, the others for characters from
    U+0100 up.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)}


_ALPHABET = _byte_alphabet()
_BYTES = {character: byte for byte, character in _ALPHABET.items()}


def token_bytes(text: str) -> bytes:
    """The bytes of an ordinary token as a file shows it. Raises KeyError for a character that stands for no byte."""
    return bytes([_BYTES[character] for character in text])


def _visible(token: bytes) -> str:
    return "".join([_ALPHABET[byte] for byte in token])


def _write(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
