"""Running a benchmark's requests on a checkpoint: prompts to ids, generation, log-likelihoods.

Context and continuation are encoded apart, so that the split between them never depends on the pair. Whitespace that ends
the context goes to the continuation, unless the request's `boundary` is `in_loop`. Deviation: OLMES encodes the pair and
cuts at the context's length. Ids differ only where a token would span the border, which a continuation that begins with a
space or a letter after "Answer:" does not.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from model.decoding.generate import Generator, Sampling, log_likelihoods
from model.decoding.log_likelihoods import NonFiniteOutput
from model.decoding.prefix_scoring import KeptWeights
from model.network.transformer import Transformer
from model.parallel.group import Group
from model.tokens.chat import encode_prompt
from model.tokens.tokenizer import Tokenizer
from tasks.evaluation.benchmarks.items import Generation, Item, Likelihood, LikelihoodAnswer, Prompt
from tasks.evaluation.scoring.room import prompt_room

EMPTY = (
    "has an empty continuation, whose likelihood is 1 for every model; leave the item out, or give the choice a text"
)
AnyAnswer = str | LikelihoodAnswer
Progress = Callable[[int], None]


ContextAndContinuation = tuple[list[int], list[int]]
"""Ids of a context and of the continuation that is scored after it."""


class LikelihoodScorer(Protocol):
    """Whatever says how likely continuations are: a model here, or a server."""

    def __call__(self, pairs: Sequence[ContextAndContinuation], progress: Progress) -> list[float]:
        """Sum of natural log-probabilities of each continuation, in order. `progress` is told how many just finished."""
        ...


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """How one request was put to the model, and how its answer ended."""

    prompt_tokens: int
    """Tokens of the prompt that the model saw."""
    answer_tokens: int
    truncated: bool
    """Whether the prompt was cut on the left."""
    finish: str
    """`stop` or `length` of a written answer; empty for a scored continuation."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Answers, and how each was asked, in the order of the requests."""

    answers: list[AnyAnswer]
    facts: list[RequestFacts]

    @property
    def truncated(self) -> int:
        """How many prompts had to be cut on the left."""
        return sum(fact.truncated for fact in self.facts)


def local_scorer(model: Transformer, group: Group | None = None, kept: KeptWeights | None = None) -> LikelihoodScorer:
    """Log-likelihoods of the model itself, which the workers of a `group` share out. `kept`: of a model that does not change."""

    def score(pairs: Sequence[ContextAndContinuation], progress: Progress) -> list[float]:
        return log_likelihoods(model, pairs, progress=progress, group=group, kept=kept)

    return score


def encoded_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Ids of a prompt. A completion has no BOS (RECIPE I.1); an empty one is the end-of-text token alone."""
    if prompt.messages:
        return encode_prompt(tokenizer, prompt.messages, prompt.cue)
    # An empty prompt would give the model nothing to predict from.
    return tokenizer.encode(prompt.text) or [tokenizer.eos_id]


def ask(
    tokenizer: Tokenizer,
    requests: Sequence[Generation | Likelihood],
    *,
    generator: Generator,
    scorer: LikelihoodScorer,
    max_context: int,
    progress: Progress,
    names: Sequence[str] | None = None,
    first_request: int = 0,
) -> Asked:
    """Answer all requests: the generator's texts, the scorer's likelihoods.

    Prompts are cut on the left so that prompt and answer fit in `max_context` tokens; the last token of a continuation is
    predicted and never fed, so it takes no place. `names` says of every request what errors call it. `first_request`: the
    place of the first one in a longer list, whose samples have noise of their own. Raises ValueError for
    a continuation without a token, FloatingPointError where the model's output is not finite.
    """
    names = names or [f"request {place}" for place in range(len(requests))]
    found: dict[int, tuple[AnyAnswer, RequestFacts]] = {}
    generations = [(place, request) for place, request in enumerate(requests) if isinstance(request, Generation)]
    likelihoods = [(place, request) for place, request in enumerate(requests) if isinstance(request, Likelihood)]
    # Requests that are answered alike go to the generator together, so that its batches stay full.
    for way in sorted({way_of(request) for _, request in generations}):
        alike = [(place, request) for place, request in generations if way_of(request) == way]
        found |= write_answers(tokenizer, way, alike, generator, max_context, progress, names, first_request)
    if likelihoods:
        asked = [names[place] for place, _ in likelihoods]
        pairs = encode_pairs(tokenizer, [request for _, request in likelihoods], asked)
        fitted = [_fit(pair, max_context) for pair in pairs]
        with named(asked):
            sums = scorer(fitted, progress)
        for (place, _), pair, (context, continuation), logprob in zip(likelihoods, pairs, fitted, sums, strict=True):
            # A shorter context than the encoded one means that the left was cut.
            facts = RequestFacts(len(context), len(continuation), len(context) < len(pair[0]), "")
            found[place] = LikelihoodAnswer(logprob, len(continuation)), facts
    # Back in the order of the requests, whichever way each was answered.
    ordered = [found[place] for place in range(len(requests))]
    return Asked([answer for answer, _ in ordered], [facts for _, facts in ordered])


def write_answers(
    tokenizer: Tokenizer,
    way: tuple[int, tuple[str, ...], float, float],
    alike: Sequence[tuple[int, Generation]],
    generator: Generator,
    max_context: int,
    progress: Progress,
    names: Sequence[str],
    first_request: int,
) -> dict[int, tuple[AnyAnswer, RequestFacts]]:
    """The written answers of requests that are answered in the same way, by their places."""
    max_new_tokens, stop, temperature, top_p = way
    room = prompt_room(max_new_tokens, max_context)
    prompts = [encoded_prompt(tokenizer, request.prompt) for _, request in alike]
    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, stop=stop, first_prompt=first_request
    )
    with named([names[place] for place, _ in alike]):
        # Cut on the left: the question stands at the end of a prompt, after the shots.
        completions = generator([ids[-room:] for ids in prompts], sampling, progress)
    return {
        place: (done.text, RequestFacts(min(len(ids), room), len(done.ids), len(ids) > room, done.finish))
        for (place, _), ids, done in zip(alike, prompts, completions, strict=True)
    }


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
        prompt, text = _split(request)
        # Prompts are unhashable where they hold messages, so their text form is the key.
        key = repr((prompt.messages, prompt.cue, prompt.text))
        # Choices of an item share its context, and encoding takes longer than looking it up.
        if key not in contexts:
            contexts[key] = encoded_prompt(tokenizer, prompt)
        continuation = tokenizer.encode(text)
        if not continuation:
            raise ValueError(f"{name} {EMPTY}")
        pairs.append((contexts[key], continuation))
    return pairs


def encode_pair(tokenizer: Tokenizer, request: Likelihood) -> tuple[list[int], list[int]]:
    """Context and continuation ids."""
    return encode_pairs(tokenizer, [request], ["the request"])[0]


def _split(request: Likelihood) -> tuple[Prompt, str]:
    """The prompt and the continuation as encoded; whitespace between them is moved where the rule says so."""
    # Chats have their own borders, and `in_loop` encodes both sides as they are.
    if request.prompt.messages or request.boundary == "in_loop":
        return request.prompt, request.continuation
    # Tokens begin with their space, so white space before a continuation belongs to it.
    kept = request.prompt.text.rstrip()
    return Prompt(text=kept), request.prompt.text[len(kept) :] + request.continuation


def _fit(pair: tuple[list[int], list[int]], max_context: int) -> tuple[list[int], list[int]]:
    """The pair with its context cut on the left. The last token is never fed, so one more than `max_context` fit.

    ValueError when the continuation alone is too long.
    """
    context, continuation = pair
    # The last token is predicted and never fed, so it takes no place in the window.
    room = max_context + 1 - len(continuation)
    if room < 1:
        raise ValueError(
            f"a continuation of {len(continuation):,} tokens and one before it do not fit in a context of {max_context:,}"
        )
    return context[-room:], continuation
