"""Shards on Ray actors, which keep what they loaded: one actor per core, started again where it dies.

For work that needs something large or slow to load, such as a language model, which a task would load for every shard. An actor
gets a shard only once it is ready, and goes as soon as there is none for it: so two stages that wait for each other's cores
cannot block each other.
"""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from infra.processes import check_stopping
from infra.ray_shards import LOOK_SECONDS, RETRIES, ShardDied


def actor_results(
    ray: ModuleType, worker: Callable[..., Any], arguments: tuple[Any, ...], missing: list[tuple[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """(key, result) of every shard as they end. `worker` is a class with `ready()` and `run(key, item)`.

    An actor that dies is made anew, with the shard it was at, up to three times; then ShardDied is raised.
    """
    remote = ray.remote(num_cpus=1, max_restarts=RETRIES, max_task_retries=RETRIES, scheduling_strategy="SPREAD")(
        worker
    )
    count = min(len(missing), max(1, int(ray.cluster_resources().get("CPU", 1))))
    actors = [remote.remote(*arguments) for _ in range(count)]
    running = {actor.ready.remote(): (actor, "") for actor in actors}
    waiting = iter(missing)
    left = len(missing)
    try:
        while left:
            check_stopping()
            done, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_SECONDS)
            for reference in done:
                actor, key = running.pop(reference)
                result = _result(ray, reference, key)
                next_item = next(waiting, None)
                if next_item is None:
                    ray.kill(actor)
                else:
                    running[actor.run.remote(*next_item)] = (actor, next_item[0])
                if key:
                    left -= 1
                    yield key, result
    finally:
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
