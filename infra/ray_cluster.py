"""One Ray connection for this process: started at first use, shared by all stages, shut down at exit."""

import atexit
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_lock = threading.Lock()

OBJECT_STORE_BYTES = 256 * 2**20
"""Shards hand over small JSON values, so a local Ray needs little shared memory."""


@contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """The `ray` module, connected to a local cluster (`local`) or to the one at an address."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    with _lock:
        if not ray.is_initialized():
            if address == "local":
                ray.init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            atexit.register(ray.shutdown)
    yield ray
