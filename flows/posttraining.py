"""Post-training: SFT, on-policy preferences, DPO, a reward model, RLVR (paper section 5; RECIPE F, G, H)."""

from typing import NamedTuple

from flows.config import RecipeConfig
from infra.prefect_tasks import Phase
from tasks.artifacts import Checkpoint, Preferences, RewardModel
from tasks.data.chats import chats
from tasks.data.prompts import prompts
from tasks.training.dpo import dpo
from tasks.training.preferences import preferences
from tasks.training.reward import reward
from tasks.training.rlvr import rlvr
from tasks.training.sft import sft


class Tuned(NamedTuple):
    """What post-training makes."""

    sft: Checkpoint
    preferences: Preferences
    dpo: Checkpoint
    reward: RewardModel
    instruct: Checkpoint


@Phase
def posttraining(soup: Checkpoint, config: RecipeConfig) -> Tuned:
    """Each stage starts from the one before; the reward model stands beside DPO."""
    finetuned = sft(soup, chats(config.chats), config.sft)
    asked = prompts.labelled("preference")(config.preference_prompts)
    pairs = preferences(finetuned, asked, config.preferences)
    preferred = dpo(finetuned, pairs, config.dpo)
    judge = reward(finetuned, pairs, config.reward)
    instruct = rlvr(preferred, prompts.labelled("rlvr")(config.rlvr_prompts), config.rlvr)
    return Tuned(finetuned, pairs, preferred, judge, instruct)
