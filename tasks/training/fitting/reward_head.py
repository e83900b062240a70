"""The head of a reward model: where it is kept, and how the model is opened with it.

Source: RECIPE G (one output in the place of the language head), H.2 (PPO's value model begins as the reward model). Two layouts
are read: ours, a whole checkpoint with the head in a file next to it, and transformers' `Olmo2ForSequenceClassification`.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from infra.workspace import Workspace
from model.files.hf_config import has_score_head
from model.files.weights import SavedWeights
from model.network.transformer import Linear, Transformer, on_meta_device
from model.parallel.group import Weights
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import RewardModel, is_of_model
from tasks.training.fitting.fit import checkpoint_tokenizer

HEAD_FILE, HEAD_KEY = "reward_head.safetensors", "score.weight"
"""Where the head is kept: one tensor of shape (1, d_model)."""
HEAD_NAME = "head.weight"
"""Its name in the model, in the place of the language head."""


def with_score_head(model: Transformer) -> Transformer:
    """The model with a head of one output, without memory, in the place of its own."""
    # "meta": the head's values come later, by rows, like all others.
    model.head = Linear(model.config.d_model, 1).to("meta")
    return model


def score_head(d_model: int, seed: int) -> Float[Tensor, "1 d_model"]:
    """Weights of a head of one output, drawn from N(0, 1/(d_model + 1))."""
    # 1 / sqrt(d_model + 1) is the deviation with which open-instruct begins the score head.
    return torch.randn(1, d_model, generator=torch.Generator().manual_seed(seed)) / math.sqrt(d_model + 1)


def fresh_score_model(model: Transformer, saved: Weights, seed: int) -> tuple[Transformer, Weights]:
    """A copy of a model without memory for its weights, with a new head of one output, and its weights: the model's, and the
    head's drawn from a seed.
    """

    def weights(name: str, shape: Sequence[int], start: int, stop: int) -> Tensor:
        # Any rows of the head can be asked for, so a sharded training draws its own.
        return score_head(shape[1], seed)[start:stop] if name == HEAD_NAME else saved(name, shape, start, stop)

    return with_score_head(copy.deepcopy(model)), weights


def open_reward_model(ws: Workspace, judge: RewardModel) -> tuple[Transformer, Weights, Tokenizer]:
    """A reward model without memory for its weights, and the weights as rows to be read, as `fit.open_checkpoint` gives them.

    Raises ValueError as that does.
    """
    folder = ws.path(judge, wanted=is_of_model)
    model, weights = open_scoring_folder(folder, judge.ranks)
    return model, weights, checkpoint_tokenizer(folder, judge, model.config.vocab_size)


def open_scoring_folder(folder: Path, ranks: int | None) -> tuple[Transformer, Weights]:
    """The same of a folder; `ranks`, if given, is the size of the tokenizer that will be used.

    Raises ValueError for a folder without a head of one score, or with weights that do not fit.
    """
    # Layouts are told apart by the architecture's name in config.json, not by trying.
    if has_score_head(folder):
        saved = SavedWeights(folder, ranks, scores=True)
        return with_score_head(on_meta_device(saved.config)), saved
    if not (folder / HEAD_FILE).is_file():
        raise ValueError(
            f"{folder} is no reward model: its architecture has a language head and there is no {HEAD_FILE} next to it; give an "
            "Olmo2ForSequenceClassification folder with one label, or what `olmo2 export` wrote of a reward model"
        )
    saved = SavedWeights(folder, ranks)
    head = load_file(folder / HEAD_FILE)[HEAD_KEY]
    if head.shape != (1, saved.config.d_model):
        raise ValueError(f"{folder / HEAD_FILE} has shape {tuple(head.shape)}, not (1, {saved.config.d_model})")

    def weights(name: str, shape: Sequence[int], start: int, stop: int) -> Tensor:
        return head[start:stop] if name == HEAD_NAME else saved(name, shape, start, stop)

    return with_score_head(on_meta_device(saved.config)), weights
