"""IFEval from a local file or the hub: zero-shot answers judged by 25 checks (RECIPE I.4, I.5).

Rows have `key`, `prompt`, `instruction_id_list` and `kwargs`. Primary: prompt-level loose accuracy. Base models see the
prompt as a text to continue. IFEval-OOD (ifeval_ood) has the same rows with other instructions.
"""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field

from model.config import Config
from model.tokens.chat import Message
from tasks.data.sources.rows import RowSource, field_of, read_good_rows
from tasks.evaluation.benchmarks.items import Generation, Item, ItemScore, LikelihoodAnswer, Prompt, subsample
from tasks.verifiers.ifeval import Arguments, check_instruction, judge_instructions

_FIELDS = ("prompt", "instruction_id_list", "kwargs")


class InstructionRows(Config):
    """Prompts with instructions that are checked by rules."""

    name: str
    """Name in scores and reports."""
    rows: RowSource
    limit: int | None = Field(default=None, ge=1)
    """Prompts to evaluate; None for all."""
    max_new_tokens: int = Field(default=2048, ge=1)
    context: int = Field(default=4096, ge=2)
    """Tokens of prompt and answer together: answers of 2,048 (RECIPE I.4) leave the other half of the window to prompts."""

    @property
    def primary(self) -> str:
        return "prompt_loose"

    def pinned(self) -> Self:
        """The config with its rows pinned."""
        return self.model_copy(update={"rows": self.rows.pinned()})

    def check(self, instruction: str, arguments: Arguments, text: str) -> bool:
        """Whether a text meets one instruction."""
        return check_instruction(instruction, arguments, text)


class IFEvalBenchmark(InstructionRows):
    """Verifiable instructions: 541 prompts."""

    kind: Literal["ifeval"] = "ifeval"
    name: str = "ifeval"
    """Name in scores and reports."""
    rows: RowSource = RowSource(dataset="google/IFEval", split="train")


def load_items(config: InstructionRows) -> list[Item]:
    """Items in the order of the rows."""
    items = []
    for place, row in enumerate(read_good_rows(config.rows), 1):
        prompt, instructions, kwargs = (field_of(row, name, f"{config.name} row {place}") for name in _FIELDS)
        data = {"prompt": prompt, "instructions": instructions, "kwargs": kwargs}
        items.append(Item(str(row.get("key", place)), prompt, "", data))
    return subsample(items, config.limit)


def requests(config: InstructionRows, items: Sequence[Item], chat: bool) -> list[tuple[Generation]]:
    """One generation per prompt."""
    return [(Generation(make_prompt(item, chat), config.max_new_tokens),) for item in items]


def make_prompt(item: Item, chat: bool) -> Prompt:
    if chat:
        return Prompt(messages=(Message(role="user", content=item.data["prompt"]),))
    # A base model continues a text, and the newline keeps it from continuing the prompt's last word.
    return Prompt(text=item.data["prompt"] + "\n")


def score(config: InstructionRows, item: Item, answers: Sequence[str | LikelihoodAnswer], chat: bool) -> ItemScore:
    """Prompt-level accuracies, and the share of the prompt's instructions that are met."""
    (text,) = answers
    assert isinstance(text, str)
    judgement = judge_instructions(item.data["instructions"], item.data["kwargs"], text, config.check)
    count = len(judgement.strict)
    metrics = {
        "prompt_strict": float(judgement.prompt_strict),
        "prompt_loose": float(judgement.prompt_loose),
        "instruction_strict": sum(judgement.strict) / count,
        "instruction_loose": sum(judgement.loose) / count,
    }
    return ItemScore(metrics, text, "")
