"""Configs of training: the optimizer, the loss and the estimators of reinforcement learning.

They stand apart from what computes with them, so that a plan reads a recipe without loading PyTorch, which takes seconds.

Source: RECIPE A.5, D, H.2 and H.3.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from model.config import Config, Precision, TrainingPrecision, VariantName, filled_in
from model.data.labels import LossNormalisation

Normalization = Literal["sample_std", "population_std", "centered"]
"""Divisor of a group's centred scores: std with ddof 1 (original GRPO script), ddof 0 (grpo_fast), or none.
"""

KLEstimator = Literal["k1", "k2", "k3"]
"""Estimators of KL(policy ‖ reference) from one sample: log ratio, half its square, exp(−d) − 1 + d."""


class OptimConfig(Config):
    """Optimizer and numeric precision; the defaults are OLMo 2 7B stage 1."""

    variant: VariantName | None = Field(default=None, exclude=True)
    """`olmo-0424` fills in that model's decay and epsilon where they are not given; the name takes no part in the identity,
    and is None when they are filled in."""
    kind: Literal["adamw", "skip_step_adamw", "skip_step_adamw_historical"] = "adamw"
    """`skip_step_adamw` leaves out updates whose loss or gradient norm stands six deviations above the last
    128 (32B). `_historical` also never advances Adam's step counter, as the 32B run did: no bias correction
    after the first step."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the second moment (post-training: 0.999)."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment (OLMo-0424: 1e-5)."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay per unit of learning rate."""
    decay: Literal["all_but_embedding", "all"] = "all_but_embedding"
    """What decays: everything, norms and head included, with (OLMo-0424) or without (OLMo 2) the input
    embedding.
    """
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest global L2 norm of the gradient; 0 is no clipping."""
    precision: TrainingPrecision = "bf16"
    """Type of activations and matmuls; weights, gradients and moments are fp32 in all. With `float8` activations are bf16, and
    the linear layers of blocks multiply in float8, forward and backward (not published: OLMo 2 trained in bf16)."""

    @property
    def activations(self) -> Precision:
        """Type of activations, and of all matmuls that are not in float8."""
        return "fp32" if self.precision == "fp32" else "bf16"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_variant(cls, data: Any) -> Any:
        return filled_in(data, _OLMO_0424)


# The optimizer half of the variant `olmo-0424`; the model half is `config.OLMO_0424`.
_OLMO_0424: dict[str, str | float] = {"decay": "all", "eps": 1e-5}


class LossConfig(Config):
    """The language-model loss; the default is that of OLMo-core, with the declared z-loss weight."""

    z_weight: float = Field(default=1e-5, ge=0)
    """Weight of logsumexp squared. Table 1 declares 1e-5; the 1B, 7B and 13B runs really used 1e-4 (RECIPE
    0.1).
    """
    normalisation: LossNormalisation = "labels"
    """Divisor of the summed loss: trained labels plus all positions of masked instances (OLMo-core), every
    position of the batch (old trainer), or none (SFT with loss reduction "sum")."""
