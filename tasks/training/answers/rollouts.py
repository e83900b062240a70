"""A policy at work, whatever learns from it: prompts of a rollout, sampled and verified answers, their log-probabilities, and
the order in which updates take them.

Source: RECIPE H.1. Resuming is exact: a rollout is a function of seed, rollout number and the weights at its beginning. The
loop asks for a step's batches right before that step, and save points fall between rollouts. So a rollout samples from the
weights of the save point or of the updates since.

In a group every rank samples and verifies the answers to its share of the prompts, with the noise that one process would
use. Then all answers go to all ranks, so scores, metrics and updates are the same everywhere. Where weights
are sharded (fsdp, hsdp), each rank makes the decoder's copy of the policy block by block. While it samples, it holds that
copy besides its shard: 2 bytes a parameter in bf16, 15 GB at 7B, 64 GB at 32B. The KV cache takes at most the memory that is
left.
"""

import copy
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

from infra.language_models.client import EndpointError
from infra.workspace import Workspace
from model.config import Precision
from model.data.chat_batches import Batch, LabelledRow, indices_of_step
from model.decoding.generate import Completion, Generator, Sampling
from model.network.transformer import Transformer
from model.parallel.group import Group, Weights, distribute, fill_weights, on_host
from model.tokens.tokenizer import Tokenizer
from model.training.loop import EndOfTraining
from model.training.reference_scores import row_log_probs
from tasks.artifacts import Prompts
from tasks.computing import compute_of
from tasks.generation import local_generator, shared_generator
from tasks.training.answers.kl_control import KLControl, coefficient_at, rollout_kl
from tasks.training.answers.sampled_ahead import PendingAnswers, RolloutTiming, importance_weights
from tasks.training.answers.served_rollouts import ServedPolicy, check_sampler, sampler_gap
from tasks.training.answers.verified_answers import (
    EncodedPrompt,
    VerifiedAnswer,
    answer_row,
    answers_in_group,
    decoding_rows,
    encode_prompts,
    longest_prompt,
    mixed_seed,
)
from tasks.verifiers.verdict import Rules


class RolloutConfig(Protocol):
    """What the configurations of all algorithms have; each says what its fields mean."""

    @property
    def prompts_per_rollout(self) -> int: ...
    @property
    def mini_batches(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def max_prompt_tokens(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def rules(self) -> Rules: ...
    @property
    def kl_coefficient(self) -> float: ...
    @property
    def kl_control(self) -> KLControl | None: ...
    @property
    def rollouts(self) -> RolloutTiming: ...
    @property
    def seed(self) -> int: ...


How = TypeVar("How", bound=RolloutConfig)
PROBES, PROBE_TOKENS = 8, 32
"""Answers, and tokens of each at most, by which a server is compared with the policy before it is asked for the next rollout."""
Rollout = tuple[list[list[Batch]], dict[str, float]]
"""Every update's passes, and metrics."""


def prompts_that_fit(
    ws: Workspace,
    prompts: Prompts,
    tokenizer: Tokenizer,
    model: Transformer,
    config: RolloutConfig,
    *,
    samples: int = 1,
    least: int = 1,
) -> list[EncodedPrompt]:
    """The prompts whose whole answers fit in the model's window; the record says how many do not.

    Raises ValueError for fewer than `least`, or where a rollout of so many samples a prompt cannot fill its mini-batches.
    """
    limit = longest_prompt(model, config.max_prompt_tokens, config.max_new_tokens)
    encoded, too_long = encode_prompts(tokenizer, ws.read_jsonl(prompts, "prompts.jsonl.zst"), limit)
    if len(encoded) < least:
        raise ValueError(
            f"{len(encoded)} of {len(encoded) + too_long:,} prompts have at most {limit:,} tokens, at least {least} are needed; "
            "raise max_prompt_tokens"
        )
    # Few prompts make smaller rollouts, and each of those must still fill every mini-batch with an answer.
    answers = min(config.prompts_per_rollout, len(encoded)) * samples
    if answers < config.mini_batches:
        raise ValueError(f"a rollout has {answers} answers, too few for mini_batches={config.mini_batches}; lower it")
    ws.note(prompts_too_long=too_long)
    return encoded


def frozen_reference(
    ws: Workspace, model: Transformer, weights: Weights, precision: Precision
) -> tuple[Transformer, Group]:
    """A frozen copy of the policy as it begins, where `execution.reference` says, and the processes that hold it.

    It is to be asked for while `model` has no memory for its weights, so that copying costs nothing.
    """
    # Copied on the meta device: two models of shapes cost no memory until they are filled.
    reference = copy.deepcopy(model).requires_grad_(False)
    compute, place = compute_of(ws), ws.compute.reference
    if place == "host":
        group = on_host(reference, compute, precision)
    else:
        here = compute if place == "policy" else compute.model_copy(update={"device": place})
        group = distribute(reference, here, precision)
    # The same weights as the policy's at its beginning, so the first KL is zero.
    fill_weights(reference, weights, group)
    return reference, group


@dataclass
class Rollouts(ABC, Generic[How]):
    """Makes each rollout when its first update is due and cuts it into that many updates."""

    config: How
    policy: Transformer
    """The model in training."""
    group: Group
    """The processes that train it; each of them has an object like this."""
    reference: Transformer
    """The initial policy, frozen."""
    reference_group: Group
    """The same processes, as those that hold the reference."""
    tokenizer: Tokenizer
    prompts: list[EncodedPrompt]
    pass_tokens: int
    """Padded tokens that go through the model at once."""
    rollout: int = -1
    """Number of the rollout at hand."""
    made: list[list[Batch]] = field(default_factory=list)
    """Its updates' passes."""
    facts: dict[str, float] = field(default_factory=dict)
    """Its metrics."""
    ended: str = ""
    """Why the training ended before its last rollout."""
    served: ServedPolicy | None = None
    """The server that samples; None decodes where the policy is."""
    count: int = 0
    """Rollouts of the whole training: none is sampled ahead beyond the last."""
    ahead: PendingAnswers | None = None
    """The answers of the next rollout, where they are sampled one step behind."""
    began: float = field(default_factory=time.monotonic)
    generating_seconds: float = 0.0
    """Time in which answers were sampled and verified."""
    largest_gap: float = 0.0
    """Of all rollouts, between the sampler's log-probabilities and the trainer's (`sampler_gap`)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A training that ends early leaves answers under way.
        if self.ahead is not None:
            self.ahead.close()

    @abstractmethod
    def roll(self, rollout: int) -> Rollout:
        """Answers of the present policy to a rollout's prompts, and what is to be learnt from them."""

    @property
    def updates(self) -> int:
        """Updates per rollout."""
        return self.config.mini_batches * self.config.epochs

    def batches(self, step: int) -> list[Batch]:
        """The passes of one update."""
        rollout, update = divmod(step, self.updates)
        if rollout != self.rollout:
            # A rollout inside its updates cannot be made again: the weights it was sampled from have moved on.
            assert update == 0, f"step {step} is inside rollout {rollout}, whose first weights are gone"
            try:
                self.made, self.facts = self.roll(rollout)
            except EndOfTraining as end:
                self.ended = f"rollout {rollout}: {end}"
                raise
            self.rollout = rollout
        return self.made[update]

    def metrics(self, step: int) -> dict[str, float]:
        """Metrics of the rollout that the `step`-th update learnt from."""
        # Metrics are asked after the step, when the loop has not yet asked for the next rollout.
        assert (step - 1) // self.updates == self.rollout
        return self.facts

    def kl_coefficient(
        self, log_probs: list[np.ndarray], reference: list[np.ndarray], rows: list[LabelledRow]
    ) -> tuple[float, dict[str, float]]:
        """β for a rollout's updates, and the metrics that say why. Raises EndOfTraining where the KL budget ends the training."""
        config, kl = self.config, rollout_kl(log_probs, reference, rows)
        found = coefficient_at(config.kl_coefficient, kl, config.kl_control)
        return found, {"rollout_kl": kl} | ({"kl_coefficient": found} if config.kl_control else {})

    def tell_end(self, ws: Workspace) -> None:
        """Tell the record how much time went into generation, and people of a training that ended early."""
        whole = time.monotonic() - self.began
        ws.note(
            generating_seconds=round(self.generating_seconds, 3),
            generating_share=round(self.generating_seconds / whole, 4),
            sampler_gap=self.largest_gap,
        )
        if self.ended:
            ws.note(ended_early=self.ended)
            ws.warn(f"reinforcement ended early, at {self.ended}")

    def places(self, rollout: int) -> list[int]:
        """Numbers of the prompts that a rollout answers."""
        return indices_of_step(rollout, len(self.prompts), self.config.prompts_per_rollout, self.config.seed)

    def answers(self, rollout: int, prompts: list[EncodedPrompt], samples: int) -> list[list[VerifiedAnswer]]:
        """Sampled and verified answers to all prompts, of which every worker makes its share."""
        config, sampling = self.config, self._sampling(rollout)
        began = time.monotonic()
        if config.rollouts.lag:
            generator = already_given(self._sampled_before(rollout, samples))
        elif self.served is None:
            generator = self._decoder()
        else:
            asked = [prompt.ids for prompt in prompts for _ in range(samples)]
            generator = already_given(self.served.completions(self.policy, self.group, rollout, asked, sampling))
        # Verified once each: verdicts have limits of time, so two ranks could judge one answer differently.
        found = answers_in_group(generator, prompts, samples, sampling, self.group, config.rules)
        self.generating_seconds += time.monotonic() - began
        return found

    def _sampling(self, rollout: int) -> Sampling:
        config = self.config
        return Sampling(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            # Another seed for each rollout, or every rollout would draw the same noise.
            seed=mixed_seed(config.seed, rollout),
        )

    def _sampled_before(self, rollout: int, samples: int) -> list[Completion]:
        """The answers to a rollout that were asked for one rollout ago; those of the next are asked for now."""
        if self.ahead is None:
            # Nothing has been learnt yet, so the newest policy is the one before it, too.
            assert rollout == 0, f"the answers of rollout {rollout} are in no save point"
            self.ahead = self._begin_sampling(rollout, samples)
        assert self.ahead.rollout == rollout, (self.ahead.rollout, rollout)
        given = self.ahead.take()
        # Before the updates of this rollout, so that a server samples while they are made.
        self.ahead = self._begin_sampling(rollout + 1, samples) if rollout + 1 < self.count else None
        return given

    def _begin_sampling(self, rollout: int, samples: int) -> PendingAnswers:
        sampling, prompts = self._sampling(rollout), [self.prompts[i] for i in self.places(rollout)]
        asked = [prompt.ids for prompt in prompts for _ in range(samples)]
        if self.served is None:
            # A device does one thing at a time, so nothing would be gained by sampling later.
            made = shared_generator(self._decoder(), self.group)(asked, sampling)
            return PendingAnswers(rollout, lambda: made)
        return self.served.begin(
            self.policy, self.group, rollout, asked, sampling, lambda: self._check_server(rollout, prompts[:PROBES])
        )

    def _check_server(self, rollout: int, prompts: list[EncodedPrompt]) -> None:
        """Raise EndpointError where the server does not answer with the policy as it is now."""
        assert self.served is not None
        sampling = self._sampling(rollout)
        short = replace(sampling, max_new_tokens=min(PROBE_TOKENS, sampling.max_new_tokens))
        said = self.served.asked(self.policy, self.group, [prompt.ids for prompt in prompts], short)
        answers = [VerifiedAnswer(completion, None) for completion in said]
        rows = [answer_row(p, a, self.tokenizer.eos_id) for p, a in zip(prompts, answers, strict=True)]
        gap = sampler_gap(prompts, answers, self.log_probs(self.policy, rows, self.group))
        self.largest_gap = max(self.largest_gap, gap)
        check_sampler(gap, self.config.precision, rollout, self.served.settings.url)

    def saved(self) -> bytes:
        """The answers of the next rollout, for a save point. Waits for them, as the next step would; all workers call it."""
        assert self.ahead is not None, "a save point after the last rollout"
        began = time.monotonic()
        found = self.ahead.dump()
        self.generating_seconds += time.monotonic() - began
        return found

    def restore(self, data: bytes) -> None:
        """Go on with the answers of a save point."""
        self.ahead = PendingAnswers.load(data, self.tokenizer)

    def importance(
        self,
        prompts: Sequence[EncodedPrompt],
        answers: Sequence[VerifiedAnswer],
        log_probs: Sequence[np.ndarray],
    ) -> tuple[dict[str, list[np.ndarray]], dict[str, float]]:
        """What an older policy's answers add to the batches per token, and to the metrics; nothing where the newest samples."""
        timing = self.config.rollouts
        if not timing.lag:
            return {}, {}
        weights, facts = importance_weights(prompts, answers, log_probs, timing.importance_cap)
        return {} if weights is None else {"importance": weights}, facts

    def _decoder(self) -> Generator:
        config = self.config
        # Weights in training are nowhere but here.
        rows = decoding_rows(self.policy, self.prompts, config.max_new_tokens, config.precision)
        return local_generator(self.policy, self.tokenizer, config.precision, rows, self.group)

    def compare(
        self,
        rollout: int,
        prompts: Sequence[EncodedPrompt],
        answers: Sequence[VerifiedAnswer],
        log_probs: Sequence[np.ndarray],
    ) -> None:
        """Compare the sampler with the trainer. Raises EndpointError where a server's log-probabilities are not the policy's.

        Answers of an older policy differ by what has been learnt since, so of those the first rollout's alone are compared.
        """
        if self.config.rollouts.lag and rollout:
            return
        gap = sampler_gap(prompts, answers, log_probs)
        self.largest_gap = max(self.largest_gap, gap)
        if self.served is None:
            return
        try:
            check_sampler(gap, self.config.precision, rollout, self.served.settings.url)
        except EndpointError:
            # Every rank comes to the same gap. Kept, these answers would fail again when the server has been mended.
            if self.group.rank == 0:
                self.served.forget(rollout)
            # A rank that leaves ends the group, which must not be before the answers are gone.
            self.group.exchange(None)
            raise

    def log_probs(self, model: Transformer, rows: list[LabelledRow], group: Group) -> list[np.ndarray]:
        """Per-token log-probabilities of the answers under a model, at the sampling temperature."""
        return row_log_probs(
            model,
            rows,
            pad_id=self.tokenizer.pad_id,
            pass_tokens=self.pass_tokens,
            precision=self.config.precision,
            # At the sampling temperature, as the answers were drawn; other log-probabilities would bias the ratio.
            temperature=self.config.temperature,
            group=group,
        )

    def split(self, rollout: int, count: int) -> Iterator[list[int]]:
        """The answers of each update: per epoch a new order, cut into `mini_batches` parts."""
        # Keyed by seed and rollout, so a resumed training draws the same order.
        generator = np.random.default_rng([self.config.seed, rollout])
        for _ in range(self.config.epochs):
            for part in np.array_split(generator.permutation(count), self.config.mini_batches):
                yield part.tolist()


def already_given(known: Sequence[Completion]) -> Generator:
    """The generator of what a server has answered to all prompts: each part of them gets its own answers."""

    def given(
        prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        return list(known[sampling.first_prompt : sampling.first_prompt + len(prompts)])

    return given


def answer_metrics(
    answers: Sequence[tuple[EncodedPrompt, VerifiedAnswer]],
    rows: Sequence[LabelledRow],
    log_probs: Sequence[np.ndarray],
) -> dict[str, float]:
    """Describe a rollout's answers: the verified share (by verifier where there are several), and the shares that ended,
    were cut off, or have more than one final answer. Lengths are in tokens. The entropy, in nats per token, is estimated by
    −log π of the sampled tokens.
    """
    correct: dict[str, list[bool]] = {}
    for prompt, answer in answers:
        correct.setdefault(str(prompt.row["dataset"]).lower(), []).append(answer.verdict.correct)
    lengths = [row.trained_tokens for row in rows]
    by_verifier = {f"correct/{name}": float(np.mean(found)) for name, found in sorted(correct.items())}
    return {
        "correct": float(np.mean([answer.verdict.correct for _, answer in answers])),
        # A single verifier's share is `correct` already; a second name for it would only widen the log.
        **(by_verifier if len(by_verifier) > 1 else {}),
        "finished": float(np.mean([answer.finished for _, answer in answers])),
        "truncated": float(np.mean([not answer.finished for _, answer in answers])),
        "hedged": float(np.mean([final_answers(answer.completion.text) > 1 for _, answer in answers])),
        "answer_tokens": float(np.mean(lengths)),
        "longest_answer_tokens": float(max(lengths)),
        "entropy": -float(sum(values.sum() for values in log_probs)) / sum(lengths),
    }


_FINAL_ANSWER = re.compile(
    r"(?:final\s+)?answer\s*(?:is|:|=)\s*(\S+)|\\boxed\s*\{([^}]*)\}|####\s*(\S+)", re.IGNORECASE
)
"""The wordings by which an answer states its result."""


def final_answers(text: str) -> int:
    """Different results that a text states as its answer: 1 in "The answer is 4. \\boxed{4}", 2 where a second one is named."""
    # Trailing punctuation and dollar signs are no part of a result: "4." and "$4$" are one.
    found = {"".join(groups).strip(" .,$*}{").removeprefix("\\boxed{") for groups in _FINAL_ANSWER.findall(text)}
    return len(found - {""})
