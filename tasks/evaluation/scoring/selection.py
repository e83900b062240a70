"""Which benchmarks and suites a word stands for: a task, a task in one format, or a published table (RECIPE I.1).

`arc_challenge` asks every ranked format and counts the best; `arc_challenge:cloze` asks one; `gsm8k:bits_per_byte` scores the
gold answer. `olmes` is the development half of Table 20, `olmes_held_out` the other half.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.data.sources.rows import RowSource
from tasks.evaluation.benchmarks import Benchmark
from tasks.evaluation.benchmarks.ifeval import IFEvalBenchmark
from tasks.evaluation.benchmarks.ifeval_ood import IFEvalOODBenchmark
from tasks.evaluation.benchmarks.instructions import InstructionsBenchmark
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark
from tasks.evaluation.benchmarks.olmes.local_copy import find_copy, row_paths, split_files
from tasks.evaluation.benchmarks.olmes.tasks import all_tasks, find_task
from tasks.evaluation.benchmarks.safety import SAFETY_MEANS, SAFETY_SETS, SAFETY_SUITE
from tasks.evaluation.scoring.suites import SuiteConfig

TABLES: dict[str, tuple[str, ...]] = {
    "olmes": (
        "arc_challenge", "arc_easy", "boolq", "csqa", "hellaswag", "openbookqa", "piqa", "socialiqa", "winogrande", "mmlu",
        "naturalqs", "drop", "squad", "coqa", "jeopardy",
    ),
    "olmes_held_out": ("agi_eval", "gsm8k_held_out", "mmlu_pro", "triviaqa", "bbh", "minerva_math"),
    "olmes_bits": (
        "arc_challenge:bits_per_byte", "arc_easy:bits_per_byte", "boolq:bits_per_byte", "csqa:bits_per_byte",
        "hellaswag:bits_per_byte", "openbookqa:bits_per_byte", "piqa:bits_per_byte", "socialiqa:bits_per_byte",
        "winogrande:bits_per_byte", "mmlu:bits_per_byte", "naturalqs:bits_per_byte", "drop:bits_per_byte",
        "squad:bits_per_byte", "coqa:bits_per_byte", "jeopardy:bits_per_byte", "lambada:bits_per_byte",
    ),
    "instruct": (
        "mmlu_cot", "popqa", "truthfulqa", "bbh_chat", "drop_3shot", "gsm8k", "minerva_math", "humaneval",
        "humaneval_plus", "ifeval",
    ),
    "unseen": ("agi_eval_cot", "deepmind_math", "gpqa", "ifeval_ood", "mmlu_pro_cot"),
    "safety": SAFETY_SUITE,
}  # fmt: skip
"""AlpacaEval 2 and the Tülu 3 safety suite need a judge after the evaluation: see `NOT_COMPUTED`."""

NOT_COMPUTED: dict[str, dict[str, str]] = {
    "instruct": {
        "alpaca_eval_2": "its score is a judgement: evaluate the task alpaca_eval_2 with --chat, then give the id to olmo2 judge",
        "safety": "its score is a judgement: evaluate the table safety with --chat, then give the id to olmo2 judge",
    },
}
"""What a table has and this project does not compute, with the reason."""
INSTRUCTIONS: dict[str, type[IFEvalBenchmark] | type[IFEvalOODBenchmark]] = {
    "ifeval": IFEvalBenchmark,
    "ifeval_ood": IFEvalOODBenchmark,
}
"""Tasks whose answers are checked by rules, with kinds of their own."""
FORMATS = {"rc": "cloze", "mc": "multiple_choice", "bpb": "bits_per_byte", "gen": "generate"}


@dataclass
class TaskSelection:
    """What is asked and averaged, and what is left out with the reason."""

    benchmarks: list[Benchmark] = field(default_factory=list)
    suites: list[SuiteConfig] = field(default_factory=list)
    not_computed: dict[str, str] = field(default_factory=dict)


def select(names: Sequence[str], *, copies: str = "", limit: int | None = None) -> TaskSelection:
    """The benchmarks that the words stand for, each once. `copies` is a folder of local copies of the data sets.

    Raises ValueError for a word that is no task, format or table, and where a copy is missing.
    """
    chosen = TaskSelection()
    for name in names:
        if name not in TABLES:
            add_task(chosen, name, copies, limit)
            continue
        members = [add_task(chosen, member, copies, limit) for member in TABLES[name]]
        # Bits per byte have no common mean with accuracies.
        macro = [member for member in members if not member.endswith("_bpb")] or members
        add_suite(chosen, SuiteConfig(name=name, tasks=tuple((member,) for member in macro)))
        chosen.not_computed |= NOT_COMPUTED.get(name, {})
    return chosen


def add_task(chosen: TaskSelection, word: str, copies: str, limit: int | None) -> str:
    """Add a task's benchmarks; returns the name under which its score stands."""
    name, _, wanted = word.partition(":")
    if name in INSTRUCTIONS:
        return add_benchmark(chosen, instructions(name, copies, limit))
    if name == "alpaca_eval_2":
        return add_benchmark(chosen, alpaca_eval(copies, limit))
    if name in SAFETY_MEANS:
        halves = tuple((add_task(chosen, half, copies, limit),) for half in SAFETY_MEANS[name])
        return add_suite(chosen, SuiteConfig(name=name, tasks=halves))
    if name in SAFETY_SETS:
        return add_benchmark(chosen, safety_set(SAFETY_SETS[name], copies, limit))
    if name not in all_tasks():
        known = ", ".join(sorted([*all_tasks(), *TABLES, *INSTRUCTIONS, *SAFETY_SETS, *SAFETY_MEANS, "alpaca_eval_2"]))
        raise ValueError(
            f"{word!r} is no task and no table; there are {known}; a format follows a colon, as in piqa:cloze"
        )
    task = find_task(name)
    path = find_copy(copies, task.dataset, name) if copies else ""
    ranked = [format for format in task.formats if format in ("cloze", "multiple_choice")]
    formats = [FORMATS.get(wanted, wanted)] if wanted else ranked or [task.formats[0]]
    names = []
    for format in formats:
        fields = {"task": name, "format": format, "path": path, "limit": limit}
        names.append(add_benchmark(chosen, OlmesBenchmark.model_validate(fields)))
    if len(names) == 1:
        return names[0]
    # The score of a task with several formats is the best of them, as a suite of one task.
    return add_suite(chosen, SuiteConfig(name=name, tasks=(tuple(names),)))


def instructions(name: str, copies: str, limit: int | None) -> IFEvalBenchmark | IFEvalOODBenchmark:
    """IFEval or IFEval-OOD from the hub or its local copy."""
    benchmark = INSTRUCTIONS[name]()
    rows = {"rows": {"paths": row_paths(find_copy(copies, benchmark.rows.dataset, name))}} if copies else {}
    return INSTRUCTIONS[name].model_validate({"limit": limit, **rows})


def safety_set(asked: InstructionsBenchmark, copies: str, limit: int | None) -> InstructionsBenchmark:
    """A set of the safety suite from the hub or its local copy."""
    rows = asked.rows
    if copies:
        rows = RowSource(paths=split_files(find_copy(copies, rows.dataset, asked.name), rows.subset, rows.split))
    return asked.model_copy(update={"rows": rows, "limit": limit or asked.limit})


def alpaca_eval(copies: str, limit: int | None) -> InstructionsBenchmark:
    """AlpacaEval's 805 instructions with outputs of GPT-4-Turbo, from a local copy; `judge` scores the answers.

    Raises ValueError without a copy: the hub's file is one JSON list, and rows are read line by line.
    """
    if not copies:
        raise ValueError(
            "alpaca_eval_2 is read from a local copy, since the hub's file alpaca_eval_gpt4_baseline.json is one JSON list; "
            "write one object a line into FOLDER/alpaca_eval_2/eval.jsonl and give --data FOLDER"
        )
    rows = RowSource(paths=(find_copy(copies, "tatsu-lab/alpaca_eval", "alpaca_eval_2"),))
    return InstructionsBenchmark(name="alpaca_eval_2", rows=rows, question="preferred", reference="output", limit=limit)


def add_benchmark(chosen: TaskSelection, benchmark: Benchmark) -> str:
    if benchmark.name not in {known.name for known in chosen.benchmarks}:
        chosen.benchmarks.append(benchmark)
    return benchmark.name


def add_suite(chosen: TaskSelection, suite: SuiteConfig) -> str:
    if suite.name not in {known.name for known in chosen.suites}:
        chosen.suites.append(suite)
    return suite.name
