"""Sends a stage's metrics to TensorBoard, Weights & Biases, MLflow or trackio: one callback each over the stage's events.

`execution.track` says which, and where: a folder for TensorBoard, a project for W&B and trackio, an address for MLflow. Each
stage that logs metrics is one run there, named by its label. Packages are optional extras; keys and modes come from the
environment, as each of them documents it (WANDB_API_KEY, WANDB_MODE=offline, MLFLOW_TRACKING_TOKEN).
"""

import importlib
import importlib.util
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.events import Listener
from infra.execution.markdown import slug
from infra.execution.plan import flatten
from infra.json_values import JsonObject

LONGEST_VALUE = 500
"""Characters of a config value that MLflow takes."""
PARAMETERS_AT_ONCE = 100
PROJECT = "olmo2"


@dataclass(frozen=True)
class Tracked:
    """What a run is called and was made with."""

    label: str
    id: str
    config: JsonObject


def tensorboard(folder: str, run: Tracked) -> Listener:
    """Event files in `folder/LABEL/ID`."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(Path(folder) / slug(run.label) / run.id))
    writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in flatten(run.config).items()))

    def listen(kind: str, *values: Any) -> None:
        if kind == "metrics":
            for name, value in finite(values[1]).items():
                writer.add_scalar(name, value, values[0])
            writer.flush()
        elif kind in ("end", "failed"):
            writer.close()

    return listen


def wandb(project: str, run: Tracked) -> Listener:
    """A run of a project of Weights & Biases, grouped by artifact; offline with WANDB_MODE=offline."""
    import wandb as client

    started = client.init(
        project=project, name=run.label, group=f"{slug(run.label)}-{run.id}", config=run.config, reinit="create_new"
    )

    def listen(kind: str, *values: Any) -> None:
        if kind == "metrics":
            started.log(finite(values[1]), step=values[0])
        elif kind in ("end", "failed"):
            started.summary.update({"artifact": run.id})
            started.finish(exit_code=int(kind == "failed"))

    return listen


def mlflow(address: str, run: Tracked) -> Listener:
    """A run of the experiment `olmo2` on a server or in a folder."""
    entities = importlib.import_module("mlflow.entities")
    client = importlib.import_module("mlflow.tracking").MlflowClient(tracking_uri=address)
    found = client.get_experiment_by_name(PROJECT)
    experiment = found.experiment_id if found else client.create_experiment(PROJECT)
    started = client.create_run(experiment, run_name=run.label, tags={"artifact": run.id}).info.run_id
    config = [entities.Param(name, str(value)[:LONGEST_VALUE]) for name, value in flatten(run.config).items()]
    for first in range(0, len(config), PARAMETERS_AT_ONCE):
        client.log_batch(started, params=config[first : first + PARAMETERS_AT_ONCE])

    def listen(kind: str, *values: Any) -> None:
        if kind == "metrics":
            now = int(1000 * time.time())
            rows = [entities.Metric(name, value, now, values[0]) for name, value in finite(values[1]).items()]
            client.log_batch(started, metrics=rows)
        elif kind in ("end", "failed"):
            client.set_terminated(started, "FAILED" if kind == "failed" else "FINISHED")

    return listen


def trackio(project: str, run: Tracked) -> Listener:
    """A run of a trackio project on this machine."""
    started = importlib.import_module("trackio").init(
        project=project, name=f"{slug(run.label)}-{run.id}", config=run.config
    )

    def listen(kind: str, *values: Any) -> None:
        if kind == "metrics":
            started.log(finite(values[1]), step=values[0])
        elif kind in ("end", "failed"):
            started.finish()

    return listen


TRACKERS: dict[str, tuple[str, Callable[[str, Tracked], Listener]]] = {
    "tensorboard": ("tensorboardX", tensorboard),
    "wandb": ("wandb", wandb),
    "mlflow": ("mlflow", mlflow),
    "trackio": ("trackio", trackio),
}
"""The package that each needs, and what starts a run."""


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics that can be drawn."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def check_trackers(track: Mapping[Any, str]) -> None:
    """Raise ValueError for a tracker whose package is not installed, before hours of work."""
    for name in track:
        package, _ = TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"execution.track names {name}, and {package} is not installed: pip install 'olmo2-recipe[{name}]'"
            )


def start_trackers(track: Mapping[Any, str], run: Tracked) -> list[Listener]:
    """A run with each of the trackers."""
    return [TRACKERS[name][1](where, run) for name, where in track.items()]
