"""Preference pairs: the policy answers each prompt several times, a judge rates, the ratings are binarised.

Source: RECIPE G. Deviations: all answers are on-policy, where the paper mixes them with those of twenty other models. Unless
told otherwise the judge applies rules to the verifiers' verdicts (`tasks.training.answers.rule_judge`), where the paper asks
GPT-4o (`tasks.training.answers.model_judge`). Besides the pairs, `samples/*.jsonl.zst` keeps every answer with its ratings,
and `unrated/*.jsonl.zst` the prompts whose ratings could not be read.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal, TypedDict

import numpy as np
from pydantic import Field

from infra.stage import stage
from infra.workspace import ShardItem, ShardResult, Workspace
from model.config import Config, Precision
from model.decoding.generate import Sampling
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Checkpoint, Preferences, Prompts
from tasks.generation import checkpoint_generator, halve
from tasks.training.answers.model_judge import LanguageModelJudge, Ratings, judge_requests, read_judgements
from tasks.training.answers.rule_judge import binarise, mean_rating, observe, rate
from tasks.training.answers.verified_answers import (
    EncodedPrompt,
    VerifiedAnswer,
    decoding_rows,
    encode_prompts,
    longest_prompt,
    mixed_seed,
    sample_answers,
)
from tasks.training.fitting.fit import load_checkpoint, outline_checkpoint

SHARD_PROMPTS = 128
"""Prompts that are sampled and committed together; each shard has its own random numbers."""


SHOWN_PAIRS = 20
"""Pairs in the dashboard's table."""


class VerifierJudge(Config):
    """Rules on the verifiers' verdicts."""

    kind: Literal["verifiers"] = "verifiers"


class PreferencesConfig(Config):
    """How to make preference pairs (RECIPE G)."""

    kind: Literal["sampled"] = Field(default="sampled", exclude=True)
    """Sampled and judged here; `pairs` reads released ones (`pairs` stage). It takes no part in the identity."""
    samples: int = Field(default=4, ge=2)
    """Answers per prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature (not published for the on-policy answers)."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Longer prompts are left out, and those that leave less than `max_new_tokens` of the model's window."""
    max_new_tokens: int = Field(default=2048, ge=1)
    """Answers are cut after this many tokens."""
    judge: Annotated[VerifierJudge | LanguageModelJudge, Field(discriminator="kind")] = VerifierJudge()
    """Who rates: rules on the verifiers' verdicts, or a language model."""
    ties: Literal["keep", "drop"] = "keep"
    """Pairs with equal ratings: the paper asks for no margin and keeps them."""
    precision: Precision = "bf16"
    """Type of activations and matmuls while sampling."""
    seed: int = 1
    """Sampling and choice of the rejected answer."""


def build_preferences(ws: Workspace, policy: Checkpoint, prompts: Prompts, config: PreferencesConfig) -> Preferences:
    """Sample, rate and binarise; shards of prompts are committed one by one, on all GPUs where the policy is sampled here.

    Raises ValueError when no pair is left or answers alone fill the policy's window.
    """
    inputs = {"policy": policy.model_dump(mode="json"), "prompts": prompts.model_dump(mode="json")}
    items = [
        inputs | {"config": config.model_dump(mode="json"), "start": start}
        # Shards by place in the file, so that a shard's content does not depend on the number of workers.
        for start in range(0, prompts.prompts, SHARD_PROMPTS)
    ]
    shards = ws.map(
        sample_and_rate,
        items,
        description="sample and rate",
        load=partial(load_policy, policy=policy, precision=config.precision),
        device=ws.compute.device if ws.generation == "local" else "cpu",
    )
    rows = [row for shard in shards for row in shard["pairs"]]
    ties = sum(row["chosen_rating"] == row["rejected_rating"] for row in rows)
    # After counting: the record says how many ties there were, whatever is done with them.
    if config.ties == "drop":
        rows = [row for row in rows if row["chosen_rating"] != row["rejected_rating"]]
    unrated = sum(shard["unrated"] for shard in shards)
    ws.note(prompts_too_long=sum(shard["too_long"] for shard in shards), ties=ties, unrated=unrated)
    ws.note(generation=ws.generation)
    if asked := [shard["endpoint"] for shard in shards if shard["endpoint"]]:
        # Costs of all shards together, since each asked the endpoint by itself.
        ws.note(endpoint={key: sum(usage[key] for usage in asked) for key in asked[0]})
    if not rows:
        raise ValueError(
            f"no pair is left of {prompts.prompts:,} prompts ({ties:,} ties, ties={config.ties!r}, {unrated:,} unrated); "
            "use ties='keep', more prompts or a higher temperature"
        )
    ws.write_jsonl("preferences.jsonl.zst", rows)
    ws.table("preferences", [_shown(row) for row in rows[:SHOWN_PAIRS]])
    return ws.artifact(
        Preferences,
        pairs=len(rows),
        ties=ties,
        mean_chosen=sum(row["chosen_rating"] for row in rows) / len(rows),
        mean_rejected=sum(row["rejected_rating"] for row in rows) / len(rows),
    )


def load_policy(ws: Workspace, policy: Checkpoint, precision: Precision) -> tuple[Transformer, Tokenizer]:
    """Once per worker: the policy on the device and its tokenizer. The weights stay where they are if a server has them."""
    if ws.generation == "endpoint":
        # A server has the weights; the stage needs the tokenizer and the window only.
        return outline_checkpoint(ws, policy)
    model, tokenizer = load_checkpoint(ws, policy)
    # Every worker holds a copy of its own, so half the bytes count many times.
    if precision == "bf16":
        halve(model)
    return model.to(ws.compute.device), tokenizer


def sample_and_rate(ws: Workspace, item: ShardItem, loaded: tuple[Transformer, Tokenizer]) -> ShardResult:
    """One shard: the answers to its prompts, kept with their ratings; returns the pairs. `loaded` is from `load_policy`."""
    config = PreferencesConfig(**item["config"])
    start = item["start"]
    policy = Checkpoint(**item["policy"])
    model, tokenizer = loaded
    limit = longest_prompt(model, config.max_prompt_tokens, config.max_new_tokens)
    rows = list(ws.read_jsonl(Prompts(**item["prompts"]), "prompts.jsonl.zst"))[start : start + SHARD_PROMPTS]
    prompts, too_long = encode_prompts(tokenizer, rows, limit)
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        # A seed per shard, so that answers do not depend on which worker takes which shard, or when.
        seed=mixed_seed(config.seed, start),
    )
    together = decoding_rows(model, prompts, config.max_new_tokens, config.precision)
    with checkpoint_generator(ws, policy, model, tokenizer, config.precision, together) as generate:
        groups = sample_answers(generate, prompts, config.samples, sampling)
    ratings, unrated, usage = rate_all(ws, config, prompts, groups)
    rated = [
        (prompt, [rated_sample(prompt, answer, own) for answer, own in zip(group, found, strict=True)])
        for prompt, group, found in zip(prompts, groups, ratings, strict=True)
        if found
    ]
    ws.write_jsonl(f"samples/{start:08d}.jsonl.zst", (sample for _, group in rated for sample in group))
    if unrated:
        ws.write_jsonl(f"unrated/{start:08d}.jsonl.zst", unrated)
    # Keyed by the shard's start: the choice of the rejected answer is the same on a retry.
    generator = np.random.default_rng([config.seed, start])
    return {
        "pairs": [make_pair(prompt, group, generator) for prompt, group in rated],
        "too_long": too_long,
        "unrated": len(unrated),
        "endpoint": usage,
    }


class UnratedPrompt(TypedDict):
    """A prompt whose judgements cannot be read."""

    id: str
    reason: str
    said: list[str]


class RatedSample(TypedDict):
    """One answer with its verdict and its ratings."""

    id: str
    text: str
    finished: bool
    correct: bool | None
    """None without a verdict."""
    ratings: Ratings
    """Per aspect."""
    rating: float
    """Their mean."""


class BinarisedPair(TypedDict):
    """The binarised row of one prompt."""

    id: str
    dataset: str
    chosen: list[dict[str, str]]
    """The conversation with the better answer."""
    rejected: list[dict[str, str]]
    chosen_rating: float
    rejected_rating: float
    chosen_ratings: Ratings
    rejected_ratings: Ratings


def rate_all(
    ws: Workspace,
    config: PreferencesConfig,
    prompts: Sequence[EncodedPrompt],
    groups: Sequence[Sequence[VerifiedAnswer]],
) -> tuple[list[list[Ratings]], list[UnratedPrompt], dict[str, int | float]]:
    """(ratings of each prompt's answers, none where they cannot be read; those prompts with the reason; what it cost)."""
    judge = config.judge
    if isinstance(judge, VerifierJudge):
        pairs = zip(prompts, groups, strict=True)
        return [[rated_by_rules(prompt, answer) for answer in group] for prompt, group in pairs], [], {}
    requests = (
        request
        for prompt, group in zip(prompts, groups, strict=True)
        for request in judge_requests(judge, instruction_of(prompt), [answer.completion.text for answer in group])
    )
    with ws.endpoint(judge.model.model) as endpoint:
        # All at once, so that the client keeps its slots full across prompts.
        answers = list(endpoint.ask(requests))
    ratings: list[list[Ratings]] = []
    unrated: list[UnratedPrompt] = []
    size = len(judge.prompts)
    for place, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
        # A request per aspect, prompt after prompt: a prompt's answers are a run of `size`.
        said = answers[place * size : (place + 1) * size]
        found, reason = read_judgements(said, len(group), judge.reading)
        ratings.append(found)
        if reason:
            unrated.append(
                {"id": prompt.row["id"], "reason": reason, "said": [one.refused or one.text for one in said]}
            )
    usage = {key: value for key, value in endpoint.facts().items() if isinstance(value, int | float)}
    return ratings, unrated, usage


def instruction_of(prompt: EncodedPrompt) -> str:
    """What the answers reply to: the message, or the conversation with its roles."""
    messages = prompt.row["messages"]
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def rated_by_rules(prompt: EncodedPrompt, answer: VerifiedAnswer) -> Ratings:
    """The rule-based judge's ratings of one answer."""
    verdict, text = answer.verdict, answer.completion.text
    facts = observe(prompt.row["dataset"], text, verdict.extracted, correct=verdict.correct, finished=answer.finished)
    return dict(rate(facts))


def rated_sample(prompt: EncodedPrompt, answer: VerifiedAnswer, ratings: Ratings) -> RatedSample:
    """One answer with its verdict, if it has one, its ratings per aspect and their mean."""
    return {
        "id": prompt.row["id"],
        "text": answer.completion.text,
        "finished": answer.finished,
        "correct": answer.judged and answer.judged.correct,
        "ratings": ratings,
        "rating": mean_rating(ratings),
    }


def make_pair(prompt: EncodedPrompt, samples: list[RatedSample], generator: np.random.Generator) -> BinarisedPair:
    """The binarised row of one prompt."""
    best, other = binarise([sample["rating"] for sample in samples], generator)
    chosen, rejected = samples[best], samples[other]

    def conversation(text: str) -> list[dict[str, str]]:
        return [*prompt.row["messages"], {"role": "assistant", "content": text}]

    return {
        "id": prompt.row["id"],
        "dataset": prompt.row["dataset"],
        "chosen": conversation(chosen["text"]),
        "rejected": conversation(rejected["text"]),
        "chosen_rating": chosen["rating"],
        "rejected_rating": rejected["rating"],
        "chosen_ratings": chosen["ratings"],
        "rejected_ratings": rejected["ratings"],
    }


def _shown(row: BinarisedPair) -> dict[str, str]:
    """A pair as a line of the dashboard's table."""
    return {
        # [-2]: the last message before the answer is what was asked.
        "prompt": row["chosen"][-2]["content"],
        "chosen": row["chosen"][-1]["content"],
        "rejected": row["rejected"][-1]["content"],
        "ratings": f"{row['chosen_rating']:.2f} / {row['rejected_rating']:.2f}",
    }


preferences = stage(build_preferences, name="preferences", version=2, process=True, sharded=True)
