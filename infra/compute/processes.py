"""Runs a stage in its own process, so that its memory, threads and crashes touch nothing else.

A fork server that has imported torch once hands out processes in milliseconds. The child talks through a pipe: events
while it works, then its result or its error. It ends when its parent does.
"""

import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from infra.compute.device_memory import allocator_environment
from infra.compute.stage_call import Finished, StageCall
from infra.events import Events, Listener, Raised, Returned, StageMessage
from infra.processor import wait_passively
from infra.stopping import check_stopping, ends_in_order, is_stopping, request_stop, wait_for_stop

_PRELOAD = ("torch", "numpy", StageCall.__module__)
"""What the fork server imports once for all its children."""
NO_MEMORY = "can't allocate memory"
"""What torch says when the CPU's memory is at its end."""


class StageProcessDied(Exception):
    """A stage's process ended without a result: killed from outside, or out of memory."""


class StageFailed(Exception):
    """An error in a stage's process that could not be carried over as itself; the text holds its traceback."""


_running: set[BaseProcess] = set()
_POLL_SECONDS = 0.5
"""How often a stage's process is looked after while it tells nothing."""
_REQUEST_SECONDS = 5.0
"""How long after the fork server's end a request to stop may still come."""
STOP_SECONDS = 12.0
"""How long a training that was asked to stop has for its step and its save point; Prefect and Slurm kill after 30 s."""


def stop_stages() -> None:
    """End all stage processes, trainings at their next save point, and let shard loops stop at their next shard (Ctrl-C)."""
    request_stop()
    for process in list(_running):
        # SIGTERM: a training ends by itself after its next save point, any other stage at once.
        process.terminate()


def run_in_process(call: StageCall, listener: Listener, preload: Sequence[str]) -> Finished:
    """Make a stage's call in a child process and return its result.

    `preload` names modules that the fork server imports once, with `_PRELOAD`; none of them may start threads at import.

    Events of the workspace arrive at the listener in this process. Raises what the function raised there, or
    StageProcessDied. When this process is interrupted, the child is stopped first.
    """
    wait_passively()
    # The fork server imports torch, and its children have its environment.
    os.environ.update(allocator_environment(call.workspace.compute.device, os.environ))
    # A plain fork would copy the locks of threads that do not exist in the child.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOAD, *preload])
    # No end is waited for before one was asked for.
    deadline = math.inf
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(call, there), daemon=False)
    check_stopping()
    try:
        process.start()
    except (EOFError, ConnectionError):
        # A start waits for the fork server, which a signal to the whole group ends at once: Ctrl-C in a terminal, a cancelled
        # flow. This process may hear of the request a moment later.
        wait_for_stop(_REQUEST_SECONDS)
        check_stopping()
        raise
    _running.add(process)
    # Open in the child only, or a child that dies would never show here as end of file.
    there.close()
    try:
        check_stopping()  # a request that came while the process was started
        while True:
            while not here.poll(_POLL_SECONDS):
                # The earliest deadline counts: each look would else push it back by STOP_SECONDS.
                deadline = min(deadline, _stop_by(process))
                # A process that was asked to stop gets its time to save; a lost lease ends it at once.
                if time.monotonic() > deadline or not is_stopping():
                    check_stopping()
            message: StageMessage = here.recv()
            match message:
                case Returned(value):
                    # Joined, so that no zombie is left.
                    process.join()
                    return value
                case Raised(error):
                    process.join()
                    raise error
                case event:
                    listener(event)
    except EOFError:
        process.join()
        check_stopping()
        raise StageProcessDied(
            f"the process of stage {call.workspace.stage} ended with code {process.exitcode} and no result "
            f"(-9: killed, often for lack of memory; {os.EX_TEMPFAIL}: a training step took longer than "
            "execution.stall_seconds, the stacks are above). Run the same command again: it resumes from its last save point."
        ) from None
    finally:
        _running.discard(process)
        if process.is_alive():
            # Not asked: one that lost its lease must not begin to save.
            process.kill()
            process.join()
        here.close()


def _stop_by(process: BaseProcess) -> float:
    """When a process has to be gone: never, until the run is asked to stop, which it is told then."""
    if not is_stopping():
        return math.inf
    process.terminate()
    return time.monotonic() + STOP_SECONDS


def _child(call: StageCall, pipe: Connection) -> None:
    # The terminal's Ctrl-C reaches the whole group; the parent decides and ends this process in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _asked_to_stop)
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    call.use_threads()
    call.workspace.report_to(Events(pipe))
    try:
        with call.alone() as function:
            artifact = function()
        message = Returned(call.finished(artifact))
    except BaseException as error:  # every error must cross the process boundary, once, here
        message = Raised(portable(error))
    pipe.send(message)
    # Compiled code and thread pools may hold threads that never end; everything that matters has been sent.
    os._exit(0)


ENDER = Path(__file__).with_name("end_with_pipe.py")


# Kept, for the pipe closes with the object.
_enders: list["subprocess.Popen[bytes]"] = []


def end_with_this_process(pid: int) -> None:
    """See to it that a process ends when this one does, however this one ends.

    For processes that others start on our behalf; asked first, killed when they do not go. A small process waits for the end
    of a pipe that only we hold. It has its own session, so a signal to our group cannot reach it first.
    """
    # -P: the folder of the file is no place to import from.
    command = [sys.executable, "-P", str(ENDER), str(pid)]
    _enders.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))


def portable(error: BaseException) -> BaseException:
    """The error with its traceback as a note, or, where it cannot be pickled, a StageFailed that tells the same."""
    text = "".join(traceback.format_exception(error))
    # Pickling loses an error's traceback and keeps its notes.
    error.add_note(text)
    try:
        # Loaded too: an error whose constructor asks for more than `args` holds pickles, and fails only then.
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error's own code runs here, and may raise anything
        return StageFailed(text)
    return error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: torch's on a device or on the CPU, or Python's own."""
    # torch raises a bare RuntimeError for the CPU.
    # The class of a GPU's error is known by its name, so that this module need not import torch.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or NO_MEMORY in str(error)


def _asked_to_stop(number: int, _: FrameType | None) -> None:
    request_stop()
    if not ends_in_order():
        # 128 and the signal's number is what a shell reports of a process that a signal ended.
        os._exit(128 + number)


def _end_with_parent(pipe: Connection) -> None:
    # The parent never writes into this pipe, so it turns readable only when the parent's end is closed.
    wait([pipe])
    os._exit(1)
