"""Leakage: what any training reads passes decontamination first (RECIPE C.6), candidates and post-training data too.

Problems that are made from the seed of a held-apart split cannot be evaluation items; they are exempt, and records say so.
"""

from flows.config.recipe_config import RecipeConfig
from flows.phases.synthesis import AnySynthesis
from tasks.artifacts import Chats, Documents, Prompts
from tasks.data.collect import Source
from tasks.data.decontaminate import decontaminate
from tasks.data.filters.overlap import DecontaminateConfig
from tasks.data.post_training.chats import SyntheticChats, chats
from tasks.data.post_training.decontaminate_chats import decontaminate_chats
from tasks.data.post_training.decontaminate_prompts import decontaminate_prompts
from tasks.data.post_training.prompts import PromptsConfig, SyntheticPrompts, prompts
from tasks.data.synthesis.synthesize import SynthesizeConfig

BY_CONSTRUCTION = "made from problems of a split of their own, held apart from those of evaluation"


def clean_documents(label: str, documents: Documents, origin: AnySynthesis | Source, config: RecipeConfig) -> Documents:
    """Documents without evaluation items; problems of the training split are taken as they are."""
    if isinstance(origin, SynthesizeConfig):
        return documents
    return decontaminate.labelled(label)(documents, config.decontaminate)


def clean_chats(config: RecipeConfig) -> Chats:
    """The finetuning chats without evaluation items."""
    exempt = {source.name: BY_CONSTRUCTION for source in config.chats.sources if isinstance(source, SyntheticChats)}
    return decontaminate_chats(chats(config.chats), with_exempt(config, exempt))


def clean_prompts(label: str, asked: PromptsConfig, config: RecipeConfig) -> Prompts:
    """The prompts without evaluation items."""
    exempt = {source.name: BY_CONSTRUCTION for source in asked.sources if isinstance(source, SyntheticPrompts)}
    return decontaminate_prompts.labelled(label)(prompts.labelled(label)(asked), with_exempt(config, exempt))


def with_exempt(config: RecipeConfig, exempt: dict[str, str]) -> DecontaminateConfig:
    """How messages are cleaned, with the sources that need it not."""
    return config.decontaminate_messages.model_copy(update={"exempt": exempt})
