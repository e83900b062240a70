"""Blocked attention. Oracle: torch's scaled_dot_product_attention in fp64."""

import pytest
import torch
import torch.nn.functional as F

import model.network.attention as attention_module
from model.config import ModelConfig
from model.data.labels import next_token_labels
from model.network.attention import BlockedAttention, blocks
from model.network.transformer import Transformer
from model.training.configs import LossConfig
from model.training.losses import language_model_objective


@pytest.mark.parametrize("length", [1, 16, 17, 40])
def test_blocked_attention_and_gradients_equal_exact(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "BLOCK_ROWS", 16)
    generator = torch.Generator().manual_seed(length)
    inputs = [torch.randn(3, length, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    outer = torch.randn(3, length, 8, generator=generator, dtype=torch.float64)
    results = []
    for kind, operator in ((torch.float32, BlockedAttention.apply), (torch.float64, _exact)):
        leaves = [tensor.to(kind).requires_grad_() for tensor in inputs]
        output = operator(*leaves)
        output.backward(outer.to(kind))
        results.append([tensor.detach().double() for tensor in (output, *(leaf.grad for leaf in leaves))])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def _exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("length", [1, 127, 128, 512, 1000, 4096])
def test_blocks_cover_every_row_once(length: int) -> None:
    ranges = blocks(length)
    assert [row for start, end in ranges for row in range(start, end)] == list(range(length))
    assert len(ranges) <= 8


@pytest.mark.slow
def test_compiled_training_step_equals_eager_within_bf16() -> None:
    """The compiled path (blocked attention, fused kernels) against eager bf16 and fp32: no further from fp32
    than eager is.
    """
    config = ModelConfig(
        d_model=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        mlp_hidden=96,
        vocab_size=256,
        max_sequence_length=64,
    )
    ids = torch.randint(0, 256, (4, 48), generator=torch.Generator().manual_seed(0))
    batch = {"ids": ids, "labels": torch.from_numpy(next_token_labels(ids.numpy()))}
    gradients = {}
    for name in ("fp32", "eager", "compiled"):
        model = Transformer(config, seed=1).train()
        if name == "compiled":
            model.compile_blocks()
        with torch.autocast("cpu", torch.bfloat16, enabled=name != "fp32"):
            loss, _ = language_model_objective(LossConfig())(model, batch)
        loss.backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters()])
    error = {name: (gradients[name] - gradients["fp32"]).norm().item() for name in ("eager", "compiled")}
    assert error["compiled"] < 1.3 * error["eager"]
    assert error["eager"] < 0.05 * gradients["fp32"].norm()
