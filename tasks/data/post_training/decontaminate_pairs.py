"""Stage: preference pairs that overlap with evaluation items are removed (RECIPE C.6, G)."""

from infra.stage import stage
from infra.workspace import Workspace
from tasks.artifacts import Preferences
from tasks.data.filters.overlap import DecontaminateConfig
from tasks.data.filters.overlap_messages import sift


def decontaminate_pair_rows(ws: Workspace, pairs: Preferences, config: DecontaminateConfig) -> Preferences:
    """The preference pairs of which neither answer's conversation overlaps; the means are those of all pairs read."""
    counts, dropped = sift(ws, pairs, "preferences.jsonl.zst", ("chosen", "rejected"), config, ["pairs"])
    # Ties and means describe the pairs as they were read, since removed pairs are not rated again.
    facts = pairs.model_dump(include={"ties", "mean_chosen", "mean_rejected"})
    return ws.artifact(Preferences, pairs=counts.total(), **facts, dropped=dropped)


decontaminate_pairs = stage(decontaminate_pair_rows, name="decontaminate_pairs", version=3)
