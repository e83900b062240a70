"""Sizes, variants and compute settings of the model, and the base of every configuration object.

Source: RECIPE A.1 (size table), A.2 (MLP width rule), A.7 (FLOPs); paper section 3.2 for the OLMo-0424
variants. Deviation: `1B` names the released 16-layer model (`olmo2_1B_v2` in OLMo-core); the 18-layer builder
is `1B-18layer`.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["bf16", "fp32"]
"""Type of activations and matmuls; weights, gradients and moments are fp32 in both."""
TrainingPrecision = Literal["bf16", "fp32", "float8"]
"""The same of a training on a mix, which may also multiply in float8 in its blocks (`model/network/float8.py`)."""


AttentionBackend = Literal["auto", "flash", "cudnn", "efficient", "math"]
"""PyTorch's kernels for attention by name (`model/network/attention_backend.py`); `auto` measures which is the quickest."""


class Config(BaseModel):
    """Frozen pydantic model; an unknown field is an error; attribute docstrings describe the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def pinned(self) -> Self:
        """The config with what it reads named so that it cannot change: hashes of files, commits of datasets.

        A config that reads nothing is itself.
        """
        return self


def mlp_width(d_model: int, multiple: int = 256, factor: float | None = None) -> int:
    """Hidden width of the gated MLP: int(8d/3), times `factor` if any, rounded up to a multiple (RECIPE
    A.2).
    """
    # Floored before rounding up, as OLMo-core does: 4096 gives 10922, and then 43 * 256 = 11008.
    width = int(8 * d_model / 3)
    if factor is not None:
        width = int(factor * width)
    return multiple * ((width + multiple - 1) // multiple)


SizeName = Literal[
    "30M", "60M", "100M", "190M", "370M", "600M", "760M", "1B", "1B-18layer", "3B", "7B", "13B", "32B"
]  # fmt: skip
VariantName = Literal["olmo-0424"]
"""The baseline of paper section 3.2, in each of the two configs that differ there: this model and `OptimConfig`."""


class ModelConfig(Config):
    """Shape and architecture of one decoder; the defaults are OLMo 2 7B.

    A name alone is a model too: `7B` is short for `{size: 7B}`.
    """

    size: SizeName | None = Field(default=None, exclude=True)
    """A published size, which fills widths and depth in (another `n_layers` may stand next to it). Named models are those
    of their fields: the name takes no part in the identity, and is None when they are filled in."""
    variant: VariantName | None = Field(default=None, exclude=True)
    """`olmo-0424` fills in norms, clipping, rotary base and init of that model where they are not given."""
    d_model: int = Field(default=4096, gt=0)
    """Width of the residual stream."""
    n_layers: int = Field(default=32, gt=0)
    """Number of blocks."""
    n_heads: int = Field(default=32, gt=0)
    """Query heads."""
    n_kv_heads: int = Field(default=32, gt=0)
    """Key and value heads; fewer than `n_heads` is grouped-query attention (32B: 8)."""
    head_dim: int = Field(default=128, gt=0)
    """Width of one head."""
    mlp_hidden: int = Field(default=11008, gt=0)
    """Hidden width of the SwiGLU MLP."""
    vocab_size: int = Field(default=100_352, gt=0)
    """Rows of the embedding and of the head: the tokenizer's ids padded to a multiple of 128."""
    max_sequence_length: int = Field(default=4096, gt=0)
    """Longest window the model is used with, tokens."""
    rope_theta: float = Field(default=500_000.0, gt=0)
    """Base of the rotary frequencies."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm with weights (OLMo 2), or layer norm without weights or biases (OLMo-0424)."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Epsilon inside every norm (OLMo-0424: 1e-5)."""
    norm_placement: Literal["output", "input"] = "output"
    """Norm on each sub-layer's output (OLMo 2, "reordered") or on its input (OLMo-0424, "pre-norm")."""
    qk_norm: Literal["projection", "none"] = "projection"
    """A norm over the whole query and key projections (OLMo 2) or none (OLMo-0424)."""
    qkv_clip: float | None = Field(default=None, gt=0)
    """Largest size of a number in queries, keys and values as projected (OLMo-0424: 8); None does not clip."""
    init: Literal["normal", "scaled"] = "normal"
    """Truncated normal of one width for all matrices (OLMo 2) or scaled by width and depth (OLMo-0424),
    RECIPE A.4.
    """
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the `normal` init before truncation at three of it."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_names(cls, data: Any) -> Any:
        given = {"size": data} if isinstance(data, str) else data
        # An unknown name is left in place, so that the field's own error lists the names that exist.
        if not isinstance(given, dict) or given.get("size") not in [None, *SIZES]:
            return given
        shape = SIZES.get(given.get("size"), {})
        for field, value in shape.items():
            # Depth alone may differ from the table, for short trials at a published width.
            if field != "n_layers" and given.get(field, value) != value:
                raise ValueError(
                    f"size={given['size']} has {field}={value}, and {field}={given[field]} is given beside it; "
                    f"leave one out (in a recipe, `model: {given['size']}` replaces all that a parent says)"
                )
        return filled_in(shape | {name: value for name, value in given.items() if name != "size"}, OLMO_0424)

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.n_heads * self.head_dim != self.d_model:
            # Another width would be a legal transformer, but no OLMo 2 checkpoint could be read into it.
            raise ValueError(
                f"n_heads={self.n_heads} x head_dim={self.head_dim} is {self.n_heads * self.head_dim}, but d_model is "
                f"{self.d_model}; OLMo 2 needs them equal: choose head_dim = d_model / n_heads"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}; use a divisor")
        # Half-split RoPE pairs dimension i with i + head_dim / 2.
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; rotary embedding turns pairs: use an even width")
        return self

    @property
    def is_olmo2(self) -> bool:
        """True where the forward pass is that of the released OLMo 2 models (and of `Olmo2ForCausalLM`)."""
        as_released = (self.norm, self.norm_placement, self.qk_norm) == ("rms", "output", "projection")
        return as_released and self.qkv_clip is None

    @property
    def attention_parameters(self) -> int:
        """Parameters of one attention sub-layer with its query and key norms."""
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        # A layer norm here has no weights, so only an RMSNorm adds to the count.
        norms = queries + keys if self.qk_norm == "projection" and self.norm == "rms" else 0
        return 2 * self.d_model * queries + 2 * self.d_model * keys + norms

    @property
    def norm_parameters(self) -> int:
        """Parameters of one norm over the residual stream."""
        return self.d_model if self.norm == "rms" else 0

    @property
    def block_parameters(self) -> int:
        """Parameters of one block."""
        return self.attention_parameters + 3 * self.d_model * self.mlp_hidden + 2 * self.norm_parameters

    @property
    def parameters(self) -> int:
        """All parameters."""
        return 2 * self.vocab_size * self.d_model + self.n_layers * self.block_parameters + self.norm_parameters

    def flops_per_token(self, sequence_length: int) -> int:
        """Training FLOPs (forward and backward) per token, without a causal discount (RECIPE A.7)."""
        # Gate, up and down are three matrices of the same size.
        mlp = 3 * self.d_model * self.mlp_hidden
        # The input embedding is a lookup, so it adds parameters but no FLOPs.
        head = self.vocab_size * self.d_model + self.norm_parameters
        # 6 = 2 FLOPs of a multiply-add, once forward and twice backward (inputs and weights).
        matrices = 6 * (self.n_layers * (self.attention_parameters + mlp) + head)
        # Scores and weighted values: 2 matmuls x 2 FLOPs x 3 passes = 12 for each pair of positions.
        return matrices + 12 * self.n_layers * self.n_heads * self.head_dim * sequence_length


def _size(d_model: int, n_layers: int, n_heads: int, mlp_hidden: int, n_kv_heads: int | None = None) -> dict[str, int]:
    return {
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_heads if n_kv_heads is None else n_kv_heads,
        "head_dim": d_model // n_heads,
        "mlp_hidden": mlp_hidden,
    }


# RECIPE A.1. Names up to 760M count parameters without the input embedding.
SIZES: dict[str | None, dict[str, int]] = {
    "30M": _size(256, 4, 8, mlp_width(256)),
    "60M": _size(384, 8, 8, mlp_width(384, factor=1.5)),
    "100M": _size(512, 12, 8, mlp_width(512, factor=1.5)),
    "190M": _size(768, 12, 12, mlp_width(768, factor=1.5)),
    "370M": _size(1024, 16, 16, mlp_width(1024, factor=1.5)),
    "600M": _size(1344, 16, 16, mlp_width(1344, factor=1.5)),
    "760M": _size(1536, 16, 16, mlp_width(1536, factor=1.5)),
    "1B": _size(2048, 16, 16, mlp_width(2048, factor=1.5)),
    "1B-18layer": _size(2048, 18, 16, mlp_width(2048, factor=1.5)),
    "3B": _size(3328, 16, 16, mlp_width(3328, factor=1.5)),
    "7B": _size(4096, 32, 32, mlp_width(4096)),
    "13B": _size(5120, 40, 40, mlp_width(5120)),
    # 27648 is published. The factor leads the rule of A.2 to it, so that one formula makes the whole table.
    "32B": _size(5120, 64, 40, mlp_width(5120, multiple=512, factor=27648 / (8 * 5120 / 3)), n_kv_heads=8),
}

# The model half of the variant `olmo-0424`; the optimizer half is `optim.py`, and its loss has no z-term.
OLMO_0424: dict[str, str | float] = {
    "norm": "layer", "norm_eps": 1e-5, "norm_placement": "input", "qk_norm": "none", "qkv_clip": 8.0, "rope_theta": 10_000.0,
    "init": "scaled",
}  # fmt: skip


def filled_in(data: Any, olmo_0424: dict[str, str | float]) -> Any:
    """Raw fields with those of their `variant` where they say nothing else; an unknown name is left to its field."""
    if not isinstance(data, dict) or data.get("variant") != "olmo-0424":
        return data
    # The right side wins: what a recipe gives itself goes before what the variant fills in.
    return olmo_0424 | {name: value for name, value in data.items() if name != "variant"}


class Parallel(Config):
    """How many processes train one model, and what each of them holds."""

    workers: int = Field(default=1, ge=1)
    """World size: data parallel processes; 1 trains in this one."""
    data: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """Each worker holds the whole model (ddp), a part of every tensor (fsdp), or a part within one of several
    whole copies (hsdp).
    """
    replicas: int = Field(default=1, ge=1)
    """Whole copies of the model in hsdp; each is spread over workers / replicas workers."""
    activation_checkpointing: Literal["off", "feed_forward", "blocks"] = "off"
    """What is computed again in the backward pass instead of kept: nothing, every MLP, every block."""

    @model_validator(mode="after")
    def _copies_divide_workers(self) -> Self:
        if self.data != "hsdp" and self.replicas != 1:
            raise ValueError(f"replicas={self.replicas} is a setting of hsdp, not of {self.data}; leave it out")
        if self.workers % self.replicas:
            raise ValueError(f"workers={self.workers} is not a multiple of replicas={self.replicas}; change either")
        return self


class Compute(Config):
    """Where and how a computation runs. None of it is part of a result's identity."""

    device: str = "cpu"
    """Torch device, such as `cpu`, `cuda` or `cuda:1`."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of tensor operations; 0 leaves the process as it is."""
    compile: Literal["off", "blocks"] = "off"
    """Compile every block and the loss with torch.compile, or run eagerly."""
    attention: AttentionBackend = "auto"
    """The kernel of attention in training; `auto` is the quickest on CUDA, and what is built for it on a CPU."""
    emulate_float8: bool = False
    """Multiply factors rounded to float8 in fp32, on a device that has no float8 matmuls."""
    parallel: Parallel = Parallel()
    """Processes and what each holds."""
    gc_every: int = Field(default=10, gt=0)
    """Steps between collections of Python's garbage; automatic collection is off while training (RECIPE
    J).
    """
    stall_seconds: float = Field(default=3600.0, gt=0)
    """A step that takes longer ends the process with every thread's stack printed (model/training/watchdog.py)."""
