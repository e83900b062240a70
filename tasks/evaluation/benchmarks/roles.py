"""The wall between what decisions are made on and what only finished models are asked (paper, Table 20; RECIPE I).

A sweep, a selection and the tasks that a training asks on its way use development benchmarks. A held-out benchmark that ranks
anything is refused: its score would no longer say how a model does on what it was not chosen for.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tasks.evaluation.benchmarks.gsm8k import GSM8KBenchmark
from tasks.evaluation.benchmarks.ifeval_ood import IFEvalOODBenchmark
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark
from tasks.evaluation.benchmarks.olmes.requests import OlmesRequestsBenchmark
from tasks.evaluation.benchmarks.olmes.task import Role
from tasks.evaluation.benchmarks.template import TemplateBenchmark

if TYPE_CHECKING:
    from tasks.evaluation.benchmarks import Benchmark

HELD_OUT_NAMES = ("agi_eval", "agieval", "bbh", "gsm8k", "math_", "minerva_math", "mmlu_pro", "triviaqa")
"""How the folders of rendered requests of held-out tasks begin."""


def role_of(benchmark: "Benchmark") -> Role:
    """Whether the benchmark is for development or held out.

    Rendered requests are judged by the name of their folder, unless their `role` says otherwise.
    """
    match benchmark:
        case OlmesBenchmark():
            return benchmark.role
        case TemplateBenchmark():
            return benchmark.role
        case GSM8KBenchmark():
            return benchmark.role or gsm8k_role(benchmark)
        case OlmesRequestsBenchmark():
            if benchmark.role:
                return benchmark.role
            # A folder's own name or its parent's may be that of the task.
            names = [benchmark.name, *benchmark.path.rstrip("/").split("/")[-2:]]
            return "held_out" if any(name.startswith(HELD_OUT_NAMES) for name in names) else "dev"
        case IFEvalOODBenchmark():
            return "held_out"
        case _:
            return "dev"


def gsm8k_role(benchmark: GSM8KBenchmark) -> Role:
    """Held out where the rows are GSM8K's test questions, as far as their names tell."""
    rows = benchmark.rows
    names = " ".join([rows.dataset, *rows.paths]).lower()
    # Local files name their split in the path, if anywhere.
    train = rows.split == "train" if rows.dataset else all("train" in path for path in rows.paths)
    return "held_out" if "gsm8k" in names and not train else "dev"


def refuse_held_out(use: str, benchmarks: "Iterable[Benchmark]") -> None:
    """Raise ValueError when one of the benchmarks that `use` names is held out."""
    held_out = [benchmark.name for benchmark in benchmarks if role_of(benchmark) == "held_out"]
    if held_out:
        raise ValueError(
            f"{use} names {', '.join(held_out)}, which is held out (Table 20): what is chosen by it can no longer be judged "
            "by it; use a development benchmark, such as {kind: olmes, task: gsm_star} for grade-school maths"
        )
