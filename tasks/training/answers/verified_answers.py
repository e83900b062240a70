"""Answers of a policy to prompts, with the verifiers' verdicts: what preferences and RLVR both begin with.

Source: RECIPE H.1 (prompt rows; longer prompts are left out), H.2 and H.3 (several answers per prompt,
temperature 1).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from model.data.chat_batches import Row, make_row
from model.decoding.generate import Completion, Generator, Sampling
from model.network.transformer import Transformer
from model.parallel.group import Group
from model.tokens.chat import encode_prompt
from model.tokens.tokenizer import Tokenizer
from tasks.generation import own_share
from tasks.verifiers import Verdict, verify


@dataclass(frozen=True)
class Prompt:
    """One row of a `Prompts` artifact, encoded up to the answer's header."""

    row: dict[str, Any]
    ids: list[int]


@dataclass(frozen=True)
class Answer:
    """One sampled answer and what its verifier says."""

    completion: Completion
    verdict: Verdict

    @property
    def finished(self) -> bool:
        """It ended by itself, not at the token limit."""
        return self.completion.finish == "stop"


def encode_prompts(tokenizer: Tokenizer, rows: Iterable[dict[str, Any]], max_tokens: int) -> tuple[list[Prompt], int]:
    """Prompts of at most `max_tokens` tokens, and how many were longer."""
    prompts = [Prompt(row, encode_prompt(tokenizer, row["messages"])) for row in rows]
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


def sample_answers(
    generator: Generator, prompts: Sequence[Prompt], samples: int, sampling: Sampling, *, first: int = 0
) -> list[list[Answer]]:
    """`samples` verified answers per prompt, a function of the generator's weights, prompts and `sampling` alone.

    `first`: place of the first prompt among all, where these are a part of them that is answered by itself.
    """
    sampling = replace(sampling, first_prompt=first * samples)
    completions = generator([prompt.ids for prompt in prompts for _ in range(samples)], sampling)
    answers = []
    for index, completion in enumerate(completions):
        row = prompts[index // samples].row
        answers.append(Answer(completion, verify(row["dataset"], completion.text, row["ground_truth"])))
    return [answers[start : start + samples] for start in range(0, len(answers), samples)]


def answers_in_group(
    generator: Generator, prompts: Sequence[Prompt], samples: int, sampling: Sampling, group: Group
) -> list[list[Answer]]:
    """The same, of which every worker of a group makes its share; all of them get all answers."""
    first, end = own_share(len(prompts), group)
    own = sample_answers(generator, prompts[first:end], samples, sampling, first=first)
    return [answers for part in group.exchange(own) for answers in part]


def answer_row(prompt: Prompt, answer: Answer, eos_id: int) -> Row:
    """Prompt and answer as one row; trained are the answer's tokens and the EOS that the policy chose."""
    tokens = [int(i) for i in answer.completion.ids]
    if answer.finished and (not tokens or tokens[-1] != eos_id):
        tokens.append(eos_id)
    ids = np.array([*prompt.ids, *tokens], dtype=np.uint32)
    return make_row(ids, np.arange(len(ids)) >= len(prompt.ids))


def mixed_seed(*parts: int) -> int:
    """One seed out of several numbers, different for different numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])
