"""Stage: prompts of preferences and RLVR that overlap with evaluation items are removed (RECIPE C.6, G, H)."""

from collections import Counter

from infra.stage import stage
from infra.workspace import Workspace
from tasks.artifacts import Prompts
from tasks.data.filters.overlap import DecontaminateConfig
from tasks.data.filters.overlap_messages import prompt_sources, sift


def decontaminate_prompt_rows(ws: Workspace, prompts: Prompts, config: DecontaminateConfig) -> Prompts:
    """The prompts without those that overlap. Prompts know their verifier's name, and their source by their id."""
    datasets: Counter[str] = Counter()
    names = prompt_sources(ws, prompts)
    _, dropped = sift(ws, prompts, "prompts.jsonl.zst", ("messages",), config, names, datasets)
    return ws.artifact(Prompts, prompts=datasets.total(), datasets=dict(sorted(datasets.items())), dropped=dropped)


decontaminate_prompts = stage(decontaminate_prompt_rows, name="decontaminate_prompts", version=3)
