"""What a recipe asks its models: benchmarks of all, and the published tables by the kind of model (paper, Tables 20, 21 and 24).

Base models (pre-training, mid-training) and tuned ones (SFT, DPO, RLVR) have suites of their own. What is held out is asked of
the last model of each kind alone, so that no choice between models can rest on it.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TypeVar

from pydantic import Field, model_validator

from model.config import Config
from tasks.evaluation.benchmarks import Benchmark, BenchmarkConfig
from tasks.evaluation.evaluate import EvaluateConfig, SuiteConfig
from tasks.evaluation.scoring.selection import select
from tasks.evaluation.scoring.suites import members_of

Named = TypeVar("Named", Benchmark, SuiteConfig)


class TablesConfig(Config):
    """What models of one kind are asked besides what all are."""

    tables: tuple[str, ...] = ()
    """Words as of `olmo2 eval --tasks`: published tables, tasks, or a task's format, such as olmes or piqa:cloze."""
    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """Those of the tables are filled in; one that is given replaces the table's of its name, or is asked too."""
    suites: tuple[SuiteConfig, ...] = ()
    """Averages; those of the tables are filled in."""

    @model_validator(mode="after")
    def written_out(self) -> "TablesConfig":
        """The same with what the tables stand for. ValueError for a word that is no table and no task."""
        if not self.tables:
            return self
        found = select(self.tables)
        return self.model_copy(
            update={
                "benchmarks": over(found.benchmarks, self.benchmarks),
                "suites": over(found.suites, self.suites),
            }
        )


class EvaluationConfig(Config):
    """Benchmarks that checkpoints are asked."""

    benchmarks: tuple[BenchmarkConfig, ...]
    """Of every model, in the order they are run and reported."""
    suites: tuple[SuiteConfig, ...] = ()
    """Averages over benchmarks."""
    base: TablesConfig = TablesConfig()
    """Of base models: after pre-training, of every anneal and of the soup (Table 20)."""
    tuned: TablesConfig = TablesConfig()
    """Of tuned models: after SFT, DPO and every stage of RLVR (Table 21)."""
    last_base: TablesConfig = TablesConfig()
    """Also of the base model that finetuning starts from: Table 20's held-out half."""
    last_tuned: TablesConfig = TablesConfig()
    """Also of the last tuned model: the unseen suite (Table 24)."""
    max_context: int = Field(default=2048, ge=2)
    """Tokens of prompt and answer together (RECIPE I.1)."""

    @property
    def parts(self) -> dict[str, TablesConfig]:
        """The four lists by kind of model, by the names of their fields."""
        return {"base": self.base, "tuned": self.tuned, "last_base": self.last_base, "last_tuned": self.last_tuned}

    @property
    def every_benchmark(self) -> tuple[Benchmark, ...]:
        """Whatever any model is asked, each once."""
        return once(chain(self.benchmarks, *(part.benchmarks for part in self.parts.values())))

    @property
    def every_suite(self) -> tuple[SuiteConfig, ...]:
        """Whatever is averaged for any model, each once."""
        return once(chain(self.suites, *(part.suites for part in self.parts.values())))

    def of(self, label: str, *, chat: bool = False, last: bool = False) -> EvaluateConfig:
        """The evaluation of one checkpoint; `last`: of its kind."""
        parts = [self.tuned, self.last_tuned] if chat else [self.base, self.last_base]
        asked = [self, *(parts if last else parts[:1])]
        return EvaluateConfig(
            label=label,
            chat=chat,
            max_context=self.max_context,
            benchmarks=once(chain(*(part.benchmarks for part in asked))),
            suites=once(chain(*(part.suites for part in asked))),
        )

    def only(
        self, name: str, further: Sequence[Benchmark] = (), field: str = "microanneal.rank_by"
    ) -> "EvaluationConfig":
        """The same with a single benchmark, or with a suite and what it holds. Raises ValueError for a name that is not there."""
        known, suites = once([*self.every_benchmark, *further]), self.every_suite
        needed = members_of(name, suites)
        # In the recipe's order, whatever the suite's own.
        chosen = tuple(benchmark for benchmark in known if benchmark.name in needed)
        if not chosen:
            names = ", ".join([*(benchmark.name for benchmark in known), *(suite.name for suite in suites)])
            raise ValueError(f"{field}={name!r} is not a benchmark or suite of the recipe; they are {names}")
        held = tuple(suite for suite in suites if suite.name in needed)
        return EvaluationConfig(benchmarks=chosen, suites=held, max_context=self.max_context)

    def pinned(self) -> "EvaluationConfig":
        """The same with everything pinned that its benchmarks read, each benchmark once."""
        pins: dict[str, Benchmark] = {}

        def pin(benchmarks: Iterable[Benchmark]) -> tuple[Benchmark, ...]:
            found = []
            for benchmark in benchmarks:
                # A benchmark that stands in three lists is pinned once, since pinning may ask the network.
                key = benchmark.model_dump_json()
                if key not in pins:
                    pins[key] = benchmark.pinned()
                found.append(pins[key])
            return tuple(found)

        parts = {
            name: part.model_copy(update={"benchmarks": pin(part.benchmarks)}) for name, part in self.parts.items()
        }
        return self.model_copy(update={"benchmarks": pin(self.benchmarks), **parts})


def over(below: Iterable[Named], given: Iterable[Named]) -> tuple[Named, ...]:
    """Those below, each replaced by the given one of its name, and then the other given ones."""
    named = {value.name: value for value in given}
    return (*(named.pop(value.name, value) for value in below), *named.values())


def once(values: Iterable[Named]) -> tuple[Named, ...]:
    """The values in order, without those that are equal to an earlier one."""
    found: list[Named] = []
    # Configs with lists inside cannot be hashed, so this compares one by one; there are dozens.
    for value in values:
        if value not in found:
            found.append(value)
    return tuple(found)
