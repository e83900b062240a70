"""Saves and loads training state: weights, Adam moments, skip-step history, random state and counters, as safetensors and
JSON.

Source: RECIPE J (what a resume restores; a copy on the host is written in the background), E (mid-training keeps Adam
moments and resets counters). Files are byte-deterministic: equal states give equal bytes. A sharded model is saved as it is
held, one set of files a shard. Since shards are equal runs of rows (`sharded_tensors.rows_of_shard`), any world size can
read them. Batch order needs no state: it is a function of the step.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig
from model.network.sharded_tensors import is_sharded, local_part, rows_of_shard, whole_tensor
from model.network.transformer import Transformer
from model.parallel.group import Group, local_rows
from model.training.optim import Updater

if TYPE_CHECKING:
    from model.training.loop import TrainState

MOMENT_KINDS = ("exp_avg", "exp_avg_sq")
FILES = ("weights", *MOMENT_KINDS, "counters")
"""Kinds of files; `counters` holds Adam's step counters, the skip-step history and the random state."""
COUNTERS = "state.json"
SAFETENSORS_TYPES = {torch.float32: "F32", torch.uint8: "U8"}
STATE_BYTES = 12
"""Bytes of a save point per parameter: weight and two moments in fp32."""


def file_name(kind: str, shard: int, shards: int) -> str:
    """Name of one kind of file of one shard; `shards` of 1 is a state that was not sharded."""
    return f"{kind}.safetensors" if shards == 1 else f"{kind}-{shard:05d}-of-{shards:05d}.safetensors"


def is_needed(name: str, group: Group) -> bool:
    """Whether a process of this group reads this file of a save point: its own shard's, or all of another cutting's."""
    found = re.fullmatch(r"\w+-(\d+)-of-(\d+)\.safetensors", name)
    return found is None or int(found[2]) != group.shards or int(found[1]) == group.shard


@dataclass
class Snapshot:
    """What one process saves of a training state, copied to the host, so that training may go on."""

    tensors: dict[str, dict[str, Tensor]]
    """By kind of file and by name."""
    counters: dict[str, int]
    shard: int


@torch.no_grad()
def snapshot(state: "TrainState", reuse: Snapshot | None = None) -> Snapshot | None:
    """Copy the state to the host; None where another process saves the same. `reuse` gives memory of an older snapshot."""
    if not state.group.saves:
        return None
    optimizer = state.optimizer
    tensors: dict[str, dict[str, Tensor]] = {kind: {} for kind in FILES}
    # The shard's own rows, sharing memory with the model; the copy to the host comes below.
    tensors["weights"] = {name: local_part(value.detach()) for name, value in state.model.named_parameters()}
    for key, value in optimizer.moments().items():
        kind, name = key.split("/", 1)
        if kind in MOMENT_KINDS:
            tensors[kind][name] = value
        else:
            tensors["counters"][key] = value
    tensors["counters"] |= {"history": optimizer.history, "random": torch.get_rng_state()}
    counters = {"step": state.step, "tokens": state.tokens, "seen": optimizer.seen, "shards": state.group.shards}
    device = optimizer.history.device
    if device.type == "cuda":
        tensors["counters"]["random_cuda"] = torch.cuda.get_rng_state(device)
    copies = {
        kind: {name: _on_host(value, reuse.tensors[kind].get(name) if reuse else None) for name, value in group.items()}
        for kind, group in tensors.items()
    }
    if device.type == "cuda":
        # The copies are queued, not made; the training may overwrite the weights only after this wait.
        torch.cuda.current_stream(device).synchronize()
    return Snapshot(copies, counters, state.group.shard)


def _on_host(value: Tensor, memory: Tensor | None) -> Tensor:
    """A copy in ordinary memory, or in the memory given; from a GPU without waiting for it."""
    if memory is None:
        memory = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    return memory.copy_(value, non_blocking=True)


def write_snapshot(saved: Snapshot, folder: Path) -> Iterator[Path]:
    """Write a snapshot's files into `folder` (created where missing), `state.json` by the first shard; each is given as
    soon as it is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for kind, tensors in saved.tensors.items():
        path = folder / file_name(kind, saved.shard, saved.counters["shards"])
        write_tensors(path, tensors)
        yield path
    if saved.shard == 0:
        (folder / COUNTERS).write_text(json.dumps(saved.counters, sort_keys=True))
        yield folder / COUNTERS


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write host tensors as a safetensors file straight from their memory.

    The library's own writer gives the same tensors at 2.5 times the processor time, which a background writer takes from the
    training. Its errors do not say what the disk said.
    """
    # Wide types first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, dict[str, str | list[int]]] = {}
    end = 0
    for name in names:
        # Offsets count from the end of the header, as the format says.
        start, end = end, end + tensors[name].nbytes
        kind = SAFETENSORS_TYPES[tensors[name].dtype]
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    # Padded to 8 bytes, so that the data after the header is aligned.
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(tensors[name].reshape(-1).view(torch.uint8).numpy().data)


def save_state(state: "TrainState", folder: Path) -> None:
    """Write what this process saves of the state; together, the files of all processes are what `load_state` needs."""
    if (saved := snapshot(state)) is not None:
        list(write_snapshot(saved, folder))


def load_state(state: "TrainState", folder: Path) -> "TrainState":
    """Put a saved state into a freshly built one (same model, same optimizer config) and return it.

    The state may have been saved with another world size. Raises ValueError naming a file or tensor that is
    missing or has another shape.
    """
    # Without counters the check below names the missing file; 1 shard is a guess that lets it run.
    counters = json.loads((folder / COUNTERS).read_text()) if (folder / COUNTERS).is_file() else {"shards": 1}
    group, optimizer = state.group, state.optimizer
    needed = [file_name(kind, shard, counters["shards"]) for kind in FILES for shard in range(counters["shards"])]
    for name in (*(name for name in needed if is_needed(name, group)), COUNTERS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: not a training state, or an unfinished one; start from another")
    parameters = dict(state.model.named_parameters())
    with ExitStack() as stack:
        files = SavedTensors(folder, counters["shards"], stack)
        _check_names(parameters, files.names("weights"))
        with torch.no_grad():
            for name, parameter in parameters.items():
                # Each process reads its own rows from whichever shards hold them, so the world size may have changed.
                local_part(parameter).copy_(files.rows("weights", name, parameter, group))
        moments = {
            f"{kind}/{name}": files.rows(kind, name, parameters[name], group)
            for kind in MOMENT_KINDS
            for name in files.names(kind)
        }
        steps = {name: files.whole("counters", name) for name in files.names("counters")}
        optimizer.history.copy_(steps.pop("history"))
        torch.set_rng_state(steps.pop("random"))
        # Another kind of device has no use for this generator's state.
        if (random := steps.pop("random_cuda", None)) is not None and optimizer.history.is_cuda:
            torch.cuda.set_rng_state(random, optimizer.history.device)
        optimizer.restore_moments(moments | steps)
    state.step, state.tokens, optimizer.seen = counters["step"], counters["tokens"], counters["seen"]
    return state


class SavedTensors:
    """Tensors in the files of a save point, read by rows from whichever shards hold them."""

    def __init__(self, folder: Path, shards: int, stack: ExitStack) -> None:
        self.folder, self.shards, self.stack = folder, shards, stack
        self.opened: dict[tuple[str, int], Any] = {}

    def file(self, kind: str, shard: int) -> Any:
        """An open file, closed with the stack."""
        if (kind, shard) not in self.opened:
            path = self.folder / file_name(kind, shard, self.shards)
            self.opened[kind, shard] = self.stack.enter_context(safe_open(path, framework="pt"))
        return self.opened[kind, shard]

    def any_shard(self) -> int:
        """A shard whose files are here."""
        return next(s for s in range(self.shards) if (self.folder / file_name("weights", s, self.shards)).is_file())

    def names(self, kind: str) -> list[str]:
        """Names of the tensors of a kind, the same in all shards."""
        return list(self.file(kind, self.any_shard()).keys())

    def whole(self, kind: str, name: str) -> Tensor:
        """A tensor that is the same in all shards."""
        return self.file(kind, self.any_shard()).get_tensor(name)

    def rows(self, kind: str, name: str, parameter: Tensor, group: Group) -> Tensor:
        """The rows of a tensor shaped like a parameter that this process holds."""
        start, stop = local_rows(parameter, group)
        pieces = []
        for shard in range(self.shards):
            first, last = rows_of_shard(len(parameter), shard, self.shards)
            # The overlap of what this process holds with what that shard saved.
            low, high = max(first, start), min(last, stop)
            if low >= high:
                continue
            saved = self.file(kind, shard).get_slice(name)
            expected = [last - first, *parameter.shape[1:]]
            if saved.get_shape() != expected:
                raise ValueError(
                    f"{name} has shape {tuple(saved.get_shape())} in the file and {tuple(expected)} in the model; "
                    "use the configuration it was saved with"
                )
            pieces.append(saved[low - first : high - first])
        # The last ranks hold no rows where a tensor has fewer rows than there are shards.
        if not pieces:
            return torch.empty((0, *parameter.shape[1:]))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _check_names(parameters: Mapping[str, Tensor], saved: list[str]) -> None:
    missing, unknown = sorted(parameters.keys() - set(saved)), sorted(set(saved) - parameters.keys())
    if missing or unknown:
        raise ValueError(f"tensors do not fit the model: missing {missing or 'none'}, unknown {unknown or 'none'}")


@torch.no_grad()
def load_whole(folder: Path, config: ModelConfig, part: str = "") -> tuple[Transformer, dict[str, Tensor]]:
    """The whole model, on the CPU, of a state of any world size, and Adam's moments as `write_moments` takes them. Of a
    state of several models, it is the one whose parameters' names begin with `part`.

    Raises ValueError naming a tensor that the config does not have, or that has another shape.
    """
    model, alone = Transformer(config, seed=None), Group()
    parameters = dict(model.named_parameters())
    with ExitStack() as stack:
        files = SavedTensors(folder, json.loads((folder / COUNTERS).read_text())["shards"], stack)
        saved = files.names("weights")
        _check_names(parameters, [name.removeprefix(part) for name in saved if name.startswith(part)])
        for name, parameter in parameters.items():
            parameter.copy_(files.rows("weights", part + name, parameter, alone))
        moments = {
            f"{kind}/{name}": files.rows(kind, part + name, parameter, alone)
            for kind in MOMENT_KINDS
            for name, parameter in parameters.items()
        }
        moments |= {f"step/{name}": files.whole("counters", f"step/{part}{name}") for name in parameters}
    return model, moments


# --- moments of a finished run ------------------------------------------------------------------------


def save_moments(optimizer: Updater, path: Path, group: Group | None = None) -> None:
    """Write Adam's whole moments by parameter name (`optimizer.safetensors` next to finished weights).

    All processes of a group have to call this; rank 0 writes.
    """
    moments: dict[str, Tensor] = {}
    # Every rank joins the gather; only rank 0 keeps the tensor, so that no other host needs memory for it.
    for key, value in optimizer.moments().items():
        kind, name = key.split("/", 1)
        whole = whole_tensor(value, optimizer.parameters[name]) if kind in MOMENT_KINDS else value
        if group is None or group.rank == 0:
            moments[key] = whole.cpu()
    if group is None or group.rank == 0:
        write_moments(moments, path)


def write_moments(moments: Mapping[str, Tensor], path: Path) -> None:
    """Write whole moments as `Optimizer.moments` names them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(moments), path)


def load_moments(optimizer: Updater, path: Path, group: Group | None = None) -> None:
    """Start from the moments of another run; its step and token counters stay behind (RECIPE E)."""
    moments: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            kind, name = key.split("/", 1)
            parameter = optimizer.parameters.get(name)
            if group is not None and kind in MOMENT_KINDS and parameter is not None and is_sharded(parameter):
                start, stop = local_rows(parameter, group)
                moments[key] = file.get_slice(key)[start:stop]
            else:
                moments[key] = file.get_tensor(key)
    optimizer.restore_moments(moments)
