"""The OLMo 2 decoder: reordered norm, QK-norm over whole projections, half-split RoPE, SwiGLU, no biases.

Options make it OLMo-0424's, the baseline of paper section 3.2: layer norm without weights, on inputs, and clipped projections.

Source: RECIPE A.3 (forward pass) and A.4 (initialisation); paper sections 2.1 and 3.2-3.3. Precision: weights are stored in
fp32. Under `torch.autocast` the residual stream and every matmul are in the autocast type, as in the published runs (bf16
parameters in compute). Norms, RoPE and softmax compute in fp32 and round once. Deviation: queries, keys and values come from
one matmul, and likewise gate and up, unless weights are sharded; the stored weights stay separate.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig
from model.network.attention import attention, mark_constants
from model.network.fused import HeadShape, attends, fused_attention, fused_gate, fused_heads, fused_norm, fuses
from model.network.initial_weights import initialise
from model.network.matmul import linear
from model.network.sharded_tensors import is_sharded

MAX_COMPILED_SHAPES = 2**31 - 1
"""Batch shapes compiled per process: as many as come. Past torch's own limits (8 of a function, 256 in all) later shapes
would run eagerly, which rounds differently. A resumed run meets shapes in another order, so it would end with other bytes.
"""


def rope_tables(
    positions: Int[Tensor, "*shape"], head_dim: int, theta: float
) -> tuple[Float[Tensor, "*shape head_dim"], Float[Tensor, "*shape head_dim"]]:
    """Cosines and sines in fp32 of every position (0-based) for half-split rotary embedding."""
    # Integers first, then fp32, as in the released model's code, so that the tables agree bit for bit.
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.int64).float() / head_dim
    angles = positions.float().unsqueeze(-1) * (1.0 / theta**exponents)
    # [..., head_dim]: the half-split layout repeats the angles instead of interleaving them.
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(
    x: Float[Tensor, "... heads seq head_dim"],
    cos: Float[Tensor, "... head_dim"],
    sin: Float[Tensor, "... head_dim"],
) -> Float[Tensor, "... heads seq head_dim"]:
    """Rotate dimension i with i + head_dim/2, in fp32, and round back to the type of `x`."""
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return (x.float() * cos + rotated * sin).to(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight in fp32, rounded once at the end; then added to a residual where one is given."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(
        self, x: Float[Tensor, "... width"], residual: Float[Tensor, "... width"] | None = None
    ) -> Float[Tensor, "... width"]:
        if fuses(x, self.weight):
            return fused_norm(x, self.weight, self.eps, residual)
        wide = x.float()
        # Weight is applied before rounding (as OLMo does); Llama rounds first and multiplies in bf16.
        normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)
        return normed if residual is None else residual + normed


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) in fp32 without weights or biases, rounded once at the end (OLMo-0424); a residual as in RMSNorm."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(
        self, x: Float[Tensor, "... width"], residual: Float[Tensor, "... width"] | None = None
    ) -> Float[Tensor, "... width"]:
        normed = F.layer_norm(x.float(), (self.width,), eps=self.eps).to(x.dtype)
        return normed if residual is None else residual + normed


def norm_of(config: ModelConfig, width: int) -> RMSNorm | LayerNorm:
    """A norm of the model's kind over vectors of `width` numbers."""
    return (RMSNorm if config.norm == "rms" else LayerNorm)(width, config.norm_eps)


class Linear(nn.Module):
    """A bias-free matmul whose fp32 weight is rounded to the type of its input. `float8` computes it in training, where it is
    there (`model/network/float8.py`).
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in))
        self.float8: Callable[[Tensor, Tensor], Tensor] | None = None

    def forward(self, x: Float[Tensor, "... width_in"]) -> Float[Tensor, "... width_out"]:
        # Rounded at each use: the fp32 weight is the master copy that the optimizer updates.
        weight = self.weight.to(x.dtype)
        return self.float8(x, weight) if self.float8 is not None and self.training else linear(x, weight)


class Embedding(nn.Module):
    """Rows of an fp32 table."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        return F.embedding(ids, self.weight)


def joined_projections(
    x: Float[Tensor, "... width_in"], parts: Sequence[Linear], fused: bool
) -> Float[Tensor, "... widths_out"]:
    """The outputs of several linear layers of one input, side by side.

    Fused they are one matmul, which is quicker, under a joined copy of the weights, which lives until backward. Weights that are
    gathered for each block (fsdp) are freed after the forward pass: there the copy would undo that, so it is not made.
    """
    if not fused:
        return torch.cat([part(x) for part in parts], dim=-1)
    # [outputs of all parts, width_in], such as q + k + v.
    return linear(x, torch.cat([part.weight for part in parts]).to(x.dtype))


def projections(x: Float[Tensor, "... width_in"], parts: Sequence[Linear], fused: bool) -> Sequence[Tensor]:
    """The outputs of several linear layers of one input, each by itself; fused as above."""
    if not fused:
        return [part(x) for part in parts]
    return joined_projections(x, parts, fused).split([len(part.weight) for part in parts], dim=-1)


def separate_projections(model: nn.Module) -> None:
    """Let every block of the model multiply with each of its weights alone."""
    for part in model.modules():
        if isinstance(part, Attention | FeedForward):
            part.fused = False


class Attention(nn.Module):
    """Causal self-attention with grouped queries. `project` and `combine` are separate for use with a
    cache. `fused` says whether queries, keys and values come from one matmul, `backend` which kernel of PyTorch's computes it
    in training (`attention`).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fused, self.backend = True, cast(str | None, None)
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q, self.k, self.v = (Linear(config.d_model, width) for width in (queries, keys, keys))
        self.out = Linear(queries, config.d_model)
        normed = config.qk_norm == "projection"
        self.q_norm = norm_of(config, queries) if normed else nn.Identity()
        self.k_norm = norm_of(config, keys) if normed else nn.Identity()
        self.qkv_clip = config.qkv_clip

    def project(
        self, x: Float[Tensor, "batch seq d_model"], cos: Tensor, sin: Tensor
    ) -> tuple[
        Float[Tensor, "batch heads seq head_dim"],
        Float[Tensor, "batch kv_heads seq head_dim"],
        Float[Tensor, "batch kv_heads seq head_dim"],
    ]:
        """Queries, keys and values; queries and keys normed as whole vectors, then rotated per head.

        `cos` and `sin` broadcast against (batch, heads, seq, head_dim).
        """
        q, k, v = projections(x, [self.q, self.k, self.v], self.fused)
        if self.qkv_clip is not None:
            q, k, v = (t.clamp(-self.qkv_clip, self.qkv_clip) for t in (q, k, v))
        # OLMo 2 norms the whole projection before it is split into heads; a norm per head would be another model.
        # [batch, seq, heads * head_dim] -> [batch, heads, seq, head_dim]: heads first, so that the matmul is batched.
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in (self.q_norm(q), self.k_norm(k), v))
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v

    def combine(self, heads: Float[Tensor, "batch heads seq head_dim"]) -> Float[Tensor, "batch seq d_model"]:
        """Output projection of the concatenated heads."""
        # [batch, heads, seq, head_dim] -> [batch, seq, heads * head_dim].
        return self.out(heads.transpose(1, 2).flatten(2))

    def forward(self, x: Float[Tensor, "batch seq d_model"], cos: Tensor, sin: Tensor) -> Tensor:
        q_norm, k_norm, shape = self.q_norm, self.k_norm, HeadShape(self.n_heads, self.n_kv_heads, self.head_dim)
        # Evaluation meets other shapes than the one that a backend was chosen for.
        backend = self.backend if self.training else None
        if (
            backend is None
            and self.qkv_clip is None
            and isinstance(q_norm, RMSNorm)
            and isinstance(k_norm, RMSNorm)
            and attends(shape, x.shape[1])
            and fuses(x, q_norm.weight, k_norm.weight)
        ):
            joined = joined_projections(x, [self.q, self.k, self.v], self.fused)
            q, k, v = fused_heads(joined, (q_norm.weight, k_norm.weight), q_norm.eps, (cos, sin), shape)
            return self.out(fused_attention(q, k, v))
        return self.combine(attention(*self.project(x, cos, sin), backend))


def computed_again(compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The output of a part of which only the inputs are kept for the backward pass, which computes the rest again.

    For use within a compiled `forward`, where the compiler sees it: wrapped around one, it would switch compiling off.
    """
    # No random numbers are drawn, so no generator's state needs to be kept.
    return cast(Tensor, checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). `recomputed` says whether training keeps its inputs only, `fused` whether gate and
    up come from one matmul.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.recomputed, self.fused = False, True
        self.gate, self.up = (Linear(config.d_model, config.mlp_hidden) for _ in range(2))
        self.down = Linear(config.mlp_hidden, config.d_model)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return computed_again(self.compute, x) if self.recomputed and torch.is_grad_enabled() else self.compute(x)

    def compute(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The output, with all that a backward pass needs kept."""
        if fuses(x):
            return self.down(fused_gate(joined_projections(x, [self.gate, self.up], self.fused)))
        gate, up = projections(x, [self.gate, self.up], self.fused)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Attention then MLP, each added to the residual stream; the norms sit on outputs (OLMo 2) or inputs
    (OLMo-0424). `recomputed` says whether training keeps its inputs only.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.recomputed = False
        self.attention, self.feed_forward = Attention(config), FeedForward(config)
        self.attention_norm = norm_of(config, config.d_model)
        self.feed_forward_norm = norm_of(config, config.d_model)
        self.norm_placement = config.norm_placement

    def forward(self, x: Float[Tensor, "batch seq d_model"], cos: Tensor, sin: Tensor) -> Tensor:
        again = self.recomputed and torch.is_grad_enabled()
        return computed_again(self.compute, x, cos, sin) if again else self.compute(x, cos, sin)

    def compute(self, x: Float[Tensor, "batch seq d_model"], cos: Tensor, sin: Tensor) -> Tensor:
        """The output, with all that a backward pass needs kept."""
        if self.norm_placement == "output":
            # Norm after the sub-layer and inside the residual sum: the reordered norm of OLMo 2.
            x = self.attention_norm(self.attention(x, cos, sin), x)
            return self.feed_forward_norm(self.feed_forward(x), x)
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.feed_forward_norm(x))


def uncompiled(part: nn.Module, gathered: nn.Module | None = None) -> Callable[..., Tensor]:
    """A call of a part's code as it is written, for evaluation, generation and references, which meet many shapes, each once.

    Sharded weights are gathered by the hooks of a call: its own, or those of `gathered`, which come with it. Where they are
    whole there is nothing to gather, and workers need not come here together.
    """
    in_parts = is_sharded(next((gathered or part).parameters()))
    # `part.forward` would skip the hooks that gather sharded weights; `_call_impl` keeps them and skips the compiled
    # call.
    return cast(Callable[..., Tensor], part._call_impl) if in_parts else part.forward


class Transformer(nn.Module):
    """A decoder with untied embeddings; `seed` draws its weights, None leaves them unset for loading."""

    def __init__(self, config: ModelConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.compiled = False
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = norm_of(config, config.d_model)
        self.head = Linear(config.d_model, config.vocab_size)
        # On the meta device there is no memory to draw into; `fill_weights` of `model.parallel.group` brings the values later.
        if seed is not None and not self.head.weight.is_meta:
            initialise(self, config, seed)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def embed(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_model"]:
        """Embedding rows in the type that the residual stream has in this context."""
        x = uncompiled(self.embedding)(ids)
        kind = ids.device.type
        return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x

    def hidden(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_model"]:
        """Output of the final norm. Positions count from 0 in every row; padding belongs on the right.

        Raises ValueError where a row is longer than the model's window.
        """
        if ids.shape[1] > self.config.max_sequence_length:
            raise ValueError(
                f"sequence of {ids.shape[1]} tokens exceeds max_sequence_length {self.config.max_sequence_length}; "
                "cut it, or build the model with a longer window"
            )
        # No padding mask is needed: under causal attention, padding on the right is seen by no real token.
        positions = torch.arange(ids.shape[1], device=ids.device)
        cos, sin = rope_tables(positions, self.config.head_dim, self.config.rope_theta)
        x = self.embed(ids)
        trained = self.training and torch.is_grad_enabled()
        for block in self.blocks:
            # Evaluation meets each shape once, so compiling it would cost more than it saves.
            x = (block if trained else uncompiled(block))(x, cos, sin)
        return (self.norm if trained else uncompiled(self.norm, self.head))(x)

    def outputs(self, hidden: Float[Tensor, "*shape d_model"]) -> Float[Tensor, "*shape outputs"]:
        """The head's matmul with outputs of the final norm. Sharded weights have been gathered with those of the norm."""
        return self.head.forward(hidden)

    def forward(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        """Logits of the next token at every position."""
        return self.outputs(self.hidden(ids))

    def compile_blocks(self) -> None:
        """Compile each block and the final norm in place for training (all blocks share the code); losses
        compile their kernel too.

        Every new (batch, seq) shape is compiled by itself, at the cost of some seconds: pad batches to few
        shapes. Shapes are never generalised, because the code would then depend on the order in which they
        came, and a resumed run would round differently.
        """
        if not self.compiled:
            mark_constants()
            torch._dynamo.config.recompile_limit = MAX_COMPILED_SHAPES
            torch._dynamo.config.accumulated_recompile_limit = MAX_COMPILED_SHAPES
            for block in self.blocks:
                block.compile(dynamic=False)
            self.norm.compile(dynamic=False)
            self.compiled = True


def on_meta_device(config: ModelConfig) -> Transformer:
    """A model whose weights have shapes and no memory, on the meta device: for `distribute` and `fill_weights` of
    `model.parallel.group`.
    """
    with torch.device("meta"):
        return Transformer(config, seed=None)
