"""Tracing both ways on a real little training. Oracles: the token files themselves, decoded and compared with the texts; the
two directions against each other.
"""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from flows.inspection.steps import Training, trace_document, trace_step, trained
from flows.inspection.traces import print_trace
from infra.records.artifact import Artifact
from infra.records.reader import Reader
from model.config import ModelConfig
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Checkpoint, Mix
from tasks.data.collect import collect
from tasks.data.dedup import DedupConfig, dedup
from tasks.data.encode import EncodeConfig, encode
from tasks.data.filter import FilterConfig, filter
from tasks.data.filters.statistics.length import LengthRule
from tasks.data.mix import MixConfig, mix
from tasks.data.score import ScoreConfig, score
from tasks.data.sources.local import LocalSource
from tasks.training.anneal import AnnealConfig, anneal
from tasks.training.pretrain import PretrainConfig, pretrain
from tests.tasks.data.conftest import Bench

RANKS = 300
MODEL = ModelConfig(
    d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=16, mlp_hidden=32, max_sequence_length=16,
    vocab_size=Tokenizer(RANKS).padded_vocab_size,
)  # fmt: skip
TEXTS = {f"doc-{i}": f"Document {i} says {'very ' * (i % 5)}little: {i * i}." for i in range(40)}


class Run:
    """A little run: two sources through a filter and dedup, a base over two epochs, an anneal over a repeated mix."""

    def __init__(self, root: Path):
        self.bench = Bench(root)
        bench = self.bench
        kept = []
        for name, ids in (("web", list(TEXTS)[:25]), ("code", list(TEXTS)[25:])):
            path = root / f"{name}.jsonl"
            path.write_text("".join(json.dumps({"id": id, "text": TEXTS[id]}) + "\n" for id in ids))
            raw = bench.run(collect, LocalSource(name=name, paths=(str(path),)).pinned())
            rules = FilterConfig(rules=(LengthRule(min_chars=10),))
            scores = bench.run(score, raw, ScoreConfig(scorers=rules.scorers))
            kept.append(bench.run(filter, raw, rules, scores))
        unique = bench.run(dedup, kept, DedupConfig())
        encoding = [EncodeConfig(source=name, ranks=RANKS) for name in ("web", "code")]
        self.tokens = [bench.run(encode, unique, config) for config in encoding]
        # In this process: what the stages compute is the same.
        base_here, anneal_here = replace(pretrain, process=False), replace(anneal, process=False)
        once: Mix = bench.run(mix, self.tokens, MixConfig())
        self.once = once
        small: dict[str, Any] = {"sequence_length": 16, "batch_size": 4}
        self.base: Checkpoint = bench.run(
            base_here, once, PretrainConfig(model=MODEL, **small, steps=2 * (once.tokens // 64) - 1)
        )
        twice = MixConfig(sources=({"source": "web", "passes": 2.5},))  # type: ignore[arg-type]
        self.mixed: Mix = bench.run(mix, self.tokens, twice)
        self.annealed: Checkpoint = bench.run(anneal_here, self.base, self.mixed, AnnealConfig(**small))

    def training(self, id: str) -> Training:
        return trained(id, "pretrain", self.bench.store.url)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("trace"))


@pytest.mark.parametrize("which", ["base", "annealed"])
def test_steps_are_those_of_the_record(run: Run, which: str):
    made: Checkpoint = getattr(run, which)
    assert run.training(made.id).steps == made.steps


def test_a_training_that_failed_is_traced_like_one_that_did_not(run: Run):
    """The same data seed at a learning rate that ends in nan: the same documents, step by step."""
    whole = run.training(run.base.id)
    config = PretrainConfig.model_validate(whole.begun.config)
    wild = config.schedule.model_copy(update={"learning_rate": 1e38, "unit": "steps", "warmup": 0})
    before = set(run.bench.store.names("_progress/pretrain"))
    with pytest.raises(FloatingPointError, match="a non-finite value"):
        run.bench.run(replace(pretrain, process=False), run.once, config.model_copy(update={"schedule": wild}))
    (failed,) = set(run.bench.store.names("_progress/pretrain")) - before
    training = run.training(failed)
    assert training.steps == whole.steps
    for step in (1, 2, whole.steps):
        assert trace_step(training, step)["windows"] == trace_step(whole, step)["windows"]
    assert trace_document(training, "doc-3")["places"] == trace_document(whole, "doc-3")["places"]
    started = f"_progress/pretrain/{failed}/g0001/started.json"
    run.bench.store.remove(started)
    with pytest.raises(ValueError, match=f"what pretrain/{failed} computes is not known"):
        run.training(failed)


@pytest.mark.parametrize("which", ["base", "annealed"])
def test_every_step_names_the_documents_whose_text_it_read(run: Run, which: str):
    training = run.training(getattr(run, which).id)
    tokenizer = Tokenizer(RANKS)
    for step in range(1, training.steps + 1):
        ids = np.concatenate([micro["ids"] for micro in training.data.batch(step - 1)])
        windows = trace_step(training, step)["windows"]
        assert len(windows) == len(ids)
        for window, row in zip(windows, ids, strict=True):
            assert sum(document["tokens"] for document in window["documents"]) == len(row)
            read = tokenizer.decode(row, skip_special=False)
            whole = "".join(TEXTS[document["id"]] + "<|endoftext|>" for document in window["documents"])
            assert read in whole
            assert {document["source"] for document in window["documents"]} == {window["source"]}


@pytest.mark.parametrize("which", ["base", "annealed"])
def test_a_document_names_the_steps_that_name_it(run: Run, which: str):
    training = run.training(getattr(run, which).id)
    seen: dict[str, set[int]] = {}
    for step in range(1, training.steps + 1):
        for window in trace_step(training, step)["windows"]:
            for document in window["documents"]:
                seen.setdefault(document["id"], set()).add(step)
    ids = list(TEXTS) if which == "base" else list(TEXTS)[:25]
    for id in ids:
        steps = {step for place in trace_document(training, id)["places"] for step in place["steps"]}
        assert steps == seen.get(id, set()), id
    if which == "base":
        assert training.steps > training.data.steps_per_epoch, "the second epoch is traced too"


def test_scores_come_from_the_filter_through_dedup(run: Run):
    place = trace_document(run.training(run.base.id), "doc-30")["places"][0]
    assert place["scores"] == {"olmo2__length__chars": float(len(TEXTS["doc-30"]))}
    assert place["source"] == "code"
    assert (place["src"], place["loc"]) == ("documents/001-00000-000.jsonl.zst", "6")
    assert place["passes"] == 1


def test_what_cannot_be_traced_is_refused_by_name(run: Run):
    training = run.training(run.base.id)
    for step in (0, training.steps + 1):
        with pytest.raises(ValueError, match=f"makes updates 1 to {training.steps}; there is no step {step}"):
            trace_step(training, step)
    with pytest.raises(ValueError, match="has a document 'doc-99'"):
        trace_document(training, "doc-99")
    with pytest.raises(ValueError, match="was not trained on a mix"):
        run.training(run.mixed.id)
    with pytest.raises(ValueError, match="has no artifact with id"):
        run.training("zzz")


def test_the_mix_is_read_once(run: Run, monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []
    whole = Reader.read_json

    def counted(reader: Reader, artifact: Artifact, name: str) -> Any:
        read.append(f"{artifact.address}/{name}")
        return whole(reader, artifact, name)

    monkeypatch.setattr(Reader, "read_json", counted)
    run.training(run.annealed.id)
    assert read == [f"{run.mixed.address}/mix.json"]


def test_both_directions_are_printed(run: Run):
    training = run.training(run.base.id)
    console = Console(file=StringIO(), width=200)
    print_trace(console, trace_step(training, 1))
    print_trace(console, trace_document(training, "doc-3"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "update 1 of" in text
    assert "length__chars" in text
    assert "read by updates" in text


def test_ids_are_printed_whole_in_a_narrow_terminal():
    id = "a/path/that/is/longer/than/eighty/columns/and-has-[bold]brackets[/bold]-in-it.jsonl.zst:0123456789abcdef"
    document = {"id": id, "start": 0, "end": 9, "tokens": 9, "src": f"{id}.src", "loc": "1", "scores": {}}
    traced = {"label": "pretrain", "id": "0" * 16, "step": 1, "steps": 1, "epoch": 1}
    console = Console(file=StringIO(), width=80)
    print_trace(console, traced | {"windows": [{"source": "web", "documents": [document]}]})
    assert id in console.file.getvalue().split()  # type: ignore[attr-defined]


def test_a_recipe_names_its_training(run: Run, tmp_path: Path):
    with pytest.raises(ValueError, match=r"pretrain of recipe smoke is not made yet"):
        trained("smoke", "pretrain", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="--set changes a recipe"):
        trained(run.base.id, "pretrain", run.bench.store.url, ["pretrain.steps=2"])
    with pytest.raises(ValueError, match="anneal' means anneal:42"):
        trained("smoke", "anneal", str(tmp_path / "empty"))
    assert Reader(run.bench.store).at(run.base.address) == run.base
