"""The preflight of a run: it fails now for what would fail in days, and tells what is allowed and rarely meant.

Checked are the store, the language models that stages ask, the device and the Ray cluster, each only where a stage that is
going to run needs it. Example: a run whose `personas` stage has no endpoint ends here, before the weeks of pre-training.
"""

import re
from collections.abc import Callable, Iterable

import torch

from flows.config.parts import PAST_MIDTRAINING
from flows.config.recipe_config import RecipeConfig
from flows.config.sizes.limits import mix_notes
from flows.config.stages import COMPUTING, STAGES
from flows.running.sessions import plan_rows
from infra.compute.ray_connection import check_answers
from infra.events import Warned
from infra.execution.plan import PlanRow
from infra.execution.stale import stale_error
from infra.execution.tracking import check_trackers
from infra.records.artifact import Artifact
from infra.session import Session
from infra.settings import WITH_REFERENCE, Execution, read_key, settings_of
from model.network.float8 import check_float8
from tasks.data.synthesis.personas import PersonasConfig
from tasks.training.answers.model_judge import LanguageModelJudge
from tasks.training.preferences import PreferencesConfig

ANSWERING = ("preferences", "evaluate")
"""Stages whose prompts a server may answer instead (`execution.generation`); the checkpoint is their first input."""
REINFORCING = ("rlvr", "ppo")
"""Stages whose rollouts a server may sample; it takes the policy's weights before each."""
DIGEST = re.compile(r"[0-9a-f]{64}")
"""How a checkpoint is named to a server."""
LATE_SHARE = 0.01
"""Share of the steps after the end of their schedule from which that is told (13B as published: 0.00002)."""


def asked_models(config: RecipeConfig) -> dict[str, tuple[str, ...]]:
    """Models by the label of the stage that asks them."""
    made = [*config.synthesize.items(), *((item.name, item.synthesize) for item in config.candidates)]
    found: dict[str, tuple[str, ...]] = {}
    found |= {f"personas:{name}": (item.writer.model,) for name, item in made if isinstance(item, PersonasConfig)}
    found |= {f"rewrite:{item.name}": (item.rewrite.writer.model,) for item in config.candidates if item.rewrite}
    found |= {f"label:{name}": (labels.writer.model,) for name, labels in config.label.items()}
    sampled = config.preferences
    if isinstance(sampled, PreferencesConfig):
        judges = [sampled.judge.model.model] if isinstance(sampled.judge, LanguageModelJudge) else []
        pool = [member.model.model for member in sampled.pool.served] if sampled.pool else []
        if judges or pool:
            # A model may answer and judge, and needs one endpoint.
            found["preferences"] = tuple(dict.fromkeys(judges + pool))
    return found


def check_endpoints(models: dict[str, tuple[str, ...]], rows: Iterable[PlanRow], execution: Execution) -> None:
    """Raise ValueError when a stage that is going to run asks a model without an endpoint, or one whose key is not set."""
    for row in rows:
        if row.action not in ("run", "resume"):
            continue
        for model in models.get(row.label, ()):
            settings = settings_of(model, execution.endpoints)
            # A server without a key says so by an empty `key_env`.
            if settings.key_env:
                read_key(model, settings)


def check_generation(rows: Iterable[PlanRow], execution: Execution) -> None:
    """Raise ValueError when a stage that is going to run leaves its answers to a server and no endpoint could be that.

    A checkpoint that is not made yet has no digest to compare: then any endpoint under a digest may be meant for it. A policy in
    training has none either: its server stands under the stage's name, and takes weights.
    """
    made: dict[str, Artifact | None] = {}
    for row in rows:  # inputs come first
        made[row.label] = row.artifact
        if row.stage in REINFORCING and row.action in ("run", "resume"):
            _check_sampler(row.stage, execution)
        asked = row.stage in ANSWERING and row.action in ("run", "resume")
        if not asked or execution.stage_generation(row.stage) == "local" or "default" in execution.endpoints:
            continue
        _check_served(row, row.inputs[0], made[row.inputs[0]], execution)


def _check_sampler(stage: str, execution: Execution) -> None:
    """Raise ValueError where a stage's rollouts are left to a server by name, and none under the stage's takes weights; and where
    the key of the one that takes them is not set.
    """
    own = execution.endpoints.get(stage)
    # By name: a `default` is about checkpoints that are made, whose weights do not change.
    if execution.generation.get(stage) == "endpoint" and (own is None or own.weights is None):
        raise ValueError(
            f"execution.generation leaves the rollouts of {stage} to a server, and none that takes weights is named; say "
            f"execution: {{endpoints: {{{stage}: {{url: http://localhost:8000/v1, "
            f"weights: {{server: vllm, path: FOLDER}}}}}}}}, or leave generation.{stage} local"
        )
    if own is not None and own.weights is not None and own.key_env and execution.stage_generation(stage) == "endpoint":
        read_key(stage, own)


def _check_served(row: PlanRow, label: str, artifact: Artifact | None, execution: Execution) -> None:
    names = execution.endpoints.keys()
    # A checkpoint that exists is known by its digest; for one that does not, any digest may become its own.
    if artifact.digest in names if artifact else any(DIGEST.fullmatch(name) for name in names):
        return
    until = "" if artifact else f"make it first (--until {label}), "
    id, name = (artifact.id, artifact.digest) if artifact else ("ID", "DIGEST")
    raise ValueError(
        f"execution.generation leaves the answers of {row.label} to a server of the checkpoint {label}, and no endpoint is "
        f"known for it: {until}export it (olmo2 export {id} DIR), serve that folder under its digest as the model's name, and "
        f"say execution: {{endpoints: {{{name}: {{url: http://localhost:8000/v1}}}}}}, or a `default`; or leave "
        f"generation.{row.stage} local"
    )


def check_ray(address: str, rows: Iterable[PlanRow]) -> None:
    """Raise ValueError where nothing answers though something is going to run."""
    # A run of reused stages only needs no cluster.
    if any(row.action not in ("reused", "left out") for row in rows):
        check_answers(address)


def doubts(config: RecipeConfig) -> dict[str, str]:
    """What is allowed and rarely meant, by the label of its stage: a pre-training that is long past its schedule's end, a
    micro-anneal whose candidate is too small for its share.
    """
    training, schedule = config.pretrain, config.pretrain.schedule
    if (
        config.begins_at(("base", *PAST_MIDTRAINING))
        or not training.steps
        or not schedule.length
        or schedule.kind == "constant"
    ):
        return mix_notes(config)
    # A schedule in tokens, divided by the tokens of a step.
    of_step = 1 if schedule.unit == "steps" else training.batch_size * training.sequence_length
    decaying = schedule.length // of_step
    late = 1 - decaying / training.steps
    if late < LATE_SHARE:
        return mix_notes(config)
    floor = f"{schedule.final_ratio:g} of its peak" if schedule.kind == "cosine" else "0"
    return mix_notes(config) | {
        "pretrain": f"pretrain.schedule.length={schedule.length:,} {schedule.unit} ends at step {decaying:,} of "
        f"pretrain.steps={training.steps:,}: {late:.0%} of the run trains at a learning rate of {floor}; set the length too"
    }


def check_device(execution: Execution, rows: list[PlanRow], computing: set[str]) -> None:
    """Raise ValueError when a stage that computes on the device has work here, and the device is not there.

    `computing` are the names of such stages. On a cluster they are placed where there is such a device.
    """
    if execution.cluster:
        return
    waiting = [row.label for row in rows if row.action in ("run", "resume") and row.stage in computing]
    if waiting:
        try:
            _find_device(execution.device)
        except ValueError as error:
            raise ValueError(f"{error}, and {waiting[0]} would run on it") from error
    for stage in WITH_REFERENCE:
        place = execution.compute(stage).reference
        if place.startswith("cuda:") and any(label.partition(":")[0] == stage for label in waiting):
            _find_device(place, f"execution.reference.{stage}")


def _find_device(name: str, field: str = "execution.device") -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{field}={name!r} is not a device; use cpu, cuda, cuda:1 or mps") from error
    if device.type == "cpu":
        return
    if device.type not in ("cuda", "mps"):
        raise ValueError(f"{field}={name!r} is not one that this trains on; use cpu, cuda or mps")
    module = torch.get_device_module(device.type)
    count = module.device_count() if module.is_available() else 0
    # A device without an index is the first of its kind.
    if (device.index or 0) >= count:
        found = f"this machine has {count} of that kind" if count else f"torch finds no {device.type} here"
        raise ValueError(f"{field}={name!r}: {found}; use another, or cpu")


def check_ready(config: RecipeConfig, session: Session, flow: Callable[[RecipeConfig], object]) -> None:
    """Fail now for what would fail in days: a store that cannot be written, a language model or a checkpoint
    to be asked without an endpoint, a device that is not there. Tell what is only doubtful.
    """
    session.store.check_writable()
    check_trackers(config.execution.track)
    for label, text in doubts(config).items():
        if session.listener:
            session.listener(label, Warned(text))
    models, on_cpu = asked_models(config), config.execution.device == "cpu"
    rows = plan_rows(config, session, flow)
    refuse_stale(rows)
    if models:
        check_endpoints(models, rows, config.execution)
    check_generation(rows, config.execution)
    if not on_cpu:
        check_device(config.execution, rows, COMPUTING)
    check_precision(config, rows)
    check_ray(config.execution.ray, rows)


def check_precision(config: RecipeConfig, rows: Iterable[PlanRow]) -> None:
    """Raise ValueError when a training in float8 is going to run here on a device that cannot multiply it."""
    execution, optim = config.execution, {"pretrain": config.pretrain.optim, "anneal": config.anneal.optim}
    waiting = {row.stage for row in rows if row.action in ("run", "resume") and row.stage in optim}
    # A cluster's nodes have other devices than the driver.
    if not execution.cluster and any(optim[stage].precision == "float8" for stage in waiting):
        check_float8(execution.device, execution.emulate_float8)


def refuse_stale(rows: list[PlanRow]) -> None:
    """Raise StaleError, which names the ways out, when an artifact that the run would use was made by other code."""
    stale = [row for row in rows if row.action == "stale"]
    if stale:
        modules = {stage.name: stage.function.__module__ for stage in STAGES}
        raise stale_error((row.label, modules[row.stage], row.reason) for row in stale)
