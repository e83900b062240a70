"""Decodes with compiled code: a step of all layers is one call. The layouts of weights and cache are those of `decode.cpp`.

The results are those of PyTorch's operations up to rounding. Each row's logits are the same bytes in every batch and on any
number of threads, up to `LONGEST_PROMPT` tokens of prompt.
"""

import ctypes
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.config import ModelConfig
from model.decoding.lazy_memory import lazy_zeros
from model.decoding.linear_kernels import PackedProduct
from model.decoding.prepared_weights import Prepared, PreparedLayer, ScaledLayerNorm, ScaledNorm, Turned
from model.kernels.library import Kernels

_CHUNK_POSITIONS = 64
"""Positions whose keys lie together."""
LONGEST_PROMPT = 512
"""Tokens up to which a prompt is read by the compiled code, one query after the other. Longer ones are read by PyTorch's
attention, which takes queries in blocks."""


class _LayerPointers(ctypes.Structure):
    """`Layer` of decode.cpp."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in (
            "qkv", "out", "gate_up", "down", "q_norm", "k_norm", "attention_norm", "feed_forward_norm", "keys", "values"
        )
    ]  # fmt: skip


class _Network(ctypes.Structure):
    """`Network` of decode.cpp."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                "layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "mlp_hidden", "vocab", "chunks",
                "layer_norm", "input_norms", "query_norm", "embedding_is_bf16",
            )
        ),
        *((name, ctypes.c_float) for name in ("epsilon", "clip", "query_scale")),
        *((name, ctypes.c_void_p) for name in ("embedding", "head", "norm", "turns")),
        ("layer", ctypes.POINTER(_LayerPointers)),
    ]  # fmt: skip


class _Tokens(ctypes.Structure):
    """`Tokens` of decode.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("count", "wanted_count")),
        *((name, ctypes.c_void_p) for name in ("ids", "positions", "rows", "wanted")),
    ]


def suits(config: ModelConfig) -> bool:
    """Whether the compiled code has this network: bf16 inputs are multiplied by pairs."""
    return config.d_model % 2 == 0 and config.mlp_hidden % 2 == 0 and config.head_dim % 2 == 0


class CompiledStep:
    """Steps of at most `rows` rows of `length` tokens, and their KV cache (a `Cache`)."""

    def __init__(self, kernels: Kernels, prepared: Prepared, rows: int, length: int) -> None:
        config, self.prepared = prepared.config, prepared
        self.library, self.half = kernels.library, int(prepared.dtype == torch.bfloat16)
        self.vocab, self.threads = config.vocab_size, torch.get_num_threads()
        chunks, width = -(-length // _CHUNK_POSITIONS), -(-config.head_dim // 16) * 16
        heads = (config.n_layers, rows, config.n_kv_heads, chunks)
        # The layouts inside a chunk are those of decode.cpp; here chunks are only copied whole.
        self.keys = lazy_zeros((*heads, _CHUNK_POSITIONS * config.head_dim), prepared.dtype)
        self.values = lazy_zeros((*heads, _CHUNK_POSITIONS * width), prepared.dtype)
        self.numbers: list[Tensor] = []  # what the pointers point at has to stay
        layers = [
            self._layer(layer, keys, values)
            for layer, keys, values in zip(prepared.layers, self.keys, self.values, strict=True)
        ]
        self.network = _Network(
            config.n_layers, config.d_model, config.n_heads, config.n_kv_heads, config.head_dim, config.mlp_hidden,
            config.vocab_size, chunks, config.norm == "layer", config.norm_placement == "input",
            config.qk_norm == "projection", prepared.embedding.dtype == torch.bfloat16, config.norm_eps,
            float("inf") if config.qkv_clip is None else config.qkv_clip, config.head_dim**-0.5,
            self._address(prepared.embedding), self._packed(prepared.head[0]), self._norm(prepared.norm),
            self._address(torch.view_as_real(prepared.turns)), (_LayerPointers * len(layers))(*layers),
        )  # fmt: skip
        self.buffers = lazy_zeros((0,), torch.uint8)

    def step(self, ids: Sequence[int], positions: Sequence[int]) -> Float[Tensor, "rows vocab"]:
        """Feed one token into each of the first rows, at the given 0-based positions; the fp32 logits that follow."""
        rows = range(len(ids))
        return self._feed(torch.tensor([ids, positions, rows, rows]), len(ids))

    def prefill(self, first_row: int, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "prompts vocab"]:
        """Put prompts into rows `first_row`, `first_row + 1`, ...; the fp32 logits after each prompt's last token."""
        lengths = np.array([len(prompt) for prompt in prompts])
        ends = lengths.cumsum()
        tokens = np.zeros((4, ends[-1]), dtype=np.int64)
        tokens[0] = np.fromiter(chain.from_iterable(prompts), np.int64)
        tokens[1] = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        tokens[2] = np.repeat(first_row + np.arange(len(prompts)), lengths)
        tokens[3, : len(prompts)] = ends - 1
        return self._feed(torch.from_numpy(tokens), len(prompts))

    def _feed(self, tokens: Int[Tensor, "4 tokens"], wanted: int) -> Float[Tensor, "wanted vocab"]:
        """Ids, positions, cache rows, and first among the others the indices of the `wanted` tokens, ascending."""
        count = tokens.shape[1]
        size = self.library.olmo2_buffer_bytes(
            self.half, ctypes.byref(self.network), ctypes.c_int64(count), self.threads
        )
        if size > len(self.buffers):
            self.buffers = lazy_zeros((size,), torch.uint8)
        logits = torch.empty(wanted, self.vocab)
        fed = _Tokens(count, wanted, *(line.data_ptr() for line in tokens))
        self.library.olmo2_feed(
            self.half,
            ctypes.byref(self.network),
            ctypes.byref(fed),
            _pointer(logits),
            _pointer(self.buffers),
            self.threads,
        )
        return logits

    def put(self, layer: int, first_row: int, k: Tensor, v: Tensor, start: int = 0) -> None:
        # Heads of a token side by side; rows and tokens may lie apart, as in parts of a joint projection.
        k, v = (t if t[0, 0].is_contiguous() else t.contiguous() for t in (k, v))
        strides = torch.tensor([*k.stride()[:2], *v.stride()[:2]])
        self.library.olmo2_put(
            self.half, ctypes.byref(self.network), *map(ctypes.c_int64, (layer, first_row, *k.shape[:2], start)),
            _pointer(k), _pointer(v), _pointer(strides), self.threads,
        )  # fmt: skip

    def spread(self, first_row: int, rows: int, used: int) -> None:
        chunks = -(-used // _CHUNK_POSITIONS)
        for cached in (self.keys, self.values):
            cached[:, first_row + 1 : first_row + rows, :, :chunks] = cached[:, first_row, None, :, :chunks]

    def clear(self, row: int) -> None:
        for cached in (self.keys, self.values):
            cached[:, row] = 0

    def move(self, source: int, target: int, used: int) -> None:
        chunks = -(-used // _CHUNK_POSITIONS)
        for cached in (self.keys, self.values):
            cached[:, target, :, :chunks] = cached[:, source, :, :chunks]

    def _layer(self, layer: PreparedLayer, keys: Tensor, values: Tensor) -> _LayerPointers:
        matrices = (self._packed(product) for product in (layer.qkv, layer.out, layer.gate_up, layer.down))
        norms = (self._norm(norm) for norm in (layer.attention_norm, layer.feed_forward_norm))
        return _LayerPointers(
            *matrices, *self._query_norms(layer.turned), *norms, self._address(keys), self._address(values)
        )

    def _query_norms(self, turned: tuple[Turned, ...]) -> list[int | None]:
        """Weights of the norms of queries and keys, which are one tensor where both are equally wide."""
        weights = [piece.norm.weight for piece in turned if isinstance(piece.norm, ScaledNorm)]
        if not weights:
            return [None, None]
        return [self._address(weight) for weight in (weights if len(weights) == 2 else weights[0])]

    def _norm(self, norm: ScaledNorm | ScaledLayerNorm) -> int | None:
        return self._address(norm.weight) if isinstance(norm, ScaledNorm) else None

    def _packed(self, product: object) -> int:
        assert isinstance(product, PackedProduct)
        return self._address(product.packed)

    def _address(self, tensor: Tensor) -> int:
        assert tensor.is_contiguous()
        self.numbers.append(tensor)
        return tensor.data_ptr()


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
