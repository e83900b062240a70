"""Batches of rows and pairs: order by (seed, step), padding, and weights against the published reduction
written out.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.chat_batches import (
    IGNORE,
    LabelledRow,
    indices_of_step,
    make_row,
    pad_rows,
    padded_length,
    pair_batches,
    row_weights,
    split_passes,
    steps_for,
    token_batches,
)

PAD = 99


def row(length: int, trained_from: int = 1, start: int = 1) -> LabelledRow:
    ids = np.arange(start, start + length, dtype=np.uint32)
    return make_row(ids, np.arange(length) >= trained_from)


def test_labels_are_the_following_token_where_that_is_trained():
    made = make_row(np.array([5, 6, 7, 8], np.uint32), np.array([True, False, True, True]))
    assert made.ids.tolist() == [5, 6, 7, 8]
    assert made.labels.tolist() == [IGNORE, 7, 8, IGNORE]
    assert made.trained_tokens == 2


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 3))
@settings(max_examples=60)
def test_every_epoch_of_the_stream_sees_every_example_once(count, batch, seed):
    size = min(batch, count)
    stream = [i for step in range(2 * count) for i in indices_of_step(step, count, batch, seed)]
    for epoch in range(len(stream) // count):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert len(indices_of_step(0, count, batch, seed)) == size


def test_order_depends_on_seed_and_epoch():
    first = [indices_of_step(step, 64, 64, 0) for step in range(2)]
    assert first[0] != first[1]
    assert indices_of_step(0, 64, 64, 1) != first[0]
    assert indices_of_step(1, 64, 64, 0) == first[1]


def test_steps():
    assert steps_for(100, 32, 2) == 6
    assert steps_for(10, 32, 1) == 1
    assert steps_for(10, 32, 3) == 3
    with pytest.raises(ValueError, match="no trainable example"):
        steps_for(0, 32, 1)


@given(st.integers(1, 5000))
@settings(max_examples=100)
def test_padded_length_is_close_above(length):
    padded = padded_length(length)
    assert length <= padded <= max(32, length * 1.25)
    assert padded_length(padded) == padded


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 2048))
@settings(max_examples=60)
def test_passes_cover_all_and_respect_the_budget(lengths, budget):
    passes = split_passes(lengths, budget)
    assert sorted(i for members in passes for i in members) == list(range(len(lengths)))
    for members in passes:
        size = len(members) * padded_length(max(lengths[i] for i in members))
        assert size <= budget or len(members) == 1


def test_padding_is_right_with_ignored_labels():
    batch = pad_rows([row(40), row(3)], PAD)
    assert batch["ids"].shape == (2, 40)
    assert batch["ids"][1, :3].tolist() == [1, 2, 3]
    assert set(batch["ids"][1, 3:].tolist()) == {PAD}
    assert set(batch["labels"][1, 2:].tolist()) == {IGNORE}


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 8])
def test_weights_reproduce_the_published_reduction(reduction, micro_batch):
    """Oracle: RECIPE F written out: reduce each micro-batch, then average the micro-batches."""
    rng = np.random.default_rng(0)
    losses = [rng.random(length) for length in (3, 1, 7, 2, 5, 4)]
    groups = [losses[i : i + micro_batch] for i in range(0, len(losses), micro_batch)]
    joined = [np.concatenate(group) for group in groups]
    expected = np.mean([part.sum() if reduction == "sum" else part.mean() for part in joined])
    weights = row_weights([len(part) for part in losses], reduction, micro_batch)
    assert sum(w * part.sum() for w, part in zip(weights, losses, strict=True)) == pytest.approx(expected)


@pytest.mark.parametrize("pass_tokens", [1, 64, 128, 100_000])
def test_objective_does_not_depend_on_passes(pass_tokens):
    """Σ over passes of Σ weight · x, divided by the number of passes as the loop does, is the same for any
    split.
    """
    rows = [row(length, start=start) for start, length in enumerate((5, 40, 9, 33, 70, 12))]
    passes = token_batches(rows, pad_id=PAD, reduction="mean", micro_batch=2, pass_tokens=pass_tokens)

    def average(name):
        return sum(float((b[name] * (b["labels"] % 7)).sum()) for b in passes) / len(passes)

    whole = token_batches(rows, pad_id=PAD, reduction="mean", micro_batch=2, pass_tokens=10**9)
    for name in ("weights", "token_share"):
        expected = float((whole[0][name] * (whole[0]["labels"] % 7)).sum())
        assert average(name) == pytest.approx(expected, rel=1e-6)
    trained = sum(r.trained_tokens for r in rows)
    assert sum(float(b["token_share"].sum()) for b in passes) / len(passes) == pytest.approx(1.0)
    assert sum(int((b["labels"] != IGNORE).sum()) for b in passes) == trained


def test_extra_arrays_follow_their_rows():
    rows = [row(4), row(60), row(5)]
    passes = token_batches(
        rows,
        pad_id=PAD,
        reduction="sum",
        micro_batch=1,
        pass_tokens=32,
        per_row={"advantages": np.array([0.0, 1.0, 2.0], np.float32)},
        per_token={"old_log_probs": [np.full(len(r.ids), -float(i)) for i, r in enumerate(rows)]},
    )
    assert [b["advantages"].tolist() for b in passes] == [[1.0], [2.0], [0.0]]
    for b in passes:
        assert float(b["old_log_probs"][0, 0]) == -float(b["advantages"][0])
        assert float(b["old_log_probs"].sum()) == -float(b["advantages"][0]) * len(rows[int(b["advantages"][0])].ids)


def test_pairs_keep_chosen_before_rejected_and_their_references():
    pairs = [(row(4, start=10), row(6, start=20)), (row(50, start=30), row(5, start=90))]
    references = np.array([[1, 2], [3, 4]], np.float32)
    joined = pair_batches(pairs, pad_id=PAD, pass_tokens=10**6, references=references)[0]
    assert joined["ids"][:, 0].tolist() == [30, 10, 90, 20]
    assert joined["lengths"].tolist() == [50, 4, 5, 6]
    assert joined["reference"].tolist() == [3, 1, 4, 2]
    assert joined["weights"].tolist() == [0.5, 0.5]
    split = pair_batches(pairs, pad_id=PAD, pass_tokens=64, references=references)
    assert [b["weights"].tolist() for b in split] == [[1.0], [1.0]]
