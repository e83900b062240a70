"""What `olmo2 fit` chose, as a table with the settings to put into a recipe, and as JSON."""

import yaml
from rich.console import Console
from rich.table import Table

from flows.cli.options import print_whole
from flows.config.sizes.fit import Fit, fitted_execution
from infra.settings import Execution, ParallelLayout


class FitRow(ParallelLayout):
    """What was chosen for a training stage."""

    rows: int
    """Of one pass."""
    tokens: int
    """Of one pass, with padding."""
    memory: float
    """Bytes of a device."""


def fit_rows(found: dict[str, Fit]) -> dict[str, FitRow]:
    """By stage: settings, rows and tokens of a pass, bytes of a device."""
    return {
        name: {**fit.parallel.layout(), "rows": fit.rows, "tokens": fit.tokens, "memory": fit.memory}
        for name, fit in found.items()
    }


def settings_text(found: dict[str, Fit]) -> str:
    """The choice as the `execution` part of a recipe file."""
    # From the default settings, so that only what was chosen stands in the text.
    execution = fitted_execution(Execution(), found)
    layouts = {name: item.model_dump(exclude_defaults=True) for name, item in execution.parallel.items()}
    said = {
        "parallel": {name: item for name, item in layouts.items() if item},
        "micro_instances": dict(execution.micro_instances),
        "pass_tokens": dict(execution.pass_tokens),
    }
    return yaml.safe_dump({"execution": {name: item for name, item in said.items() if item}}, sort_keys=False)


def print_fit(console: Console, found: dict[str, Fit]) -> None:
    """A row for each training stage, and the same as settings."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("stage", no_wrap=True)
    for title in ("devices", "weights", "computed again", "rows", "tokens", "GB/device"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, fit in found.items():
        how = fit.parallel
        layout = f"{how.data} {how.replicas}x{how.workers // how.replicas}" if how.data == "hsdp" else how.data
        table.add_row(
            name, f"{how.workers:,}", layout if how.workers > 1 else "whole",
            "nothing" if how.activation_checkpointing == "off" else how.activation_checkpointing,
            f"{fit.rows:,}", f"{fit.tokens:,}", f"{fit.memory / 1e9:.1f}",
        )  # fmt: skip
    print_whole(console, table)
    console.print("\nAs settings (or `execution: {fit: {devices: N, memory: BYTES}}`):\n", style="dim", highlight=False)
    console.print(settings_text(found), highlight=False, markup=False, soft_wrap=True)
