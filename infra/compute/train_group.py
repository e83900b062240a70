"""Runs a stage on several ranks: Ray Train starts the processes, each runs the stage function, and rank 0's result counts.

Functions of training stages are written for one process. In a group every rank runs the same function with the same
arguments, and the training loop inside finds the others through torch.distributed. Only rank 0 talks to the dashboard and
goes on after the training. A worker that dies takes the group down; Ray Train starts it again, and it resumes from the
newest save point.

Ray Train has no call that stops a group, but what it starts ends with the process that called it. So a separate process
calls it, and a failed or interrupted stage ends that process. Nothing then works on for a stage that is over.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from infra.compute.device_memory import allocator_environment
from infra.compute.health import DeviceHealth, DeviceUnfit, GroupUnfit, Proof, verdict
from infra.compute.nodes import keep_off_cordoned
from infra.compute.processes import is_out_of_memory, portable
from infra.compute.ray_connection import connected
from infra.compute.stage_call import Finished, StageCall
from infra.events import Event, Events, Listener, Progress, Raised, Returned, StageMessage, Warned
from infra.json_values import JsonObject
from infra.stopping import check_stopping
from infra.workspace import Workspace

_POLL_SECONDS = 0.2
"""How often events are taken from the group."""

_STOP_SECONDS = 10.0
"""How long the end of a group is waited for when its stage is over."""

COLLECTIVE_SECONDS = 1800
"""The least that workers wait for each other, torch's default. At the start of a stage some may still fetch what others have."""

_CHECK_SECONDS = 60.0
"""How long ranks wait for each other's health check after what ended their training."""

_RECORDER = {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
"""NCCL's flight recorder: when a collective times out, each rank writes its last collectives to a file on its node, by default
~/.cache/torch/comm_lib_trace_rank_N.
"""

_FINAL = (ValueError, FloatingPointError, DeviceUnfit, GroupUnfit)
"""Errors that a new start in the same place would only repeat: what the user gave, numbers that left the finite, a device that
failed its health check."""


class WorkDone(Exception):
    """This worker's part of the stage is over; rank 0 of its group continues."""


class GroupFailed(Exception):
    """A group of workers ended without a result: it failed more often than it may be started again, or lost what led it."""


class Mailbox:
    """A Ray actor: what rank 0 tells, until the stage's process takes it."""

    def __init__(self) -> None:
        self.events: list[StageMessage] = []
        self.ended = False
        self.checked: dict[int, DeviceHealth] = {}

    def begin(self, rank: int) -> bool:
        """Whether the group has ended before; a rank that begins has not been checked since."""
        self.checked.pop(rank, None)
        return self.ended

    def check(self, rank: int, health: DeviceHealth) -> None:
        """Take what a rank found of its device after something that a device may be to blame for."""
        self.checked[rank] = health

    def get_checked(self) -> list[DeviceHealth]:
        return [self.checked[rank] for rank in sorted(self.checked)]

    def put(self, message: StageMessage) -> None:
        self.events.append(message)
        self.ended = self.ended or isinstance(message, Returned | Raised)

    def take(self) -> list[StageMessage]:
        taken, self.events = self.events, []
        return taken


def run_in_group(call: StageCall, listener: Listener, *, ray_address: str) -> Finished:
    """Make a stage's call in every worker of a group and return rank 0's result.

    Raises what the function raised if it is of the user's making (ValueError) or not finite. Raises GroupFailed when
    workers, or the process that led them, died or failed more than `max_restarts` times. Raises Interrupted when the run was
    asked to stop.
    """
    workspace = call.workspace
    check_stopping()
    with connected(ray_address) as ray, workspace.store.staging(workspace.progress_folder) as folder:
        keep_off_cordoned(ray, workspace, ray_address, _each(workspace), workspace.compute.parallel.workers)
        # Next to the stage's process, so that no other node's end takes it along.
        mailbox = ray.remote(num_cpus=0, scheduling_strategy=_here(ray))(Mailbox).remote()
        workers = workspace.compute.parallel.workers
        listener(Progress(f"start {workers} workers", 0.0, float(workers), "workers"))
        result: list[Finished] = []
        with _fitting(ray, call, mailbox, str(folder)) as fit:
            while not ray.wait([fit], timeout=_POLL_SECONDS)[0]:
                check_stopping()
                _forward(ray, mailbox, listener, result)
            # What came between the last look and the end.
            _forward(ray, mailbox, listener, result)
            if result:
                return result[0]
            last = _ending(ray, fit)
    raise group_failed(workspace.stage, workspace.compute.parallel.max_restarts, last)


def group_failed(stage: str, max_restarts: int, last: str) -> GroupFailed:
    """The error of a group that ended without a result; `last` is the last error that is known."""
    limit = "as often as need be" if max_restarts < 0 else f"at most {max_restarts} times in its run"
    return GroupFailed(
        f"the group of stage {stage} ended without a result. It is started again {limit} "
        f"(execution.parallel.{stage}.max_restarts={max_restarts}); the last error: {last.rstrip('.') or 'none'}. Run the "
        "same command again: it resumes from its last save point."
    )


@contextmanager
def _fitting(ray: ModuleType, call: StageCall, mailbox: Any, folder: str) -> Iterator[Any]:
    """The call of Ray Train in a process on this node; an exception in the block ends it and all that it started."""
    fit = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=_here(ray))(_fit).remote(call, mailbox, folder)
    try:
        yield fit
    except BaseException:
        if ray.is_initialized():
            # Asked, Ray Train gives back the cores that it has reserved; killed, it would keep them as long as Ray lives.
            ray.cancel(fit)
            if not ray.wait([fit], timeout=_STOP_SECONDS)[0]:
                ray.cancel(fit, force=True)
                ray.wait([fit], timeout=_STOP_SECONDS)
        raise


def _here(ray: ModuleType) -> Any:
    """On the node of the stage's process, and on no other."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _ending(ray: ModuleType, fit: Any) -> str:
    """What a group ended with that had no result."""
    try:
        return ray.get(fit)
    except ray.exceptions.RayError as error:
        return str(error)


def _forward(ray: ModuleType, mailbox: Any, listener: Listener, result: list[Finished]) -> None:
    """Hand events to the listener. Raises an error that a worker has sent."""
    messages: list[StageMessage] = ray.get(mailbox.take.remote())
    for message in messages:
        match message:
            case Raised(error):
                raise error
            case Returned(value):
                result.append(value)
            case event:
                listener(event)


def _fit(call: StageCall, mailbox: Any, folder: str) -> str:
    """Run a group to its end; the text of the error that it ends with, if it does."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    compute = call.workspace.compute
    on_gpu = compute.device.startswith("cuda")
    trainer = TorchTrainer(
        _work,
        train_loop_config={"call": call, "mailbox": mailbox},
        torch_config=TorchConfig(
            backend="nccl" if on_gpu else "gloo", timeout_s=max(COLLECTIVE_SECONDS, int(compute.stall_seconds))
        ),
        scaling_config=ScalingConfig(
            num_workers=compute.parallel.workers,
            use_gpu=on_gpu,
            resources_per_worker=_each(call.workspace),
            label_selector=compute.placement.labels or None,
        ),
        # Ray Train keeps no checkpoint of its own: the stage's save points are the only truth.
        run_config=RunConfig(
            name="group",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=compute.parallel.max_restarts),
            worker_runtime_env={"env_vars": worker_environment(os.environ)} if on_gpu else None,
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return str(error)
    return ""


def worker_environment(surroundings: Mapping[str, str]) -> dict[str, str]:
    """What a worker on a GPU gets besides the environment of its node. What the user has set in these surroundings stays."""
    recorder = {name: surroundings.get(name, value) for name, value in _RECORDER.items()}
    return recorder | allocator_environment("cuda", surroundings)


def _each(workspace: Workspace) -> dict[str, float]:
    """What one worker takes, by Ray's names."""
    compute = workspace.compute
    gpu = {"GPU": 1.0} if compute.device.startswith("cuda") else {}
    return {"CPU": float(compute.threads)} | gpu | compute.placement.resources


def _work(config: JsonObject) -> None:
    """One worker: the stage function, and what rank 0 tells about it."""
    import ray
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    mailbox: Any = config["mailbox"]
    call: StageCall = config["call"]
    workspace = call.workspace
    rank = get_context().get_world_rank()
    first = rank == 0
    # The group may be started again after its result was told: a worker may die after that.
    if ray.get(mailbox.begin.remote(rank)):
        return
    workers = workspace.compute.parallel.workers
    if first:
        mailbox.put.remote(Progress(f"start {workers} workers", float(workers), float(workers), "workers"))
    call.use_threads()
    if workspace.compute.device.startswith("cuda"):
        torch.cuda.set_device(get_device())
        # From here on this worker's own, whichever it is and whichever was named.
        workspace.compute = workspace.compute.model_copy(update={"device": "cuda"})

    def put(event: Event) -> None:
        mailbox.put.remote(event)

    workspace.report_to(Events(put if first else None))
    proof = _proof(ray, workspace)
    try:
        try:
            with call.proven(proof) as function:
                artifact = function()
        except Exception as error:
            if not call.trains or not proof.doubts(error):
                raise
            devices = _checked_together(ray, mailbox, rank, proof.alone(), workers)
            raise verdict(error, devices, workers) from error
    except WorkDone:
        return
    except _FINAL as error:
        # Waited for, since the process may end before a message that is only on its way.
        ray.get(mailbox.put.remote(Raised(portable(error))))
        raise
    except Exception as error:  # whatever ends a group, a lost worker above all, is told and goes on to Ray Train
        if is_out_of_memory(error):
            # A new start would only repeat it; whoever called asks for less at once.
            ray.get(mailbox.put.remote(Raised(portable(error))))
        elif first:
            text = f"the group's first worker ended: {type(error).__name__}: {error}"
            ray.get(mailbox.put.remote(Warned(text)))
        raise
    ray.get(mailbox.put.remote(Returned(call.finished(artifact))))


def _proof(ray: ModuleType, workspace: Workspace) -> Proof:
    """What checks this worker's device, by the names that others know it and its node by."""
    gpus = ray.get_gpu_ids()
    # A Ray of this machine's own is gone after the run, and its node with it.
    node = "" if workspace.ray in ("local", "off") else ray.get_runtime_context().get_node_id()
    return Proof(workspace, node, label=f"cuda:{gpus[0]}" if gpus else "", grouped=True)


def _checked_together(ray: ModuleType, mailbox: Any, rank: int, own: DeviceHealth, workers: int) -> list[DeviceHealth]:
    """What all ranks found of their devices, or those that have told it in time: one may hang in the call that failed here.

    Through the mailbox, for after what has happened the ranks may no longer make the same collective calls.
    """
    ray.get(mailbox.check.remote(rank, own))
    deadline = time.monotonic() + _CHECK_SECONDS
    # Whichever rank ends before the others takes them along, so each waits for all.
    while len(found := ray.get(mailbox.get_checked.remote())) < workers and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return found


__all__ = ["GroupFailed", "Mailbox", "WorkDone", "group_failed", "run_in_group"]
