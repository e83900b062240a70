"""The reward model as a stage: head's initial law, learnt order on held-out pairs, files, filtering. Oracle:
RECIPE G.
"""

import json
import math

import pytest
import torch
from safetensors.torch import load

from infra.workspace import Workspace
from model.files.weights import load_hf
from tasks.artifacts import Preferences
from tasks.training.reward import HEAD_FILE, HEAD_KEY, RewardConfig, score_head, split, train_reward
from tests.tasks.training.conftest import TINY, Rows, assistant, make_preferences, user

CONFIG = RewardConfig(learning_rate=1e-3, epochs=4, batch_size=8, max_tokens=64, held_out=0.25, precision="fp32")


def test_the_head_starts_as_published():
    drawn = score_head(4095, seed=0)
    assert drawn.shape == (1, 4095)
    assert float(drawn.std()) == pytest.approx(1 / math.sqrt(4096), rel=0.05)


def test_it_learns_to_score_chosen_higher(bench):
    base = bench.base()
    made = bench.run(train_reward, parent=base, pairs=bench.preferences(24), config=CONFIG)
    rows = [json.loads(line) for line in bench.read(made, "metrics.jsonl").splitlines()]
    assert rows[-1]["loss"] < 0.5 < rows[0]["loss"]
    assert made.accuracy == 1.0
    # Half a success and half a failure are added to the 6 held-out pairs: even 6 of 6 is no certainty.
    assert made.pairs_held_out == 6
    assert made.accuracy_stderr == pytest.approx(math.sqrt(6.5 / 7 * 0.5 / 7 / 7))
    head = load(bench.read(made, HEAD_FILE))[HEAD_KEY]
    assert head.shape == (1, TINY.d_model)
    folder = bench.session.store.full(made.address)
    parent = bench.session.store.full(base.address)
    trained, config = load_hf(folder)
    assert config == TINY
    original, _ = load_hf(parent)
    assert torch.equal(trained.head.weight, original.head.weight)
    assert not torch.equal(trained.blocks[0].attention.q.weight, original.blocks[0].attention.q.weight)


def test_pairs_that_are_too_long_are_left_out(bench):
    long = {
        "id": "x",
        "chosen": [user("1"), assistant("1 " * 100)],
        "rejected": [user("1"), assistant("2")],
        "chosen_rating": 5.0,
        "rejected_rating": 1.0,
    }
    short = long | {"chosen": [user("1"), assistant("1")]}
    pairs = bench.run(make_preferences, config=Rows(rows=[short, long, short]))
    record = bench.outcome(train_reward, parent=bench.base(), pairs=pairs, config=CONFIG).record
    assert (record.notes["pairs_trained"], record.notes["pairs_held_out"], record.notes["pairs_dropped"]) == (1, 1, 1)


class Sampled(Rows):
    samples: list[dict]


def make_sampled_preferences(ws: Workspace, config: Sampled) -> Preferences:
    ws.write_jsonl("preferences.jsonl.zst", config.rows)
    ws.write_jsonl("samples/00000000.jsonl.zst", config.samples)
    return ws.artifact(Preferences, pairs=len(config.rows), ties=0, mean_chosen=5.0, mean_rejected=1.0)


def test_held_out_prompts_are_judged_by_all_their_differently_rated_answers(bench):
    """By hand: ratings 5, 5, 1, 2 are five pairs of different ratings; the one held-out prompt of four gives them all."""
    rows, samples = [], []
    for number in range(4):
        rows.append(
            {
                "id": str(number),
                "chosen": [user(f"{number}"), assistant("yes")],
                "rejected": [user(f"{number}"), assistant("no")],
                "chosen_rating": 5.0,
                "rejected_rating": 1.0,
            }
        )
        samples += [
            {"id": str(number), "text": text, "rating": rating}
            for text, rating in (("yes", 5.0), ("oh yes", 5.0), ("no", 1.0), ("perhaps", 2.0))
        ]
    pairs = bench.run(make_sampled_preferences, config=Sampled(rows=rows, samples=samples))
    made = bench.outcome(train_reward, parent=bench.base(), pairs=pairs, config=CONFIG)
    assert made.record.notes["pairs_trained"] == 3
    assert made.record.notes["pairs_held_out"] == made.artifact.pairs_held_out == 5
    assert made.artifact.accuracy_stderr > 0


def test_split_keeps_one_pair_on_each_side():
    pairs = [(object(), object())] * 2
    training, held = split(pairs, 0.01, seed=0)
    assert (len(training), len(held)) == (1, 1)
    with pytest.raises(ValueError, match="1 usable pairs"):
        split(pairs[:1], 0.5, seed=0)
