"""A stage's call as it travels to wherever the stage runs, and what comes back from there.

The same call is made in this process, in a process of the stage's own, in every rank of a group, and on a node of a cluster.
"""

import importlib
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

from infra.compute.health import Proof, verdict
from infra.json_values import JsonObject
from infra.records.artifact import Artifact
from infra.records.record import FileEntry
from infra.session import Arguments
from infra.workspace import Workspace


@dataclass(frozen=True)
class Finished:
    """What a stage function hands back from wherever it ran."""

    artifact: Artifact
    files: dict[str, FileEntry]
    notes: JsonObject
    resumed_from: str
    peak_memory_bytes: int
    host: str
    folder: str
    """Where its payload lies: that of an earlier attempt, where the stage outlived its driver."""


@dataclass(frozen=True)
class StageCall:
    """A stage function with its workspace and its arguments."""

    reference: str
    """`module:function`, so that a process that has not imported it finds it."""
    workspace: Workspace
    arguments: Arguments
    trains: bool = False
    """Whether its devices have to prove themselves."""

    def use_threads(self) -> None:
        """Let torch compute with the stage's threads, in a process that is its own."""
        # Imported here: a stage in the driver's process may not need torch, which takes seconds.
        importlib.import_module("torch").set_num_threads(self.workspace.compute.threads)

    def bound(self) -> Callable[[], Artifact]:
        """The stage function, imported, with what it is called with."""
        module, name = self.reference.split(":")
        return partial(getattr(importlib.import_module(module), name), self.workspace, **self.arguments)

    def finished(self, artifact: Artifact) -> Finished:
        """The result of the call that made this artifact."""
        # Linux counts in KiB, macOS in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Finished(
            artifact,
            self.workspace.written,
            self.workspace.notes,
            self.workspace.resumed_from,
            peak,
            host=socket.gethostname(),
            folder=self.workspace.folder,
        )

    def run(self) -> Finished:
        """Call the function here, and delete its scratch files however it ends."""
        with closing(self.workspace):
            artifact = self.bound()()
        return self.finished(artifact)

    @contextmanager
    def proven(self, proof: Proof) -> Iterator[Callable[[], Artifact]]:
        """The stage function for a block that calls it, on a device that has proven itself where the stage trains on it. The
        stage's scratch files are deleted after the block.
        """
        with closing(self.workspace):
            # What the stage imports is there before the check, so that both compute with the same settings.
            function = self.bound()
            if self.trains:
                proof.before()
            yield function

    @contextmanager
    def alone(self, node: str = "") -> Iterator[Callable[[], Artifact]]:
        """The same in the stage's only process, where an error that a device may be to blame for is judged by another check.

        `node` is Ray's id of the node, where a cluster gives out nodes.
        """
        proof = Proof(self.workspace, node)
        try:
            with self.proven(proof) as function:
                # The block calls it itself, so that no layer stands between a stage's process and its function.
                yield function
        except Exception as error:  # whatever it is goes on, perhaps as what a device did
            if not self.trains or not proof.doubts(error):
                raise
            raise verdict(error, [proof.alone()], 1) from error
