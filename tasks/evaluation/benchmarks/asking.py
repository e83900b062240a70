"""Running a benchmark's requests on a checkpoint: prompts to ids, generation, log-likelihoods.

Context and continuation are encoded apart, with the context's trailing spaces moved to the continuation, so that the split
between them never depends on the pair. Deviation: OLMES encodes the pair and cuts at the context's length; ids differ only
where a token would span the border, which a continuation that begins with a space or a letter after "Answer:" does not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.decoding.generate import Generator, Sampling, log_likelihoods
from model.network.transformer import Transformer
from model.parallel.group import Group
from model.tokens.chat import encode_prompt
from model.tokens.tokenizer import Tokenizer
from tasks.evaluation.benchmarks.items import Generation, Likelihood, LikelihoodAnswer, Prompt
from tasks.evaluation.room import prompt_room

Answer = str | LikelihoodAnswer
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """Answers in the order of the requests, and how many prompts had to be cut on the left."""

    answers: list[Answer]
    truncated: int


def encode(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Ids of a prompt. A completion has no BOS (RECIPE I.1); an empty one is the end-of-text token alone."""
    if prompt.messages:
        return encode_prompt(tokenizer, prompt.messages, prompt.cue)
    return tokenizer.encode(prompt.text) or [tokenizer.eos_id]


def ask(
    model: Transformer,
    tokenizer: Tokenizer,
    requests: Sequence[Generation | Likelihood],
    *,
    generator: Generator,
    max_context: int,
    progress: Progress,
    group: Group | None = None,
) -> Asked:
    """Answer all requests: the generator's texts, the model's likelihoods (which the workers of a `group` share out).

    Prompts are cut on the left so that prompt and answer fit in `max_context` tokens.
    """
    answers: dict[int, Answer] = {}
    generations = [(place, request) for place, request in enumerate(requests) if isinstance(request, Generation)]
    likelihoods = [(place, request) for place, request in enumerate(requests) if isinstance(request, Likelihood)]
    truncated = 0
    for max_new_tokens, stop in sorted({(r.max_new_tokens, r.stop) for _, r in generations}):
        alike = [(p, r) for p, r in generations if (r.max_new_tokens, r.stop) == (max_new_tokens, stop)]
        room = prompt_room(max_new_tokens, max_context)
        prompts = [encode(tokenizer, request.prompt) for _, request in alike]
        truncated += sum(len(ids) > room for ids in prompts)
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0.0, stop=stop)
        completions = generator([ids[-room:] for ids in prompts], sampling, progress)
        for (place, _), completion in zip(alike, completions, strict=True):
            answers[place] = completion.text
    if likelihoods:
        pairs = [encode_pair(tokenizer, request) for _, request in likelihoods]
        truncated += sum(len(context) + len(continuation) > max_context for context, continuation in pairs)
        sums = log_likelihoods(model, [fit(pair, max_context) for pair in pairs], progress=progress, group=group)
        for (place, _), (_, continuation), logprob in zip(likelihoods, pairs, sums, strict=True):
            answers[place] = LikelihoodAnswer(logprob, len(continuation))
    return Asked([answers[place] for place in range(len(requests))], truncated)


def encode_pair(tokenizer: Tokenizer, request: Likelihood) -> tuple[list[int], list[int]]:
    """Context and continuation ids."""
    if request.prompt.messages:
        return encode(tokenizer, request.prompt), tokenizer.encode(request.continuation)
    text = request.prompt.text
    kept = text.rstrip(" ")
    continuation = tokenizer.encode(text[len(kept) :] + request.continuation)
    return encode(tokenizer, Prompt(text=kept)), continuation


def fit(pair: tuple[list[int], list[int]], max_context: int) -> tuple[list[int], list[int]]:
    """The pair with its context cut on the left. ValueError when the continuation alone is too long."""
    context, continuation = pair
    room = max_context - len(continuation)
    if room < 1:
        raise ValueError(
            f"a continuation of {len(continuation):,} tokens and one before it do not fit in a context of {max_context:,}"
        )
    return context[-room:], continuation
