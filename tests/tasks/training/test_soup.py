"""Soups as stages: members, distances, the greedy rule. Oracles: NumPy's mean and norms; the rule applied by hand to scores."""

import json

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors

from model.files.weights import save_hf
from model.network.transformer import Transformer
from tasks.artifacts import Checkpoint
from tasks.evaluation.benchmarks.synthetic import SyntheticBenchmark
from tasks.synthetic.arithmetic import ArithmeticConfig
from tasks.training.fitting.dev_scores import DevConfig
from tasks.training.soup import SoupConfig, make_soup
from tests.tasks.training.conftest import RANKS, TINY, TOKENIZER, Seed

BITS = SyntheticBenchmark(
    name="bits", format="bits_per_byte", items=30, shots=0, problems=(ArithmeticConfig(max_operand=9),)
)


def ingredient(ws, config: Seed) -> Checkpoint:
    save_hf(Transformer(TINY, seed=config.seed), TINY, TOKENIZER, ws.scratch / "model")
    ws.put(ws.scratch / "model")
    return ws.artifact(Checkpoint, steps=1, tokens=0, parameters=TINY.parameters, loss=0.0, ranks=RANKS, parent="one")


def made_of(bench, config: SoupConfig, seeds=(0, 1, 2)):
    ingredients = [bench.run(ingredient, config=Seed(seed=seed)) for seed in seeds]
    soup = bench.run(make_soup, ingredients=ingredients, config=config)
    return ingredients, soup, json.loads(bench.read(soup, "soup.json"))


def weights(bench, checkpoint) -> dict[str, np.ndarray]:
    return load_tensors(bench.read(checkpoint, "model.safetensors"))


def test_a_uniform_soup_tells_how_far_each_tensor_lies_from_it(bench):
    ingredients, soup, told = made_of(bench, SoupConfig())
    assert told["members"] == [one.address for one in ingredients] and told["greedy"] == []
    average = weights(bench, soup)
    for one in ingredients:
        own, found = weights(bench, one), told["distances"][one.address]
        wanted = np.linalg.norm(own["lm_head.weight"] - average["lm_head.weight"]) / np.linalg.norm(
            average["lm_head.weight"]
        )
        assert found["head.weight"] == pytest.approx(wanted, rel=1e-5)
        assert len(found) == len(own)


def test_a_greedy_soup_takes_what_does_not_harm(bench):
    config = SoupConfig(greedy=DevConfig(by="bits", items=20)).filled((BITS,), ())
    ingredients, soup, told = made_of(bench, config)
    rows = told["greedy"]
    assert [row["alone"] for row in rows] == sorted(row["alone"] for row in rows), "fewer bits are better, so first"
    best = rows[0]["together"]
    for row in rows[1:]:
        assert row["taken"] == (row["together"] <= best)
        best = row["together"] if row["taken"] else best
    assert told["members"] == [row["ingredient"] for row in rows if row["taken"]]
    members = [weights(bench, one) for one in ingredients if one.address in told["members"]]
    wanted = np.mean([one["lm_head.weight"] for one in members], axis=0)
    np.testing.assert_allclose(weights(bench, soup)["lm_head.weight"], wanted, rtol=1e-5, atol=1e-7)


def test_a_greedy_soup_without_its_benchmark_is_refused(bench):
    with pytest.raises(ValueError, match=r"soup.greedy.by='bits' is given without its benchmarks"):
        made_of(bench, SoupConfig(greedy=DevConfig(by="bits")))
