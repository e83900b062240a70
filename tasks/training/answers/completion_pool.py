"""Answers of several models to one prompt: served models, checkpoints of the store, and the policy itself (RECIPE G, Table 25).

The published pool has 20 models and the finetuned model; 4 of them answer each prompt. Who answers a prompt depends on the seed
and the prompt's id alone. So only those are asked, and prompts that are added change nothing for the others. The share of the
policy's own answers is not published and has to be named.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from infra.language_models.protocol import Answer
from infra.workspace import Workspace
from model.config import Config
from model.decoding.generate import Completion, Generator, Sampling
from tasks.prompting import LanguageModelConfig
from tasks.training.answers.verified_answers import EncodedPrompt, VerifiedAnswer, verdict_on

if TYPE_CHECKING:
    # Stages without a server do not load the HTTP client.
    from infra.language_models.client import Endpoint

POLICY = "policy"
"""Name of the policy among those that answer."""


class ServedMember(Config):
    """A model that a server answers for: `execution.endpoints` says where, by the model's name."""

    kind: Literal["served"] = "served"
    name: str = Field(min_length=1)
    """Name in the rows and in the record."""
    model: LanguageModelConfig
    """Which model, and how it is sampled."""


class CheckpointMember(Config):
    """A checkpoint of the store, sampled as the policy is."""

    kind: Literal["checkpoint"] = "checkpoint"
    name: str = Field(min_length=1)
    """Name in the rows and in the record."""
    checkpoint: str
    """Its id in the store."""


PoolMember = Annotated[ServedMember | CheckpointMember, Field(discriminator="kind")]


class PoolConfig(Config):
    """Who else answers."""

    on_policy: float = Field(ge=0, le=1)
    """Share of the answers that the policy gives itself (not published)."""
    members: tuple[PoolMember, ...] = Field(min_length=1)
    """The others. No member answers a prompt twice before each has answered it once."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [member.name for member in self.members]
        if POLICY in names or len(set(names)) < len(names):
            raise ValueError(
                f"preferences.pool: members are called {', '.join(names)}; give each a name of its own, other than {POLICY!r}"
            )
        return self

    @property
    def served(self) -> list[ServedMember]:
        """The members that servers answer for."""
        return [member for member in self.members if isinstance(member, ServedMember)]

    @property
    def checkpoints(self) -> list[CheckpointMember]:
        """The members that are checkpoints of the store, in the order in which a stage is given them."""
        return [member for member in self.members if isinstance(member, CheckpointMember)]


class Turn(NamedTuple):
    """One answer that is asked for."""

    prompt: int
    """Place of the prompt in its shard."""
    slot: int
    """Place among the prompt's answers."""
    copy: int
    """How often the same member answers this prompt before."""


@dataclass(frozen=True)
class PooledAnswer:
    """An answer and who gave it."""

    by: str
    answer: VerifiedAnswer


def drawn_members(pool: PoolConfig, samples: int, seed: int, id: str) -> list[str]:
    """Who gives each of a prompt's answers, by the seed and the prompt's id."""
    key = int.from_bytes(blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    generator = np.random.default_rng([seed, key])
    own = generator.random(samples) < pool.on_policy
    names = [member.name for member in pool.members]
    # A new order of all members once each has had its turn.
    rounds = [names[i] for _ in range(-(-samples // len(names))) for i in generator.permutation(len(names))]
    others = iter(rounds)
    return [POLICY if mine else next(others) for mine in own]


def turns_of(drawn: Sequence[Sequence[str]]) -> dict[str, list[Turn]]:
    """What each member is asked, prompt after prompt."""
    found: dict[str, list[Turn]] = {}
    for prompt, names in enumerate(drawn):
        seen: Counter[str] = Counter()
        for slot, name in enumerate(names):
            found.setdefault(name, []).append(Turn(prompt, slot, seen[name]))
            seen[name] += 1
    return found


def ask_served(
    ws: Workspace, member: ServedMember, prompts: Sequence[EncodedPrompt], turns: Sequence[Turn]
) -> tuple[dict[Turn, VerifiedAnswer], dict[str, int | float]]:
    """What a served model answers, where it does, and what was asked and paid."""
    with ws.endpoint(member.model.model) as endpoint:
        requests = (
            # Another seed where it answers a prompt again: equal requests have one remembered answer.
            member.model.reply(prompts[turn.prompt].row["messages"], member.model.seed + turn.copy)
            for turn in turns
        )
        found: dict[Turn, VerifiedAnswer] = {}
        for turn, answer in zip(turns, endpoint.ask(requests), strict=True):
            if completion := read_completion(answer):
                found[turn] = VerifiedAnswer(completion, verdict_on(prompts[turn.prompt].row, completion.text))
    return found, numbers_of(endpoint)


def numbers_of(endpoint: "Endpoint") -> dict[str, int | float]:
    """What an endpoint was asked and what that cost, without what cannot be added up over shards."""
    return {key: value for key, value in endpoint.facts().items() if isinstance(value, int | float)}


def read_completion(answer: Answer) -> Completion | None:
    """A server's text as a completion without ids; None where it refused, said nothing, or ended for a reason of its own.

    An answer that was cut off stays, as the policy's own do.
    """
    text = answer.text.strip()
    if answer.finish == "stop" and text:
        return Completion([], text, [], "stop")
    return Completion([], text, [], "length") if answer.finish == "length" and text else None


def ask_checkpoint(
    generator: Generator,
    encode: Callable[[EncodedPrompt], Sequence[int] | None],
    prompts: Sequence[EncodedPrompt],
    turns: Sequence[Turn],
    sampling: Sampling,
) -> dict[Turn, VerifiedAnswer]:
    """What a checkpoint answers. `encode` gives a prompt in its vocabulary, or None where that has no room for an answer."""
    asked = [(turn, ids) for turn in turns if (ids := encode(prompts[turn.prompt])) is not None]
    completions = generator([list(ids) for _, ids in asked], replace(sampling, first_prompt=0)) if asked else []
    return {
        turn: VerifiedAnswer(completion, verdict_on(prompts[turn.prompt].row, completion.text))
        for (turn, _), completion in zip(asked, completions, strict=True)
    }


def gathered(count: int, answers: dict[str, dict[Turn, VerifiedAnswer]]) -> list[list[PooledAnswer]]:
    """Each prompt's answers in the order of their slots; slots without one are left out."""
    groups: list[list[tuple[int, PooledAnswer]]] = [[] for _ in range(count)]
    for name, found in answers.items():
        for turn, answer in found.items():
            groups[turn.prompt].append((turn.slot, PooledAnswer(name, answer)))
    return [[pooled for _, pooled in sorted(group, key=lambda item: item[0])] for group in groups]
