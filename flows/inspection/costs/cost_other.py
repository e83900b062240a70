"""What the stages cost that do not train: data work on cores, language models by the token, sampling and evaluation on GPUs, and
what every stage stores.

Source: seconds per GB are this project's measurements (docs/data-at-scale.md, benchmarks/data_plan.py); sizes of released data
sets are the paper's (flows/config/sizes/known_sizes.py). What follows from neither is an assumption, which its row states; what
is
not known before data exist is None.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace

from flows.config.needed import needed_sources
from flows.config.parts import CandidateConfig
from flows.config.phases.comparison_config import label_of
from flows.config.recipe_config import RecipeConfig
from flows.config.sizes.known_sizes import BYTES_PER_TOKEN, prompts_of, rows_of, source_tokens, total_of
from flows.config.sizes.limits import candidate_tokens
from flows.config.sizes.training_runs import FORWARD, training_runs
from flows.inspection.costs.cost import Hardware, environment
from flows.running.sessions import plan_rows
from flows.starting import GIVEN
from infra.execution.plan import PlanRow
from infra.session import Session
from infra.settings import EndpointSettings
from infra.storage.store import Store
from tasks.data.synthesis.personas import PersonasConfig
from tasks.data.synthesis.programs import ProgramsConfig
from tasks.data.synthesis.synthesize import SynthesizeConfig
from tasks.data.synthesis.worked import WorkedConfig
from tasks.evaluation.benchmarks import Benchmark
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark
from tasks.evaluation.evaluate import EvaluateConfig
from tasks.evaluation.scoring.room import context_of, longest_answer
from tasks.training.answers.model_judge import LanguageModelJudge, judge_orders
from tasks.training.answers.rule_judge import ASPECTS
from tasks.training.preferences import PreferencesConfig

SECONDS_PER_GB = {
    "collect": 9,
    "score": 24,
    "filter": 10,
    "dedup": 37,
    "decontaminate": 37,
    "encode": 85,
    "classifier": 20,
}
"""Core-seconds per GB of text, as measured on a busy machine; decontamination reads like dedup."""
CORES_PER_GPU = 12
"""Cores of a host per GPU."""
WATTS_PER_CORE = 5.0
"""Power of a host's core at work."""
STORED = 0.35
"""Bytes of a compressed text file per byte of text (zstd)."""
WEIGHT_BYTES, MOMENT_BYTES = 4, 8
"""Bytes of a stored parameter (fp32), and of its two moments."""
_ITEMS = {"gsm8k": 1_319, "ifeval": 541, "ifeval_ood": 300}
"""Items of a benchmark by its kind (RECIPE I.3, I.4)."""
PERSONA_TOKENS = (2 * 250, 2 * 450)
"""Prompt and answer tokens of a persona's problem and its solution, two calls."""
REWRITE_TOKENS = (450, 550)
"""Prompt and answer tokens of a rewritten document."""
POOL_TOKENS = (250, 400)
"""Prompt and answer tokens of one answer of a pool's model."""
JUDGE_TOKENS = (900, 250)
"""Prompt and answer tokens of one aspect of four answers."""
LABEL_TOKENS = (1_100, 120)
"""Prompt and answer tokens of a labelled page."""


@dataclass(frozen=True)
class OtherCost:
    """One stage that does not train; None where it is not known."""

    label: str
    assumption: str
    gpus: int = 0
    tokens: int | None = 0
    """Tokens that a model reads and writes, of ours or of an endpoint."""
    flops: float | None = 0.0
    hours: float | None = 0.0
    """On all GPUs, or on all cores of their hosts."""
    kwh: float | None = 0.0
    co2_tonnes: float | None = 0.0
    water_kilolitres: float | None = 0.0
    money: float | None = None
    """GPU hours at the plan's price, tokens at the endpoint's; None where no price is named."""
    calls: int | None = 0
    """Requests to language models."""
    stored_bytes: float | None = 0.0


def plan_labels(config: RecipeConfig) -> list[PlanRow]:
    """The stages of a run, looked up in an empty store; in its own store those of a recipe that starts at an artifact there, or
    that has checkpoints of it in a pool.
    """
    how = config.preferences
    pooled = isinstance(how, PreferencesConfig) and how.pool is not None and how.pool.checkpoints
    if config.start or pooled:
        # A given artifact's record is needed, so the recipe's own store is asked.
        return plan_rows(config, Session(Store(config.execution.store), config.execution))
    # An empty store answers every stage with `run`, whatever was made before.
    with tempfile.TemporaryDirectory(prefix="olmo2-plan-") as folder:
        return plan_rows(config, Session(Store(folder), config.execution))


def other_costs(config: RecipeConfig, hardware: Hardware, rows: Iterable[PlanRow]) -> list[OtherCost]:
    """A row per stage of the plan that is no training, in the order of the flow."""
    trained = {run.label for run in training_runs(config)}
    sizes = text_bytes(config)
    return [
        _priced(_cost(row, config, hardware, sizes), hardware)
        for row in rows
        if row.label not in trained and not row.label.startswith("start:")
    ]


def text_bytes(config: RecipeConfig) -> dict[str, float | None]:
    """Bytes of text by source and candidate; "all" for the collected sources together."""
    read = needed_sources(config)
    found = {name: _bytes(source_tokens(source)) for name, source in config.collect.items() if name in read}
    found["all"] = None if None in found.values() else sum(size for size in found.values() if size is not None)
    for variant in config.comparison.encode if config.comparison else ():
        # A variant with its own vocabulary encodes every source again.
        found |= {f"{name}-{label_of(variant)}": found[name] for name in config.collect if name in read}
    return found | {item.name: _bytes(candidate_tokens(item)) for item in config.candidates}


def _bytes(tokens: int | None) -> float | None:
    return None if tokens is None else tokens * BYTES_PER_TOKEN


def _cost(row: PlanRow, config: RecipeConfig, hardware: Hardware, sizes: dict[str, float | None]) -> OtherCost:
    name = row.label.partition(":")[2]
    match row.stage:
        case "collect" | "score" | "filter" | "encode":
            return _data(row, sizes.get(name), hardware)
        case "dedup" | "decontaminate" | "classifier":
            # A candidate is cleared by itself, the sources all together.
            return _data(row, sizes[name if name in sizes else "all"], hardware)
        case "synthesize" | "worked" | "programs" | "personas" | "rewrite" | "label":
            return _made(row, name, config)
        case "preferences":
            return _preferences(row, config, hardware)
        case "evaluate":
            return _evaluation(row, config, hardware)
        case "soup":
            return OtherCost(row.label, "an average on the host", stored_bytes=WEIGHT_BYTES * _parameters(config))
    return OtherCost(row.label, "seconds on the host, megabytes")


def _parameters(config: RecipeConfig) -> float:
    return config.pretrain.model.parameters


def _data(row: PlanRow, size: float | None, hardware: Hardware) -> OtherCost:
    seconds = SECONDS_PER_GB[row.stage]
    said = f"{seconds} core-seconds per GB of text, {BYTES_PER_TOKEN:g} bytes a token, {CORES_PER_GPU} cores a GPU"
    if size is None:
        return OtherCost(row.label, "the size of its text is not known", hours=None, kwh=None, stored_bytes=None)
    core_hours = seconds * size / 1e9 / 3600
    # Tokens are stored as uint32, four bytes each; scores are small numbers in compressed rows.
    stored = {"encode": 4 / BYTES_PER_TOKEN, "score": 0.01, "classifier": 0.0}.get(row.stage, STORED) * size
    return OtherCost(
        row.label, said, hours=core_hours / (CORES_PER_GPU * hardware.gpus), kwh=core_hours * WATTS_PER_CORE / 1000,
        stored_bytes=stored,
    )  # fmt: skip


def _made(row: PlanRow, name: str, config: RecipeConfig) -> OtherCost:
    """What is made by rule or by a language model; the model's endpoint says the price."""
    candidate = next((item for item in config.candidates if item.name == name), None)
    made = candidate.synthesize if candidate else config.synthesize.get(name)
    if row.stage == "rewrite":
        assert candidate is not None and candidate.rewrite is not None, row
        count = _documents(candidate)
        count = None if count is None else count * candidate.rewrite.copies
        return _asked(row, count, 1, REWRITE_TOKENS, candidate.rewrite.writer.model, config)
    if row.stage == "label":
        return _asked(row, config.label[name].count, 1, LABEL_TOKENS, config.label[name].writer.model, config)
    if isinstance(made, PersonasConfig):
        return _asked(row, rows_of(made.personas), 2, PERSONA_TOKENS, made.writer.model, config)
    # Without a stated size the candidate's text is unknown, and so is its share of the disk.
    size = _bytes(candidate_tokens(candidate)) if candidate else None
    return OtherCost(
        row.label, "made by rule on the host's cores", stored_bytes=None if size is None else size * STORED
    )


def _documents(candidate: CandidateConfig) -> int | None:
    """Documents that are rewritten: those of its origin, else as many as its stated tokens make."""
    match candidate.synthesize:
        case SynthesizeConfig() as made:
            # Rounded up: the last document may have fewer problems.
            return -(-made.count // made.problems_per_document)
        case WorkedConfig() | ProgramsConfig() as made if made.rows.limit:
            return made.rows.limit
        case _:
            tokens, copies = candidate.expected_tokens, candidate.rewrite.copies if candidate.rewrite else 1
            # A rewritten document has about as many tokens as the answer that wrote it.
            return None if tokens is None else round(tokens / REWRITE_TOKENS[1] / copies)


def _asked(
    row: PlanRow, count: int | None, calls: int, tokens: tuple[int, int], model: str, config: RecipeConfig
) -> OtherCost:
    endpoint = config.execution.endpoints.get(model) or config.execution.endpoints.get("default")
    said = f"{model}, {tokens[0]:,} prompt and {tokens[1]:,} answer tokens each"
    said += _price_said(endpoint)
    if count is None:
        return OtherCost(
            row.label, f"{said}; how many is not known", tokens=None, calls=None, money=None, stored_bytes=None
        )
    money = None
    if endpoint and (endpoint.prompt_price or endpoint.completion_price):
        # Prices are for a million tokens.
        money = count * (tokens[0] * endpoint.prompt_price + tokens[1] * endpoint.completion_price) / 1e6
    stored = count * tokens[1] * BYTES_PER_TOKEN * STORED
    return OtherCost(row.label, said, tokens=count * sum(tokens), calls=count * calls, money=money, stored_bytes=stored)


def _price_said(endpoint: EndpointSettings | None) -> str:
    if endpoint is None:
        return ", no endpoint and so no price is named"
    return f", {endpoint.prompt_price:g} and {endpoint.completion_price:g} a million at {endpoint.url}"


def _preferences(row: PlanRow, config: RecipeConfig, hardware: Hardware) -> OtherCost:
    how = config.preferences
    assert isinstance(how, PreferencesConfig) and config.preference_prompts is not None, (
        "only sampled pairs are this stage's"
    )
    prompts = prompts_of(config.preference_prompts)
    if prompts is None:
        unknown = OtherCost(row.label, "how many prompts is not known", tokens=None, flops=None, hours=None, kwh=None)
        return replace(unknown, calls=None, money=None)
    # The window bounds prompt and answer together.
    longest = min(how.max_prompt_tokens + how.max_new_tokens, config.pretrain.model.max_sequence_length)
    answers, served = prompts * how.samples, how.pool.served if how.pool else []
    # Each member of the pool gives as many answers as any other, of those that are not the policy's.
    of_member = answers * (1 - how.pool.on_policy) / len(how.pool.members) if how.pool else 0.0
    sampled = _sampled(row, round((answers - of_member * len(served)) * longest), longest, config, hardware)
    said = f"≤: {how.samples} answers of {how.max_new_tokens:,} tokens to {prompts:,} prompts, sampled at the MFU"
    models = [member.model.model for member in served]
    asked = [_asked(row, round(of_member), 1, POOL_TOKENS, model, config) for model in models]
    if served:
        said += f"; {len(served) * of_member:,.0f} of them by {'; '.join(item.assumption for item in asked)}"
    if not isinstance(how.judge, LanguageModelJudge):
        said = f"{said}; verifiers judge"
    else:
        # The judge is asked for each aspect of a prompt's answers, in one order or both.
        calls = prompts * len(ASPECTS) * len(judge_orders(how.judge))
        models.append(how.judge.model.model)
        asked.append(_asked(row, calls, 1, JUDGE_TOKENS, models[-1], config))
        said = f"{said}; judged by {asked[-1].assumption}"
    if not asked:
        return replace(sampled, assumption=said)
    unpriced = sorted({model for model, item in zip(models, asked, strict=True) if item.money is None})
    # A part of the price is told as such and not left out: an unknown price would ask nobody, whatever the others cost.
    prices = [item.money for item in asked if item.money is not None]
    if prices and unpriced:
        said += f"; the price is a lower bound, for none is named of {', '.join(unpriced)}"
    return replace(
        sampled,
        assumption=said,
        tokens=total_of([sampled.tokens, *(item.tokens for item in asked)]),
        calls=total_of([item.calls for item in asked]),
        money=sum(prices) if prices else None,
    )


def _evaluation(row: PlanRow, config: RecipeConfig, hardware: Hardware) -> OtherCost:
    asked = asked_of(row, config)
    window = config.pretrain.model.max_sequence_length
    counts: list[int | None] = []
    for benchmark in asked.benchmarks:
        count = _items_of(benchmark)
        context = context_of(benchmark, asked.max_context, window)
        # Every item counts as long as its context, which is an upper bound.
        counts.append(None if count is None else count * max(context, longest_answer(benchmark)))
    tokens = total_of(counts)
    if tokens is None:
        return OtherCost(row.label, "how many items is not known", tokens=None, flops=None, hours=None, kwh=None)
    said = "≤: every item fills its context, read and written at the MFU"
    return replace(_sampled(row, tokens, asked.max_context, config, hardware), assumption=said)


def asked_of(row: PlanRow, config: RecipeConfig) -> EvaluateConfig:
    """What the model of an evaluation is asked, by the stage that makes it."""
    label = row.label.partition(":")[2]
    if label.startswith("try-"):
        return config.sweep_evaluation.of(label)
    # The first input is the checkpoint, and its stage tells what kind of model it is.
    maker = row.inputs[0].removeprefix(GIVEN).partition(":")[0] if row.inputs else ""
    chat = maker not in ("pretrain", "base", "anneal", "soup")
    # A single anneal stands for the soup, so it is the last base model.
    alone = maker == "anneal" and len(config.anneal_seeds) + len(config.further_ingredients) == 1
    return config.evaluation.of(label, chat=chat, last=maker == "soup" or alone or label == "instruct")


def _items_of(benchmark: Benchmark) -> int | None:
    """Items where they are known before the benchmark's files are read."""
    fields = benchmark.model_dump(include={"limit", "items", "kind"})
    if isinstance(benchmark, OlmesBenchmark):
        facts = benchmark.facts
        # The published limit, else the items that were chosen, else those of the whole split.
        published = facts.limit or (len(facts.places) if facts.places is not None else facts.count)
    else:
        published = _ITEMS.get(fields["kind"])
    return fields.get("limit") or fields.get("items") or published


def _sampled(row: PlanRow, tokens: int, longest: int, config: RecipeConfig, hardware: Hardware) -> OtherCost:
    """Forward passes alone."""
    # A third of a training step's FLOPs is the forward pass.
    flops = FORWARD * tokens * config.pretrain.model.flops_per_token(longest)
    hours = flops / (hardware.gpus * hardware.device.peak_flops * hardware.mfu) / 3600
    kwh = hardware.device.watts * hardware.node_factor * hours * hardware.gpus / 1000
    return OtherCost(
        row.label, "", gpus=hardware.gpus, tokens=tokens, flops=flops, hours=hours, kwh=kwh,
        stored_bytes=tokens * BYTES_PER_TOKEN * STORED,
    )  # fmt: skip


def _priced(item: OtherCost, hardware: Hardware) -> OtherCost:
    """With CO2 and water of its electricity, and the price of its GPU hours."""
    co2, water = (None, None) if item.kwh is None else environment(item.kwh / 1000, hardware.site)
    money = item.money
    if item.gpus and hardware.price is not None and item.hours is not None:
        money = (money or 0.0) + hardware.price * item.hours * item.gpus
    return replace(item, co2_tonnes=co2, water_kilolitres=water, money=money)


def stored_by_training(parameters: float, *, moments: bool) -> float:
    """Bytes of a finished checkpoint, with Adam's moments where it keeps them."""
    return parameters * (WEIGHT_BYTES + (MOMENT_BYTES if moments else 0))
