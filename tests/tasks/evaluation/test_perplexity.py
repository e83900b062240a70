"""Bits per byte of held-out passages. Oracle: softmax over the model's own logits, passage by passage."""

import math
from pathlib import Path

import pytest
import torch

from infra.execution.attempt import run_stage
from infra.session import Session
from infra.settings import Execution
from infra.stage import stage
from infra.storage.store import Store
from infra.workspace import Workspace
from model.files.weights import load_hf
from tasks.artifacts import Documents
from tasks.evaluation.perplexity import PerplexityConfig, score_text
from tests.tasks.training.conftest import TOKENIZER, Rows, Seed, make_checkpoint

TEXTS = [
    "one two three four five six seven eight nine ten " * 3,
    "a short one",
    "the other document, which is longer " * 4,
]


def make_documents(ws: Workspace, config: Rows) -> Documents:
    ws.write_jsonl("documents/0.jsonl.zst", config.rows)
    size = sum(len(row["text"].encode()) for row in config.rows)
    return ws.artifact(Documents, documents=len(config.rows), bytes=size, sources={"web": len(config.rows)})


class Desk:
    def __init__(self, root: Path):
        self.session = Session(Store(str(root)), Execution(store=str(root), ray="off"))

    def run(self, function, **arguments):
        made = stage(function, name=function.__name__.replace("make_", ""), version=1)
        return run_stage(made, self.session, arguments, lambda event: None).artifact

    def rows(self, texts: list[str]) -> Documents:
        rows = [{"id": f"d{n}", "text": text, "source": "web"} for n, text in enumerate(texts)]
        return self.run(make_documents, config=Rows(rows=rows))


def test_passages_are_scored_by_the_models_own_probabilities(tmp_path):
    import zstandard

    desk = Desk(tmp_path)
    model = desk.run(make_checkpoint, config=Seed())
    found = desk.run(
        score_text,
        checkpoint=model,
        documents=desk.rows(TEXTS),
        config=PerplexityConfig(label="tiny", passage_tokens=16),
    )
    data = desk.session.store.read(f"{found.address}/items/held_out_text.jsonl.zst")
    import json

    rows = [json.loads(line) for line in zstandard.ZstdDecompressor().decompressobj().decompress(data).splitlines()]
    network, _ = load_hf(Path(desk.session.store.full(model.address)))
    expected = {}
    for number, text in enumerate(TEXTS):
        ids = TOKENIZER.encode_array(text.strip()).tolist()
        for place in range(len(ids) // 16):
            own = ids[place * 16 : place * 16 + 16]
            logits = network(torch.tensor([[TOKENIZER.eos_id, *own[:-1]]])).float().log_softmax(-1)[0]
            nats = -sum(logits[at, id].item() for at, id in enumerate(own))
            expected[f"d{number}:{place}"] = nats / math.log(2) / len(TOKENIZER.decode(own).encode())
    assert {row["id"]: row["metrics"]["bits_per_byte"] for row in rows} == pytest.approx(expected, rel=1e-4)
    assert {row["group"] for row in rows} == {"d0", "d2"}
    assert found.primary["held_out_text"] == pytest.approx(sum(expected.values()) / len(expected), rel=1e-4)
    assert found.stderr["held_out_text"] > 0


def test_at_most_so_many_passages_are_chosen_by_seed(tmp_path):
    desk = Desk(tmp_path)
    model, documents = desk.run(make_checkpoint, config=Seed()), desk.rows(TEXTS)
    config = PerplexityConfig(label="tiny", passage_tokens=4, passages=5)
    values = [
        desk.run(
            score_text, checkpoint=model, documents=documents, config=config.model_copy(update={"seed": seed})
        ).primary
        for seed in (0, 1)
    ]
    assert values[0] != values[1]


def test_too_little_text_and_too_long_passages_are_refused(tmp_path):
    desk = Desk(tmp_path)
    model = desk.run(make_checkpoint, config=Seed())
    with pytest.raises(ValueError, match="holds 0 passages of 64 tokens"):
        desk.run(score_text, checkpoint=model, documents=desk.rows(["short"]), config=PerplexityConfig(label="tiny"))
    with pytest.raises(ValueError, match="do not fit the model's window of 128"):
        desk.run(
            score_text,
            checkpoint=model,
            documents=desk.rows(TEXTS),
            config=PerplexityConfig(label="tiny", passage_tokens=128),
        )
