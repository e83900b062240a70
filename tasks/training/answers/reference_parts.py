"""Parts of a reference pass that are kept until the training is done, so that a resumed one does not make them again.

At 7B the pass over 366,949 pairs takes as long as a third of the training, and depends on nothing that the training changes.
Each part holds whole blocks of the pass, so a pass that goes on computes the same blocks as one that was not disturbed.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from infra.workspace import Workspace
from model.parallel.group import Group

PART_PAIRS = 4096
"""Pairs whose numbers are written together, at least: what a kill costs of the pass."""
_FOLDER = "references"
_DIGEST_BYTES = 32


def kept_references(ws: Workspace, group: Group) -> Float32[np.ndarray, "pairs 2"]:
    """The numbers that earlier attempts have kept, from the first pair on; all workers of the group have to call this."""
    # Rank 0 reads for all: what a worker can read must not decide where it begins.
    own = list(_whole_parts(ws)) if group.rank == 0 else []
    parts = group.exchange(own)[0]
    return np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.float32)


def keep_references(ws: Workspace, start: int, values: Float32[np.ndarray, "pairs 2"]) -> None:
    """Keep the numbers of the pairs from `start` on."""
    data = np.ascontiguousarray(values, dtype="<f4").tobytes()
    ws.store.write(ws.address(_name(start), "work"), hashlib.sha256(data).digest() + data)


def _whole_parts(ws: Workspace) -> Iterator[Float32[np.ndarray, "pairs 2"]]:
    """Every part in order, up to the first that is missing or not as it was written."""
    start = 0
    while True:
        try:
            content = ws.store.read(ws.address(_name(start), "work"))
        except FileNotFoundError:
            return
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            # Numbers can be computed again, so damage costs time and ends nothing.
            ws.warn(f"the kept reference log-probabilities from pair {start:,} on are damaged; they are computed again")
            return
        values = np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(-1, 2)
        yield values
        start += len(values)


def _name(start: int) -> str:
    return f"{_FOLDER}/{start:010d}"
