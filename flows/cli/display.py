"""What `olmo2 run` shows: a line per finished stage, and live bars with rate and time left while one works."""

import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NotRequired, TypedDict

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from infra import events
from infra.events import Ended, Event, Failed, LogKept, Metrics, Waiting, Warned
from infra.execution.attempt import Outcome
from infra.json_values import JsonObject
from infra.stopping import Interrupted

PLAIN_SECONDS = 20.0
"""Without a terminal, a working stage says where it is this often."""
_TOLD = ("skipped_steps", "mfu")
"""Metrics that are shown after a training's first three, where they are known and not 0."""


class RateColumn(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        # `speed` is of the last seconds, and a finished bar has only that of the whole.
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {task.fields['unit']}/s", style="dim")


class EndedStage(TypedDict):
    """How a stage ended, for programs."""

    label: str
    action: Literal["run", "reused", "failed", "stopped"]
    """A stage that ended since the run was to end is stopped; nothing is wrong with it."""
    id: NotRequired[str]
    """Of its artifact, unless it failed or was stopped."""
    error: NotRequired[str]
    traceback: NotRequired[str | None]
    """Where the whole traceback of a failed stage is kept."""


@dataclass(frozen=True)
class Failure:
    """A stage that failed, its error and where its traceback is."""

    label: str
    error: BaseException
    log: str


class Display:
    """Listens to all stages of a session; use as a context manager."""

    def __init__(self, console: Console):
        self.console = console
        self.reused = 0
        self.ran = 0
        self.failed: list[Failure] = []
        self.stages: list[EndedStage] = []
        self._logs: dict[str, str] = {}
        self._lock = threading.Lock()
        self._bars: dict[tuple[str, str], Any] = {}
        self._said: dict[str, float] = {}
        self._began: dict[tuple[str, str], tuple[float, float]] = {}
        """When a bar was first seen, and how much was done by then."""
        self._metrics: dict[str, str] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}", markup=False),
            RateColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}", style="dim", markup=False),
            console=console,
            transient=True,
        )

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, label: str, event: Event) -> None:
        with self._lock:
            match event:
                case events.Progress():
                    self._show(label, event)
                case Metrics(_, values):
                    # The first three are what the training itself logs first, such as loss and learning rate.
                    shown = [*list(values)[:3], *(name for name in _TOLD if values.get(name))]
                    self._metrics[label] = "  ".join(f"{name} {values[name]:.4g}" for name in shown)
                case Waiting(text):
                    self.console.print(f"  {text}", style="yellow")
                case Warned(text):
                    self.console.print(f"  {label}: {text}", style="yellow", markup=False)
                case Ended(outcome):
                    self._end(label, outcome)
                case LogKept(place):
                    self._logs[label] = place
                case Failed(error):
                    self._clear(label)
                    self.failed.append(Failure(label, error, self._logs.get(label, "")))
                    said = f"{type(error).__name__}: {error}"
                    self.stages.append(self._ended(label, error, said))
                    self.console.print(f"✗ {label}: {said}", style="red", markup=False)

    def _ended(self, label: str, error: BaseException, said: str) -> EndedStage:
        """How a stage without an artifact ended, for programs."""
        if isinstance(error, Interrupted):
            return {"label": label, "action": "stopped", "error": said}
        return {"label": label, "action": "failed", "error": said, "traceback": self._logs.get(label)}

    def _show(self, label: str, event: events.Progress) -> None:
        description, done, total, unit = event.description, event.done, event.total, event.unit
        key = (label, description)
        metrics = self._metrics.get(label, "")
        if not self.console.is_terminal:
            now = time.monotonic()
            # Rate and time left count from here: a resumed stage begins with much done already.
            began, before = self._began.setdefault(key, (now, done))
            if total and now - self._said.setdefault(label, now) >= PLAIN_SECONDS:
                self._said[label] = now
                pace = paced(done - before, now - began, total - done, unit)
                self.console.print(
                    f"  {label}: {description} {done:,.0f} of {total:,.0f} {unit}{pace}  {metrics}", markup=False
                )
            return
        if key not in self._bars:
            self._bars[key] = self._progress.add_task(f"{label}: {description}", total=total, unit=unit, metrics="")
        self._progress.update(self._bars[key], completed=done, metrics=metrics)

    def _clear(self, label: str) -> None:
        for key in [key for key in self._bars if key[0] == label]:
            self._progress.remove_task(self._bars.pop(key))
        self._said.pop(label, None)
        for key in [key for key in self._began if key[0] == label]:
            del self._began[key]

    def _end(self, label: str, outcome: Outcome) -> None:
        self._clear(label)
        record = outcome.record
        self.stages.append({"label": label, "action": "reused" if outcome.reused else "run", "id": record.id})
        if outcome.reused:
            self.reused += 1
            self.console.print(reused_line(label, record.id), style="dim", markup=False, highlight=False)
            return
        self.ran += 1
        resumed = f"  resumed at {record.resumed_from}" if record.resumed_from else ""
        text = f"✓ {label:<28} {record.seconds:6.1f} s {record.id}  {headline(record.facts)}{resumed}"
        self.console.print(text, markup=False, highlight=False)


def paced(done: float, seconds: float, left: float, unit: str) -> str:
    """Rate and time left; nothing before anything is done."""
    if done <= 0 or seconds <= 0:
        return ""
    rate = done / seconds
    return f", {rate:,.1f} {unit}/s, {timedelta(seconds=round(left / rate))} left"


def reused_line(label: str, id: str) -> str:
    """One stage that had nothing to do."""
    return f"· {label:<28} Reused   {id}"


def headline(facts: JsonObject) -> str:
    """The scalar facts of an artifact in one line; scores with their standard errors."""
    # Scores are told with errors, whatever other facts there are.
    if "stderr" in facts:
        scores = facts.get("primary") or facts["scores"]
        return ", ".join(
            f"{name} {_number(score)} ± {_number(facts['stderr'][name])}" for name, score in scores.items()
        )
    shown = []
    for name, value in facts.items():
        # Texts, lists and sizes of files tell nothing in one line.
        if isinstance(value, bool | str | list) or name in ("ranks", "files"):
            continue
        if isinstance(value, dict):
            shown += [f"{key} {_number(item)}" for key, item in value.items() if isinstance(item, int | float)]
        else:
            shown.append(f"{name} {_number(value)}")
    return ", ".join(shown)[:150]


def _number(value: float) -> str:
    """A number for people."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"
