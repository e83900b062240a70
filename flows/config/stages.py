"""Every stage that a recipe may have: what settings by stage (`execution.threads`, `parallel` and others) may name."""

from infra.settings import Execution
from tasks.data.classifying.classifier import classifier
from tasks.data.classifying.label import label
from tasks.data.collect import collect
from tasks.data.decontaminate import decontaminate
from tasks.data.dedup import dedup
from tasks.data.encode import encode
from tasks.data.filter import filter
from tasks.data.mix import mix
from tasks.data.post_training.chats import chats
from tasks.data.post_training.decontaminate_chats import decontaminate_chats
from tasks.data.post_training.decontaminate_pairs import decontaminate_pairs
from tasks.data.post_training.decontaminate_prompts import decontaminate_prompts
from tasks.data.post_training.pairs import pairs
from tasks.data.post_training.prompts import prompts
from tasks.data.score import score
from tasks.data.set_aside import set_aside
from tasks.data.synthesis.personas import personas
from tasks.data.synthesis.programs import programs
from tasks.data.synthesis.rewrite import rewrite
from tasks.data.synthesis.synthesize import synthesize
from tasks.data.synthesis.worked import worked
from tasks.evaluation.evaluate import evaluate
from tasks.evaluation.evaluate_served import evaluate_served
from tasks.evaluation.judge import judge
from tasks.evaluation.perplexity import perplexity
from tasks.evaluation.rank import rank
from tasks.evaluation.report import report
from tasks.evaluation.rescore import rescore
from tasks.training.anneal import anneal
from tasks.training.dpo import dpo
from tasks.training.ppo import ppo
from tasks.training.preferences import preferences
from tasks.training.pretrain import pretrain
from tasks.training.reward import reward
from tasks.training.rlvr import rlvr
from tasks.training.sft import sft
from tasks.training.soup import soup

STAGES = (
    collect, synthesize, worked, programs, personas, rewrite, label, classifier, score, filter, dedup, decontaminate, set_aside,
    encode, mix, chats, prompts, pairs, decontaminate_chats, decontaminate_prompts, decontaminate_pairs,
    pretrain, anneal, soup, sft, preferences, dpo, reward, rlvr, ppo, evaluate, evaluate_served, perplexity, rescore, judge,
    rank, report,
)  # fmt: skip
STAGE_NAMES = tuple(stage.name for stage in STAGES)
COMPUTING = {stage.name for stage in STAGES if stage.process}
"""Stages that train or ask a model, on `execution.device`."""


def unknown_stages(execution: Execution) -> dict[str, str]:
    """What settings name as a stage and is none, by the dotted field."""
    by_stage = {
        "threads": execution.threads,
        "compile": execution.compile,
        "attention": execution.attention,
        "micro_instances": execution.micro_instances,
        "placement": execution.placement,
        "pass_tokens": execution.pass_tokens,
        "answers_at_once": execution.answers_at_once,
        "parallel": execution.parallel,
        "generation": execution.generation,
    }
    return {
        f"execution.{field}.{name}": name
        for field, settings in by_stage.items()
        for name in settings
        # `compile` may name one instance of a stage by its label, the others only stages.
        if (name.partition(":")[0] if field == "compile" else name) not in STAGE_NAMES
        # A group has no default: most stages cannot be one.
        and (name != "default" or field == "parallel")
    }
