"""Lists what a sharded training sends: the collectives of one update, as `model/parallel/group.py` makes them, with bytes.

Source: PyTorch's `fully_shard` (ZeRO-3, Rajbhandari et al. 2020): each pass gathers weights where they are used and scatters
gradients. Copies of a shard (hsdp) all-reduce their gradients at the last pass of an update. Oracle: the collectives that a
group of two really makes (tests/model/test_traffic.py).

Example: of the 7B in bf16, a pass gathers 13.0 GB in blocks twice and sends 26.0 GB of their fp32 gradients.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from model.config import ModelConfig, Precision

_Kind = Literal["gather", "scatter", "reduce"]
"""All-gather, reduce-scatter, all-reduce."""


@dataclass(frozen=True)
class Collective:
    """Exchanges of one kind and size."""

    kind: _Kind
    size: float
    """Bytes of the whole tensor: what a gather ends with, what a scatter or an all-reduce begins with."""
    workers: int
    """Who takes part."""
    times: int
    """How many of them an update makes."""
    of: Literal["block", "ends", "copies"]
    """What is exchanged: a block; embedding, final norm or head; gradients between copies of the model."""

    @property
    def sent(self) -> float:
        """Bytes that a worker sends in one of them as a ring, which is the least possible."""
        # A ring passes on all but its own part; an all-reduce is a reduce-scatter and an all-gather, so it sends
        # twice that.
        share = self.size * (self.workers - 1) / self.workers
        return 2 * share if self.kind == "reduce" else share


def collectives(
    model: ModelConfig, precision: Precision, *, shards: int, replicas: int = 1, passes: int = 1
) -> Iterator[Collective]:
    """All exchanges of an update of `passes` micro-batches whose weights are cut into `shards`, in `replicas` copies.

    With one shard every copy is whole (ddp): gradients are all-reduced once an update.
    """
    table = model.vocab_size * model.d_model
    ends = (table, table + model.d_model)
    # Blocks travel in the type of the matmuls; their gradients, and embedding, norm and head, travel in fp32.
    width = 2 if precision == "bf16" else 4
    if shards > 1:
        blocks = model.n_layers * passes
        # Twice a pass: a block is freed after its forward pass and gathered again for its backward.
        yield Collective("gather", width * model.block_parameters, shards, 2 * blocks, "block")
        yield Collective("scatter", 4 * model.block_parameters, shards, blocks, "block")
        # Once a pass: norm and head stay gathered until backward, and the embedding's gradient does not need its values.
        for parameters in ends:
            yield Collective("gather", 4 * parameters, shards, passes, "ends")
            yield Collective("scatter", 4 * parameters, shards, passes, "ends")
    if replicas > 1:
        # Copies all-reduce at an update's last micro-batch only (gradient accumulation), so `passes` does not count here.
        yield Collective("reduce", 4 * model.block_parameters / shards, replicas, model.n_layers, "copies")
        for parameters in ends:
            yield Collective("reduce", 4 * parameters / shards, replicas, 1, "copies")


def bytes_sent(found: Iterable[Collective]) -> float:
    """Bytes that one worker sends in an update."""
    return sum(item.sent * item.times for item in found)
