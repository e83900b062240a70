"""Instructions without one right answer: the model's answers are stored, and `judge` scores them (RECIPE I.4).

AlpacaEval 2 asks whether an answer is better than that of another model (`preferred`). Sets of safety ask whether the model
refuses what it should refuse and nothing else (`refuses`), or whether its answer does harm (`harmless`). Until a judge has read
the answers, the score is the share of instructions that got any.
"""

from collections.abc import Sequence
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from model.config import Config
from model.tokens.chat import Message
from tasks.data.sources.rows import RowSource, field_of, read_good_rows
from tasks.evaluation.benchmarks.items import Generation, Item, ItemScore, LikelihoodAnswer, Prompt, subsample

JudgeQuestion = Literal["preferred", "refuses", "harmless"]
Reaction = Literal["refuse", "comply"]
"""What a model should do with a request."""
RULE = "\n\n---\n\n"
"""Between the text that a request is about and the request, as HarmBench's contextual behaviours have it."""


class InstructionsBenchmark(Config):
    """Instructions, and what a judge is asked of their answers."""

    kind: Literal["instructions"] = "instructions"
    name: str
    """Name in scores and reports."""
    rows: RowSource
    question: JudgeQuestion
    """`preferred`: is it better than `reference`? `refuses`: does the model refuse exactly where it should? `harmless`: does the
    answer do no harm?"""
    instruction: str = "instruction"
    """Field of a row with the instruction."""
    reference: str = ""
    """Of `preferred`: field with the other model's answer."""
    before: str = ""
    """Field with a text that the instruction is about; it stands before the instruction, if it is not empty."""
    wanted: str = ""
    """Of `refuses`: field that says `refuse` or `comply`; empty where every instruction should be refused."""
    reactions: dict[str, Reaction] = Field(default_factory=dict[str, Reaction])
    """Of `wanted`: what its values mean, such as {safe: comply, unsafe: refuse}; empty where they are these words themselves."""
    keep: dict[str, tuple[str, ...]] = Field(default_factory=dict[str, tuple[str, ...]])
    """Only rows whose fields have one of these values, such as {split: [test]}; empty for all rows."""
    limit: int | None = Field(default=None, ge=1)
    """Instructions to ask; None for all, or 1,000 of a set larger than 1,500."""
    max_new_tokens: int = Field(default=2048, ge=1)
    """Answers are cut after this many tokens."""
    context: int = Field(default=4096, ge=2)
    """Tokens of prompt and answer together."""

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if (self.question == "preferred") != bool(self.reference):
            raise ValueError(
                f"question={self.question} with reference={self.reference!r}: `preferred` compares with the answer in that "
                "field of a row, and the other questions compare with nothing"
            )
        if self.wanted and self.question != "refuses":
            raise ValueError(f"wanted={self.wanted!r} is read where the question is `refuses`, not {self.question!r}")
        if self.reactions and not self.wanted:
            raise ValueError(
                f"reactions={self.reactions} say what the values of field `wanted` mean, and none is given"
            )
        return self

    @property
    def primary(self) -> str:
        """What counts before a judge has read the answers."""
        return "answered"

    def pinned(self) -> Self:
        """The config with its rows pinned."""
        return self.model_copy(update={"rows": self.rows.pinned()})


def load_items(config: InstructionsBenchmark) -> list[Item]:
    """Items named by the place of their row, from 0. Raises ValueError for a row without a field that the config names."""
    items = []
    for place, row in enumerate(read_good_rows(config.rows)):
        where = f"{config.name} row {place + 1}"
        if any(field_of(row, name, where) not in values for name, values in config.keep.items()):
            continue
        instruction = field_of(row, config.instruction, where)
        if config.before and (text := field_of(row, config.before, where)):
            instruction = f"{text}{RULE}{instruction}"
        data = {
            "question": instruction,
            "reference": field_of(row, config.reference, where) if config.reference else "",
            "wanted": _wanted(config, field_of(row, config.wanted, where), where) if config.wanted else "refuse",
        }
        items.append(Item(str(place), instruction, "", data))
    if not items:
        raise ValueError(
            f"{config.name} has no row with {config.keep or 'an instruction'}; look at the fields of its rows"
        )
    return subsample(items, config.limit)


def _wanted(config: InstructionsBenchmark, value: str, where: str) -> Reaction:
    """What the model should do, by a row's field. Raises ValueError for a value that says neither."""
    words = config.reactions or {word: word for word in get_args(Reaction)}
    if value not in words:
        raise ValueError(f"{where}: {config.wanted}={value!r}; it says {' or '.join(words)}")
    return words[value]


def requests(config: InstructionsBenchmark, items: Sequence[Item], chat: bool) -> list[tuple[Generation]]:
    """One generation per instruction."""
    return [(Generation(instruction_prompt(item, chat), config.max_new_tokens),) for item in items]


def instruction_prompt(item: Item, chat: bool) -> Prompt:
    """The instruction as a user's message, or as a text to continue on a new line."""
    if chat:
        return Prompt(messages=(Message(role="user", content=item.question),))
    return Prompt(text=item.question + "\n")


def score(
    config: InstructionsBenchmark, item: Item, answers: Sequence[str | LikelihoodAnswer], chat: bool
) -> ItemScore:
    """Whether there is an answer, and its length; what it is worth says the judge."""
    (text,) = answers
    assert isinstance(text, str)
    return ItemScore({"answered": float(bool(text.strip())), "characters": float(len(text))}, text, "")
