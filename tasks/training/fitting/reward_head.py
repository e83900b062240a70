"""The head of a reward model: where it is kept, and how the model is opened with it.

Source: RECIPE G (one output in the place of the language head), H.2 (PPO's value model begins as the reward model).
"""

import copy
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from infra.workspace import Workspace
from model.network.transformer import Linear, Transformer
from model.parallel.group import Weights
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import RewardModel
from tasks.training.fitting.fit import open_checkpoint

HEAD_FILE, HEAD_KEY = "reward_head.safetensors", "score.weight"
"""Where the head is kept: one tensor of shape (1, d_model)."""
HEAD_NAME = "head.weight"
"""Its name in the model, in the place of the language head."""


def with_score_head(model: Transformer) -> Transformer:
    """The model with a head of one output, without memory, in the place of its own."""
    model.head = Linear(model.config.d_model, 1).to("meta")
    return model


def score_head(d_model: int, seed: int) -> Float[Tensor, "1 d_model"]:
    """Weights of a head of one output, drawn from N(0, 1/(d_model + 1))."""
    return torch.randn(1, d_model, generator=torch.Generator().manual_seed(seed)) / math.sqrt(d_model + 1)


def fresh_score_model(model: Transformer, saved: Weights, seed: int) -> tuple[Transformer, Weights]:
    """A copy of a model without memory for its weights, with a new head of one output, and its weights: the model's, and the
    head's drawn from a seed.
    """

    def weights(name: str, shape: Sequence[int], start: int, stop: int) -> Tensor:
        return score_head(shape[1], seed)[start:stop] if name == HEAD_NAME else saved(name, shape, start, stop)

    return with_score_head(copy.deepcopy(model)), weights


def open_reward_model(ws: Workspace, judge: RewardModel) -> tuple[Transformer, Weights, Tokenizer]:
    """A reward model without memory for its weights, and the weights as rows to be read, as `run.open_checkpoint` gives them.

    Raises ValueError as that does.
    """
    model, saved, tokenizer = open_checkpoint(ws, judge)
    head = load_file(ws.path(judge, HEAD_FILE))[HEAD_KEY]

    def weights(name: str, shape: Sequence[int], start: int, stop: int) -> Tensor:
        return head[start:stop] if name == HEAD_NAME else saved(name, shape, start, stop)

    return with_score_head(model), weights, tokenizer
