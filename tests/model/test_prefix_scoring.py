"""Oracles: single forward passes of the model for scores; counting for what a tree of prefixes may read."""

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.decoding import prefix_tree, tree_attention
from model.decoding.log_likelihoods import NonFiniteOutput, log_likelihoods
from model.decoding.prefix_tree import build, preorder, schedule, sees
from model.decoding.prepared_weights import Prepared
from model.network.transformer import Transformer

SHAPE = {
    "d_model": 32, "n_layers": 2, "n_heads": 4, "head_dim": 8, "mlp_hidden": 48, "vocab_size": 128, "max_sequence_length": 96,
}  # fmt: skip
Pairs = list[tuple[list[int], list[int]]]


def toy(kv_heads: int = 4) -> Transformer:
    return Transformer(ModelConfig(**SHAPE, n_kv_heads=kv_heads, init_std=0.3), seed=1).eval()


def requests(seed: int = 0) -> Pairs:
    """Shots shared by all, questions shared by choices, choices that begin alike, of one token, and given twice."""
    random = np.random.default_rng(seed)

    def ids(n: int) -> list[int]:
        return random.integers(0, 128, n).tolist()

    shots, pairs = ids(30), []
    for length in (1, 5, 9, 20):
        context, begin = shots + ids(length), ids(2)
        pairs += [(context, [n]) for n in range(4)]
        pairs += [(context, begin + ids(n)) for n in (0, 1, 3)] + [(context, begin)]
    pairs += [(shots, ids(6)), (shots[:4], ids(1)), (ids(7), ids(2)), (ids(200), ids(3))]
    return [pairs[place] for place in random.permutation(len(pairs))]


@torch.no_grad()
def alone(model: Transformer, pair: tuple[list[int], list[int]]) -> float:
    """One forward pass of the whole text, cut to what fits: the last token is not fed."""
    ids = (pair[0] + pair[1])[-(model.config.max_sequence_length + 1) :]
    logprobs = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)[-len(pair[1]) :]
    return float(logprobs.gather(1, torch.tensor(pair[1])[:, None]).sum())


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("row", "batch"), [(1_024, 1_024), (12, 64), (1, 1), (3, 7)])
def test_scores_equal_single_forwards(monkeypatch, kv_heads, row, batch):
    monkeypatch.setattr(prefix_tree, "MAX_ROW_TOKENS", row)
    model, pairs, told = toy(kv_heads), requests(), []
    scores = log_likelihoods(model, pairs, batch_tokens=batch, progress=told.append)
    assert sum(told) == len(pairs)
    assert scores == pytest.approx([alone(model, pair) for pair in pairs], abs=1e-4)


def test_the_explicit_attention_of_other_devices_gives_the_same(monkeypatch):
    model, pairs = toy(2), requests()
    expected = log_likelihoods(model, pairs)

    monkeypatch.setattr(tree_attention, "_attend", tree_attention._explicit)
    assert log_likelihoods(model, pairs) == pytest.approx(expected, abs=1e-4)


def test_bf16_by_name_is_near_fp32():
    model, pairs = toy(), requests()
    with torch.autocast("cpu", torch.bfloat16):
        rough = log_likelihoods(model, pairs)
    exact = log_likelihoods(model, pairs)
    assert rough == pytest.approx(exact, rel=0.05)
    assert rough != exact


def test_every_distinct_token_is_read_once(monkeypatch):
    pairs = [pair for pair in requests() if len(pair[0]) + len(pair[1]) <= 97]
    read = []
    blocks = Prepared.blocks
    monkeypatch.setattr(Prepared, "blocks", lambda self, ids, *rest: read.append(len(ids)) or blocks(self, ids, *rest))
    log_likelihoods(toy(), pairs)
    distinct = {tuple((a + b)[:n]) for a, b in pairs for n in range(1, len(a) + len(b))}
    assert sum(read) == len(distinct)


@pytest.mark.parametrize("row", [2, 8, 1_024])
def test_a_schedule_reads_every_node_once_after_its_prefix(monkeypatch, row):
    monkeypatch.setattr(prefix_tree, "MAX_ROW_TOKENS", row)
    sequences = sorted({tuple(a + b) for a, b in requests()})
    nodes, ends = build(sequences)
    for sequence, node in zip(sequences, ends, strict=True):
        path, at = [], node
        while at is not None:
            path, at = [*at.tokens, *path], at.parent
        assert tuple(path) == sequence
    steps = list(schedule(nodes, 64))
    read = [node for step in steps for line in step.rows for node in line]
    assert len(read) == len(set(map(id, read))) == len(nodes)
    kept: list[object] = [None]
    for step in steps:
        assert any(step.prefix is node for node in kept)
        for line in step.rows:
            assert line[0].parent is step.prefix
            assert sum(len(node.tokens) for node in line) <= row or step.keeps
        kept += [step.rows[0][0]] if step.keeps else []


def test_a_long_chain_of_prefixes_needs_no_recursion():
    nodes, ends = build([tuple(range(n)) for n in range(1, 3_000)])
    assert len(nodes) == len(ends) == 2_999
    assert len(preorder(nodes[0])) == 2_999
    assert nodes[0].size == 2_999


def test_a_token_sees_its_ancestors_only():
    nodes, _ = build([(1, 2, 3), (1, 2, 4, 5)])
    (top,) = (node for node in nodes if node.parent is None)
    row = preorder(top)
    tokens = [token for node in row for token in node.tokens]
    mask = sees(row, 6)
    seen = {token: {tokens[j] for j in range(5) if mask[i, j]} for i, token in enumerate(tokens)}
    assert seen == {1: {1}, 2: {1, 2}, 3: {1, 2, 3}, 4: {1, 2, 4}, 5: {1, 2, 4, 5}}
    assert mask[5].tolist() == [False] * 5 + [True]


def test_sequences_out_of_order_or_empty_are_refused():
    with pytest.raises(ValueError, match="sequence 0 of 0 tokens is empty or given twice"):
        build([()])
    with pytest.raises(ValueError, match="sequence 1 of 1 tokens is empty or given twice"):
        build([(1,), (1,)])


def test_the_first_request_without_a_finite_score_is_named():
    model = toy()
    with torch.no_grad():
        model.get_parameter("embedding.weight")[77] = torch.nan
    pairs = [([1, 2], [3]), ([1, 77], [3]), ([77], [3, 4])]
    with pytest.raises(NonFiniteOutput, match="log-likelihood of request 1 is nan") as caught:
        log_likelihoods(model, pairs)
    assert caught.value.index == 1
