"""Runs shards on Ray actors, which keep what they loaded: one actor per core or per GPU, started again where it dies.

This is for work that loads something large or slow, such as a language model, which a task would load for every shard. An
actor gets a shard only once it is ready (back-pressure) and goes as soon as there is none for it. So two stages that wait for
each other's cores or GPUs cannot block each other. Ray shows an actor that asked for a GPU this one only, as number 0.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from infra.compute.shard_tasks import LOOK_SECONDS, RETRIES, ShardDied
from infra.stopping import check_stopping


def actor_results(
    ray: ModuleType,
    worker: Callable[..., Any],
    arguments: tuple[Any, ...],
    missing: list[tuple[str, Any]],
    *,
    gpus: int = 0,
    where: Mapping[str, Any] = {},
) -> Iterator[tuple[str, Any]]:
    """(key, result) of every shard as they end. `worker` is a class with `ready()` and `run(key, item)`, and has one core
    and `gpus` GPUs (0 or 1) to itself; `where` are further options of Ray's actors.

    An actor that dies is restarted, with the shard it was at, up to three times; then ShardDied is raised.
    """
    remote = ray.remote(
        num_cpus=1,
        num_gpus=gpus,
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
        scheduling_strategy="SPREAD",
        **where,
    )(worker)
    actors: list[Any] = []
    running: dict[Any, tuple[Any, str]] = {}
    waiting = iter(missing)
    left = len(missing)
    # So that the first round looks at once.
    looked = float("-inf")
    try:
        while left:
            check_stopping()
            if time.monotonic() - looked > LOOK_SECONDS:
                # Nodes come and go. At least one is wanted: a cluster may grow with what is asked of it.
                room = max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 0)))
                # Every actor has one entry in `running`, whether it loads or works.
                for _ in range(min(left, room) - len(running)):
                    actors.append(remote.remote(*arguments))
                    running[actors[-1].ready.remote()] = (actors[-1], "")
                looked = time.monotonic()
            done, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_SECONDS)
            for reference in done:
                actor, key = running.pop(reference)
                result = _result(ray, reference, key)
                next_item = next(waiting, None)
                if next_item is None:
                    # A core or GPU without more work is given back at once, since another stage may wait for it.
                    ray.kill(actor)
                else:
                    running[actor.run.remote(*next_item)] = (actor, next_item[0])
                # The empty key stands for the answer of `ready`, which is no shard.
                if key:
                    left -= 1
                    yield key, result
    finally:
        # Where Ray has been shut down meanwhile, a call would start a new one.
        if ray.is_initialized():
            for actor in actors:
                ray.kill(actor)


def _result(ray: ModuleType, reference: Any, key: str) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayActorError as error:
        what = f"the worker of shard {key}" if key else "a worker that was loading"
        raise ShardDied(
            f"{what} died {RETRIES + 1} times ({error}); most often memory is short. Smaller shards, a smaller model or fewer "
            "cores per node help; the same command runs only what is missing."
        ) from error
