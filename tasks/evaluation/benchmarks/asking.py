"""Running a benchmark's requests on a checkpoint: prompts to ids, generation, log-likelihoods.

Context and continuation are encoded apart, so that the split between them never depends on the pair. Whitespace that ends the
context goes to the continuation, unless the request's `boundary` is `in_loop`. Deviation: OLMES encodes the pair and cuts at
the context's length; ids differ only where a token would span the border, which a continuation that begins with a space or a
letter after "Answer:" does not.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from model.decoding.generate import Generator, Sampling, log_likelihoods
from model.decoding.log_likelihoods import NonFiniteOutput
from model.network.transformer import Transformer
from model.parallel.group import Group
from model.tokens.chat import encode_prompt
from model.tokens.tokenizer import Tokenizer
from tasks.evaluation.benchmarks.items import Generation, Item, Likelihood, LikelihoodAnswer, Prompt
from tasks.evaluation.scoring.room import prompt_room

EMPTY = (
    "has an empty continuation, whose likelihood is 1 for every model; leave the item out, or give the choice a text"
)
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
    names: Sequence[str] | None = None,
) -> Asked:
    """Answer all requests: the generator's texts, the model's likelihoods (which the workers of a `group` share out).

    Prompts are cut on the left so that prompt and answer fit in `max_context` tokens; the last token of a continuation is
    predicted and never fed, so it takes no place. `names` says of every request what errors call it. Raises ValueError for
    a continuation without a token, FloatingPointError where the model's output is not finite.
    """
    names = names or [f"request {place}" for place in range(len(requests))]
    answers: dict[int, Answer] = {}
    generations = [(place, request) for place, request in enumerate(requests) if isinstance(request, Generation)]
    likelihoods = [(place, request) for place, request in enumerate(requests) if isinstance(request, Likelihood)]
    truncated = 0
    for way in sorted({way_of(request) for _, request in generations}):
        max_new_tokens, stop, temperature, top_p = way
        alike = [(place, request) for place, request in generations if way_of(request) == way]
        room = prompt_room(max_new_tokens, max_context)
        prompts = [encode(tokenizer, request.prompt) for _, request in alike]
        truncated += sum(len(ids) > room for ids in prompts)
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, stop=stop)
        with named([names[place] for place, _ in alike]):
            completions = generator([ids[-room:] for ids in prompts], sampling, progress)
        for (place, _), completion in zip(alike, completions, strict=True):
            answers[place] = completion.text
    if likelihoods:
        asked = [names[place] for place, _ in likelihoods]
        pairs = encode_pairs(tokenizer, [request for _, request in likelihoods], asked)
        truncated += sum(len(context) + len(continuation) - 1 > max_context for context, continuation in pairs)
        with named(asked):
            sums = log_likelihoods(model, [fit(pair, max_context) for pair in pairs], progress=progress, group=group)
        for (place, _), (_, continuation), logprob in zip(likelihoods, pairs, sums, strict=True):
            answers[place] = LikelihoodAnswer(logprob, len(continuation))
    return Asked([answers[place] for place in range(len(requests))], truncated)


def way_of(request: Generation) -> tuple[int, tuple[str, ...], float, float]:
    """How a request is answered: length, stops, temperature and top-p. Those alike are answered together."""
    return request.max_new_tokens, request.stop, request.temperature, request.top_p


def request_names(
    benchmark: str, items: Sequence[Item], requests: Sequence[Sequence[Generation | Likelihood]]
) -> list[str]:
    """What errors call every request: its benchmark, its item and its place there.

    Raises ValueError for a request that no model need be asked: an empty continuation has likelihood 1 for all of them.
    """
    names = []
    for item, wanted in zip(items, requests, strict=True):
        for place, request in enumerate(wanted):
            names.append(f"benchmark {benchmark!r}, item {item.id!r}, request {place}")
            if isinstance(request, Likelihood) and not request.continuation:
                raise ValueError(f"{names[-1]} {EMPTY}")
    return names


@contextmanager
def named(names: Sequence[str]) -> Iterator[None]:
    """Says which request met an output that is not finite."""
    try:
        yield
    except NonFiniteOutput as error:
        raise FloatingPointError(f"{names[error.index]}: {error}") from error


def encode_pairs(
    tokenizer: Tokenizer, requests: Sequence[Likelihood], names: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    """Context and continuation ids of all requests. Contexts that several share are encoded once."""
    contexts: dict[str, list[int]] = {}
    pairs = []
    for request, name in zip(requests, names, strict=True):
        prompt, text = split(request)
        key = repr((prompt.messages, prompt.cue, prompt.text))
        if key not in contexts:
            contexts[key] = encode(tokenizer, prompt)
        continuation = tokenizer.encode(text)
        if not continuation:
            raise ValueError(f"{name} {EMPTY}")
        pairs.append((contexts[key], continuation))
    return pairs


def encode_pair(tokenizer: Tokenizer, request: Likelihood) -> tuple[list[int], list[int]]:
    """Context and continuation ids."""
    return encode_pairs(tokenizer, [request], ["the request"])[0]


def split(request: Likelihood) -> tuple[Prompt, str]:
    """The prompt and the continuation as encoded; whitespace between them is moved where the rule says so."""
    if request.prompt.messages or request.boundary == "in_loop":
        return request.prompt, request.continuation
    kept = request.prompt.text.rstrip()
    return Prompt(text=kept), request.prompt.text[len(kept) :] + request.continuation


def fit(pair: tuple[list[int], list[int]], max_context: int) -> tuple[list[int], list[int]]:
    """The pair with its context cut on the left. The last token is never fed, so one more than `max_context` fit.

    ValueError when the continuation alone is too long.
    """
    context, continuation = pair
    room = max_context + 1 - len(continuation)
    if room < 1:
        raise ValueError(
            f"a continuation of {len(continuation):,} tokens and one before it do not fit in a context of {max_context:,}"
        )
    return context[-room:], continuation
