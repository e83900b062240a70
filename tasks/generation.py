"""Who answers prompts with a checkpoint: this process, or a server that speaks the OpenAI protocol (vLLM, SGLang).

Both are a `model.decoding.generate.Generator`; `execution.generation` chooses per stage. A server must answer the completions
route, take token ids as prompt, and return the ids and log-probabilities of what it sampled, e.g.
`vllm serve <checkpoint folder> --served-model-name <checkpoint digest>`: requests name the model by its digest, so that
other weights cannot answer by mistake. Its tokens equal local ones up to rounding when greedy; when sampling, its noise
is its own. Its log-probabilities are what it reports: those of the logits in vLLM's default mode, of
softmax(logits / temperature) with `--logprobs-mode processed_logprobs`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from infra.language_models.protocol import Answer, Request, completion_request
from infra.workspace import Workspace
from model.config import Precision
from model.decoding.generate import Completion, Generator, Sampling, completion_text, generate
from model.network.transformer import Transformer
from model.parallel.group import Group
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Checkpoint

if TYPE_CHECKING:
    # Stages without a server do not load the HTTP client.
    from infra.language_models.client import Endpoint

_Progress = Callable[[int], None]


def local_generator(
    model: Transformer, tokenizer: Tokenizer, precision: Precision, batch_size: int = 64, group: Group | None = None
) -> Generator:
    """Decoding where the model is, with the weights it has at each call. All workers of the `group` that holds the sharded
    model have to call it together, each with prompts of its own or with none.
    """
    # Without a group nothing is sharded, and a default Group holds nothing.
    holding = (group or Group()).holding

    @torch.no_grad()
    def answer(
        prompts: Sequence[Sequence[int]], sampling: Sampling, progress: _Progress | None = None
    ) -> list[Completion]:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return generate(
                model, tokenizer, prompts, sampling, batch_size=batch_size, progress=progress, holding=holding
            )

    return answer


def halve(model: Transformer) -> None:
    """Hold matrices as bf16, which decoding rounds them to in any case; vectors, which it reads in fp32, stay."""
    for parameter in model.parameters():
        # Norm weights are vectors and are read in fp32; only matrices are rounded when they are used.
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(torch.bfloat16)


def own_share(count: int, group: Group) -> tuple[int, int]:
    """First and end place of what this worker takes of a list that the whole group works on."""
    # Integer division of the bounds: shares differ by one at most and leave no gap.
    return count * group.rank // group.world, count * (group.rank + 1) // group.world


def shared_generator(generator: Generator, group: Group) -> Generator:
    """A generator that all workers of a group call with the same prompts: each answers its share of them by `generator`, with
    the noise they have among all, then all know all answers.
    """

    def answer(
        prompts: Sequence[Sequence[int]], sampling: Sampling, progress: _Progress | None = None
    ) -> list[Completion]:
        first, end = own_share(len(prompts), group)
        # The noise is keyed by the place among all prompts, so the split changes no answer.
        own = generator(prompts[first:end], replace(sampling, first_prompt=sampling.first_prompt + first), progress)
        return [completion for part in group.exchange(own) for completion in part]

    return answer


def server_generator(endpoint: "Endpoint", tokenizer: Tokenizer, window: int) -> Generator:
    """Answers of an endpoint, under way as many at once as its settings say. `window`: tokens the served model takes.

    The generator raises ValueError for a prompt that the window or the server refuses, and for a server that does not say
    which tokens it sampled. It raises EndpointError when the server cannot be used.
    """

    def answer(
        prompts: Sequence[Sequence[int]], sampling: Sampling, progress: _Progress | None = None
    ) -> list[Completion]:
        requests = [_request(endpoint.model, index, prompt, sampling, window) for index, prompt in enumerate(prompts)]
        completions = []
        # Replies come in the order of the requests, whichever of them the server finished first.
        for index, reply in enumerate(endpoint.ask(requests)):
            completions.append(_completion(index, reply, endpoint.model, tokenizer, sampling))
            if progress is not None:
                progress(1)
        return completions

    return answer


@contextmanager
def checkpoint_generator(
    ws: Workspace,
    checkpoint: Checkpoint,
    model: Transformer,
    tokenizer: Tokenizer,
    precision: Precision,
    batch_size: int = 64,
    group: Group | None = None,
) -> Iterator[Generator]:
    """The generator that `execution.generation` chooses for this stage; `model` is the checkpoint, loaded. The workers of the
    `group` that holds it share every list of prompts out.
    """
    group = group or Group()
    # A stage's own weights, or a server that was started with them: the caller sees no difference.
    if ws.generation == "local":
        yield shared_generator(local_generator(model, tokenizer, precision, batch_size, group), group)
        return
    with ws.endpoint(checkpoint.digest) as endpoint:
        yield shared_generator(server_generator(endpoint, tokenizer, model.config.max_sequence_length), group)


def submit_prompts(
    endpoint: "Endpoint", tokenizer: Tokenizer, window: int, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> Callable[[], list[Completion]]:
    """Send prompts to an endpoint, and return at once a function that waits for their answers, in their order.

    Both raise what a `server_generator` does, but for a request to stop, after which the answers are still waited for.
    """
    requests = [_request(endpoint.model, index, prompt, sampling, window) for index, prompt in enumerate(prompts)]
    futures = [endpoint.submit(request) for request in requests]

    def answers() -> list[Completion]:
        replies = (endpoint.result(future, in_order=True) for future in futures)
        return [_completion(index, reply, endpoint.model, tokenizer, sampling) for index, reply in enumerate(replies)]

    return answers


def _request(model: str, index: int, prompt: Sequence[int], sampling: Sampling, window: int) -> Request:
    """One prompt in the protocol. Sampled requests carry a seed of their own: equal prompts get different answers, and
    the endpoint's memory keeps them apart.
    """
    room = window - len(prompt)
    if not prompt or room < 1:
        raise ValueError(
            f"prompt {index} has {len(prompt):,} tokens; the served model's window is {window:,} and needs room for one "
            f"more: give between 1 and {window - 1:,} (cut long prompts on the left)"
        )
    fields = {
        "max_tokens": min(sampling.max_new_tokens, room),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        # logprobs=0 asks for the sampled token's own log-probability and for no alternatives.
        "logprobs": 0,
        "return_token_ids": True,
    }
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    # Greedy requests have no seed, so equal prompts are answered once and remembered.
    if sampling.temperature > 0:
        key = np.random.SeedSequence((sampling.seed, sampling.first_prompt + index))
        # Shifted by one bit: some servers take signed 32-bit seeds only.
        fields["seed"] = int(key.generate_state(1, np.uint32)[0] >> 1)
    return completion_request(model, prompt, **fields)


def _completion(index: int, reply: Answer, model: str, tokenizer: Tokenizer, sampling: Sampling) -> Completion:
    """The server's answer as local decoding would give it; the text is made of the ids here."""
    if reply.refused:
        raise ValueError(f"the server of {model} refuses prompt {index}: {reply.refused}")
    choice = reply.choices[0]
    logprobs = [value for value in choice.logprobs or () if value is not None]
    # Checked before use: a server that ignores `return_token_ids` would silently give texts without ids.
    if choice.ids is None or len(logprobs) != len(choice.ids):
        raise ValueError(
            f"the server of {model} does not say which tokens it sampled and with which log-probabilities (ids "
            f"{'absent' if choice.ids is None else len(choice.ids)}, log-probabilities {len(logprobs)}); it must honour "
            "return_token_ids and logprobs, as vLLM from 0.10.2 on does"
        )
    # Other reasons (content_filter, tool_calls) mean a server that changed the answer.
    if choice.finish not in ("stop", "length"):
        raise ValueError(f"the server of {model} ended prompt {index} with {choice.finish!r}, not by stop or length")
    finish: Literal["stop", "length"] = "stop" if choice.finish == "stop" else "length"
    ids = list(choice.ids)
    return Completion(ids, completion_text(tokenizer, ids, sampling.stop), logprobs, finish)
