"""Preference pairs: the policy answers each prompt several times, a judge rates, the ratings are binarised.

Source: RECIPE G. Deviations: unless told otherwise all answers are on-policy, where the paper mixes them with those of twenty
other models (`pool`, `tasks.training.answers.completion_pool`). Unless told otherwise the judge applies rules to the verifiers'
verdicts (`tasks.training.answers.rule_judge`), where the paper asks GPT-4o (`tasks.training.answers.model_judge`). Besides the
pairs, `samples/*.jsonl.zst` keeps every answer with its ratings, and `unrated/*.jsonl.zst` the prompts whose ratings could not
be read or that fewer than two members of the pool answered.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from infra.stage import stage
from infra.workspace import Loading, ShardItem, ShardResult, Workspace
from model.config import Config, Precision
from model.decoding.generate import Sampling
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Checkpoint, Preferences, Prompts
from tasks.generation import checkpoint_generator, halve
from tasks.training.answers.binarised import (
    BinarisedPair,
    RatedSample,
    UnratedPrompt,
    instruction_of,
    make_pair,
    rated_by_rules,
    rated_sample,
)
from tasks.training.answers.completion_pool import (
    POLICY,
    PoolConfig,
    PooledAnswer,
    Turn,
    ask_checkpoint,
    ask_served,
    drawn_members,
    gathered,
    numbers_of,
    turns_of,
)
from tasks.training.answers.model_judge import JudgedGroup, LanguageModelJudge, Ratings, judge_groups
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
    margin: float = Field(default=0.0, ge=0, exclude_if=lambda value: value == 0)
    """How much lower the rejected answer is rated at least; a prompt without such an answer gives no pair."""
    pool: PoolConfig | None = Field(default=None, exclude_if=lambda value: value is None)
    """Other models that answer too; `samples` answers of all together for each prompt."""
    precision: Precision = "bf16"
    """Type of activations and matmuls while sampling."""
    seed: int = 1
    """Sampling and choice of the rejected answer."""


def build_preferences(
    ws: Workspace,
    policy: Checkpoint,
    prompts: Prompts,
    config: PreferencesConfig,
    others: Sequence[Checkpoint] = (),
) -> Preferences:
    """Sample, rate and binarise; shards of prompts are committed one by one, on all GPUs where the policy is sampled here.

    `others` are the checkpoints of the pool, in its order. Raises ValueError when no pair is left or answers alone fill the
    policy's window.
    """
    inputs: ShardItem = {"policy": policy.model_dump(mode="json"), "prompts": prompts.model_dump(mode="json")}
    inputs["others"] = [checkpoint.model_dump(mode="json") for checkpoint in others]
    items = [
        inputs | {"config": config.model_dump(mode="json"), "start": start}
        # Shards by place in the file, so that a shard's content does not depend on the number of workers.
        for start in range(0, prompts.prompts, SHARD_PROMPTS)
    ]
    shards = ws.map(
        sample_and_rate,
        items,
        description="sample and rate",
        loading=Loading(
            partial(load_samplers, checkpoints=(policy, *others), precision=config.precision),
            ws.compute.device if ws.generation == "local" else "cpu",
        ),
    )
    shards = [_with_all_fields(shard) for shard in shards]
    rows = [row for shard in shards for row in shard["pairs"]]
    ties = sum(row["chosen_rating"] == row["rejected_rating"] for row in rows)
    # After counting: the record says how many ties there were, whatever is done with them.
    if config.ties == "drop":
        rows = [row for row in rows if row["chosen_rating"] != row["rejected_rating"]]
    unrated, close = (sum(shard[name] for shard in shards) for name in ("unrated", "below_margin"))
    ws.note(prompts_too_long=sum(shard["too_long"] for shard in shards), ties=ties, unrated=unrated)
    ws.note(generation=ws.generation)
    _note_others(ws, config, shards)
    if not rows:
        raise ValueError(
            f"no pair is left of {prompts.prompts:,} prompts ({ties:,} ties, ties={config.ties!r}, {unrated:,} unrated, "
            f"{close:,} without an answer that is rated margin={config.margin:g} lower); use ties='keep', a smaller margin, more "
            "prompts or a higher temperature"
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


def _with_all_fields(shard: ShardResult) -> ShardResult:
    """A shard's result with the fields that versions before pools did not commit: what they have sampled and paid for counts."""
    usage = {JUDGE: shard["endpoint"]} if shard.get("endpoint") else {}
    return {"below_margin": 0, "swapped": 0, "agreed": 0, "endpoints": usage} | shard


def _note_others(ws: Workspace, config: PreferencesConfig, shards: Sequence[ShardResult]) -> None:
    """Tell the record who answered, how a judge agreed with itself, and what was asked and paid."""
    if config.margin:
        ws.note(below_margin=sum(shard["below_margin"] for shard in shards))
    if config.pool:
        answered, chosen = Counter[str](), Counter[str]()
        for shard in shards:
            answered.update(shard["answered"])
            chosen.update(pair["chosen_model"] for pair in shard["pairs"])
        total = answered.total()
        ws.note(answers_by_model=dict(answered), chosen_by_model=dict(chosen))
        ws.note(on_policy_share=round(answered[POLICY] / total, 4) if total else 0.0)
    if swapped := sum(shard["swapped"] for shard in shards):
        ws.note(judge_agreement=round(sum(shard["agreed"] for shard in shards) / swapped, 4))
    # Costs of all shards together, since each asked the endpoints by itself.
    usage: dict[str, Counter[str]] = {}
    for shard in shards:
        for name, found in shard["endpoints"].items():
            usage.setdefault(name, Counter()).update(found)
    if JUDGE in usage:
        ws.note(endpoint=dict(usage.pop(JUDGE)))
    if usage:
        ws.note(pool_endpoints={name: dict(found) for name, found in usage.items()})


def load_samplers(
    ws: Workspace, checkpoints: Sequence[Checkpoint], precision: Precision
) -> list[tuple[Transformer, Tokenizer]]:
    """Once per worker: the policy and the checkpoints of the pool."""
    return [load_policy(ws, checkpoint, precision) for checkpoint in checkpoints]


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


def sample_and_rate(ws: Workspace, item: ShardItem, loaded: list[tuple[Transformer, Tokenizer]]) -> ShardResult:
    """One shard: the answers to its prompts, kept with their ratings; returns the pairs. `loaded` is from `load_samplers`."""
    config = PreferencesConfig(**item["config"])
    start = item["start"]
    model, tokenizer = loaded[0]
    limit = longest_prompt(model, config.max_prompt_tokens, config.max_new_tokens)
    rows = list(ws.read_jsonl(Prompts(**item["prompts"]), "prompts.jsonl.zst"))[start : start + SHARD_PROMPTS]
    prompts, too_long = encode_prompts(tokenizer, rows, limit)
    usage: dict[str, dict[str, int | float]] = {}
    if config.pool:
        groups, usage = ask_pool(ws, config, item, prompts, loaded)
    else:
        groups = ask_policy(ws, config, item, prompts, loaded)
    # Without a second answer there is nothing to compare.
    alone = [prompt.row["id"] for prompt, group in zip(prompts, groups, strict=True) if len(group) < 2]
    asked = [(prompt, group) for prompt, group in zip(prompts, groups, strict=True) if len(group) > 1]
    judged = rate_all(ws, config, asked, usage)
    rated = [
        (prompt, _rated(prompt, group, found.ratings, named=config.pool is not None))
        for (prompt, group), found in zip(asked, judged, strict=True)
        if found.ratings
    ]
    ws.write_jsonl(f"samples/{start:08d}.jsonl.zst", (sample for _, group in rated for sample in group))
    unrated = [UnratedPrompt(id=id, reason="fewer than two answers", said=[]) for id in alone]
    unrated += [
        UnratedPrompt(id=prompt.row["id"], reason=found.reason, said=found.said)
        for (prompt, _), found in zip(asked, judged, strict=True)
        if found.reason
    ]
    if unrated:
        ws.write_jsonl(f"unrated/{start:08d}.jsonl.zst", unrated)
    # Keyed by the shard's start: the choice of the rejected answer is the same on a retry.
    generator = np.random.default_rng([config.seed, start])
    pairs = [make_pair(prompt, group, generator, config.margin) for prompt, group in rated]
    return {
        "pairs": [pair for pair in pairs if pair],
        "below_margin": pairs.count(None),
        "too_long": too_long,
        "unrated": len(unrated),
        "answered": Counter(pooled.by for group in groups for pooled in group),
        "swapped": sum(found.swapped for found in judged),
        "agreed": sum(found.agreed for found in judged),
        "endpoints": usage,
    }


def _rated(
    prompt: EncodedPrompt, group: Sequence[PooledAnswer], ratings: Sequence[Ratings], *, named: bool
) -> list[RatedSample]:
    return [
        # Where the policy alone answers, its name in every row would say nothing.
        rated_sample(prompt, pooled.answer, own, pooled.by if named else None)
        for pooled, own in zip(group, ratings, strict=True)
    ]


def _sampling(config: PreferencesConfig, *seeds: int) -> Sampling:
    return Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        # A seed per shard, so that answers do not depend on which worker takes which shard, or when.
        seed=mixed_seed(config.seed, *seeds),
    )


def ask_policy(
    ws: Workspace,
    config: PreferencesConfig,
    item: ShardItem,
    prompts: Sequence[EncodedPrompt],
    loaded: list[tuple[Transformer, Tokenizer]],
) -> list[list[PooledAnswer]]:
    """`samples` answers of the policy to every prompt."""
    model, tokenizer = loaded[0]
    together = decoding_rows(model, prompts, config.max_new_tokens, config.precision)
    policy = Checkpoint(**item["policy"])
    with checkpoint_generator(ws, policy, model, tokenizer, config.precision, together) as generate:
        groups = sample_answers(generate, prompts, config.samples, _sampling(config, item["start"]))
    return [[PooledAnswer(POLICY, answer) for answer in group] for group in groups]


def ask_pool(
    ws: Workspace,
    config: PreferencesConfig,
    item: ShardItem,
    prompts: Sequence[EncodedPrompt],
    loaded: list[tuple[Transformer, Tokenizer]],
) -> tuple[list[list[PooledAnswer]], dict[str, dict[str, int | float]]]:
    """`samples` answers to every prompt, of those who are drawn for it, and what servers were asked, by member."""
    pool = config.pool
    assert pool is not None
    turns = turns_of([drawn_members(pool, config.samples, config.seed, prompt.row["id"]) for prompt in prompts])
    found: dict[str, dict[Turn, VerifiedAnswer]] = {}
    usage: dict[str, dict[str, int | float]] = {}
    for member in pool.served:
        if member.name in turns:
            found[member.name], usage[member.name] = ask_served(ws, member, prompts, turns[member.name])
    names = [POLICY, *(member.name for member in pool.checkpoints)]
    checkpoints = [Checkpoint(**data) for data in (item["policy"], *item["others"])]
    for number, (name, checkpoint, (model, tokenizer)) in enumerate(zip(names, checkpoints, loaded, strict=True)):
        if name not in turns:
            continue
        limit = longest_prompt(model, config.max_prompt_tokens, config.max_new_tokens)
        own = {prompt.row["id"]: prompt for prompt in encode_prompts(tokenizer, [p.row for p in prompts], limit)[0]}
        together = decoding_rows(model, list(own.values()), config.max_new_tokens, config.precision)

        def encode(prompt: EncodedPrompt, own: dict[str, EncodedPrompt] = own) -> list[int] | None:
            return own[prompt.row["id"]].ids if prompt.row["id"] in own else None

        with checkpoint_generator(ws, checkpoint, model, tokenizer, config.precision, together) as generate:
            # Another seed for each of them, or equal weights would give equal answers.
            sampling = _sampling(config, item["start"], number)
            found[name] = ask_checkpoint(generate, encode, prompts, turns[name], sampling)
    return gathered(len(prompts), found), usage


JUDGE = ""
"""Key of the judge's usage: no member of a pool has it for a name."""


def rate_all(
    ws: Workspace,
    config: PreferencesConfig,
    asked: Sequence[tuple[EncodedPrompt, Sequence[PooledAnswer]]],
    usage: dict[str, dict[str, int | float]],
) -> list[JudgedGroup]:
    """The ratings of each prompt's answers; `usage` gets what a judge that is a model was asked."""
    judge = config.judge
    if isinstance(judge, VerifierJudge):
        return [
            JudgedGroup([rated_by_rules(prompt, pooled.answer) for pooled in group], "", []) for prompt, group in asked
        ]
    with ws.endpoint(judge.model.model) as endpoint:
        groups = [
            (instruction_of(prompt), [pooled.answer.completion.text for pooled in group]) for prompt, group in asked
        ]
        judged = judge_groups(endpoint, judge, groups)
    usage[JUDGE] = numbers_of(endpoint)
    return judged


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
