"""Stage: maths documents made from a seed, without a language model (RECIPE C.7, DolminoSynthMath's offline parts).

A document is several question/answer blocks in the form of few-shot evaluation prompts. Only problems of the training
split are written, so held-out problems cannot occur. Each config is one source, and so one candidate of a micro-anneal.
"""

from typing import Literal

from pydantic import Field

from infra.stage import stage
from infra.workspace import ShardItem, Workspace
from model.config import Config
from tasks.artifacts import Documents
from tasks.synthetic import ArithmeticConfig, KindConfig, Problem, generate_mixed


class SynthesizeConfig(Config):
    """One synthetic source."""

    kind: Literal["problems"] = "problems"
    name: str = "synthetic_math"
    """Source name of the documents."""
    problems: tuple[KindConfig, ...] = (ArithmeticConfig(),)
    """Kinds of problem, mixed by their weights."""
    count: int = Field(default=400_000, ge=1)
    """Problems in all. The paper's basic arithmetic has 9.03M tokens, about 400,000 problems (RECIPE C.7)."""
    problems_per_document: int = Field(default=8, ge=1)
    """Blocks in one document."""
    documents_per_shard: int = Field(default=12_500, ge=1)
    """Documents in one file: 100,000 problems, about 3 s of work."""
    seed: int = 6198

    def made(self, label: str) -> Documents:
        """The documents, of a stage with this label."""
        return synthesize.labelled(label)(self)


def synthesize_documents(ws: Workspace, config: SynthesizeConfig) -> Documents:
    """Documents of training problems, shard by shard; each shard has a seed of its own."""
    per_shard = config.problems_per_document * config.documents_per_shard
    items = [
        {
            "config": config.model_dump(mode="json"),
            "shard": shard,
            "count": min(per_shard, config.count - shard * per_shard),
        }
        # -(-a // b) rounds up: the last shard may be short.
        for shard in range(-(-config.count // per_shard))
    ]
    results = ws.map(synthesize_shard, items, description=f"synthesize {config.name}")
    documents = sum(result["documents"] for result in results)
    ws.note(decontamination="exempt: made from problems of the training split, held apart from those of evaluation")
    return ws.artifact(
        Documents,
        documents=documents,
        bytes=sum(result["bytes"] for result in results),
        sources={config.name: documents},
    )


def synthesize_shard(ws: Workspace, item: ShardItem) -> dict[str, int]:
    """Write one shard; returns its numbers of documents and UTF-8 bytes."""
    config = SynthesizeConfig.model_validate(item["config"])
    # A seed per shard, so shards can be made in any order and still differ.
    problems = generate_mixed(config.problems, "train", item["count"], f"{config.seed}/{item['shard']}")
    size = config.problems_per_document
    groups = [problems[start : start + size] for start in range(0, len(problems), size)]
    rows = [
        {
            "id": f"{config.name}-{item['shard']:05d}-{place:06d}",
            "text": render_problems(group),
            "source": config.name,
            "metadata": {"kinds": sorted({problem.kind for problem in group}), "origin": "generated", "split": "train"},
        }
        for place, group in enumerate(groups)
    ]
    ws.write_jsonl(f"documents/{item['shard']:05d}-000.jsonl.zst", rows)
    return {"documents": len(rows), "bytes": sum(len(row["text"].encode()) for row in rows)}


def render_problems(problems: list[Problem]) -> str:
    """Question/answer blocks separated by blank lines."""
    return "\n\n".join(f"Question: {problem.question}\nAnswer: {problem.response}" for problem in problems)


synthesize = stage(synthesize_documents, name="synthesize", version=1)
