"""Text that reaches a training without decontamination, read off the graph of a plan (RECIPE C.6).

Every text that is read or written by a language model must pass a `decontaminate` stage on every way to a training. It must
do so before a language model rewrites it, too, since new wording would hide an item. Problems made from the seed of a split
of their own are exempt (`flows/phases/leakage.py`).
"""

from infra.execution.plan import PlanRow
from tasks.data.collect import collect
from tasks.data.dedup import dedup
from tasks.data.encode import encode
from tasks.data.filter import filter
from tasks.data.mix import mix
from tasks.data.post_training.chats import chats
from tasks.data.post_training.pairs import pairs
from tasks.data.post_training.prompts import prompts
from tasks.data.synthesis.personas import personas
from tasks.data.synthesis.programs import programs
from tasks.data.synthesis.rewrite import rewrite
from tasks.data.synthesis.worked import worked
from tasks.training.anneal import anneal
from tasks.training.dpo import dpo
from tasks.training.ppo import ppo
from tasks.training.preferences import preferences
from tasks.training.pretrain import pretrain
from tasks.training.reward import reward
from tasks.training.rlvr import rlvr
from tasks.training.sft import sft

_READING = {stage.name for stage in (collect, worked, programs, personas, rewrite, chats, prompts, pairs)}
"""Stages that bring text in."""
_PASSING = {stage.name for stage in (filter, dedup, encode, mix)}
"""Stages that hand the text of their inputs on as it is; what decontaminates is none of them."""
USING = {stage.name for stage in (rewrite, pretrain, anneal, sft, preferences, dpo, reward, ppo, rlvr)}
"""Stages that train on text, or have it rewritten."""


def uncleaned(rows: list[PlanRow]) -> dict[str, list[str]]:
    """By the label of the stage that brings text in: the stages that use it as it came. Rows have inputs first."""
    found: dict[str, list[str]] = {}
    raw: dict[str, set[str]] = {}
    for row in rows:
        # Rows have inputs first, so what came into each input is known.
        given = {origin for label in row.inputs for origin in raw.get(label, ())}
        if row.stage in USING:
            for origin in sorted(given):
                found.setdefault(origin, []).append(row.label)
        # A stage that is in neither set, such as decontamination, hands nothing raw on.
        passed = given if row.stage in _PASSING else set()
        raw[row.label] = passed | ({row.label} if row.stage in _READING else set())
    return found


def uncleaned_error(found: dict[str, list[str]]) -> str:
    """What was found, for a message."""
    ways = "; ".join(f"{origin} is read by {', '.join(readers)}" for origin, readers in found.items())
    return (
        f"text reaches a training without decontamination: {ways}. Items of the evaluation in it would be trained on; pass it "
        "through a decontaminate stage (flows/phases/leakage.py)"
    )
