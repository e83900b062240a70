"""Reads and writes models as Hugging Face `Olmo2ForCausalLM` folders.

Source: RECIPE A.6 (keys, shapes). What config.json and `olmo2.json` say is in `model/files/hf_config.py`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig
from model.files.hf_config import (
    ARCHITECTURE,
    EXTRA,
    FILE,
    SCORE_ARCHITECTURE,
    Extra,
    hf_config,
    read_config,
    read_extra,
)
from model.json_files import read_json
from model.network.transformer import Transformer, on_meta_device

INDEX = "model.safetensors.index.json"
DTYPES = ("F64", "F32", "F16", "BF16")
"""What weights may be stored as: numbers that mean themselves, not codes of a quantisation."""
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
SCORE_KEY = "score.weight"
"""The head of a reward model, in the place of `lm_head.weight`."""


class WeightIndex(BaseModel):
    """Which file of a sharded folder holds which tensor."""

    weight_map: dict[str, str]


class SavedTokenizer(Protocol):
    """What `save_hf` needs of a tokenizer."""

    @property
    def ranks(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
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


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _shards(tensors: dict[str, Tensor], max_bytes: int) -> list[list[str]]:
    """Names grouped in order, each group at most `max_bytes` unless one tensor alone is larger."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, tensor in tensors.items():
        # A tensor is never split over files, so one larger than the limit has a file of its own.
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
    token (RECIPE B). generation_config.json keeps the rows that pad the vocabulary from being sampled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    eos_id, pad_id = (tokenizer.eos_id, tokenizer.pad_id) if tokenizer else (None, None)
    bos_id = eos_id if bos == "eos" else None
    _write_json(folder / FILE, hf_config(config, eos_id, pad_id, bos_id, str(dtype).removeprefix("torch.")))
    special: dict[str, int | list[int] | None] = {
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
    }
    if tokenizer and tokenizer.vocab_size < config.vocab_size:
        # Rows that pad the vocabulary have logits like any other, and no token: whoever samples has to leave them out.
        special["suppress_tokens"] = list(range(tokenizer.vocab_size, config.vocab_size))
    _write_json(folder / "generation_config.json", special)
    extra = Extra(model=config, ranks=tokenizer.ranks if tokenizer else None)
    _write_json(folder / EXTRA, extra.model_dump(mode="json"))
    if tokenizer:
        tokenizer.save(folder)
    # In the order of the model's parameters, so that equal models are cut into equal files.
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


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX, WeightIndex).weight_map.values()))
        # A path in the index could lead out of the folder.
        if elsewhere := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{folder / INDEX} names weight files that do not lie beside it: {elsewhere}")
        if "model.safetensors" not in names and (folder / "model.safetensors").is_file():
            raise ValueError(
                f"{folder} holds model.safetensors beside an index that names {', '.join(names)}: two models may lie there; "
                "remove the one that is wrong"
            )
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks weight files {missing}; fetch the folder again. Only safetensors are read: for a repository that "
            "holds pytorch_model.bin alone, the hub's converter keeps them at --revision refs/pr/1"
        )
    return [folder / name for name in names]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises ValueError naming it when it is something else, or not all of it."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); fetch it again") from error


class SavedWeights:
    """The weights of a folder by our names, read by rows in fp32. `ranks`, if given, is the tokenizer size the caller
    will use. `scores` is for a reward model as transformers writes it, whose head has one row.

    Raises ValueError naming the architecture, vocabulary or tensors that do not fit; only headers are read for that.
    """

    def __init__(self, folder: Path, ranks: int | None = None, *, scores: bool = False) -> None:
        self.config = read_config(folder, scores=scores)
        self.keys = {"head.weight": SCORE_KEY} if scores else {}
        """Names that differ from `hf_key`'s."""
        extra = read_extra(folder)
        saved = extra.ranks if extra else None
        if ranks is not None and saved is not None and saved != ranks:
            raise ValueError(
                f"{folder} was trained with a vocabulary of {saved} ranks, not {ranks}; use its own tokenizer"
            )
        wanted = {hf_key(name): tuple(value.shape) for name, value in on_meta_device(self.config).named_parameters()}
        if scores:
            del wanted[hf_key("head.weight")]
            # A score head is one row: [1, d_model] instead of [vocab, d_model].
            wanted[SCORE_KEY] = (1, self.config.d_model)
        self.files: dict[str, Path] = {}
        for path in _files(folder):
            with _opened(path) as file:
                for key in file.keys():  # noqa: SIM118 - not a dict
                    if key not in wanted:
                        model = SCORE_ARCHITECTURE if scores else ARCHITECTURE
                        raise ValueError(f"{path} holds {key}, which {model} of this shape does not have")
                    if key in self.files:
                        raise ValueError(f"{path} and {self.files[key]} both hold {key}; remove the file that is wrong")
                    _check_tensor(path, key, file.get_slice(key), wanted[key])
                    self.files[key] = path
        if lacking := sorted(wanted.keys() - self.files.keys()):
            raise ValueError(f"{folder} lacks tensors {lacking}; it is incomplete or of another model")

    def __call__(self, name: str, shape: Sequence[int], start: int, stop: int) -> Float[Tensor, "rows ..."]:
        """Rows [start, stop) of a parameter; `shape` is the whole one's."""
        key = self.keys.get(name) or hf_key(name)
        with _opened(self.files[key]) as file:
            # get_slice reads only these rows of the file: a rank never holds a whole tensor.
            return file.get_slice(key)[start:stop].float()


def _check_tensor(path: Path, key: str, saved: Any, shape: tuple[int, ...]) -> None:
    if tuple(saved.get_shape()) != shape:
        raise ValueError(f"{path}: {key} has shape {tuple(saved.get_shape())}, the config says {shape}")
    if saved.get_dtype() not in DTYPES:
        raise ValueError(
            f"{path}: {key} holds {saved.get_dtype()}, not one of {', '.join(DTYPES)}; give weights that are not quantised"
        )


@torch.no_grad()
def load_hf(folder: Path, ranks: int | None = None) -> tuple[Transformer, ModelConfig]:
    """Model in fp32 on the CPU, and its config; `ranks` and errors as in `SavedWeights`."""
    weights = SavedWeights(Path(folder), ranks)
    model = Transformer(weights.config, seed=None)
    for name, parameter in model.named_parameters():
        parameter.copy_(weights(name, parameter.shape, 0, len(parameter)))
    return model, weights.config
