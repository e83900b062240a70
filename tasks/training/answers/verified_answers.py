"""Answers of a policy to prompts, with the verifiers' verdicts: what preferences and RLVR both begin with.

Source: RECIPE H.1 (prompt rows; longer prompts are left out), H.2 and H.3 (several answers per prompt,
temperature 1). How many rows decode together is a matter of this machine's memory: it changes speed, and results by
rounding only, so it takes no part in an identity.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from infra.json_values import JsonObject
from model.config import Precision
from model.data.chat_batches import LabelledRow, make_row
from model.decoding.generate import Completion, Generator, Sampling
from model.decoding.kv_cache import rows_that_fit
from model.network.transformer import Transformer
from model.parallel.group import Group
from model.tokens.chat import encode_prompt
from model.tokens.tokenizer import Tokenizer
from tasks.generation import own_share
from tasks.verifiers import Rules, Verdict, verify

MOST_ROWS = 1024
"""Rows that decode together at most. On a core, 256 decode 1.35 times as fast as 64, 1,024 do 1.55 times as fast."""
HOST_SHARE = 8
"""This part of a host's memory, or less, is for the KV cache. It is the same at every resume, as free memory is not."""


@dataclass(frozen=True)
class EncodedPrompt:
    """One row of a `Prompts` artifact, encoded up to the answer's header."""

    row: JsonObject
    ids: list[int]


@dataclass(frozen=True)
class VerifiedAnswer:
    """One sampled answer and what its verifier says; None where the prompt has no ground truth."""

    completion: Completion
    judged: Verdict | None

    @property
    def verdict(self) -> Verdict:
        """The verifier's, which reinforcement and the rule-based judge cannot do without."""
        if self.judged is None:
            raise ValueError(
                "a prompt without ground truth has no verdict; use prompts with one, or a language model as the judge of "
                "preferences"
            )
        return self.judged

    @property
    def finished(self) -> bool:
        """It ended by itself, not at the token limit."""
        return self.completion.finish == "stop"


def encode_prompts(
    tokenizer: Tokenizer, rows: Iterable[JsonObject], max_tokens: int
) -> tuple[list[EncodedPrompt], int]:
    """Prompts of at most `max_tokens` tokens, and how many were longer."""
    prompts = [EncodedPrompt(row, encode_prompt(tokenizer, row["messages"])) for row in rows]
    kept = [prompt for prompt in prompts if len(prompt.ids) <= max_tokens]
    return kept, len(prompts) - len(kept)


def longest_prompt(model: Transformer, max_prompt_tokens: int, max_new_tokens: int) -> int:
    """Tokens a prompt may have so that its whole answer fits in the model's window, at most `max_prompt_tokens`.

    Raises ValueError where the answer alone fills the window.
    """
    window = model.config.max_sequence_length
    if max_new_tokens >= window:
        raise ValueError(
            f"max_new_tokens={max_new_tokens:,} leaves no room for a prompt in the model's window of {window:,}; lower it"
        )
    return min(max_prompt_tokens, window - max_new_tokens)


def decoding_rows(
    model: Transformer,
    prompts: Sequence[EncodedPrompt],
    max_new_tokens: int,
    precision: Precision,
    memory: int | None = None,
) -> int:
    """Rows that answer these prompts together: as many as their KV cache leaves room for, at most `MOST_ROWS`.

    `memory` is that of the host in bytes, by default what this one has. An accelerator's is looked at by the decoder.
    """
    # Elsewhere the decoder looks at the device's free memory itself.
    if model.device.type != "cpu":
        return MOST_ROWS
    # All memory, not the free part: free memory differs from resume to resume, and rows change rounding.
    total = memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    longest = max((len(prompt.ids) for prompt in prompts), default=0) + max_new_tokens
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    length = min(longest, model.config.max_sequence_length)
    return rows_that_fit(model.config, MOST_ROWS, length, dtype, total // HOST_SHARE)


def sample_answers(
    generator: Generator,
    prompts: Sequence[EncodedPrompt],
    samples: int,
    sampling: Sampling,
    *,
    first: int = 0,
    rules: Rules = "correct",
) -> list[list[VerifiedAnswer]]:
    """`samples` verified answers per prompt, a function of the generator's weights, prompts and `sampling` alone.

    `first`: place of the first prompt among all, where these are a part of them that is answered by itself. `rules`: how the
    verifiers read answers.
    """
    # The noise is keyed by the place among all prompts, so shares of a group draw what one process would.
    sampling = replace(sampling, first_prompt=first * samples)
    # Repeated per sample: prompt p, sample s stands at p * samples + s.
    completions = generator([prompt.ids for prompt in prompts for _ in range(samples)], sampling)
    answers = []
    for index, completion in enumerate(completions):
        answers.append(VerifiedAnswer(completion, verdict_on(prompts[index // samples].row, completion.text, rules)))
    return [answers[start : start + samples] for start in range(0, len(answers), samples)]


def verdict_on(row: JsonObject, text: str, rules: Rules = "correct") -> Verdict | None:
    """What the row's verifier says of an answer; None where the row has no ground truth."""
    return None if row["ground_truth"] is None else verify(row["dataset"], text, row["ground_truth"], rules)


def answers_in_group(
    generator: Generator,
    prompts: Sequence[EncodedPrompt],
    samples: int,
    sampling: Sampling,
    group: Group,
    rules: Rules = "correct",
) -> list[list[VerifiedAnswer]]:
    """The same, of which every worker of a group makes its share; all of them get all answers."""
    first, end = own_share(len(prompts), group)
    own = sample_answers(generator, prompts[first:end], samples, sampling, first=first, rules=rules)
    return [answers for part in group.exchange(own) for answers in part]


def answer_row(prompt: EncodedPrompt, answer: VerifiedAnswer, eos_id: int) -> LabelledRow:
    """Prompt and answer as one row; trained are the answer's tokens and the EOS that the policy chose."""
    tokens = [int(i) for i in answer.completion.ids]
    # A server may leave the EOS out of the ids, though the policy chose it.
    if answer.finished and (not tokens or tokens[-1] != eos_id):
        tokens.append(eos_id)
    ids = np.array([*prompt.ids, *tokens], dtype=np.uint32)
    # The prompt is context: only tokens from its end on are learnt.
    return make_row(ids, np.arange(len(ids)) >= len(prompt.ids))


def mixed_seed(*parts: int) -> int:
    """One seed out of several numbers, different for different numbers."""
    # SeedSequence mixes the numbers, so (1, 23) and (12, 3) give unrelated seeds.
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])
