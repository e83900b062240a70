"""Sizes and initialisation. Oracle: golden/model_sizes.json, RECIPE A.4."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from model.config import OLMO_0424, SIZES, ModelConfig, SizeName
from model.network.transformer import Transformer
from model.training.configs import OptimConfig

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/model_sizes.json").read_text())["sizes"]
NAMES = {"1B_18layer(olmo2_1B)": "1B-18layer", "1B_released(olmo2_1B_v2)": "1B"}


@pytest.mark.parametrize("name", GOLDEN)
def test_size_equals_golden_on_meta_device(name: str) -> None:
    golden = GOLDEN[name]
    config = ModelConfig.model_validate(NAMES.get(name, name))
    with torch.device("meta"):
        model = Transformer(config)
    counted = sum(p.numel() for p in model.parameters())
    assert counted == config.parameters == golden["total_params"]
    assert counted - model.embedding.weight.numel() == golden["non_embedding_params"]
    assert sum(p.numel() for p in model.blocks[0].parameters()) == golden["params_per_block"]
    assert config.flops_per_token(4096) == golden["train_flops_per_token_seq4096"]
    for field in ("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "mlp_hidden"):
        assert getattr(config, field) == golden[field]


def test_every_named_size_has_an_oracle() -> None:
    assert {NAMES.get(name, name) for name in GOLDEN} == set(SIZES) == set(get_args(SizeName))


def test_a_size_is_the_model_of_its_fields() -> None:
    """The name is no part of what is hashed, and a model that is spelt out is equal to the named one."""
    spelt = ModelConfig(d_model=5120, n_layers=40, n_heads=40, n_kv_heads=40, mlp_hidden=13824)
    named = ModelConfig(size="13B")
    assert named == spelt == ModelConfig.model_validate("13B")
    assert named.model_dump() == spelt.model_dump()
    assert not {"size", "variant"} & named.model_dump().keys()
    assert ModelConfig.model_validate("7B") == ModelConfig()
    shallow = ModelConfig(size="190M", n_layers=2, vocab_size=512)
    assert (shallow.d_model, shallow.n_layers, shallow.vocab_size) == (768, 2, 512)


@pytest.mark.parametrize("data", ["8B", {"size": "8B"}, {"size": ["7B"]}])
def test_unknown_size_lists_the_known(data: object) -> None:
    with pytest.raises(ValidationError, match=r"size\n.*'1B-18layer'"):
        ModelConfig.model_validate(data)


def test_a_size_and_another_width_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"size=190M has d_model=768, and d_model=128 is given.*`model: 190M`"):
        ModelConfig(size="190M", d_model=128)


def test_the_variant_fills_both_halves_in() -> None:
    """Paper section 3.2: pre-norm, no QK-norm, scaled init; decay on everything and epsilon 1e-5; Table 1's other rows."""
    model = ModelConfig(size="1B", variant="olmo-0424")
    assert (model.norm, model.norm_eps, model.qkv_clip, model.rope_theta) == ("layer", 1e-5, 8.0, 10_000.0)
    assert (model.norm_placement, model.qk_norm, model.init) == ("input", "none", "scaled")
    assert model.d_model == 2048
    optim = OptimConfig(variant="olmo-0424")
    assert (optim.decay, optim.eps, optim.beta2) == ("all", 1e-5, 0.95)
    assert "variant" not in optim.model_dump()
    assert optim == OptimConfig(decay="all", eps=1e-5)
    assert ModelConfig(variant="olmo-0424", init="normal").init == "normal"
    assert OptimConfig(variant="olmo-0424", eps=1e-8).eps == 1e-8
    for half in (ModelConfig, OptimConfig):
        with pytest.raises(ValidationError, match=r"variant\n.*'olmo-0424'"):
            half.model_validate({"variant": "olmo-1"})


def test_heads_must_fill_the_width() -> None:
    with pytest.raises(ValidationError, match="head_dim"):
        ModelConfig(d_model=128, n_heads=4, n_kv_heads=4, head_dim=16)


def small(**changes: object) -> ModelConfig:
    base = {"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "mlp_hidden": 96}
    return ModelConfig(**(base | {"vocab_size": 4096, "max_sequence_length": 64} | changes))


def test_normal_init_is_truncated_at_three_sigma() -> None:
    weight = Transformer(small(), seed=3).embedding.weight.detach()
    assert weight.abs().max() <= 0.06
    # RECIPE A.4: the realised deviation of a +-3 sigma truncation is 0.98658 sigma.
    assert weight.std().item() == pytest.approx(0.98658 * 0.02, rel=0.01)


def test_scaled_init_follows_width_and_depth() -> None:
    """OLMo's `mitchell`: d_model into the layers, the width summed over and the layer's number out of them."""
    model = Transformer(small(init="scaled", mlp_hidden=2048), seed=3)
    for layer, block in enumerate(model.blocks, start=1):
        wanted = 0.98658 * (2 * 2048 * layer) ** -0.5
        assert block.feed_forward.down.weight.std().item() == pytest.approx(wanted, rel=0.02)
        wanted = 0.98658 * (2 * 64 * layer) ** -0.5
        assert block.attention.out.weight.std().item() == pytest.approx(wanted, rel=0.04)
        assert block.feed_forward.up.weight.std().item() == pytest.approx(0.98658 / 8, rel=0.02)


def test_init_depends_on_seed_and_name_only() -> None:
    torch.manual_seed(1)
    one = Transformer(small(), seed=5).state_dict()
    torch.manual_seed(2)
    two = Transformer(small(n_layers=3), seed=5).state_dict()
    other = Transformer(small(), seed=6).state_dict()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_olmo_0424_has_no_norm_with_weights() -> None:
    model = Transformer(small(**OLMO_0424))
    assert not any("norm" in name for name, _ in model.named_parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == model.config.parameters
    assert not small(**OLMO_0424).is_olmo2
