"""Reads and writes config.json of a Hugging Face `Olmo2ForCausalLM` folder, and `olmo2.json` next to it; reads a reward model's.

Source: RECIPE A.6 (fields). config.json is what other programs compute by, so it is read always. `olmo2.json` adds
what it cannot say (the architecture options and the tokenizer's ranks) and may contradict it in nothing. A variant with
another forward pass (OLMo-0424 options) has another architecture name, so that transformers refuses it instead of
computing something else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from model.config import Config, ModelConfig
from model.json_files import not_the_format, read_json

ARCHITECTURE = "Olmo2ForCausalLM"
VARIANT_ARCHITECTURE = "Olmo2VariantForCausalLM"
SCORE_ARCHITECTURE = "Olmo2ForSequenceClassification"
"""A reward model: `score.weight` of shape (1, d_model) in the place of the language head."""
FILE = "config.json"
EXTRA = "olmo2.json"

_SHAPE = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_hidden": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_sequence_length": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
}
"""Our fields that config.json says too, and its names for them."""


class _Read(BaseModel):
    """A file of others: what is not used here is passed over, what is used has its type."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class _Rope(_Read):
    rope_type: Literal["default"] = "default"
    rope_theta: float | None = None


class _NoScaling(_Read):
    """A `rope_scaling` that says none: under its present name or its former one (`type`)."""

    rope_type: Literal["default"] = "default"
    type: Literal["default"] = "default"


class _HubConfig(_Read):
    """What of config.json the forward pass depends on. Absent fields that OLMo 2 needs are errors: readers differ in
    what they assume.
    """

    architectures: tuple[str, ...]
    hidden_size: int = Field(gt=0)
    num_hidden_layers: int
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float | None = None
    rope_parameters: _Rope | None = None
    rms_norm_eps: float
    initializer_range: float
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    tie_word_embeddings: Literal[False] = False
    rope_scaling: _NoScaling | None = None
    quantization_config: None = None

    @field_validator("architectures")
    @classmethod
    def _is_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(names) != 1 or names[0] not in (ARCHITECTURE, VARIANT_ARCHITECTURE, SCORE_ARCHITECTURE):
            raise ValueError(f"only {ARCHITECTURE}, or {SCORE_ARCHITECTURE} as a reward model, can be loaded")
        return names


class Extra(Config):
    """`olmo2.json`."""

    model: ModelConfig
    """The whole configuration."""
    ranks: int | None
    """Ordinary tokens of the tokenizer; None for a model without one."""


def hf_config(
    config: ModelConfig, eos_id: int | None, pad_id: int | None, bos_id: int | None, dtype: str
) -> dict[str, object]:
    """The content of config.json, every field explicit because the class's defaults differ; `dtype` is such as "float32"."""
    return {
        "architectures": [ARCHITECTURE if config.is_olmo2 else VARIANT_ARCHITECTURE],
        "model_type": "olmo2" if config.is_olmo2 else "olmo2_variant",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_hidden,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_sequence_length,
        "initializer_range": config.init_std,
        "rope_theta": config.rope_theta,
        # Both forms of rope, so that old and new versions of transformers read the same theta.
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "pad_token_id": pad_id,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        # `torch_dtype` is the former name, for older versions of transformers.
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def read_config(folder: Path, *, scores: bool = False) -> ModelConfig:
    """The model configuration of a folder, ours or from the hub; `scores` for one whose head is a score.

    Raises ValueError naming the file and the field that is missing, is not OLMo 2's, or is said in two ways.
    """
    path, hub = folder / FILE, _read_hub(folder)
    if (hub.architectures[0] == SCORE_ARCHITECTURE) != scores:
        raise ValueError(
            f"{path} says {hub.architectures[0]}, "
            + (f"not {SCORE_ARCHITECTURE}" if scores else "a reward model without a language head; adopt it as reward")
        )
    shape = _shape(hub, path)
    extra = None if scores else read_extra(folder)
    if extra is None:
        if hub.architectures[0] == VARIANT_ARCHITECTURE:
            raise ValueError(f"{folder} holds a variant, but {EXTRA}, which describes it, is missing")
        return _model_config(path, shape)
    # Other programs compute by config.json, so a contradiction would mean that two programs disagree about one model.
    saved = extra.model.model_dump()
    different = [
        f"{_SHAPE[name]} is {value} and {saved[name]}" for name, value in shape.items() if saved[name] != value
    ]
    if extra.model.is_olmo2 != (hub.architectures[0] == ARCHITECTURE):
        different.append(f"architectures is {hub.architectures[0]} and {'not ' * (not extra.model.is_olmo2)}OLMo 2")
    if different:
        raise ValueError(
            f"{FILE} and {EXTRA} in {folder} contradict each other: {', '.join(different)}; correct the wrong one, or "
            f"remove {EXTRA} to go by {FILE} alone"
        )
    return extra.model


def has_score_head(folder: Path) -> bool:
    """Whether a folder holds a reward model as transformers writes it. Raises ValueError as `read_config` does."""
    return _read_hub(folder).architectures[0] == SCORE_ARCHITECTURE


def _read_hub(folder: Path) -> _HubConfig:
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {FILE}: not a checkpoint folder")
    return read_json(path, _HubConfig)


def read_extra(folder: Path) -> Extra | None:
    """What `olmo2.json` says; None where the folder has none. Raises ValueError naming the file and the field."""
    path = folder / EXTRA
    return read_json(path, Extra) if path.is_file() else None


def _shape(hub: _HubConfig, path: Path) -> dict[str, float | None]:
    """Our fields as config.json says them."""
    # Newer versions of transformers say rope_theta in rope_parameters; a file may have either, or both if they agree.
    thetas = {hub.rope_theta, hub.rope_parameters.rope_theta if hub.rope_parameters else None} - {None}
    if len(thetas) != 1:
        said = " and ".join(map(str, sorted(filter(None, thetas)))) or "nowhere"
        raise ValueError(f"{path} says rope_theta {said}; it has to be there once, or the same in rope_parameters")
    # transformers derives both of these in the same way when a file leaves them out.
    head_dim = hub.hidden_size // hub.num_attention_heads
    return {name: getattr(hub, theirs) for name, theirs in _SHAPE.items()} | {
        "n_kv_heads": hub.num_key_value_heads or hub.num_attention_heads,
        "head_dim": head_dim if hub.head_dim is None else hub.head_dim,
        "rope_theta": thetas.pop(),
    }


def _model_config(path: Path, shape: Mapping[str, float | None]) -> ModelConfig:
    try:
        return ModelConfig.model_validate(shape)
    except ValidationError as error:
        raise not_the_format(path, error) from error
