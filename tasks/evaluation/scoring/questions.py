"""What an evaluation asks: its benchmarks and suites, and how the model is addressed (RECIPE I)."""

from typing import Self

from pydantic import Field

from model.config import Config, Precision
from tasks.evaluation.benchmarks import BenchmarkConfig
from tasks.evaluation.scoring.suites import SuiteConfig, check_suites


class EvaluateConfig(Config):
    """What to ask, and how the model is addressed."""

    label: str
    """What is evaluated, as the report names it."""
    benchmarks: tuple[BenchmarkConfig, ...]
    """Benchmarks in the order they are run and reported."""
    suites: tuple[SuiteConfig, ...] = ()
    """Averages over benchmarks."""
    chat: bool = False
    """Address the model through the chat template (instruct models) or as a text to continue (base models)."""
    max_context: int = Field(default=2048, ge=2)
    """Tokens of prompt and answer together, of benchmarks that do not say so themselves; longer prompts are cut on the left
    (RECIPE I.1). Never more than the model's."""
    precision: Precision = "fp32"
    """Of the model's arithmetic; log-likelihoods in fp32 equal transformers' to 1e-4."""

    def pinned(self) -> Self:
        """The config with the files and datasets of its benchmarks pinned."""
        return self.model_copy(update={"benchmarks": tuple(benchmark.pinned() for benchmark in self.benchmarks)})


def check_benchmark_names(config: EvaluateConfig) -> None:
    """Names are unique, and suites name benchmarks or suites that are there."""
    check_suites([benchmark.name for benchmark in config.benchmarks], config.suites)
