"""OLMo-core's side of the comparison: a script for an environment of its own, `core_peer.py FOLDER...`.

Each folder holds a Hugging Face model (config.json, model.safetensors), batches.safetensors (`ids/N`, `trained/N`,
`kept/N`) and request.json. Everything is computed by OLMo-core's own train module: labels from ids and masks,
micro-batches, the divisor of the loss, clipping, schedule and optimizer. Written are answers.json (a row of metrics
per batch) and answers.safetensors: `logits/N` and `gradient/N/<Hugging Face name>`, or after training
`weight/<Hugging Face name>`.
"""

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from olmo_core.nn.feed_forward import FeedForwardConfig
from olmo_core.nn.layer_norm import LayerNormType
from olmo_core.nn.transformer import Transformer, TransformerBlockType, TransformerConfig
from olmo_core.optim import AdamWConfig, CosWithWarmup, OptimGroupOverride, SkipStepAdamWConfig
from olmo_core.train.train_module import TransformerTrainModule
from safetensors.torch import load_file, save_file

VERSION = "3.0.0"
# Hugging Face names to OLMo-core's, RECIPE A.6.
NAMES = {
    "model.embed_tokens": "embeddings", "model.norm": "lm_head.norm", "lm_head": "lm_head.w_out",
    "self_attn.q_proj": "attention.w_q", "self_attn.k_proj": "attention.w_k", "self_attn.v_proj": "attention.w_v",
    "self_attn.o_proj": "attention.w_out", "self_attn.q_norm": "attention.q_norm", "self_attn.k_norm": "attention.k_norm",
    "post_attention_layernorm": "attention_norm", "post_feedforward_layernorm": "feed_forward_norm",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
}  # fmt: skip


class Recorder:
    """Stands where the train module expects its trainer: progress for the schedule, a place for metrics."""

    def __init__(self, max_steps: int) -> None:
        self.global_step, self.max_steps = 0, max_steps
        self.metrics: dict[str, float] = {}

    def record_metric(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        self.metrics[name] = float(value)

    def record_ce_loss(self, value: Any, *_: Any, **__: Any) -> None:
        self.metrics["CE loss"] = float(value)


def core_name(name: str) -> str:
    """OLMo-core's name of a Hugging Face parameter."""
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    if layer:
        return f"blocks.{layer[1]}.{NAMES[layer[2]]}.weight"
    return NAMES[name.removesuffix(".weight")] + ".weight"


def build(hf: dict[str, Any]) -> Transformer:
    """The model as OLMo-core's own `olmo2_*` builders make it, with this width of the MLP."""
    return TransformerConfig.llama_like(
        d_model=hf["hidden_size"], vocab_size=hf["vocab_size"], n_layers=hf["num_hidden_layers"],
        n_heads=hf["num_attention_heads"], n_kv_heads=hf["num_key_value_heads"], qk_norm=True,
        layer_norm_eps=hf["rms_norm_eps"], rope_theta=int(hf["rope_theta"]), layer_norm_name=LayerNormType.rms,
        block_name=TransformerBlockType.reordered_norm,
        feed_forward=FeedForwardConfig(hidden_size=hf["intermediate_size"], bias=False),
    ).build()  # fmt: skip


def optimizer(request: dict[str, Any]) -> AdamWConfig | SkipStepAdamWConfig:
    """Their configuration of the optimizer of this kind; everything decays but the input embedding."""
    fields: dict[str, Any] = {
        "lr": request["learning_rate"], "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1,
        "group_overrides": [OptimGroupOverride(params=["embeddings.weight"], opts={"weight_decay": 0.0})],
    }  # fmt: skip
    if request["kind"] == "adamw":
        return AdamWConfig(**fields)
    return SkipStepAdamWConfig(**fields, step_increment_bugfix=request["kind"] == "skip_step_adamw")


def answer(folder: Path) -> None:
    """Compute one folder's request."""
    hf = json.loads((folder / "config.json").read_text())
    request = json.loads((folder / "request.json").read_text())
    batches = load_file(folder / "batches.safetensors")
    steps = sum(name.startswith("ids/") for name in batches)
    length = batches["ids/0"].shape[1]
    module = TransformerTrainModule(
        build(hf), optimizer(request), rank_microbatch_size=request["micro_instances"] * length,
        max_sequence_length=length, z_loss_multiplier=request["z_weight"], max_grad_norm=1.0,
        scheduler=CosWithWarmup(warmup=request["warmup"], alpha_f=0.1), device=torch.device("cpu"),
    )  # fmt: skip
    names = {core_name(name): name for name in load_file(folder / "model.safetensors")}
    weights = load_file(folder / "model.safetensors")
    module.model.load_state_dict({core: weights[name] for core, name in names.items()}, strict=True)
    recorder = Recorder(steps)
    module._trainer = recorder
    tensors: dict[str, torch.Tensor] = {}
    rows = []
    for step in range(steps):
        ids = batches[f"ids/{step}"]
        if not request["train"]:
            with torch.no_grad():
                tensors[f"logits/{step}"] = module.model(ids)
        recorder.global_step, recorder.metrics = step + 1, {}
        masks = {"label_mask": batches[f"trained/{step}"], "instance_mask": batches[f"kept/{step}"]}
        module.zero_grads()
        module.train_batch({"input_ids": ids, **masks})
        if request["train"]:
            module.optim_step()
        else:
            for core, parameter in module.model.named_parameters():
                tensors[f"gradient/{step}/{names[core]}"] = parameter.grad.clone()
        rows.append(recorder.metrics)
    if request["train"]:
        tensors = {f"weight/{names[core]}": parameter.detach() for core, parameter in module.model.named_parameters()}
    save_file(tensors, folder / "answers.safetensors")
    (folder / "answers.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    assert version("ai2-olmo-core") == VERSION, f"ai2-olmo-core {version('ai2-olmo-core')} is not {VERSION}"
    torch.set_num_threads(1)
    for argument in sys.argv[1:]:
        answer(Path(argument))
