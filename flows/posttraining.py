"""Post-training: SFT, on-policy preferences, DPO, a reward model, RLVR (paper section 5; RECIPE F, G, H)."""

from typing import NamedTuple

from flows.config import RecipeConfig
from flows.start import starting_point
from infra.phase import Phase
from tasks.artifacts import Checkpoint, Preferences, RewardModel
from tasks.data.chats import chats
from tasks.data.prompts import prompts
from tasks.training.dpo import dpo
from tasks.training.preferences import preferences
from tasks.training.reward import reward
from tasks.training.rlvr import rlvr
from tasks.training.sft import sft


class Tuned(NamedTuple):
    """What post-training makes; None is what lies before the checkpoint that a recipe starts at."""

    sft: Checkpoint | None
    preferences: Preferences | None
    dpo: Checkpoint
    reward: RewardModel | None
    instruct: Checkpoint


@Phase
def posttraining(soup: Checkpoint | None, config: RecipeConfig) -> Tuned:
    """Each stage starts from the one before; the reward model stands beside DPO. `soup` is None past it."""
    if given := starting_point(config, "dpo"):
        return Tuned(None, None, given, None, reinforce(given, config))
    finetuned = starting_point(config, "sft") or finetune(soup, config)
    asked = prompts.labelled("preference")(config.preference_prompts)
    pairs = preferences(finetuned, asked, config.preferences)
    preferred = dpo(finetuned, pairs, config.dpo)
    judge = reward(finetuned, pairs, config.reward)
    return Tuned(finetuned, pairs, preferred, judge, reinforce(preferred, config))


def finetune(soup: Checkpoint | None, config: RecipeConfig) -> Checkpoint:
    """Supervised finetuning on the recipe's chats."""
    assert soup is not None, config.start
    return sft(soup, chats(config.chats), config.sft)


def reinforce(preferred: Checkpoint, config: RecipeConfig) -> Checkpoint:
    """The last step, on prompts whose answers can be verified."""
    return rlvr(preferred, prompts.labelled("rlvr")(config.rlvr_prompts), config.rlvr)
