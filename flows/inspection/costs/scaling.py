"""How a training stage scales from few GPUs to many: time of an update by part, and what failures add to the whole.

Source: the time of a collective is latency times hops plus bytes over bandwidth (alpha-beta model, Hockney 1994; rings as in
Thakur et al. 2005); the best save interval is Young's (1974), the loss to failures Daly's first order (2006). Mean time
between failures: 419 unexpected interruptions in 54 days on 16,384 H100 (The Llama 3 Herd of Models, section 3.3.4).
Simplifications: blocks overlap perfectly with the gather of the next block and the scatter of the one before. Data loading,
evaluation and stragglers cost nothing. A ring between nodes is as fast as one GPU's network port.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flows.inspection.costs.cost import Device, Run
from model.config import ModelConfig
from model.parallel.traffic import Collective, bytes_sent, collectives

FAILURE_HOURS = 16_384 * 54 * 24 / 419
"""Hours of one GPU between two failures that end a run: 50,676."""


@dataclass(frozen=True)
class Fabric:
    """How GPUs are joined."""

    node_gpus: int = 8
    """GPUs of a node."""
    node_bandwidth: float = 450e9
    """Bytes/s that a GPU sends within its node (H100 SXM: NVLink 4, 900 GB/s both ways together)."""
    network_bandwidth: float = 50e9
    """Bytes/s that a GPU sends to another node (one 400 Gb/s port each)."""
    node_latency: float = 3e-6
    """Seconds of one hop within a node."""
    network_latency: float = 12e-6
    """Seconds of one hop between nodes."""
    efficiency: float = 0.8
    """Share of these bandwidths that collectives reach."""
    hides: bool = True
    """Whether matmuls hide communication. On CPUs both need the same cores, so one waits for the other."""

    def seconds(self, item: Collective, *, apart: bool) -> float:
        """Time of one collective; `apart` says whether its workers are in different nodes, one in each."""
        if item.workers < 2:
            return 0.0
        across = apart or item.workers > self.node_gpus
        # A ring all-reduce is a reduce-scatter and an all-gather, so it goes around twice.
        hops = (item.workers - 1) * (2 if item.kind == "reduce" else 1)
        # In a ring over nodes one hop in each node leaves it.
        between = hops if apart else hops // self.node_gpus if across else 0
        latency = between * self.network_latency + (hops - between) * self.node_latency
        # A ring is as fast as its slowest link.
        bandwidth = self.network_bandwidth if across else self.node_bandwidth
        return latency + item.sent / (bandwidth * self.efficiency)


@dataclass(frozen=True)
class Reliability:
    """What failures do to a run."""

    failure_hours: float = FAILURE_HOURS
    """Hours of one GPU between failures."""
    save_seconds: float = 5.0
    """Time that a save point takes from training."""
    restart_seconds: float = 600.0
    """Time from a failure to the first new step."""

    def interval(self, gpus: int) -> float:
        """Seconds between save points that cost least."""
        # Young's formula (1974): saving more often costs saves, saving less often costs lost work.
        return math.sqrt(2 * self.save_seconds * self.mean_seconds(gpus))

    def mean_seconds(self, gpus: int) -> float:
        """Seconds between two failures of so many GPUs."""
        return self.failure_hours * 3600 / gpus

    def overhead(self, gpus: int, interval: float) -> float:
        """Share of the time of an undisturbed run that save points and failures add, when saved every `interval` seconds."""
        # On average a failure costs half an interval of work, and the restart.
        return self.save_seconds / interval + (interval / 2 + self.restart_seconds) / self.mean_seconds(gpus)


@dataclass(frozen=True)
class Scaled:
    """One training on one number of GPUs. Times in seconds."""

    gpus: int
    shards: int
    replicas: int
    passes: int
    """Micro-batches of an update on each GPU."""
    compute: float
    """Matmuls of an update."""
    exposed: float
    """Communication of an update that nothing hides."""
    sent: float
    """Bytes that a GPU sends in an update."""
    memory: float
    """Bytes of a GPU, with blocks computed again where all would not fit (model/training/measuring/memory.py)."""
    save_interval: float
    """Seconds between save points that cost least."""
    overhead: float
    """Share that save points and failures add."""
    steps: int | None

    @property
    def step(self) -> float:
        return self.compute + self.exposed

    @property
    def hours(self) -> float | None:
        """Expected time of the whole stage, with failures."""
        return None if self.steps is None else self.steps * self.step * (1 + self.overhead) / 3600


def scale(
    run: Run,
    model: ModelConfig,
    counts: Sequence[int],
    device: Device,
    mfu: float,
    fabric: Fabric | None = None,
    reliability: Reliability | None = None,
) -> list[Scaled]:
    """The stage on each number of GPUs, in the quickest layout that fits: sharded over all, or over nodes with copies between.

    `mfu` is the share of its peak that one GPU reaches when it waits for nobody. Numbers of GPUs that an update has too few rows
    for, or whose memory holds no layout, are left out.
    """
    how, failures = fabric or Fabric(), reliability or Reliability()
    found = []
    # More GPUs than rows would idle.
    for gpus in (count for count in counts if count <= run.most_gpus):
        tried = [_layout(run, model, gpus, shards, device, mfu, how, failures) for shards in layouts(gpus, how)]
        fitting = [item for item in tried if device.memory is None or item.memory <= device.memory]
        # At most one: the layout with the shortest step.
        found += sorted(fitting, key=lambda item: item.step)[:1]
    return found


def layouts(gpus: int, fabric: Fabric) -> Iterator[int]:
    """Into how many shards weights may be cut: over all GPUs, or over those of a node."""
    yield gpus
    if gpus > fabric.node_gpus and gpus % fabric.node_gpus == 0:
        yield fabric.node_gpus


def _layout(
    run: Run, model: ModelConfig, gpus: int, shards: int, device: Device, mfu: float, how: Fabric, failures: Reliability
) -> Scaled:
    replicas = gpus // shards
    # The GPU with the most rows decides the time of an update.
    rows = math.ceil(run.rows / gpus)
    passes = max(1, math.ceil(rows * run.longest / run.tokens_at_once(gpus)))
    compute = run.work * rows * run.longest * model.flops_per_token(run.longest) / (device.peak_flops * mfu)
    found = list(collectives(model, run.precision, shards=shards, replicas=replicas, passes=passes))
    interval = failures.interval(gpus)
    memory = run.memory(model, shards, run.tokens_at_once(gpus))
    # Recomputing blocks is the way out where not all activations fit.
    fits = device.memory is None or memory.most <= device.memory
    return Scaled(
        gpus=gpus,
        shards=shards,
        replicas=replicas,
        passes=passes,
        compute=compute,
        exposed=_exposed(found, model, compute, passes, how),
        sent=bytes_sent(found),
        memory=memory.most if fits else memory.least,
        save_interval=interval,
        overhead=failures.overhead(gpus, interval),
        steps=run.steps,
    )


def _exposed(found: list[Collective], model: ModelConfig, compute: float, passes: int, how: Fabric) -> float:
    """What a block's matmuls do not hide: a block's forward pass hides a gather, its backward pass a gather and a scatter.

    The first gather and the last scatter of a pass overlap with nothing; nor do embedding, final norm, head and copies.
    """
    if not how.hides:
        return sum(item.times * how.seconds(item, apart=item.of == "copies") for item in found)
    blocks = model.n_layers * passes
    # The embedding is looked up and takes no matmul, so blocks share the time by weights without it.
    share = compute * model.n_layers * model.block_parameters / (model.parameters - model.vocab_size * model.d_model)
    # A backward pass has two matmuls for each of the forward pass.
    forward, backward = share / blocks / 3, 2 * share / blocks / 3
    times = {item.kind: how.seconds(item, apart=False) for item in found if item.of == "block"}
    gather, scatter = times.get("gather", 0.0), times.get("scatter", 0.0)
    # What the matmuls of a block are too short to hide.
    waiting = max(0.0, gather - forward) + max(0.0, gather + scatter - backward)
    rest = sum(item.times * how.seconds(item, apart=item.of == "copies") for item in found if item.of != "block")
    return blocks * waiting + passes * (gather + scatter) + rest


def stops_at(found: Sequence[Scaled], least: float = 0.5) -> int | None:
    """The first number of GPUs that does less than a share of the work per GPU of the smallest; None where all do."""
    if not found:
        return None
    # Work per GPU, as GPU-seconds of an update: it would stay equal if scaling were perfect.
    first = found[0].step * found[0].gpus
    return next((item.gpus for item in found if first / (item.step * item.gpus) < least), None)
