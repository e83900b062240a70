"""Training state on disk: weights, Adam moments, skip-step history and counters, as safetensors and JSON.

Source: RECIPE J (what a resume restores), E (mid-training keeps Adam moments and resets counters).
Files are byte-deterministic: equal states give equal bytes.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.optim import Optimizer

if TYPE_CHECKING:
    from model.loop import TrainState

WEIGHTS, MOMENTS, COUNTERS = "weights.safetensors", "optimizer.safetensors", "state.json"


def save_state(state: "TrainState", folder: Path) -> None:
    """Write everything that `load_state` needs into `folder` (created where missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().contiguous() for name, value in state.model.named_parameters()}
    save_file(weights, folder / WEIGHTS)
    tensors = state.optimizer.moments() | {"history": state.optimizer.history}
    save_file(tensors, folder / MOMENTS)
    counters = {"step": state.step, "tokens": state.tokens, "seen": state.optimizer.seen}
    (folder / COUNTERS).write_text(json.dumps(counters, sort_keys=True))


def load_state(state: "TrainState", folder: Path) -> "TrainState":
    """Put a saved state into a freshly built one (same model, same optimizer config) and return it.

    Raises ValueError naming a file or tensor that is missing or has another shape.
    """
    for name in (WEIGHTS, MOMENTS, COUNTERS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: not a training state, or an unfinished one; start from another")
    load_weights(state.model, load_file(folder / WEIGHTS))
    tensors = load_file(folder / MOMENTS)
    state.optimizer.history.copy_(tensors.pop("history"))
    state.optimizer.restore_moments(tensors)
    counters = json.loads((folder / COUNTERS).read_text())
    state.step, state.tokens, state.optimizer.seen = counters["step"], counters["tokens"], counters["seen"]
    return state


@torch.no_grad()
def load_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into parameters of the same names. Raises ValueError naming every mismatch."""
    parameters = dict(model.named_parameters())
    missing, unknown = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
    if missing or unknown:
        raise ValueError(f"tensors do not fit the model: missing {missing or 'none'}, unknown {unknown or 'none'}")
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensors[name].shape)} in the file and {tuple(parameter.shape)} in the model; "
                "use the configuration it was saved with"
            )
        parameter.copy_(tensors[name])


def save_moments(optimizer: Optimizer, path: Path) -> None:
    """Write Adam's moments by parameter name (`optimizer.safetensors` beside finished weights)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(optimizer.moments(), path)


def load_moments(optimizer: Optimizer, path: Path) -> None:
    """Start from the moments of another run; its step and token counters stay behind (RECIPE E)."""
    optimizer.restore_moments(load_file(path))
