"""Stage: prompts with verifiable answers (RECIPE H.1): {id, messages, ground_truth, dataset} per row.

Synthetic prompts come from a split of their own, so that preference data and reinforcement see problems which finetuning
has not. `dataset` names the verifier. Prompts are not cut here: the training stages drop those that are too long for them.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Prompts
from tasks.data.documents.dolma_files import LineWriter
from tasks.data.sources.rows import RowSource, check_share, read_rows, resolve_rows
from tasks.synthetic import KindConfig, generate_mixed
from tasks.verifiers import DATASETS

Row = dict[str, Any]


class SyntheticPrompts(Config):
    """Problems of one split, each once; `dataset` is their kind."""

    kind: Literal["synthetic"] = "synthetic"
    name: str = "synthetic_math"
    """Source name, the beginning of the ids."""
    split: Literal["preference", "rlvr"]
    """Which held-apart problems to use."""
    problems: tuple[KindConfig, ...]
    """Kinds of problem, mixed by their weights."""
    count: int = Field(ge=1)
    """Prompts to make."""
    distinct: bool = True
    """No problem twice; a narrow range may hold too few for that."""
    seed: int = 6198


class PromptRows(Config):
    """Rows of the published RLVR format."""

    kind: Literal["rows"] = "rows"
    name: str
    """Source name, the beginning of the ids."""
    rows: RowSource
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of unusable rows above which the stage fails."""


PromptSource = Annotated[SyntheticPrompts | PromptRows, Field(discriminator="kind")]


class PromptsConfig(Config):
    """The prompt mix: the sources one after another; training shuffles."""

    sources: tuple[PromptSource, ...] = (
        PromptRows(name="rlvr_mix", rows=RowSource(dataset="allenai/RLVR-GSM-MATH-IF-Mixed-Constraints")),
    )


def resolve(config: PromptsConfig) -> PromptsConfig:
    """The config with what it will read pinned."""
    return PromptsConfig(
        sources=tuple(
            source.model_copy(update={"rows": resolve_rows(source.rows)}) if isinstance(source, PromptRows) else source
            for source in config.sources
        )
    )


def build_prompts(ws: Workspace, config: PromptsConfig) -> Prompts:
    """All usable prompts of all sources, in order; bad rows are kept in `bad/prompts.jsonl.zst`."""
    datasets: Counter[str] = Counter()
    names: set[str] = set()
    with LineWriter(ws, "prompts.jsonl.zst") as good, LineWriter(ws, "bad/prompts.jsonl.zst") as bad:
        for source in config.sources:
            if source.name in names:
                raise ValueError(f"two prompt sources are called {source.name!r}; give each its own name")
            names.add(source.name)
            reasons: Counter[str] = Counter()
            before = good.rows
            for place, row, reason in read_source(source):
                if reason:
                    reasons[reason] += 1
                    bad.write({"place": place, "reason": reason, "source": source.name})
                else:
                    datasets[row["dataset"]] += 1
                    good.write({"id": f"{source.name}-{good.rows - before}", **row})
            allowed = source.max_bad_fraction if isinstance(source, PromptRows) else 1.0
            check_share(f"prompt source {source.name!r}", good.rows - before, reasons, allowed)
    return ws.artifact(Prompts, prompts=datasets.total(), datasets=dict(sorted(datasets.items())))


def read_source(source: SyntheticPrompts | PromptRows) -> Iterator[tuple[str, Row, str]]:
    """(place, row, reason why not usable or "") of every prompt."""
    if isinstance(source, SyntheticPrompts):
        problems = generate_mixed(source.problems, source.split, source.count, source.seed, distinct=source.distinct)
        for problem in problems:
            messages = [{"role": "user", "content": problem.question}]
            row = {"messages": messages, "ground_truth": problem.answer, "dataset": problem.kind}
            yield problem.key, row, ""
        return
    for place, row in read_rows(source.rows):
        reason = "not a JSON object" if row is None else reject_reason(row)
        yield place, {} if row is None or reason else clean_row(row), reason


def reject_reason(row: Row) -> str:
    """Why a row cannot be used, or ""."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        return "no messages"
    if not all(
        isinstance(m, dict) and isinstance(m.get("content"), str) and isinstance(m.get("role"), str) for m in messages
    ):
        return "a message without role or text"
    if messages[-1]["role"] != "user":
        return "the last message is not the user's"
    if row.get("ground_truth") in (None, ""):
        return "no ground truth"
    if str(row.get("dataset")).lower() not in DATASETS:
        return f"dataset {str(row.get('dataset'))[:40]!r} has no verifier"
    return ""


def clean_row(row: Row) -> Row:
    """The row's published fields only."""
    messages = [{"role": message["role"], "content": message["content"]} for message in row["messages"]]
    return {"messages": messages, "ground_truth": row["ground_truth"], "dataset": row["dataset"]}


prompts = stage(build_prompts, name="prompts", version=2)
