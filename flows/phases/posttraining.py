"""Post-training: SFT, on-policy preferences, DPO, a reward model, RLVR (paper section 5; RECIPE F, G, H).

Every model is evaluated here, while those after it are made.
"""

from typing import NamedTuple

from flows.config.parts import Reinforcement
from flows.config.recipe_config import RecipeConfig
from flows.phases.grid import chosen_setting
from flows.phases.leakage import clean_chats, clean_prompts
from flows.phases.midtraining import Soup
from flows.phases.scoring import score_models
from flows.starting import given_reward_model, pool_checkpoints, starting_point
from infra.phase import Phase
from tasks.artifacts import Checkpoint, Preferences, Prompts, RewardModel, Scores
from tasks.data.post_training.decontaminate_pairs import decontaminate_pairs
from tasks.data.post_training.pairs import PairsConfig, pairs
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
    dpo: Checkpoint | None
    reward: RewardModel | None
    reinforced: dict[str, Checkpoint]
    """Every RLVR stage's, by its label."""
    scores: dict[str, Scores]
    """Of every model of it, by name."""

    @property
    def models(self) -> dict[str, Checkpoint]:
        """Every checkpoint by its name in the report; the last stage of reinforcement makes the instruct model."""
        made = {"sft": self.sft, "dpo": self.dpo, **dict(list(self.reinforced.items())[:-1]), "instruct": self.instruct}
        return {name: checkpoint for name, checkpoint in made.items() if checkpoint is not None}

    @property
    def instruct(self) -> Checkpoint:
        """The last of them."""
        return list(self.reinforced.values())[-1]


@Phase
def posttraining(soup: Soup, config: RecipeConfig) -> Tuned:
    """Each stage starts from the one before; the reward model is trained next to DPO."""
    tuned = tune(soup.checkpoint, config)
    return tuned._replace(scores=score_models(tuned.models, config, chat=True, last="instruct"))


def tune(soup: Checkpoint | None, config: RecipeConfig) -> Tuned:
    """The models, without scores. `soup` is None past it."""
    given_judge = given_reward_model(config)
    # Later starting points come first: a recipe that begins at one needs nothing that lies before it.
    if given := starting_point(config, "rlvr"):
        return Tuned(None, None, None, given_judge, reinforce_further(given, given_judge, config), {})
    if given := starting_point(config, "dpo"):
        return Tuned(None, None, given, given_judge, reinforce(given, given_judge, config), {})
    finetuned = starting_point(config, "sft") or finetune(soup, config)
    preferred_answers = _compare(finetuned, config)
    # DPO and the reward model are both submitted before anything waits for either, so they train at the same time.
    judge = given_judge or reward(finetuned, preferred_answers, config.reward)
    how = chosen_setting(
        "dpo", config.dpo, lambda name, how: dpo.labelled(name)(finetuned, preferred_answers, how), config, chat=True
    )
    preferred = dpo(finetuned, preferred_answers, how)
    return Tuned(finetuned, preferred_answers, preferred, judge, reinforce(preferred, judge, config), {})


def finetune(soup: Checkpoint | None, config: RecipeConfig) -> Checkpoint:
    """Supervised finetuning on the recipe's chats."""
    assert soup is not None, config.start
    given, asked = soup, clean_chats(config)
    how = chosen_setting("sft", config.sft, lambda name, how: sft.labelled(name)(given, asked, how), config, chat=True)
    return sft(given, asked, how)


def _compare(finetuned: Checkpoint, config: RecipeConfig) -> Preferences:
    """Preference pairs: the finetuned model's own answers, judged, or released ones."""
    if isinstance(config.preferences, PairsConfig):
        return decontaminate_pairs(pairs(config.preferences), config.decontaminate_messages)
    asked = clean_prompts("preference", config.asked_prompts, config)
    return preferences(finetuned, asked, config.preferences, pool_checkpoints(config.preferences))


def reinforce(preferred: Checkpoint, judge: RewardModel | None, config: RecipeConfig) -> dict[str, Checkpoint]:
    """The last steps, on prompts whose answers can be verified; each goes on from the one before."""
    questions = clean_prompts("rlvr", config.rlvr_prompts, config)
    how = chosen_setting(
        "rlvr", config.rlvr, lambda name, how: improve(preferred, judge, name, questions, how), config, chat=True
    )
    return reinforce_further(improve(preferred, judge, "", questions, how), judge, config)


def reinforce_further(policy: Checkpoint, judge: RewardModel | None, config: RecipeConfig) -> dict[str, Checkpoint]:
    """The stages after the first, each from where the one before ended."""
    made = {"rlvr": policy}
    for item in config.further_rlvr:
        questions = clean_prompts(f"rlvr-{item.name}", item.prompts, config)
        policy = made[f"rlvr {item.name}"] = improve(policy, judge, item.name, questions, item.rlvr)
    return made


def improve(
    policy: Checkpoint, judge: RewardModel | None, name: str, questions: Prompts, how: Reinforcement
) -> Checkpoint:
    """One stage of it; with PPO, the value model begins each time as the reward model, or with a new head."""
    if isinstance(how, PPOConfig):
        value = judge if how.value_start == "reward_model" else None
        return (ppo.labelled(name) if name else ppo)(policy, value, questions, how)
    return (rlvr.labelled(name) if name else rlvr)(policy, questions, how)
