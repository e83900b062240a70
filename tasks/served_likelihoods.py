"""Log-likelihoods of a server that speaks the OpenAI protocol: prompts are echoed with their log-probabilities (vLLM, SGLang).

Token ids go to the completions route with `echo` and `logprobs`; the answer holds the log-probability of every one of them. So
a continuation has the tokens that local scoring gives it, and its score equals the local one up to rounding. `probe` asks first
whether the server's tokenizer is the one that encodes here: another one would read other words and score them in silence.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from infra.language_models.protocol import Answer, Request, completion_request
from model.tokens.tokenizer import Tokenizer
from tasks.evaluation.benchmarks.asking import ContextAndContinuation, LikelihoodScorer, Progress

if TYPE_CHECKING:
    # Stages without a server do not load the HTTP client.
    from infra.language_models.client import Endpoint

PROBE = (
    "The quick brown fox jumps over the lazy dog. 3.14159 + 2,718 = ?\n\tdef f(x):\n\t\treturn x ** 2  # naïve café\n"
    "Question: Which planet is the largest?\n A. Mars\n B. Jupiter\nAnswer: B\n\nDer Fluß fließt; l'été est là."
)
"""Words, numbers, code, letters with accents: two tokenizers that agree on it agree."""


def server_scorer(endpoint: "Endpoint") -> LikelihoodScorer:
    """The endpoint's log-likelihoods of continuations after contexts, as many requests under way as its settings say.

    The scorer raises ValueError for a request that the server refuses and for a server that does not echo log-probabilities,
    EndpointError when the server cannot be used.
    """

    def score(pairs: Sequence[ContextAndContinuation], progress: Progress) -> list[float]:
        requests = (echo_request(endpoint.model, [*context, *continuation]) for context, continuation in pairs)
        sums = []
        for index, reply in enumerate(endpoint.ask(requests)):
            context, continuation = pairs[index]
            values = echoed(reply, len(context) + len(continuation), f"request {index}", endpoint.model)
            # fsum: the sum of thousands of log-probabilities without rounding at each addition.
            sums.append(math.fsum(values[len(context) :]))
            progress(1)
        return sums

    return score


def echo_request(model: str, ids: Sequence[int]) -> Request:
    """Ask for the log-probability of every given token. Servers generate at least one token more."""
    return completion_request(model, ids, max_tokens=1, temperature=0.0, logprobs=1, echo=True)


def echoed(reply: Answer, count: int, name: str, model: str) -> list[float]:
    """Log-probabilities of the first `count` tokens; of the very first, which has none, 0.

    Raises ValueError where the server refused, or says too little.
    """
    if reply.refused:
        raise ValueError(f"the server of {model} refuses {name} of {count:,} tokens: {reply.refused}")
    values = reply.choices[0].logprobs
    # Servers generate at least one token, so one value more than asked for is right.
    if values is None or not count <= len(values) <= count + 1 or any(value is None for value in values[1:count]):
        given = "no log-probabilities" if values is None else f"{len(values):,} log-probabilities"
        raise ValueError(
            f"the server of {model} gives {given} for {name} of {count:,} tokens; it must honour echo and logprobs on the "
            "completions route, as vLLM does: evaluate the weights themselves where it cannot"
        )
    return [0.0, *(float(value) for value in values[1:count] if value is not None)]


def probe(endpoint: "Endpoint", tokenizer: Tokenizer) -> str:
    """A short name of the weights behind an endpoint, from how likely a fixed text is to them.

    Raises ValueError where the server reads other words than were encoded, or gives no log-probabilities.
    """
    ids = tokenizer.encode(PROBE)
    [reply] = endpoint.ask([echo_request(endpoint.model, ids)])
    values = echoed(reply, len(ids), "the probe", endpoint.model)
    if not reply.text.startswith(PROBE):
        raise ValueError(
            f"the server of {endpoint.model} reads {reply.text[:60]!r} where {PROBE[:60]!r} was encoded with "
            f"{tokenizer.ranks:,} ranks: its tokenizer is another one; give the folder of its tokenizer with --tokenizer"
        )
    # Two digits: a server's rounding, which depends on what it batches together, does not reach them.
    return hashlib.sha256(f"{math.fsum(values) / len(ids):.2f}".encode()).hexdigest()[:8]
