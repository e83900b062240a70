"""A profile of a recipe's training step, as a table and as JSON."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.cli.options import print_whole
from flows.config.files import load
from infra.processor import processor_name
from model.config import Compute
from model.training.measuring.profile import Profile, StepShape, profile_steps

_ON_A_MIX = ("pretrain", "anneal")
"""Stages whose steps are made of windows of one length, so that a profile of random windows is one of theirs."""


def profile_of(
    recipe: str, overrides: list[str] | None, stage: str, rows: int | None, steps: int, trace: Path | None
) -> Profile:
    """A profile of one stage with the settings of its recipe. Raises ValueError for other stages, or sizes that cannot be."""
    if stage not in _ON_A_MIX:
        raise ValueError(
            f"{stage!r} cannot be profiled; choose one of {', '.join(_ON_A_MIX)}, whose windows have one length"
        )
    if trace is not None and not trace.parent.is_dir():
        raise ValueError(f"the folder of --trace {trace} does not exist; make it, or name another")
    config = load(recipe, overrides)
    training = config.pretrain if stage == "pretrain" else config.anneal
    settings = config.execution.compute(stage)
    if settings.parallel.workers > 1:
        raise ValueError(
            f"execution.parallel.{stage} has {settings.parallel.workers} workers; a profile is made in one process: add "
            f"--set execution.parallel={{}}"
        )
    return profile_steps(
        config.pretrain.model,
        training.optim,
        training.loss,
        StepShape(rows or training.batch_size, training.sequence_length, settings.micro_instances),
        compute=Compute(
            device=settings.device,
            threads=settings.threads,
            compile=settings.compile,
            attention=settings.attention,
            emulate_float8=settings.emulate_float8,
        ),
        steps=steps,
        trace=trace,
    )


def profile_row(found: Profile) -> dict[str, object]:
    """Seconds, tokens, FLOPs, and shares by part."""
    return asdict(found) | {
        "tokens_per_second": found.tokens_per_second, "of_roofline": found.of_roofline, "processor": processor_name(),
    }  # fmt: skip


def print_profile(console: Console, found: Profile) -> None:
    """The parts of a step, its largest operations, and its distance to the speed of matmuls."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("part", no_wrap=True)
    table.add_column("share", justify="right")
    table.add_column("ms", justify="right")
    for part, share in found.shares.items():
        # Parts below a twentieth of a percent are noise of the measurement.
        if share >= 0.0005:
            table.add_row(part, f"{share:.1%}", f"{1000 * share * found.seconds:,.2f}")
    print_whole(console, table)
    console.print(
        f"\n{found.seconds:.3g} s a step, {found.tokens_per_second:,.0f} tokens/s; matmuls alone would take "
        f"{found.of_roofline:.0%} of that at the measured {found.product_flops / 1e9:,.0f} GFLOP/s ({processor_name()}).",
        highlight=False, markup=False,
    )  # fmt: skip
    for name, share in found.largest[:6]:
        console.print(f"  {share:6.1%}  {name}", style="dim", highlight=False, markup=False)
