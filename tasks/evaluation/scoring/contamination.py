"""Which evaluation items share words with what a checkpoint was trained on, by the reports of its decontamination.

Decontamination (RECIPE C.6) removes documents whose overlap passes a limit; documents below the limit stay. An item is flagged
when any document that decontamination read shares an n-gram with it, so a flag is a reason to look, not a proof.
"""

from collections import Counter

from infra.workspace import Workspace
from tasks.artifacts import Checkpoint

_REPORT = "report.json"


def overlaps_of(ws: Workspace, checkpoint: Checkpoint) -> dict[str, Counter[str]] | None:
    """Documents that share an n-gram with each item, by benchmark and item id; None where nothing was decontaminated."""
    found: dict[str, Counter[str]] = {}
    looked = False
    for record in ws.lineage(checkpoint):
        if not record.stage.startswith("decontaminate") or _REPORT not in record.files:
            continue
        for row in ws.read_json(record.artifact(), _REPORT):
            if "touched" in row:  # reports of before say how many items, not which
                looked = True
                found.setdefault(row["benchmark"], Counter()).update(row["touched"])
    return found if looked else None
