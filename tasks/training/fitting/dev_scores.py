"""One number by which models are chosen: their score on a development benchmark, or on a suite of them.

Save points of a training and greedy soups are chosen so. A held-out benchmark is refused (RECIPE I.3).
"""

from dataclasses import dataclass
from typing import Self

from pydantic import Field

from model.config import Config, Precision
from model.network.transformer import Transformer
from model.parallel.group import Group
from model.tokens.tokenizer import Tokenizer
from tasks.evaluation.benchmarks import LOWER_IS_BETTER, BenchmarkConfig
from tasks.evaluation.benchmarks.items import estimate_mean
from tasks.evaluation.scoring.suites import ScoreRow, SuiteConfig, members_of, ordered, score_suites
from tasks.training.fitting.asked_tasks import AskedTask, named_benchmarks


class DevConfig(Config):
    """What decides between models."""

    by: str
    """Benchmark or suite that decides, by its name under `evaluation`; a held-out one is refused."""
    items: int = Field(default=200, ge=2)
    """Items of each benchmark, the first ones."""
    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """The benchmarks of `by`; the recipe fills them in."""
    suites: tuple[SuiteConfig, ...] = ()
    """The suites of `by`; the recipe fills them in."""

    def filled(self, benchmarks: tuple[BenchmarkConfig, ...], suites: tuple[SuiteConfig, ...]) -> Self:
        """The same with what `by` names. Raises ValueError for a name that is neither a benchmark nor a suite."""
        needed, averages = members_of(self.by, suites), {suite.name for suite in suites}
        # Suites hold names of suites too; only what is asked of the model is a benchmark.
        asked = [name for name in needed if name not in averages]
        return self.model_copy(
            update={
                "benchmarks": named_benchmarks("select.by", asked, benchmarks),
                "suites": tuple(suite for suite in suites if suite.name in needed),
            }
        )


@dataclass(frozen=True)
class DevScorer:
    """Scores models by what a config names."""

    config: DevConfig
    asked: tuple[AskedTask, ...]
    precision: Precision

    def __call__(self, model: Transformer, group: Group) -> ScoreRow:
        """The row, as in `scores.json`, of what decides. All workers of the group that holds the model have to ask together."""
        rows = [self._row(task, model, group) for task in self.asked]
        if self.config.suites:
            suites = score_suites(self.config.suites, rows)
            # Suites inside the deciding one have rows too; only the one that decides is wanted.
            rows = [row for row in suites if row["name"] == self.config.by]
        (row,) = rows
        return row

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller score is the better one; all that a suite holds agree in that."""
        return self.asked[0].metric in LOWER_IS_BETTER

    def _row(self, task: AskedTask, model: Transformer, group: Group) -> ScoreRow:
        found = estimate_mean(task.scores(model, group, self.precision))
        return {
            "name": task.benchmark.name,
            "primary": task.metric,
            "score": found.value,
            "stderr": found.stderr,
            "n": found.n,
            "lower_is_better": task.metric in LOWER_IS_BETTER,
            "truncated_prompts": 0,
        }


def dev_scorer(field: str, config: DevConfig, tokenizer: Tokenizer, precision: Precision, *, chat: bool) -> DevScorer:
    """What scores models. Raises ValueError for benchmarks that no recipe has filled in, or suites that hold each other."""
    if not config.benchmarks:
        raise ValueError(
            f"{field}.by={config.by!r} is given without its benchmarks; a recipe fills them in: call `filled` when there is none"
        )
    # Sorted here for its error: suites that hold each other are refused before anything trains.
    ordered(config.suites)
    asked = tuple(AskedTask(benchmark, config.items, tokenizer, chat=chat) for benchmark in config.benchmarks)
    return DevScorer(config, asked, precision)
