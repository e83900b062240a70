"""AdamW as OLMo 2 ran it, with gradient clipping and the skip-step rule folded into one fused update.

Source: RECIPE D (AdamW groups, clipping, skip-step optimizer), 0.15 (the historical step counter);
golden/skip_step.json. Deviation: a non-finite gradient norm never touches the weights in any mode; the loop
then ends the run with an error.
"""

from collections.abc import Iterable
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.network.sharded_tensors import is_sharded, local_part, total_norm
from model.training.configs import OptimConfig

# RECIPE D: window of 128 earlier values, judged from 64 stored values on, six sample standard deviations.
SKIP_WINDOW = 128
SKIP_MINIMUM = 64
SKIP_DEVIATIONS = 6.0


def decayed(name: str, config: OptimConfig) -> bool:
    """Whether the parameter of this name has weight decay."""
    return config.decay == "all" or not name.endswith("embedding.weight")


def _part(parameter: nn.Parameter) -> nn.Parameter:
    """The rows of a parameter that this process holds, as a parameter in the same memory."""
    return nn.Parameter(local_part(parameter.detach())) if is_sharded(parameter) else parameter


class Updater(Protocol):
    """What the training loop and the save points ask of an optimizer: `Optimizer` has one model, `ppo.JointOptimizer` two."""

    config: OptimConfig
    history: Float[Tensor, "2 window"]
    """Newest losses and gradient norms, by which spikes are judged."""
    seen: int
    """Updates that the history has seen."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What it updates, by name."""
        ...

    def step(self, learning_rate: float, loss: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
        """Apply the gradients; returns metrics."""
        ...

    def moments(self) -> dict[str, Tensor]:
        """Adam's moments by kind and parameter name."""
        ...

    def restore_moments(self, tensors: dict[str, Tensor]) -> None:
        """Take moments by kind and parameter name."""
        ...


class Optimizer:
    """AdamW over the named parameters of a model; `step` clips, judges and applies in one pass over the
    weights.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> None:
        self.config = config
        # Frozen parameters have no moments and must not reach the clipping norm.
        self.parameters = {name: parameter for name, parameter in parameters if parameter.requires_grad}
        # AdamW works value by value, so each process updates the rows that it holds.
        self.parts = {name: _part(parameter) for name, parameter in self.parameters.items()}
        groups = []
        # AdamW takes its decay by group: one group with decay, one without.
        for decay in (True, False):
            members = [p for name, p in self.parts.items() if decayed(name, config) == decay]
            if members:
                groups.append({"params": members, "weight_decay": config.weight_decay if decay else 0.0})
        betas = (config.beta1, config.beta2)
        # `step` sets the rate of every update; a rate of 0 would show an update that came without one.
        self.adam = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=config.eps, fused=True)
        device = next(iter(self.parts.values())).device
        self.history = torch.zeros(2, SKIP_WINDOW, device=device)
        """Rows: losses, gradient norms; the newest value sits at (seen - 1) mod 128."""
        self.seen = 0

    @torch.no_grad()
    def step(self, learning_rate: float, loss: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
        """Apply the gradients at hand and clear them, unless their norm or the loss is not finite. Metrics stay on the
        device: `grad_norm` before clipping, `skipped`.
        """
        norm = total_norm([p.grad for p in self.parameters.values() if p.grad is not None])
        for name, part in self.parts.items():
            gradient = self.parameters[name].grad
            part.grad = None if gradient is None else local_part(gradient)
        # Whoever stops for such a loss hears of it later; the weights must not have moved by then.
        skipped = (~(torch.isfinite(norm) & torch.isfinite(loss.detach()))).float()
        if self.config.kind != "adamw":
            skipped = torch.maximum(skipped, self._judge(loss.detach().float(), norm))
        adam = cast(Any, self.adam)
        # torch's own hooks for loss scaling: gradients are divided by grad_scale, and found_inf leaves the update out.
        # At least 1, so gradients are only ever shortened.
        adam.grad_scale = (norm / self.config.clip_norm).clamp(min=1.0) if self.config.clip_norm else None
        adam.found_inf = skipped
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        self.adam.step()
        # The 32B run's code never advanced Adam's step, so its bias corrections stayed those of the first update.
        if self.config.kind == "skip_step_adamw_historical":
            for state in self.adam.state.values():
                state["step"].zero_()
        for parameter in (*self.parameters.values(), *self.parts.values()):
            parameter.grad = None
        return {"grad_norm": norm, "skipped": skipped}

    def _judge(self, loss: Tensor, norm: Tensor) -> Float[Tensor, ""]:
        """1.0 where the update has to be left out, else 0.0; stores the values either way. No host
        synchronisation.
        """
        current = torch.stack([loss, norm])
        earlier = self.history[:, : min(self.seen, SKIP_WINDOW)]
        verdict = torch.zeros((), device=norm.device)
        if self.seen + 1 >= SKIP_MINIMUM:
            limit = SKIP_DEVIATIONS * earlier.std(dim=1, correction=1)
            # Asked this way round, a NaN fails the comparison and the update is left out.
            verdict = 1.0 - (current - earlier.mean(dim=1) <= limit).all().float()
        # A ring of 128 values: the oldest one is overwritten.
        self.history[:, self.seen % SKIP_WINDOW] = current
        self.seen += 1
        return verdict

    def moments(self) -> dict[str, Tensor]:
        """First and second moments and step counter of each parameter, as `<kind>/<parameter name>`; of a
        sharded parameter the rows that this process holds.
        """
        tensors = {}
        for name, part in self.parts.items():
            for kind, value in self.adam.state[part].items():
                tensors[f"{kind}/{name}"] = value
        return tensors

    def restore_moments(self, tensors: dict[str, Tensor]) -> None:
        """Take moments by parameter name. Raises ValueError naming what is missing or has another shape."""
        if not tensors:
            return
        for name, part in self.parts.items():
            state = {}
            for kind in ("step", "exp_avg", "exp_avg_sq"):
                key = f"{kind}/{name}"
                if key not in tensors:
                    raise ValueError(
                        f"optimizer state lacks {key}; it belongs to another model: start with fresh moments"
                    )
                shape = torch.Size([]) if kind == "step" else part.shape
                if tensors[key].shape != shape:
                    raise ValueError(f"optimizer state {key} has shape {tuple(tensors[key].shape)}, not {tuple(shape)}")
                # Cloned, since the file's memory map closes after loading.
                state[kind] = tensors[key].to(part.device, torch.float32).clone()
            self.adam.state[part] = state
