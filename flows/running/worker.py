"""The dashboard's worker: `python -m flows.running.worker NAME`. It starts the flows of prefect.yaml and nothing else.

Prefect's process worker runs any command that a run's job variables, its deployment or its pool carries. This one refuses
such a run, whoever asked for it, and says so in the run's state.
"""

import argparse
import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self
from uuid import UUID

from prefect.settings import PREFECT_WORKER_HEARTBEAT_SECONDS, PREFECT_WORKER_PREFETCH_SECONDS
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from flows.running.work_pool import ENTRYPOINTS, JOB_TEMPLATE, POOL, STEP

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, WorkPool
    from prefect.client.schemas.responses import DeploymentResponse


class RefusedRun(ValueError):
    """A run that asks for more than its parameters; the text says for what."""


def check_run(flow_run: "FlowRun", deployment: "DeploymentResponse | None", work_pool: "WorkPool") -> None:
    """Raise RefusedRun unless the run is one of our flows, in our folder, with parameters only."""
    if deployment is None:
        raise RefusedRun("this worker starts deployments only, and the run has none")
    for owner, variables in (("run", flow_run.job_variables), ("deployment", deployment.job_variables)):
        if variables:
            raise RefusedRun(
                f"the {owner} sets job variables ({', '.join(sorted(variables))}); this worker takes no command, environment, "
                "folder or other settings of a process from the server. Give parameters instead"
            )
    # Compared as a whole: a changed default would give every run a command.
    if work_pool.base_job_template != JOB_TEMPLATE:
        raise RefusedRun(
            f"the job template of pool {work_pool.name} was changed; restart `olmo2 dashboard`, which resets it"
        )
    if deployment.entrypoint not in ENTRYPOINTS:
        raise RefusedRun(f"entrypoint {deployment.entrypoint!r} is none of {', '.join(ENTRYPOINTS)}")
    if deployment.storage_document_id is not None or deployment.path is not None:
        raise RefusedRun(
            "the deployment names a place to take code from; this worker runs the code it is installed with"
        )
    if not _stays_here(deployment.pull_steps):
        raise RefusedRun(f"the deployment has steps before its run other than to work in {Path.cwd()}")


def _stays_here(steps: list[dict[str, dict[str, object]]] | None) -> bool:
    return all(
        set(step) == {STEP}
        and set(step[STEP]) == {"directory"}
        # Resolved, so that a link or `..` does not lead elsewhere.
        and Path(str(step[STEP]["directory"])).resolve() == Path.cwd().resolve()
        for step in steps or []
    )


class OwnJobConfiguration(ProcessJobConfiguration):
    """The process of a run, with nothing of it taken from the server."""

    @classmethod
    async def resolve_for_flow_run(
        cls,
        flow_run: "FlowRun",
        *,
        client: "PrefectClient",
        work_pool: "WorkPool",
        worker_name: str,
        worker_id: UUID | None = None,
        deployment: "DeploymentResponse | None" = None,
    ) -> Self:
        """Check a run and prepare its process. Raises RefusedRun."""
        # The server may leave the deployment out, and without it nothing could be checked.
        if deployment is None and flow_run.deployment_id is not None:
            deployment = await client.read_deployment(flow_run.deployment_id)
        check_run(flow_run, deployment, work_pool)
        return await super().resolve_for_flow_run(
            flow_run,
            client=client,
            work_pool=work_pool,
            worker_name=worker_name,
            worker_id=worker_id,
            deployment=deployment,
        )


class RecipeWorker(ProcessWorker):
    """Prefect's process worker, for the flows of this project."""

    job_configuration = OwnJobConfiguration

    @classmethod
    def __dispatch_key__(cls) -> str:
        # Prefect looks workers up by this; the pool's type stays `process`, which its pages know.
        return "olmo2-process"


async def _work(name: str) -> None:
    """Start runs of the pool until a signal ends this process."""
    worker = RecipeWorker(
        work_pool_name=POOL,
        name=name,
        prefetch_seconds=PREFECT_WORKER_PREFETCH_SECONDS.value(),
        heartbeat_interval_seconds=int(PREFECT_WORKER_HEARTBEAT_SECONDS.value()),
        # A pool of another kind must not be made: `register` has made ours.
        create_pool_if_not_found=False,
    )
    await worker.start(printer=print)


def main() -> None:
    """Entry point of the process that `olmo2 dashboard` starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    asked = parser.parse_args()
    setup_signal_handlers_worker(os.getpid(), "the worker", print)
    try:
        asyncio.run(_work(asked.name))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("stopped")


if __name__ == "__main__":
    main()
