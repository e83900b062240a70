"""Rollouts that are sampled one step behind: the answers of the next rollout come from the policy as it is before the updates of
this one, so that a server can sample while the training makes them.

Source: RECIPE H.2 (the published PPO is asynchronous by one step, without a correction); Noukhovitch et al. 2024, "Asynchronous
RLHF"; Espeholt et al. 2018, "IMPALA", section 4 (truncated importance weights). The policy's term of the loss is multiplied per
token by min(π / μ, cap). π is the policy as it begins to learn from the rollout, by the trainer's own forward pass; μ is the
sampler, by the log-probabilities that it reported with the answers. So the weight also corrects what the sampler rounds
differently. The clipped ratio stays that of the policy in training to π, and the KL term and the value loss have no weight.

The answers under way belong to the save point: one that falls between two rollouts waits for them and holds them, as the weights
that sampled them are gone. Example: `rlvr: {rollouts: {lag: 1}}`.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Self

import numpy as np
import orjson
from pydantic import Field, model_validator

from model.config import Config
from model.decoding.generate import Completion, completion_text
from model.tokens.tokenizer import Tokenizer
from tasks.training.answers.verified_answers import EncodedPrompt, VerifiedAnswer

IMPORTANCE_CAP = 2.0
"""Largest importance weight of a token where nothing is said."""


class RolloutTiming(Config):
    """Which policy samples a rollout."""

    lag: Literal[0, 1] = 0
    """Rollouts between the policy that samples and the one that learns: 0 samples with the newest, then learns. 1 samples the
    next rollout with the policy before this one's updates; the first two rollouts are both of the initial policy."""
    importance_cap: float | None = Field(default=IMPORTANCE_CAP, gt=0)
    """Largest importance weight of a token where `lag` is 1; None corrects nothing, as published."""

    @model_validator(mode="after")
    def _only_a_lag_is_corrected(self) -> Self:
        if not self.lag and self.importance_cap != IMPORTANCE_CAP:
            raise ValueError(
                f"importance_cap={self.importance_cap} bounds the correction of a lag, and lag is 0; say lag: 1, or leave it out"
            )
        return self


class PendingAnswers:
    """The answers to one rollout's prompts, under way or waiting to be learnt from."""

    def __init__(
        self, rollout: int, collect: Callable[[], list[Completion]], cancel: Callable[[], None] | None = None
    ) -> None:
        self.rollout = rollout
        self._collect, self._cancel = collect, cancel
        self._found: list[Completion] | None = None

    def take(self) -> list[Completion]:
        """All answers, in the order of the prompts; waits for those under way. All workers of a group call this together."""
        if self._found is None:
            self._found = self._collect()
            self.close()
        return self._found

    def close(self) -> None:
        """Ask for nothing more."""
        if self._cancel is not None:
            cancel, self._cancel = self._cancel, None
            cancel()

    def dump(self) -> bytes:
        """The answers as a save point holds them; waits for those under way, as `take` does."""
        answers = [(answer.ids, answer.logprobs, answer.finish) for answer in self.take()]
        return orjson.dumps({"rollout": self.rollout, "answers": answers})

    @classmethod
    def load(cls, data: bytes, tokenizer: Tokenizer) -> "PendingAnswers":
        """What `dump` wrote."""
        kept = orjson.loads(data)
        found = [
            Completion(ids, completion_text(tokenizer, ids, ()), logprobs, finish)
            for ids, logprobs, finish in kept["answers"]
        ]
        return cls(kept["rollout"], lambda: found)


def importance_weights(
    prompts: Sequence[EncodedPrompt],
    answers: Sequence[VerifiedAnswer],
    log_probs: Sequence[np.ndarray],
    cap: float | None,
) -> tuple[list[np.ndarray] | None, dict[str, float]]:
    """min(exp(log π − log μ), cap) at every position of every row, and how large the weights are before the cut.

    `log_probs` are the trainer's, by row and position, in nats; log μ are those of the answers. A position that predicts no
    sampled token has a weight of 1, and so has an EOS that the sampler did not report. The weights are None where `cap` is.
    """
    found, sizes = [], [np.zeros(0)]
    for prompt, answer, own in zip(prompts, answers, log_probs, strict=True):
        said = np.array(answer.completion.logprobs, dtype=np.float64)
        # Position t predicts token t + 1, so the answer's first token is predicted one place before it.
        places = slice(len(prompt.ids) - 1, len(prompt.ids) - 1 + len(said))
        ratio = np.exp(own[places].astype(np.float64) - said)
        sizes.append(ratio)
        column = np.ones(len(own), dtype=np.float32)
        column[places] = ratio if cap is None else np.minimum(ratio, cap)
        found.append(column)
    ratios = np.concatenate(sizes)
    if not len(ratios):
        # Only answers that end at once, by an EOS that a server left out.
        ratios = np.ones(1)
    facts = {"importance_weight": float(ratios.mean()), "largest_importance_weight": float(ratios.max())}
    if cap is None:
        return None, facts
    return found, facts | {"importance_cut": float((ratios > cap).mean())}
