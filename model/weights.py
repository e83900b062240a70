"""Models as Hugging Face `Olmo2ForCausalLM` folders, both ways.

Source: RECIPE A.6 (keys, shapes, config fields). Beside the usual files, `olmo2.json` holds what the HF
config cannot say: the architecture options and the tokenizer's ranks. A variant with another forward pass
(OLMo-0424 options) is written under another architecture name, so that transformers refuses it instead of
computing something else.
"""

import json
import re
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig
from model.transformer import Transformer

ARCHITECTURE = "Olmo2ForCausalLM"
VARIANT_ARCHITECTURE = "Olmo2VariantForCausalLM"
INDEX = "model.safetensors.index.json"
EXTRA = "olmo2.json"
MAX_SHARD_BYTES = 4_500_000_000
"""Size of one safetensors file, just under the hub's customary 5 GB."""

_BLOCK_KEYS = {
    "attention.q.weight": "self_attn.q_proj.weight",
    "attention.k.weight": "self_attn.k_proj.weight",
    "attention.v.weight": "self_attn.v_proj.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "attention_norm.weight": "post_attention_layernorm.weight",
    "feed_forward_norm.weight": "post_feedforward_layernorm.weight",
    "feed_forward.gate.weight": "mlp.gate_proj.weight",
    "feed_forward.up.weight": "mlp.up_proj.weight",
    "feed_forward.down.weight": "mlp.down_proj.weight",
}
_TOP_KEYS = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


class SavedTokenizer(Protocol):
    """What `save_hf` needs of a tokenizer."""

    @property
    def ranks(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    def save(self, folder: Path) -> None: ...


def hf_key(name: str) -> str:
    """Hugging Face name of one of our parameters."""
    if name in _TOP_KEYS:
        return _TOP_KEYS[name]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    assert match, name
    return f"model.layers.{match[1]}.{_BLOCK_KEYS[match[2]]}"


def hf_config(
    config: ModelConfig, eos_id: int | None, pad_id: int | None, bos_id: int | None, dtype: torch.dtype
) -> dict[str, Any]:
    """The content of config.json, every field explicit because the class's defaults differ."""
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
        "dtype": str(dtype).removeprefix("torch."),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _shards(tensors: dict[str, Tensor], max_bytes: int) -> list[list[str]]:
    """Names grouped in order, each group at most `max_bytes` unless one tensor alone is larger."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, tensor in tensors.items():
        if groups[-1] and held + tensor.nbytes > max_bytes:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += tensor.nbytes
    return groups


def save_hf(
    model: Transformer,
    config: ModelConfig,
    tokenizer: SavedTokenizer | None,
    folder: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    bos: Literal["none", "eos"] = "none",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write config, weights and tokenizer. `bos="eos"` is for chat models, whose text begins with the EOS
    token (RECIPE B).
    """
    folder.mkdir(parents=True, exist_ok=True)
    eos_id, pad_id = (tokenizer.eos_id, tokenizer.pad_id) if tokenizer else (None, None)
    bos_id = eos_id if bos == "eos" else None
    _write_json(folder / "config.json", hf_config(config, eos_id, pad_id, bos_id, dtype))
    special = {"bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": pad_id}
    _write_json(folder / "generation_config.json", special)
    extra = {"model": config.model_dump(mode="json"), "ranks": tokenizer.ranks if tokenizer else None}
    _write_json(folder / EXTRA, extra)
    if tokenizer:
        tokenizer.save(folder)
    tensors = {hf_key(name): value.detach().to(dtype).cpu().contiguous() for name, value in model.named_parameters()}
    groups = _shards(tensors, max_shard_bytes)
    if len(groups) == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for number, names in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def read_config(folder: Path) -> ModelConfig:
    """The model configuration of a folder, ours or from the hub. Raises ValueError naming what does not
    fit.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json: not a checkpoint folder")
    hf = json.loads(path.read_text())
    known = {ARCHITECTURE, VARIANT_ARCHITECTURE}
    names = hf.get("architectures") or []
    if len(names) != 1 or names[0] not in known:
        raise ValueError(f"{path} says architectures={names}; only {ARCHITECTURE} can be loaded")
    if (folder / EXTRA).is_file():
        return ModelConfig(**json.loads((folder / EXTRA).read_text())["model"])
    if names[0] == VARIANT_ARCHITECTURE:
        raise ValueError(f"{folder} holds a variant, but {EXTRA}, which describes it, is missing")
    for field, wanted in (("attention_bias", False), ("tie_word_embeddings", False), ("hidden_act", "silu")):
        if hf.get(field, wanted) != wanted:
            raise ValueError(f"{path} says {field}={hf[field]}; OLMo 2 has {wanted}")
    rope = hf.get("rope_parameters") or {}
    if hf.get("rope_scaling") or rope.get("rope_type", "default") != "default":
        raise ValueError(f"{path} asks for RoPE scaling; OLMo 2 has none")
    return ModelConfig(
        d_model=hf["hidden_size"],
        n_layers=hf["num_hidden_layers"],
        n_heads=hf["num_attention_heads"],
        n_kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
        head_dim=hf["hidden_size"] // hf["num_attention_heads"],
        mlp_hidden=hf["intermediate_size"],
        vocab_size=hf["vocab_size"],
        max_sequence_length=hf["max_position_embeddings"],
        rope_theta=rope.get("rope_theta") or hf["rope_theta"],
        norm_eps=hf["rms_norm_eps"],
        init_std=hf["initializer_range"],
    )


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks weight files {missing}; fetch the folder again")
    return [folder / name for name in names]


@torch.no_grad()
def load_hf(folder: Path, ranks: int | None = None) -> tuple[Transformer, ModelConfig]:
    """Model in fp32 on the CPU, and its config. `ranks`, if given, is the tokenizer size the caller will use.

    Raises ValueError naming the architecture, vocabulary or tensors that do not fit.
    """
    folder = Path(folder)
    config = read_config(folder)
    if ranks is not None and (folder / EXTRA).is_file():
        saved = json.loads((folder / EXTRA).read_text())["ranks"]
        if saved is not None and saved != ranks:
            raise ValueError(
                f"{folder} was trained with a vocabulary of {saved} ranks, not {ranks}; use its own tokenizer"
            )
    model = Transformer(config, seed=None)
    wanted = {hf_key(name): parameter for name, parameter in model.named_parameters()}
    found: set[str] = set()
    for path in _files(folder):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                if key not in wanted:
                    raise ValueError(f"{path} holds {key}, which {ARCHITECTURE} of this shape does not have")
                tensor = file.get_tensor(key)
                if tensor.shape != wanted[key].shape:
                    raise ValueError(
                        f"{path}: {key} has shape {tuple(tensor.shape)}, the config says {tuple(wanted[key].shape)}"
                    )
                wanted[key].copy_(tensor)
                found.add(key)
    if lacking := sorted(wanted.keys() - found):
        raise ValueError(f"{folder} lacks tensors {lacking}; it is incomplete or of another model")
    return model, config
