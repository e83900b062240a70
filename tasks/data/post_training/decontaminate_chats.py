"""Stage: finetuning chats that overlap with evaluation items are removed (RECIPE C.6, F)."""

from infra.stage import stage
from infra.workspace import Workspace
from tasks.artifacts import Chats
from tasks.data.filters.overlap import DecontaminateConfig
from tasks.data.filters.overlap_messages import sift


def decontaminate_chat_rows(ws: Workspace, chats: Chats, config: DecontaminateConfig) -> Chats:
    """The chats without those that overlap; sources that are exempt are kept whole.

    Raises ValueError when nothing is left, or a benchmark has no items.
    """
    counts, dropped = sift(ws, chats, "chats.jsonl.zst", ("messages",), config, list(chats.sources))
    return ws.artifact(Chats, chats=counts.total(), sources=dict(counts), dropped=dropped)


decontaminate_chats = stage(decontaminate_chat_rows, name="decontaminate_chats", version=3)
