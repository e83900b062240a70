"""Evaluation while training. Oracles: plain cross-entropy of the finished model; a benchmark asked by the evaluation stage's
own functions; an undisturbed run.
"""

import json
from math import exp

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from infra.records.reader import Reader
from infra.workspace import Workspace
from model.config import Config
from model.files.weights import load_hf
from model.training.configs import OptimConfig
from tasks.artifacts import Mix, Tokens
from tasks.data.mix import MixConfig, mix_tokens
from tasks.evaluation.benchmarks.synthetic import SyntheticBenchmark
from tasks.synthetic.arithmetic import ArithmeticConfig
from tasks.training.anneal import AnnealConfig, anneal_checkpoint
from tasks.training.fitting.in_loop_evaluation import InLoopConfig
from tasks.training.fitting.mix_windows import training_windows
from tasks.training.pretrain import PretrainConfig, train_base
from tests.tasks.training.conftest import RANKS, TINY

CLOZE = SyntheticBenchmark(name="sums", format="cloze", items=20, shots=0, problems=(ArithmeticConfig(max_operand=9),))
IN_LOOP = InLoopConfig(every=4, windows=3, tasks=("sums",), items=5).filled((CLOZE,))
CONFIG = PretrainConfig(
    model=TINY, sequence_length=16, batch_size=4, steps=10, log_every=5, norms_every=5,
    optim=OptimConfig(precision="fp32"), in_loop=IN_LOOP,
)  # fmt: skip


class Source(Config):
    name: str


def write_tokens(ws: Workspace, config: Source) -> Tokens:
    ids = np.random.default_rng(len(config.name)).integers(0, 300, 20 * 16).astype("<u4")
    ws.write("tokens/0.npy", ids.tobytes())
    return ws.artifact(
        Tokens, source=config.name, tokens=len(ids), documents=1, ranks=RANKS, files={"tokens/0.npy": len(ids)}
    )


def made_mix(bench) -> Mix:
    sources = [bench.run(write_tokens, config=Source(name=name)) for name in ("web", "code")]
    return bench.run(mix_tokens, sources=sources, config=MixConfig(), ranking=None)


def logged(bench, made) -> dict[int, dict[str, float]]:
    return {row["step"]: row for row in map(json.loads, bench.read(made, "metrics.jsonl").splitlines())}


def test_perplexities_are_of_windows_that_were_not_trained_on(bench):
    mix = made_mix(bench)
    made = bench.run(train_base, mix=mix, config=CONFIG.model_copy(update={"steps": 8}))
    rows = logged(bench, made)
    assert [step for step, row in rows.items() if "perplexity/web" in row] == [4, 8]
    assert [step for step, row in rows.items() if "lr" in row] == [4, 5, 8], "what is evaluated is logged"
    assert list(rows) == list(range(1, 9)), "and every step is recorded"
    assert rows[5]["masked_labels"] == pytest.approx(1 / 16), "nothing repeats; the last position has no label"
    ws = Reader(bench.session.store)
    data = training_windows(ws, mix, CONFIG, CONFIG.data_seed)
    model, _ = load_hf(ws.path(made))
    for source, windows in data.held_out().items():
        ids = torch.from_numpy(np.stack(data.read(windows)).astype(np.int64))
        with torch.no_grad():
            ce = cross_entropy(model.eval()(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        assert len(ids) == 3
        assert rows[8][f"perplexity/{source}"] == pytest.approx(exp(float(ce)), rel=1e-4)
    trained = {bytes(row) for step in range(8) for part in data.batch(step) for row in part["ids"]}
    assert not trained & {bytes(row) for windows in data.held_out().values() for row in data.read(windows)}
    assert 0 <= rows[4]["task/sums"] <= 1
    tables = [event for event in bench.events if event[:2] == ("table", "in-loop")]
    assert [row["step"] for row in tables[-1][2]] == [4, 8]
    assert rows[5]["update_norm/blocks.1"] > 0


def test_a_resumed_run_writes_the_same_bytes(make_bench, killed):
    def run(bench):
        return bench.run(train_base, mix=made_mix(bench), config=CONFIG)

    whole = make_bench("whole", save_every=3, micro_instances={"default": 2})
    expected = whole.read(run(whole), "metrics.jsonl")
    broken = make_bench("broken", save_every=3, micro_instances={"default": 2})
    killed(6)
    with pytest.raises(KeyboardInterrupt):
        run(broken)
    assert broken.read(run(broken), "metrics.jsonl") == expected


def test_an_anneal_evaluates_too_and_holds_out_the_same(bench):
    mix = made_mix(bench)
    base = bench.run(train_base, mix=mix, config=CONFIG)
    config = AnnealConfig(
        learning_rate=1e-3, sequence_length=16, batch_size=4, steps=4, log_every=2, norms_every=0,
        optim=OptimConfig(precision="fp32"), in_loop=IN_LOOP,
    )  # fmt: skip
    made = bench.run(anneal_checkpoint, parent=base, mix=mix, config=config)
    assert {"perplexity/web", "perplexity/code", "task/sums"} <= logged(bench, made)[4].keys()
    ws = Reader(bench.session.store)
    both = [training_windows(ws, mix, one, 1).held_out() for one in (CONFIG, config)]
    assert both[0] == both[1]


def test_tasks_are_named_among_the_benchmarks():
    with pytest.raises(ValueError, match=r"in_loop.tasks names gsm8k; the benchmarks under evaluation are sums"):
        InLoopConfig(tasks=("gsm8k",)).filled((CLOZE,))


def test_tasks_without_their_benchmarks_are_refused(bench):
    config = CONFIG.model_copy(update={"in_loop": InLoopConfig(tasks=("sums",))})
    with pytest.raises(ValueError, match="a recipe fills them in"):
        bench.run(train_base, mix=made_mix(bench), config=config)


def test_holding_out_more_than_half_is_refused(bench):
    config = CONFIG.model_copy(update={"in_loop": InLoopConfig(windows=11)})
    with pytest.raises(ValueError, match="has 20 windows; holding out 11 takes more than half"):
        bench.run(train_base, mix=made_mix(bench), config=config)
