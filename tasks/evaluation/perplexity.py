"""Stage: how well a model predicts held-out text, in bits per byte, passage by passage.

Source: RECIPE D (perplexity sets); bits per byte as in the paper's Appendix A, so that lower is better and lengths do not count.
A passage is an item, and the passages of a document are one cluster, so two models are compared on the same passages with an
honest error. Deviation: every passage is predicted by itself, after an EOS, not with the text before it.
"""

from collections.abc import Iterator
from math import log

import numpy as np
import torch
from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config, Precision
from model.decoding.log_likelihoods import log_likelihoods
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Checkpoint, Documents, Scores
from tasks.data.documents.dolma_files import document_files, read_documents
from tasks.evaluation.benchmarks.items import ItemScore
from tasks.evaluation.scoring.results import summarise
from tasks.training.fitting.fit import load_checkpoint

BITS_PER_BYTE = "bits_per_byte"
_SHOWN = 200
"""Characters of a passage that are kept next to its score."""


class PerplexityConfig(Config):
    """Which passages, and under which name."""

    label: str
    """What is evaluated, as the report names it."""
    name: str = "held_out_text"
    """Name of this text among benchmarks."""
    passage_tokens: int = Field(default=64, ge=2)
    """Tokens of a passage; what a document has beyond whole passages is left out."""
    passages: int = Field(default=3_000, ge=2)
    """Most passages, a random choice among all."""
    seed: int = 0
    """Of that choice."""
    precision: Precision = "fp32"
    """Type of activations and matmuls."""


Passage = tuple[str, str, list[int]]
"""(id, id of its document, tokens)"""


def score_text(ws: Workspace, checkpoint: Checkpoint, documents: Documents, config: PerplexityConfig) -> Scores:
    """Bits per byte of passages of the documents.

    Raises ValueError where the documents hold fewer than two passages, or the model's window is shorter than a passage.
    """
    torch.set_num_threads(ws.compute.threads)
    model, tokenizer = load_checkpoint(ws, checkpoint)
    # The EOS before a passage takes a place too.
    if config.passage_tokens >= model.config.max_sequence_length:
        raise ValueError(
            f"passage_tokens={config.passage_tokens:,} and the EOS before them do not fit the model's window of "
            f"{model.config.max_sequence_length:,}; use shorter passages"
        )
    found = list(cut_passages(ws, documents, tokenizer, config.passage_tokens))
    if len(found) < 2:
        raise ValueError(
            f"{documents.address} holds {len(found)} passages of {config.passage_tokens:,} tokens; hold out more text or use "
            "shorter passages"
        )
    # A random choice, kept in the documents' order.
    chosen = np.random.default_rng(config.seed).permutation(len(found))[: config.passages]
    passages = [found[place] for place in sorted(chosen.tolist())]
    device = ws.compute.device
    with (
        ws.progress(f"{config.label}: {config.name}", len(passages), "passages") as bar,
        torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"),
    ):
        requests = [([tokenizer.eos_id], ids) for _, _, ids in passages]
        logprobs = log_likelihoods(model.to(device).eval(), requests, progress=bar.advance)
    return write_scores(ws, checkpoint, tokenizer, passages, logprobs, config)


def write_scores(
    ws: Workspace,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    passages: list[Passage],
    logprobs: list[float],
    config: PerplexityConfig,
) -> Scores:
    """Every passage's bits per byte, and their mean."""
    sizes = [len(piece) for piece in tokenizer.token_bytes()]
    values = [
        # Bits per byte: lengths and tokenizers do not count.
        -logprob / log(2) / sum(sizes[id] for id in ids)
        for (_, _, ids), logprob in zip(passages, logprobs, strict=True)
    ]
    scored = [ItemScore({BITS_PER_BYTE: value}, "", "") for value in values]
    row = summarise(config.name, BITS_PER_BYTE, scored, 0, [document for _, document, _ in passages])
    row["role"] = "dev"
    ws.write_jsonl(
        f"items/{config.name}.jsonl.zst",
        [
            {
                "id": id, "question": tokenizer.decode(ids)[:_SHOWN], "gold": "", "group": document, "answer": "",
                "extracted": "", "metrics": {BITS_PER_BYTE: value}, "answers": [],
            }
            for (id, document, ids), value in zip(passages, values, strict=True)
        ],
    )  # fmt: skip
    ws.write_json("scores.json", {"label": config.label, "checkpoint": checkpoint.digest, "benchmarks": [row]})
    return ws.artifact(
        Scores,
        label=config.label,
        checkpoint=checkpoint.digest,
        primary={config.name: row["score"]},
        stderr={config.name: row["stderr"]},
    )


def cut_passages(ws: Workspace, documents: Documents, tokenizer: Tokenizer, tokens: int) -> Iterator[Passage]:
    """Whole passages of every document, from its beginning on."""
    for name in document_files(ws, documents):
        for document in read_documents(ws, documents, name):
            ids = tokenizer.encode_array(document["text"].strip())
            for place in range(len(ids) // tokens):
                own = ids[place * tokens : (place + 1) * tokens]
                yield f"{document['id']}:{place}", document["id"], own.tolist()


perplexity = stage(score_text, name="perplexity", version=1, process=True)
