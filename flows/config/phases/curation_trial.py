"""The trial of curation as configuration: a small model on filtered text against one on unfiltered text."""

from typing import Self

from pydantic import Field, model_validator

from model.config import Config
from tasks.training.pretrain import PretrainConfig


class CurationTrialConfig(Config):
    """Two trainings that differ in nothing but whether their text was curated, judged on held-out curated text.

    Ours: the paper's curation is that of its sources (section 2.4), which compared filters by whole trainings.
    """

    source: str
    """The source, by its name under `collect`."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of its documents that both are judged on and neither reads."""
    passages: int = Field(default=3_000, ge=2)
    """Most passages that they are judged on; at least 2,000 make a gain of a hundredth of a bit visible."""
    passage_tokens: int = Field(default=64, ge=2)
    """Tokens of a passage."""
    pretrain: PretrainConfig
    """The model and its training; `steps` must be given, so that both read as many tokens."""

    @model_validator(mode="after")
    def _read_alike(self) -> Self:
        training = self.pretrain
        if training.steps is None:
            raise ValueError(
                "pretrain.steps is not given, so the larger text would be read for longer; give a number of steps"
            )
        window = training.model.max_sequence_length
        # The window holds the passage and the EOS before it.
        if max(training.sequence_length, self.passage_tokens + 1) > window:
            raise ValueError(
                f"pretrain.model.max_sequence_length={window:,} is less than sequence_length={training.sequence_length:,} or "
                f"passage_tokens={self.passage_tokens:,} with the EOS before them; raise it"
            )
        return self
