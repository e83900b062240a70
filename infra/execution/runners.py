"""Where a stage's function runs: on a node of a cluster, in a group of ranks, in a process of its own, or here.

A stage whose process runs out of memory starts again with half as much at once, and one whose device fails its health check on
another one. The result of a stage that runs on a cluster is left in the store too, since its driver may be away when it ends.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import orjson
from tenacity import RetryCallState, Retrying, retry_if_exception

from infra.compute.cordoning import Elsewhere
from infra.compute.health import DeviceUnfit
from infra.compute.placed import Claim, run_placed
from infra.compute.processes import is_out_of_memory, run_in_process
from infra.compute.stage_call import Finished, StageCall
from infra.compute.train_group import run_in_group
from infra.events import Events, Listener, Warned
from infra.records.artifact import Artifact
from infra.records.record import FileEntry, Started
from infra.session import Arguments, Session
from infra.settings import Execution
from infra.stage import Stage
from infra.storage.store import Store
from infra.workspace import Workspace

HALVINGS = 5
"""How often a stage that runs out of memory starts again with half as much at once: down to a thirty-second."""
SIZES_AT_ONCE = 32
"""Payload files whose size is asked for at a time: a stage of 100,000 files would else wait for an object store for an hour."""


def ray_of(stage: Stage, execution: Execution) -> str:
    """Where a stage's shards run. A stage's own process does not start a second Ray for this machine's cores. It starts one
    for its GPUs, which nobody else shares out. Any process may use an existing cluster.
    """
    on_gpus = execution.device.startswith("cuda") and execution.stage_generation(stage.name) == "local"
    return "off" if stage.process and execution.ray == "local" and not on_gpus else execution.ray


def changing(stage: Stage, workspace: Workspace, listener: Listener, elsewhere: Elsewhere) -> Retrying:
    """Tries to run a stage, each with something changed: half as much going through the model at once while memory is short,
    another device or node where one failed its health check.

    It goes on from its last save point; results change by rounding only.
    """

    def is_short(error: BaseException | None) -> bool:
        # A stage without a process of its own has left its memory in this one.
        return stage.process and isinstance(error, Exception) and is_out_of_memory(error)

    def change(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, DeviceUnfit):
            elsewhere(error)
            return
        workspace.compute = workspace.compute.halved()
        workspace.note(out_of_memory=workspace.compute.halvings)
        listener(Warned(f"out of memory ({_first_line(error)}); goes on with half as much at once"))

    def stop(state: RetryCallState) -> bool:
        # Of devices and nodes there are finitely many: `elsewhere` raises when none is left.
        error = state.outcome.exception() if state.outcome else None
        return is_short(error) and workspace.compute.halvings >= HALVINGS

    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, DeviceUnfit) or is_short(error)),
        stop=stop,
        before_sleep=change,
        reraise=True,
    )


def _first_line(error: BaseException | None) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def runner_of(
    stage: Stage,
    session: Session,
    workspace: Workspace,
    arguments: Arguments,
    listener: Listener,
    started: Started,
) -> Callable[[], Finished]:
    """What runs the stage's function where its settings say."""
    execution = session.execution
    call = StageCall(stage.reference, workspace, arguments, stage.trains)
    if execution.cluster:
        # Sorted keys, so that two drivers of the same code get the same name for their actor.
        said = orjson.dumps(started.fingerprint, option=orjson.OPT_SORT_KEYS)
        code = hashlib.sha256(said).hexdigest()[:16]
        return partial(
            run_placed,
            partial(call_on_node, code),
            call,
            listener,
            address=execution.cluster,
            name=workspace.progress_folder.replace("/", "."),
            code=code,
            claim=claim_of(stage, execution),
            settled=lambda: load_finished(workspace.store, workspace.progress_folder, code),
        )
    if workspace.compute.parallel.workers > 1:
        return partial(run_in_group, call, listener, ray_address=execution.ray)
    if stage.process:
        return partial(run_in_process, call, listener, session.preload)
    workspace.report_to(Events(listener))
    return call.run


def claim_of(stage: Stage, execution: Execution) -> Claim:
    """What a stage takes of a node of the cluster. One that leads a group or hands out shards takes no core: they do."""
    compute = execution.compute(stage.name, stage.label)
    alone = stage.process and not stage.sharded and compute.parallel.workers == 1
    on_gpu = alone and compute.device.startswith("cuda")
    return Claim(cpus=compute.threads if alone else 0, gpus=int(on_gpu), placement=compute.placement)


def call_on_node(code: str, call: StageCall) -> Finished:
    """Call a stage function on the node of a cluster that it was placed on, and leave its result in the store as well, for
    a driver of the same code that comes back after the stage has ended.
    """
    workspace = call.workspace
    if workspace.compute.parallel.workers > 1:
        finished = run_in_group(call, workspace.tell, ray_address=workspace.ray)
    else:
        call.use_threads()
        with call.alone(node=workspace.notes["node"]) as function:
            artifact = function()
        finished = call.finished(artifact)
    save_finished(workspace.store, workspace.progress_folder, code, finished)
    return finished


def save_finished(store: Store, folder: str, code: str, finished: Finished) -> None:
    """Write the result of a stage that has no record yet into its progress folder, with a hash of the code that made it."""
    files = {name: entry.model_dump() for name, entry in finished.files.items()}
    artifact = finished.artifact.model_dump(mode="json")
    value = vars(finished) | {"artifact": artifact, "kind": finished.artifact.kind, "files": files, "code": code}
    store.write(finished_path(folder), orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


def load_finished(store: Store, folder: str, code: str) -> Finished | None:
    """The result that `save_finished` wrote; None if there is none, if other code made it, or if files of it are gone."""
    try:
        value = store.read_json(finished_path(folder))
    except FileNotFoundError:
        return None
    # Another driver's code may have made it, and would make other bytes now.
    if value.pop("code") != code:
        return None
    files = {name: FileEntry(**entry) for name, entry in value.pop("files").items()}
    artifact = Artifact.kinds[value.pop("kind")].model_validate(value.pop("artifact"))
    with ThreadPoolExecutor(SIZES_AT_ONCE) as pool:
        sizes = pool.map(lambda name: store.size(f"{value['folder']}/{name}"), files)
        whole = all(size == entry.size for size, entry in zip(sizes, files.values(), strict=True))
    return Finished(artifact, files, **value) if whole else None


def finished_path(folder: str) -> str:
    return f"{folder}/finished.json"
