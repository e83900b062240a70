"""Generates from prompts: it decodes batches with a KV cache and refills rows as they finish (RECIPE H.2, I.3, I.4).

`Generator` is deliberately narrow, so that a server speaking another protocol can take this module's place: ids
in, completions out (`tasks/generation.py` has both). Details are in `model/decoding/decoder.py` and `model/decoding/kv_cache.py`
(arithmetic), `model/decoding/shared_prefix.py` (what prompts share), `model/decoding/sampling.py` (choice and noise),
`model/decoding/log_likelihoods.py` (given texts).
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch

from model.decoding.decoder import Decoder
from model.decoding.log_likelihoods import NonFiniteOutput, log_likelihoods
from model.decoding.prepared_weights import Holding, held, held_parts
from model.decoding.sampling import choose, uniform_noise
from model.decoding.shared_prefix import Admission, PrefixReader
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer

__all__ = ["Completion", "Generator", "Sampling", "completion_text", "generate", "log_likelihoods"]

_PREFILL_TOKENS = {"cpu": 1024}  # rows x longest prompt of one prefill: activations should stay in a CPU's cache
_PREFILL_TOKENS_ELSEWHERE = 16_384  # and use an accelerator fully, within its memory
_SCORE_ELEMENTS = 1 << 28  # attention scores held at once elsewhere: 1 GB of fp32
_REFILL_SHARE = (
    8  # refill when this part of the rows is free: one prefill of several prompts is cheaper than several of one
)


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens and when to stop. Raises ValueError for values outside the ranges given here."""

    max_new_tokens: int
    """Most tokens to generate, EOS included; at least 1."""
    temperature: float = 0.0
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this probability, in (0, 1]; no effect when greedy."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion; its text is cut before the first of them."""
    seed: int = 0
    """Of the sampling noise."""
    first_prompt: int = 0
    """Index of the first prompt where a part of a longer list is answered by itself: the noise is keyed by it."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be a finite number from 0 (greedy) up")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]; 1 keeps every token")
        if isinstance(self.stop, str) or "" in self.stop:
            raise ValueError(f"stop={self.stop!r} must be a tuple of non-empty texts")


@dataclass(frozen=True)
class Completion:
    """One answer."""

    ids: list[int]
    """Every generated id: the final EOS, and the tokens of a stop text, included."""
    text: str
    """The ids as text, without control tokens and cut before the stop text."""
    logprobs: list[float]
    """Natural log-probability of each id under softmax(logits / temperature) (temperature 0: of the logits).
    """
    finish: Literal["stop", "length"]
    """"stop": EOS or a stop text was generated; "length": `max_new_tokens` or the model's window was reached.
    """


class Generator(Protocol):
    """Whatever answers prompts with one model, here or elsewhere."""

    def __call__(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """One completion per prompt (ids), in their order. Equal prompts are sampled independently of each other.
        `progress` is told how many prompts just finished.
        """
        ...


@dataclass
class _Row:
    """A prompt being answered."""

    prompt: int
    position: int
    """Of the last chosen token, which the next step feeds."""
    limit: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tail: bytes = b""
    """End of the answer so far, long enough to hold a stop text that the next token completes."""


@torch.inference_mode()
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
    holding: Holding = nullcontext,
) -> list[Completion]:
    """Return one completion per prompt (ids, at least one each), in their order, computed where the model is.

    `batch_size` rows decode together, fewer where an accelerator's memory does not hold their KV cache; a finished row is
    given the next prompt. It changes memory and speed, not the noise: that is keyed by (seed, index of the prompt, number of
    the token). `progress` is told how many prompts just finished. Where weights are sharded, `holding` gathers a part, and
    all workers have to call this together, whether they have prompts or not. Precision is autocast's if it is enabled, the
    weights' own otherwise. Rows of the embedding without a token are never generated. Raises ValueError for an empty prompt,
    one that leaves no room in the model's window, and one with an id that has no token. Raises NonFiniteOutput when the
    model's output is not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if model.config.vocab_size > tokenizer.padded_vocab_size:
        raise ValueError(
            f"the model has {model.config.vocab_size:,} vocabulary rows, the tokenizer at {tokenizer.ranks:,} ranks only "
            f"{tokenizer.padded_vocab_size:,}; use the tokenizer that the model was trained with"
        )
    _check_prompts(prompts, model.config.max_sequence_length, min(tokenizer.vocab_size, model.config.vocab_size))
    # Empty prompts on one worker: it still takes part in the gathers of the others.
    if not prompts:
        for part in held_parts(model):
            with held(part, holding):
                pass
        return []
    generation = _Generation(model, tokenizer, prompts, sampling, batch_size, holding)
    try:
        return generation.run(progress)
    except NonFiniteOutput as error:
        # Prompts that begin alike come together, so the first to break need not be the first given: broken weights break it too.
        # Asked again alone, the first prompt tells whether the weights are broken or only one prompt is. What the broken prompt
        # left in the row must not reach it.
        generation.decoder.clear(0)
        if generation.decoder.prefill(0, prompts[:1]).isnan().any():
            raise generation.not_finite(0, 0) from error
        raise


def _check_prompts(prompts: Sequence[Sequence[int]], window: int, ids: int) -> None:
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) < window:
            raise ValueError(
                f"prompt {index} has {len(prompt):,} tokens; the model's window is {window:,} and needs room for one more: "
                f"give between 1 and {window - 1:,} (cut long prompts on the left)"
            )
        if not 0 <= min(prompt) <= max(prompt) < ids:
            wrong = min(prompt) if min(prompt) < 0 else max(prompt)
            raise ValueError(
                f"prompt {index} has the id {wrong:,}; the vocabulary has ids 0 to {ids - 1:,}: encode it with the tokenizer "
                "that the model was trained with"
            )


class _Generation:
    """The rows in flight. Active rows are the decoder's first ones, `rows[i]` in cache row i."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        batch_size: int,
        holding: Holding,
    ) -> None:
        self.tokenizer, self.prompts, self.sampling = tokenizer, prompts, sampling
        self.eos_id = tokenizer.eos_id
        self.ids = min(tokenizer.vocab_size, model.config.vocab_size)
        self.stops = tuple(stop.encode() for stop in sampling.stop)
        self.token_bytes = tokenizer.token_bytes() if self.stops else []
        self.window = model.config.max_sequence_length
        # Rows for the longest prompt and its answer; the model's window bounds both.
        rows, length = min(batch_size, len(prompts)), max(map(len, prompts)) + sampling.max_new_tokens
        self.decoder = Decoder(model, rows, min(length, self.window), holding)
        self.size = self.decoder.rows
        self.prefill_tokens = _PREFILL_TOKENS.get(self.decoder.device.type) or min(
            _PREFILL_TOKENS_ELSEWHERE, _SCORE_ELEMENTS // (model.config.n_heads * length)
        )
        self.rows: list[_Row] = []
        self.admission, self.reader = Admission(prompts), PrefixReader(self.decoder)
        self.completions: dict[int, Completion] = {}

    def run(self, progress: Callable[[int], None] | None) -> list[Completion]:
        while len(self.completions) < len(self.prompts):
            finished = len(self.completions)
            free = self.size - len(self.rows)
            waiting = self.admission.waiting
            # Waiting until an eighth of the rows is free makes one
            # prefill of several prompts, which is cheaper than one each.
            if waiting and free >= min(waiting, max(1, self.size // _REFILL_SHARE)):
                self._admit(free)
            else:
                ids = [row.ids[-1] for row in self.rows]
                logits = self.decoder.step(ids, [row.position for row in self.rows])
                self._append(0, logits)
            if progress is not None and len(self.completions) > finished:
                progress(len(self.completions) - finished)
        return [self.completions[index] for index in range(len(self.prompts))]

    def _admit(self, free: int) -> None:
        """Put waiting prompts into free rows, as many as one prefill may hold, and choose their first tokens."""
        first = len(self.rows)
        indices, shared = self.admission.take(free, self.prefill_tokens)
        for index in indices:
            length = len(self.prompts[index])
            # The window has room for so many tokens after the prompt, however many may be generated.
            limit = min(self.sampling.max_new_tokens, self.window - length)
            self.rows.append(_Row(prompt=index, position=length - 1, limit=limit))
        self._append(first, self.reader.prefill(first, [self.prompts[index] for index in indices], shared))

    def _append(self, first: int, logits: torch.Tensor) -> None:
        """Choose a token for the rows from `first` on; take out those it finishes, keeping the active rows
        together.
        """
        sampling, rows = self.sampling, self.rows[first:]
        noise = None
        if sampling.temperature > 0:
            indices = np.array([sampling.first_prompt + row.prompt for row in rows])
            noise = uniform_noise(sampling.seed, indices, np.array([len(row.ids) for row in rows]))
        chosen, chosen_logprobs = choose(logits, sampling.temperature, sampling.top_p, noise, self.ids)
        # One transfer for both: ids are exact in float64.
        tokens, logprobs = torch.stack([chosen.double(), chosen_logprobs.double()]).tolist()
        finished = []
        for offset, row in enumerate(rows):
            if math.isnan(logprobs[offset]):
                raise self.not_finite(row.prompt, len(row.ids))
            row.ids.append(int(tokens[offset]))
            row.logprobs.append(logprobs[offset])
            row.position += 1
            if self._ends(row):
                finished.append(first + offset)
        # From the back, so that the row that fills a gap is never one that is to go as well.
        for index in reversed(finished):
            last = self.rows.pop()
            if index < len(self.rows):
                self.decoder.move(len(self.rows), index, last.position)
                self.rows[index] = last

    def not_finite(self, prompt: int, tokens: int) -> NonFiniteOutput:
        """What is raised where the output after so many tokens of an answer is not a number."""
        return NonFiniteOutput(
            self.sampling.first_prompt + prompt,
            f"the model's output after prompt {prompt} and {tokens} tokens of its answer is not finite: its weights hold values "
            "that are not, or leave the range of its precision; generate with another checkpoint, or in fp32",
        )

    def _ends(self, row: _Row) -> bool:
        """Whether the row's newest token ends its answer; if so its completion is recorded."""
        token = row.ids[-1]
        stopped = token == self.eos_id
        if self.stops and not stopped:
            row.tail += self.token_bytes[token]
            stopped = any(stop in row.tail for stop in self.stops)
            # As long as the longest stop text: one that began earlier cannot end in the next token.
            row.tail = row.tail[-max(map(len, self.stops)) :]
        if not stopped and len(row.ids) < row.limit:
            return False
        text = completion_text(self.tokenizer, row.ids, self.sampling.stop)
        self.completions[row.prompt] = Completion(row.ids, text, row.logprobs, "stop" if stopped else "length")
        return True


def completion_text(tokenizer: Tokenizer, ids: Sequence[int], stop: Sequence[str]) -> str:
    """Text of an answer without control tokens, cut before the first stop text (which a control token may be
    part of).
    """
    if not stop:
        return tokenizer.decode(list(ids))
    pieces = [tokenizer.token_bytes()[token] for token in ids]
    whole = b"".join(pieces)
    # Searched in the bytes of the whole answer, since a stop text may begin in one token and end in another.
    cut = min((at for at in (whole.find(text.encode()) for text in stop) if at >= 0), default=len(whole))
    control, kept, start = set(tokenizer.control_ids.tolist()), b"", 0
    for token, piece in zip(ids, pieces, strict=True):
        if token not in control:
            kept += piece[: max(0, cut - start)]
        start += len(piece)
    return kept.decode("utf-8", errors="replace")
