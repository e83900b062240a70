"""Stage: documents of one source to token files (RECIPE B, C.1).

Each text is stripped, empty ones are dropped, ids are followed by one EOS, and there is no BOS. A document
shard becomes one headerless little-endian uint32 `.npy` and a `.csv.gz` of rows (start, end, id, src, loc):
token range, document file, 1-based line. Both are readable by OLMo-core. Deviation: no shuffling here
(dolma's tokeniser shuffles lightly); the loader's order is a full shuffle of windows.
"""

import csv
import gzip
import io
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import UInt32
from pydantic import Field, model_validator

from infra.stage import stage
from infra.workspace import ShardItem, ShardResult, Workspace
from model.config import Config
from model.tokens.tokenizer import TOKENIZERS, Tokenizer, TokenizerName
from tasks.artifacts import Documents, Tokens
from tasks.data.documents.dolma_files import read_documents, shard_name
from tasks.data.documents.file_sources import file_bytes, files_of_source

TOKEN_TYPE = np.dtype("<u4")
"""Ids of dolma2 do not fit 16 bits (RECIPE C.1)."""

_GZIP_LEVEL = 4
_BUFFER_TOKENS = 1 << 20


class EncodeConfig(Config):
    """Vocabulary and source of one set of token files."""

    source: str = ""
    """The source to encode, where the documents hold several; empty for the only one."""
    tokenizer: TokenizerName = "dolma2"
    """Which vocabulary: OLMo 2's, or `olmo-1` to compare with it (paper Table 2)."""
    ranks: int = Field(default=TOKENIZERS["dolma2"].full, ge=256)
    """Ordinary tokens of the vocabulary, its first so many; all of them unless said. Toy models use fewer."""

    @model_validator(mode="before")
    @classmethod
    def _all_unless_said(cls, data: Any) -> Any:
        # Any other value of `tokenizer` is refused as its own field's.
        if isinstance(data, dict) and "ranks" not in data and (name := data.get("tokenizer")) in TOKENIZERS:
            return data | {"ranks": TOKENIZERS[name].full}
        return data

    @model_validator(mode="after")
    def _is_a_vocabulary(self) -> Self:
        _ = self.vocabulary
        return self

    @property
    def vocabulary(self) -> Tokenizer:
        """The tokenizer that it says."""
        return Tokenizer(self.ranks, self.tokenizer)


def encode_documents(ws: Workspace, documents: Documents, config: EncodeConfig) -> Tokens:
    """Token files of one source, one per document shard.

    Raises ValueError if the source is not there, not named among several, or gives no token.
    """
    source = _source(documents, config.source)
    names = files_of_source(ws, documents, source)
    shared = {"documents": documents.model_dump(mode="json"), "source": source, **config.vocabulary.facts}
    items = [{"name": name, **shared} for name in names]
    sizes = file_bytes(ws, documents, names)
    results = ws.map(encode_shard, items, description=f"encode {source}", sizes=sizes)
    files = {name: tokens for result in results for name, tokens in result["files"].items()}
    count = sum(result["documents"] for result in results)
    read = sum(result["documents"] + result["empty"] for result in results)
    # Each document of the source was read exactly once, empty ones included.
    assert read == documents.sources[source], (read, documents.sources)
    if not files:
        raise ValueError(f"source {source!r} gives no tokens: all {read:,} documents are empty; check the stage before")
    vocabulary = config.vocabulary.facts
    ws.write_json("encode.json", {"documents": count, "empty": read - count, **vocabulary})
    return ws.artifact(
        Tokens,
        source=source,
        tokens=sum(files.values()),
        documents=count,
        **vocabulary,
        bytes=sum(result["bytes"] for result in results),
        files=files,
    )


def _source(documents: Documents, name: str) -> str:
    if not name and len(documents.sources) == 1:
        return next(iter(documents.sources))
    if name not in documents.sources:
        emptied = (
            f"; if it was emptied, what that stage dropped says why: {documents.dropped}" if documents.dropped else ""
        )
        raise ValueError(
            f"source {name!r} is not in {documents.address}; choose one of {', '.join(documents.sources) or 'none'}{emptied}"
        )
    return name


def encode_shard(ws: Workspace, item: ShardItem) -> ShardResult:
    """Shard function: one document file to one token file with its index."""
    documents = Documents.model_validate(item["documents"])
    tokenizer = Tokenizer(item["ranks"], item["tokenizer"])
    name, source = item["name"], item["source"]
    index = io.StringIO()
    rows = csv.writer(index, lineterminator="\n")
    count = empty = size = 0
    path = ws.scratch / f"{shard_name(name)}.npy"
    with TokenWriter(path, tokenizer) as tokens:
        for line, document in enumerate(read_documents(ws, documents, name), start=1):
            if document["source"] != source:
                continue
            # Stripped before encoding: white space at the ends would become tokens of its own.
            text = document["text"].strip()
            if not text:
                empty += 1
                continue
            start = tokens.position
            tokens.write(tokenizer.encode_array(text))
            rows.writerow((start, tokens.position, document["id"], name, line))
            count += 1
            # surrogatepass: lone surrogates have no UTF-8 form, yet their bytes must be counted.
            size += len(text.encode("utf-8", "surrogatepass"))
    if not count:
        return {"files": {}, "documents": 0, "empty": empty, "bytes": 0}
    # An EOS inside a document would split it in two for every reader of the index.
    assert tokens.ends == count, f"EOS inside a document: {tokens.ends} in {count} documents"
    target = f"tokens/{shard_name(name)}.npy"
    ws.put(path, target)
    ws.write(f"tokens/{shard_name(name)}.csv.gz", _gzip(index.getvalue().encode()))
    return {"files": {target: tokens.position}, "documents": count, "empty": empty, "bytes": size}


class TokenWriter:
    """Appends documents to a local token file, each followed by EOS; memory does not grow with the file."""

    def __init__(self, path: Path, tokenizer: Tokenizer):
        self.position = 0
        """Tokens so far."""
        self.ends = 0
        """EOS tokens in what has been written; complete on leaving the context."""
        self._file = path.open("wb")
        self._vocab_size, self._eos_id = tokenizer.vocab_size, tokenizer.eos_id
        self._end = np.array([tokenizer.eos_id], dtype=TOKEN_TYPE)
        self._pending: list[np.ndarray] = []
        self._pending_tokens = 0

    def write(self, ids: UInt32[np.ndarray, " tokens"]) -> None:
        """Append one document."""
        self._pending += [ids, self._end]
        self._pending_tokens += len(ids) + 1
        self.position += len(ids) + 1
        if self._pending_tokens >= _BUFFER_TOKENS:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            # Copied only where the type differs: dolma2 gives uint32 already.
            tokens = np.concatenate(self._pending).astype(TOKEN_TYPE, copy=False)
            # An id beyond the vocabulary would be an index error hours later, on the GPU.
            assert int(tokens.max()) < self._vocab_size, int(tokens.max())
            self.ends += int(np.count_nonzero(tokens == self._eos_id))
            tokens.tofile(self._file)
            self._pending, self._pending_tokens = [], 0

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._file.close()


def _gzip(data: bytes) -> bytes:
    # Without a time stamp: equal rows give equal bytes.
    return gzip.compress(data, compresslevel=_GZIP_LEVEL, mtime=0)


encode = stage(encode_documents, name="encode", version=2)
