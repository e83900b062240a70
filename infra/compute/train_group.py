"""Runs a stage on several ranks: Ray Train starts the processes, each runs the stage function, and rank 0's result counts.

Functions of training stages are written for one process. In a group every rank runs the same function with the same
arguments, and the training loop inside finds the others through torch.distributed. Only rank 0 talks to the dashboard and
goes on after the training. A worker that dies takes the group down; Ray Train starts it again, and it resumes from the
newest save point.

Ray Train has no call that stops a group, but what it starts ends with the process that called it. So a separate process
calls it, and a failed or interrupted stage ends that process. Nothing then works on for a stage that is over.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from infra.compute.processes import is_out_of_memory, portable
from infra.compute.ray_connection import connected
from infra.events import Events, Listener
from infra.stopping import check_stopping

if TYPE_CHECKING:
    from infra.workspace import Workspace

_POLL_SECONDS = 0.2
"""How often events are taken from the group."""

_STOP_SECONDS = 10.0
"""How long the end of a group is waited for when its stage is over."""

COLLECTIVE_SECONDS = 1800
"""The least that workers wait for each other, torch's default. At the start of a stage some may still fetch what others have."""

_FINAL = (ValueError, FloatingPointError)
"""Errors that a new start would only repeat: what the user gave, and numbers that left the finite."""


class WorkDone(Exception):
    """This worker's part of the stage is over; rank 0 of its group continues."""


class GroupFailed(Exception):
    """A group of workers ended without a result: it failed more often than it may be started again, or lost what led it."""


class Mailbox:
    """A Ray actor: what rank 0 tells, until the stage's process takes it."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.ended = False

    def put(self, *event: Any) -> None:
        self.events.append(event)
        self.ended = self.ended or event[0] in ("result", "error")

    def take(self) -> list[tuple[Any, ...]]:
        taken, self.events = self.events, []
        return taken

    def has_ended(self) -> bool:
        return self.ended


def run_in_group(
    function: Callable[..., Any],
    arguments: tuple[str, "Workspace", dict[str, Any]],
    listener: Listener,
    *,
    ray_address: str,
) -> Any:
    """Call `function(reference, workspace, arguments)` in every worker of a group and return rank 0's result.

    Raises what the function raised if it is of the user's making (ValueError) or not finite. Raises GroupFailed when
    workers, or the process that led them, died or failed more than `max_restarts` times. Raises Interrupted when the run was
    asked to stop.
    """
    _, workspace, _ = arguments
    check_stopping()
    with connected(ray_address) as ray, workspace.store.staging(workspace.progress_folder) as folder:
        # Next to the stage's process, so that no other node's end takes it along.
        mailbox = ray.remote(num_cpus=0, scheduling_strategy=_here(ray))(Mailbox).remote()
        workers = workspace.compute.parallel.workers
        listener("progress", f"start {workers} workers", 0.0, float(workers), "workers")
        result: list[Any] = []
        with _fitting(ray, function, arguments, mailbox, str(folder)) as fit:
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
def _fitting(ray: ModuleType, function: Callable[..., Any], *values: Any) -> Iterator[Any]:
    """The call of Ray Train in a process on this node; an exception in the block ends it and all that it started."""
    fit = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=_here(ray))(_fit).remote(function, *values)
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


def _forward(ray: ModuleType, mailbox: Any, listener: Listener, result: list[Any]) -> None:
    """Hand events to the listener. Raises an error that a worker has sent."""
    for kind, *values in ray.get(mailbox.take.remote()):
        if kind == "error":
            raise values[0]
        if kind == "result":
            result.append(values[0])
        else:
            listener(kind, *values)


def _fit(function: Callable[..., Any], arguments: tuple[Any, ...], mailbox: Any, folder: str) -> str:
    """Run a group to its end; the text of the error that it ends with, if it does."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    compute = arguments[1].compute
    on_gpu = compute.device.startswith("cuda")
    resources = {"CPU": float(compute.threads)} | ({"GPU": 1.0} if on_gpu else {}) | compute.placement.resources
    trainer = TorchTrainer(
        _work,
        train_loop_config={"function": function, "arguments": arguments, "mailbox": mailbox},
        torch_config=TorchConfig(
            backend="nccl" if on_gpu else "gloo", timeout_s=max(COLLECTIVE_SECONDS, int(compute.stall_seconds))
        ),
        scaling_config=ScalingConfig(
            num_workers=compute.parallel.workers,
            use_gpu=on_gpu,
            resources_per_worker=resources,
            label_selector=compute.placement.labels or None,
        ),
        # Ray Train keeps no checkpoint of its own: the stage's save points are the only truth.
        run_config=RunConfig(
            name="group", storage_path=folder, failure_config=FailureConfig(max_failures=compute.parallel.max_restarts)
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return str(error)
    return ""


def _work(config: dict[str, Any]) -> None:
    """One worker: the stage function, and what rank 0 tells about it."""
    import ray
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    mailbox, (reference, workspace, values) = config["mailbox"], config["arguments"]
    first = get_context().get_world_rank() == 0
    # The group may be started again after its result was told: a worker may die after that.
    if ray.get(mailbox.has_ended.remote()):
        return
    workers = workspace.compute.parallel.workers
    if first:
        mailbox.put.remote("progress", f"start {workers} workers", float(workers), float(workers), "workers")
    torch.set_num_threads(workspace.compute.threads)
    if workspace.compute.device.startswith("cuda"):
        torch.cuda.set_device(get_device())
        # From here on this worker's own, whichever it is and whichever was named.
        workspace.compute = workspace.compute.model_copy(update={"device": "cuda"})
    workspace.report_to(Events((lambda *event: mailbox.put.remote(*event)) if first else None))
    try:
        finished = config["function"](reference, workspace, values)
    except WorkDone:
        return
    except _FINAL as error:
        # Waited for, since the process may end before a message that is only on its way.
        ray.get(mailbox.put.remote("error", portable(error)))
        raise
    except Exception as error:  # whatever ends a group, a lost worker above all, is told and goes on to Ray Train
        if is_out_of_memory(error):
            # A new start would only repeat it; whoever called asks for less at once.
            ray.get(mailbox.put.remote("error", portable(error)))
        elif first:
            ray.get(mailbox.put.remote("warning", f"the group's first worker ended: {type(error).__name__}: {error}"))
        raise
    ray.get(mailbox.put.remote("result", finished))


__all__ = ["GroupFailed", "Mailbox", "WorkDone", "group_failed", "run_in_group"]
