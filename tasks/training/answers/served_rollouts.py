"""Rollouts of a policy in training by a server that takes its weights before each rollout (vLLM, SGLang).

The published runs sample with vLLM as well (RECIPE H.2, H.3). Every rollout's answers are kept until no save point needs them. A
server's noise is its own, so this is what lets a resumed training end with the bytes of an undisturbed one. They are kept with a
hash of the weights they were sampled with, since attempts may come to the same rollout with other weights. What is learnt from
is always the trainer's own log-probabilities. The server's are compared with them: one that answers with other weights, or at
another temperature, ends the training by name, and its answers are forgotten.

Where rollouts are sampled one step behind (`sampled_ahead.py`), the policy has moved on when its answers are there. So a few
short answers are compared with the trainer's as soon as the server has the weights.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import orjson
import torch

from infra.language_models.client import EndpointError
from infra.language_models.weight_servers import weight_server
from infra.settings import EndpointSettings
from infra.workspace import Workspace
from model.config import Precision
from model.decoding.generate import Completion, Sampling, completion_text
from model.files.weights import save_hf
from model.network.sharded_tensors import local_part
from model.network.transformer import Transformer
from model.parallel.group import Group, whole_model
from model.tokens.tokenizer import Tokenizer
from tasks.generation import own_share, server_generator, shared_generator, submit_prompts
from tasks.training.answers.sampled_ahead import PendingAnswers
from tasks.training.answers.verified_answers import EncodedPrompt, VerifiedAnswer

LARGEST_GAP: dict[Precision, float] = {"fp32": 0.03, "bf16": 0.3}
"""Nats per token by which two computations of the same log-probabilities may differ in the mean, besides a constant: a hundred
times what rounding does in fp32, and the most that it was measured to do to a token in bf16. Other weights differ by more."""

_Answers = Sequence[tuple[Sequence[int], Sequence[float], Literal["stop", "length"]]]
"""Ids, log-probabilities and finish of every answer."""


@dataclass
class ServedPolicy:
    """The server of one training."""

    ws: Workspace
    tokenizer: Tokenizer
    precision: Precision
    settings: EndpointSettings
    """Where it answers and takes weights."""
    kept_rollouts: int
    """Rollouts between two save points, at most: so many answers may be asked for again."""

    def completions(
        self,
        policy: Transformer,
        group: Group,
        rollout: int,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
    ) -> list[Completion]:
        """Answers of the policy as it is now, or those that an earlier attempt was given. All workers get all of them."""
        weights = weights_hash(policy, group)
        known: _Answers | None = group.exchange(self._kept(rollout, weights) if group.rank == 0 else None)[0]
        if known is None:
            self._load(policy, group, rollout)
            answers = self.asked(policy, group, prompts, sampling)
            self._keep(group, rollout, weights, answers)
            known = [(answer.ids, answer.logprobs, answer.finish) for answer in answers]
        return self._completions(known, sampling)

    def begin(
        self,
        policy: Transformer,
        group: Group,
        rollout: int,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        check: Callable[[], None],
    ) -> PendingAnswers:
        """Ask for the answers of the policy as it is now, and return while the server samples. All workers call this together.

        `check` is called when the server has the weights, and raises where it does not answer with them: when the answers are
        there, the policy is another.
        """
        weights = weights_hash(policy, group)
        known: _Answers | None = group.exchange(self._kept(rollout, weights) if group.rank == 0 else None)[0]
        if known is not None:
            kept = self._completions(known, sampling)
            return PendingAnswers(rollout, lambda: kept)
        self._load(policy, group, rollout)
        check()
        first, end = own_share(len(prompts), group)
        window = policy.config.max_sequence_length
        share = replace(sampling, first_prompt=sampling.first_prompt + first)
        with ExitStack() as stack:
            endpoint = stack.enter_context(self.ws.endpoint(self.ws.stage, remember=False))
            own = submit_prompts(endpoint, self.tokenizer, window, prompts[first:end], share)
            # Left open: its thread sends requests while this one trains.
            close = stack.pop_all().close

        def collect() -> list[Completion]:
            answers = [answer for part in group.exchange(own()) for answer in part]
            self._keep(group, rollout, weights, answers)
            return answers

        return PendingAnswers(rollout, collect, close)

    def asked(
        self, policy: Transformer, group: Group, prompts: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[Completion]:
        """Answers of the server with the weights that it has. All workers get all of them."""
        # The same request has another answer after each refresh, so none is remembered.
        with self.ws.endpoint(self.ws.stage, remember=False) as endpoint:
            generate = server_generator(endpoint, self.tokenizer, policy.config.max_sequence_length)
            # Seeds go by the place among all prompts, or ranks that share a prompt's samples would ask for the same ones.
            return shared_generator(generate, group)(prompts, sampling)

    def _completions(self, known: _Answers, sampling: Sampling) -> list[Completion]:
        return [
            Completion(list(ids), completion_text(self.tokenizer, list(ids), sampling.stop), list(logprobs), finish)
            for ids, logprobs, finish in known
        ]

    def forget(self, rollout: int) -> None:
        """Forget a rollout's answers, so that the next attempt asks the server for others."""
        self.ws.store.remove(self._name(rollout))

    def _load(self, policy: Transformer, group: Group, rollout: int) -> None:
        """Hand the server the policy's weights. A gather: all workers call it, and none asks before the server has them."""
        whole = cast(Transformer, whole_model(group, policy))
        if group.rank == 0:
            # A folder for each rollout: a server that still reads the one before is not disturbed.
            assert self.settings.weights is not None, self.settings
            path = Path(self.settings.weights.path) / f"{self.ws.id}-{rollout:08d}"
            dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
            save_hf(whole, whole.config, self.tokenizer, path, bos="eos", dtype=dtype)
            try:
                weight_server(self.settings).load(str(path))
            finally:
                shutil.rmtree(path, ignore_errors=True)
        group.exchange(None)

    def _name(self, rollout: int) -> str:
        return self.ws.address(f"rollouts/{rollout:08d}.json", "work")

    def _kept(self, rollout: int, weights: str) -> _Answers | None:
        """What an earlier attempt was given for these weights; None where there is nothing, or it is another policy's."""
        try:
            kept = self.ws.store.read_json(self._name(rollout))
        except FileNotFoundError:
            return None
        return kept["answers"] if kept["weights"] == weights else None

    def _keep(self, group: Group, rollout: int, weights: str, answers: Sequence[Completion]) -> None:
        if group.rank:
            return
        known = [(answer.ids, answer.logprobs, answer.finish) for answer in answers]
        self.ws.store.write(self._name(rollout), orjson.dumps({"weights": weights, "answers": known}))
        # No attempt goes back beyond the newest save point.
        if rollout > self.kept_rollouts:
            self.ws.store.remove(self._name(rollout - self.kept_rollouts - 1))


def rollout_server(ws: Workspace) -> EndpointSettings | None:
    """Where this stage's rollouts are sampled by a server; None where they are decoded here."""
    settings = ws.own_endpoint() if ws.generation == "endpoint" else None
    return settings if settings is not None and settings.weights is not None else None


def served_policy(ws: Workspace, tokenizer: Tokenizer, precision: Precision, updates: int) -> ServedPolicy | None:
    """The server that `execution` names for this stage's rollouts; None where they are decoded here. `updates` are those of a
    rollout.
    """
    settings = rollout_server(ws)
    if settings is None:
        return None
    # Two more than fit between save points: the interval is rounded up to whole rollouts, and a save takes a while.
    return ServedPolicy(ws, tokenizer, precision, settings, -(-ws.save_every // updates) + 2)


def weights_hash(policy: Transformer, group: Group) -> str:
    """Hash of the weights that the workers of a group hold together; all of them call this.

    Workers that hold other parts of the same weights give another hash: then a rollout is sampled again.
    """
    # A XOR of each tensor's bits, made where it lies: a digest of all bytes would first bring them to the host.
    parts = [local_part(parameter.detach()) for parameter in policy.parameters()]
    if policy.device.type == "mps":
        # PyTorch has this hash for CPUs and CUDA only.
        parts = [part.cpu() for part in parts]
    # The last shard of a small tensor may have no rows, and those have no hash.
    own = [torch.hash_tensor(part).item() if part.numel() else 0 for part in parts]
    return hashlib.sha256(repr(group.exchange(own)).encode()).hexdigest()


def sampler_gap(
    prompts: Sequence[EncodedPrompt],
    answers: Sequence[VerifiedAnswer],
    log_probs: Sequence[np.ndarray],
) -> float:
    """Mean distance of the sampler's log-probabilities from the trainer's, in nats per token, besides a constant.

    A constant is no drift: samplers that leave the padded rows of the vocabulary out of the softmax are higher by their share.
    """
    found: list[np.ndarray] = []
    for prompt, answer, own in zip(prompts, answers, log_probs, strict=True):
        said = np.array(answer.completion.logprobs, dtype=np.float64)
        # Position t predicts token t + 1, so the answer's first token is predicted one place before it.
        start = len(prompt.ids) - 1
        found.append(said - own[start : start + len(said)])
    gaps = np.concatenate(found) if found else np.zeros(0)
    return float(np.abs(gaps - np.median(gaps)).mean()) if len(gaps) else 0.0


def check_sampler(gap: float, precision: Precision, rollout: int, url: str) -> None:
    """Raise EndpointError where the server's log-probabilities are not those of the weights that it was given."""
    if gap > LARGEST_GAP[precision]:
        raise EndpointError(
            f"rollout {rollout}: the log-probabilities of {url} differ from the trainer's by {gap:.3g} nats per token, more than "
            f"rounding explains (limit {LARGEST_GAP[precision]:g} in {precision}). It answers with other weights or at another "
            "temperature: see that it reloads (vLLM: VLLM_SERVER_DEV_MODE=1), and that it reports processed log-probabilities "
            "(vLLM: --logprobs-mode processed_logprobs); the same command goes on from the last save point"
        )
