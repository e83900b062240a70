"""How workers share a step. Oracle: the step of one process, row by row and number by number."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.data.labels import IGNORE
from model.parallel.work_split import UNEVEN, Shape, cut_micro_batches, own_rows, share_of
from tests.model.groups import HostBatch, chat_batches, language_batches, preference_batches, rollout_batches

KINDS = {"language": language_batches, "chat": chat_batches, "pairs": preference_batches, "rollouts": rollout_batches}
SHARES = ("weights", "token_share", "value_share")
"""What a row, or a pair, counts by in losses and metrics."""


def step_of(kind: str, number: int) -> Sequence[HostBatch]:
    """A step's micro-batches, with every array that objectives weigh by."""
    batches = KINDS[kind](number)
    return [{**batch, "value_share": batch["weights"] / 7} for batch in batches] if kind == "rollouts" else batches


def counted(batch: HostBatch) -> list[bytes]:
    """Its rows, or pairs of rows, that are trained, with all that belongs to each."""
    pairs = "lengths" in batch
    units = len(batch["ids"]) // 2 if pairs else len(batch["ids"])
    arrays = {name: value for name, value in batch.items() if value.ndim}
    rows = []
    for unit in range(units):
        own = {
            name: value[unit :: units if len(value) == len(batch["ids"]) else len(value)]
            for name, value in arrays.items()
        }
        trained = own["weights"].any() if "weights" in own else (own["labels"] != IGNORE).any()
        if trained:
            rows.append(b"".join(name.encode() + value.tobytes() for name, value in sorted(own.items())))
    return rows


def totals(batches: Sequence[HostBatch]) -> dict[str, float]:
    """Sums of what losses and metrics are weighed by; scalars other than the divisor are metrics themselves."""
    found: dict[str, float] = defaultdict(float)
    for batch in batches:
        for name, value in batch.items():
            if name in SHARES or (value.ndim == 0 and name != "divisor"):
                found[name] += float(value.sum(dtype=np.float64))
    return found


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(number=st.integers(0, 50), world=st.integers(1, 8))
@settings(max_examples=15)
def test_workers_together_have_the_step_of_one(kind: str, number: int, world: int) -> None:
    step = step_of(kind, number)
    shares = [share_of(step, rank, world) for rank in range(world)]
    pieces = [piece for share in shares for piece in share]
    assert {len(share) for share in shares} == {len(shares[0])}, "all workers have equally many"
    assert Counter(row for piece in pieces for row in counted(piece)) == Counter(
        row for batch in step for row in counted(batch)
    )
    assert {float(piece.get("divisor", 0)) for piece in pieces} == {float(batch.get("divisor", 0)) for batch in step}
    assert totals(pieces) == pytest.approx(totals(step), rel=1e-6)
    assert all(piece.keys() == step[0].keys() for piece in pieces)
    if world == 1:
        assert shares[0] is step


@given(st.lists(st.builds(Shape, st.integers(1, 20), st.integers(1, 9)), min_size=1, max_size=12), st.integers(1, 8))
@example([Shape(1, 4096)] * 1024, 48)
@example([Shape(4, 4096)] * 512, 96)
@settings(max_examples=60)
def test_few_rounds_and_nobody_waits_long(shapes: list[Shape], world: int) -> None:
    pieces = cut_micro_batches(tuple(shapes), world)
    parts = [max(piece.parts for piece in pieces if piece.batch == batch) for batch in range(len(shapes))]
    assert Counter(pieces) == Counter(
        (batch, part, count) for batch, count in enumerate(parts) for part in range(count)
    )
    assert all(count <= min(shape.units, world) for count, shape in zip(parts, shapes, strict=True))
    sizes = [-(-shapes[batch].units // count) * shapes[batch].tokens for batch, _, count in pieces]
    rounds = math.ceil(len(pieces) / world)
    waited = sum(max(sizes[at : at + world]) for at in range(0, len(sizes), world))
    # The rule that cuts every micro-batch for all workers has as many rounds as micro-batches.
    for_all = sum(math.ceil(units / world) * tokens for units, tokens in shapes)
    assert rounds <= len(shapes) and waited <= UNEVEN * for_all


@pytest.mark.parametrize(
    ("micro_batches", "rows", "world", "rounds", "most"),
    [(1024, 1, 48, 22, 22), (512, 4, 96, 6, 24), (3, 2, 8, 1, 1), (8, 16, 64, 1, 2), (6, 4, 3, 2, 8), (1, 7, 3, 1, 3)],
)
def test_rounds_and_rows_of_the_busiest(micro_batches: int, rows: int, world: int, rounds: int, most: int) -> None:
    """The first is a batch of 1,024 windows, one at a time, on 48 workers."""
    ids = np.zeros((rows, 8), dtype=np.int64)
    step = [{"ids": ids, "labels": ids, "divisor": np.asarray(np.float32(1))}] * micro_batches
    shares = [share_of(step, rank, world) for rank in range(world)]
    assert {len(share) for share in shares} == {rounds}
    trained = [sum((piece["labels"] != IGNORE).any(axis=1).sum() for piece in share) for share in shares]
    assert (max(trained), sum(trained)) == (most, micro_batches * rows)


@given(micro_batches=st.integers(1, 9), count=st.integers(1, 5), world=st.integers(1, 8))
@settings(max_examples=40)
def test_rows_known_beforehand_are_those_that_are_taken(micro_batches: int, count: int, world: int) -> None:
    """Also where rows are as long as windows are: what is known beforehand does not depend on it."""
    ids = np.arange(micro_batches * count)[:, None] + np.zeros((1, 48), dtype=np.int64)
    step = [{"ids": part, "labels": part, "divisor": np.float32(1)} for part in np.split(ids, micro_batches)]
    taken = []
    for rank in range(world):
        parts = [part for part in share_of(step, rank, world) if (part["labels"] != IGNORE).all()]
        own = own_rows(micro_batches, count, rank, world)
        np.testing.assert_array_equal(np.concatenate([part["ids"][:, 0] for part in parts] or [own[:0]]), own)
        taken += own.tolist()
    assert sorted(taken) == list(range(micro_batches * count))


def test_micro_batches_that_divide_stay_whole() -> None:
    batches = language_batches(0)
    assert share_of(batches, 1, 3) == [batches[1]]
    assert [len(part["ids"]) for part in share_of(batches, 0, 2)] == [1, 1, 1]


def test_a_loss_that_depends_on_its_neighbours_is_refused() -> None:
    ids = np.zeros((4, 8), dtype=np.int64)
    with pytest.raises(ValueError, match="neither `divisor` nor `weights`"):
        share_of([{"ids": ids, "labels": ids}], 0, 2)
