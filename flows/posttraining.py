"""Post-training: SFT, on-policy preferences, DPO, a reward model, RLVR (paper section 5; RECIPE F, G, H)."""

from typing import NamedTuple

from flows.config.recipe_config import RecipeConfig, Reinforcement
from flows.starting import starting_point
from infra.phase import Phase
from tasks.artifacts import Checkpoint, Preferences, RewardModel
from tasks.data.chats import chats
from tasks.data.pairs import PairsConfig, pairs
from tasks.data.prompts import PromptsConfig, prompts
from tasks.training.dpo import dpo
from tasks.training.ppo import PPOConfig, ppo
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
    reinforced: dict[str, Checkpoint]
    """Every RLVR stage's, by its label."""

    @property
    def instruct(self) -> Checkpoint:
        """The last of them."""
        return list(self.reinforced.values())[-1]


@Phase
def posttraining(soup: Checkpoint | None, config: RecipeConfig) -> Tuned:
    """Each stage starts from the one before; the reward model stands beside DPO. `soup` is None past it."""
    if given := starting_point(config, "dpo"):
        return Tuned(None, None, given, None, reinforce(given, None, config))
    finetuned = starting_point(config, "sft") or finetune(soup, config)
    preferred_answers = compare(finetuned, config)
    preferred = dpo(finetuned, preferred_answers, config.dpo)
    judge = reward(finetuned, preferred_answers, config.reward)
    return Tuned(finetuned, preferred_answers, preferred, judge, reinforce(preferred, judge, config))


def finetune(soup: Checkpoint | None, config: RecipeConfig) -> Checkpoint:
    """Supervised finetuning on the recipe's chats."""
    assert soup is not None, config.start
    return sft(soup, chats(config.chats), config.sft)


def compare(finetuned: Checkpoint, config: RecipeConfig) -> Preferences:
    """Preference pairs: the finetuned model's own answers, judged, or released ones."""
    if isinstance(config.preferences, PairsConfig):
        return pairs(config.preferences)
    return preferences(finetuned, prompts.labelled("preference")(config.asked_prompts), config.preferences)


def reinforce(preferred: Checkpoint, judge: RewardModel | None, config: RecipeConfig) -> dict[str, Checkpoint]:
    """The last steps, on prompts whose answers can be verified; each goes on from the one before."""
    policy = improve(preferred, judge, "rlvr", config.rlvr_prompts, config.rlvr)
    made = {"rlvr": policy}
    for item in config.further_rlvr:
        policy = made[f"rlvr {item.name}"] = improve(policy, judge, f"rlvr-{item.name}", item.prompts, item.rlvr)
    return made


def improve(
    policy: Checkpoint, judge: RewardModel | None, label: str, asked: PromptsConfig, how: Reinforcement
) -> Checkpoint:
    """One stage of it; with PPO, the value model begins as the reward model each time."""
    questions = prompts.labelled(label)(asked)
    name = label.removeprefix("rlvr").removeprefix("-")
    if isinstance(how, PPOConfig):
        assert judge is not None, how
        return (ppo.labelled(name) if name else ppo)(policy, judge, questions, how)
    return (rlvr.labelled(name) if name else rlvr)(policy, questions, how)
