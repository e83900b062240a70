"""Which save point of a training is its result: the one that does best on development benchmarks.

Source: paper section 5.3 and Table 18 (the 13B's reinforcement goes on from a chosen checkpoint of the stage before), RECIPE I.3
(what is chosen by is a development benchmark). Save points fall evenly over the training; the last one is its end. Each is
scored when it is made, on the same items, and is kept in the store. So a resumed training chooses alike. Among equal scores
the earliest is chosen. What is scored so is no longer held out: the chosen score is too high by what choosing adds.
"""

import math
from dataclasses import dataclass
from typing import Literal

import orjson
from pydantic import Field

from infra.workspace import Workspace
from model.config import Precision
from model.tokens.tokenizer import Tokenizer
from model.training.loop import TrainState
from tasks.artifacts import SELECT
from tasks.training.fitting.asked_tasks import Policy, language_model_of
from tasks.training.fitting.dev_scores import DevConfig, DevScorer, dev_scorer

SELECTION = "selection.json"
"""The payload's file with the score of every save point, and which one was chosen."""


class SelectConfig(DevConfig):
    """Choose a training's result among its save points; without it the last state is the result."""

    among: Literal["save_points"] = "save_points"
    """What is chosen from."""
    points: int = Field(default=8, ge=2)
    """How many save points, spread evenly over the training; its end is the last."""

    def steps_of(self, steps: int, multiple: int) -> tuple[int, ...]:
        """The steps whose states are chosen from, each a multiple of `multiple` but the end."""
        # Rounded up to the multiple, so there may be fewer points than asked for, never more.
        every = multiple * math.ceil(steps / self.points / multiple)
        return (*range(every, steps, every), steps)


@dataclass(frozen=True)
class Selector:
    """Scores the states of a training."""

    config: SelectConfig
    dev: DevScorer
    policy: Policy

    def __call__(self, state: TrainState) -> dict[str, float]:
        """The score of a state as metrics: of what decides, and its standard error."""
        row = self.dev(self.policy(state), state.group)
        return {self.metric: row["score"], f"{self.metric}/stderr": row["stderr"]}

    @property
    def metric(self) -> str:
        """What its score is called among a training's metrics."""
        return f"{SELECT}{self.config.by}"

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller score is the better one."""
        return self.dev.lower_is_better


def selector(
    config: SelectConfig | None,
    tokenizer: Tokenizer,
    precision: Precision,
    *,
    chat: bool,
    policy: Policy = language_model_of,
) -> Selector | None:
    """What scores a training's save points; None where nothing is chosen. Raises ValueError for benchmarks not filled in."""
    return config and Selector(config, dev_scorer("select", config, tokenizer, precision, chat=chat), policy)


def scored_steps(lines: bytes | bytearray, metric: str) -> dict[int, dict[str, float]]:
    """Score and standard error by step, of the save points whose scores are among the metrics of a training."""
    found: dict[int, dict[str, float]] = {}
    for line in bytes(lines).splitlines():
        # Most lines have no score, and reading all of a long training would take minutes.
        if metric.encode() in line and metric in (row := orjson.loads(line)):
            found[int(row["step"])] = {"score": row[metric], "stderr": row[f"{metric}/stderr"]}
    return found


def best_step(scored: dict[int, dict[str, float]], *, by: str, lower_is_better: bool) -> int:
    """The step with the best score, the earliest among equals. A score that is not finite is never chosen.

    Raises ValueError where none is finite.
    """
    sign = -1 if lower_is_better else 1
    scores = {step: one["score"] for step, one in scored.items()}
    finite = {step: score for step, score in scores.items() if score is not None and math.isfinite(score)}
    if not finite:
        raise ValueError(
            f"no save point has a finite score of {by!r} (steps {', '.join(map(str, scored))}); look at the training's metrics"
        )
    # Ties go to the earliest: it has moved least from its parent.
    return min(finite, key=lambda step: (-sign * finite[step], step))


def tell_selection(ws: Workspace, selector: Selector, scored: dict[int, dict[str, float]], chosen: int) -> None:
    """Write which save point was chosen, and from what; also as a table of the dashboard."""
    rows: list[dict[str, float]] = [
        {"step": step, "chosen": step == chosen} | one for step, one in sorted(scored.items())
    ]
    ws.write_json(SELECTION, {"by": selector.config.by, "chosen": chosen, "save_points": rows})
    ws.table("selection", rows)
