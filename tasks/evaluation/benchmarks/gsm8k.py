"""GSM8K questions from a local file or the hub: worked shots, greedy answers, last number compared (RECIPE I.3, I.4).

Rows have `question` and `answer` ending in "#### N". Shots are rows of a file of the same format, in its order; the
published eight exemplars are not shipped. A shot's answer ends "So the answer is N.". Chats put every shot in turns of its
own, with the cue "Answer:" at the start of each answer. `kind: olmes, task: gsm8k` has the published eight shots.
"""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Literal, Self

from pydantic import Field

from model.config import Config
from model.tokens.chat import Message
from tasks.data.sources.rows import RowSource, field_of, read_good_rows
from tasks.evaluation.benchmarks.items import Generation, Item, ItemScore, LikelihoodAnswer, Prompt, subsample
from tasks.evaluation.benchmarks.olmes.answers import gsm8k_match
from tasks.evaluation.benchmarks.olmes.task import Role
from tasks.verifiers import Rules, verify

_CALCULATOR = re.compile(r"<<.*?>>")
_STOP = ("Question:", "</s>", "<|im_end|>")
CUE = "Answer:"


class GSM8KBenchmark(Config):
    """Grade-school maths questions."""

    kind: Literal["gsm8k"] = "gsm8k"
    name: str = "gsm8k"
    """Name in scores and reports."""
    rows: RowSource = RowSource(dataset="openai/gsm8k", subset="main", split="test")
    shot_rows: RowSource | None = None
    """Where shots come from; None for no shots."""
    shots: int = Field(default=8, ge=0)
    limit: int | None = Field(default=None, ge=1)
    """Items to evaluate; None for all 1,319."""
    max_new_tokens: int = Field(default=512, ge=1)
    context: int | None = Field(default=None, ge=2)
    """Tokens of prompt and answer together; None for the evaluation's."""

    rules: Rules = "correct"
    """How numbers are read; `published` loses signs after letters and compares texts (open-instruct of December 2024)."""
    role: Role | None = None
    """`held_out` or `dev`; None is held out for GSM8K's own test questions (Table 20), by the name of the data set or the path,
    and `dev` for other rows."""

    @property
    def primary(self) -> str:
        return "exact_match"

    def pinned(self) -> Self:
        """The config with its rows pinned."""
        shot_rows = None if self.shot_rows is None else self.shot_rows.pinned()
        return self.model_copy(update={"rows": self.rows.pinned(), "shot_rows": shot_rows})


def split_answer(answer: str) -> tuple[str, str]:
    """Working without calculator notes, and the number after "####"."""
    # The answer's own working may hold "####" too, so the last one counts.
    working, _, number = answer.rpartition("####")
    return _CALCULATOR.sub("", working).strip(), number.strip()


def _worked(answer: str) -> str:
    """A shot's target."""
    working, number = split_answer(answer)
    return f"{' '.join(working.split())} So the answer is {number}."


def load_items(config: GSM8KBenchmark) -> list[Item]:
    """Items in the order of the rows, sub-sampled by OLMES's rule."""
    shots = []
    if config.shot_rows is not None:
        # Only the first rows are wanted, and a source may be large.
        examples = list(islice(read_good_rows(config.shot_rows), config.shots))
        shots = [(row["question"].strip(), _worked(row["answer"])) for row in examples]
    items = []
    for place, row in enumerate(read_good_rows(config.rows)):
        question, answer = (field_of(row, name, f"{config.name} row {place + 1}") for name in ("question", "answer"))
        data = {"question": question.strip(), "shots": shots}
        # Decontamination looks for question and answer as the data set has them.
        items.append(Item(str(place), f"{question}\n{answer}", split_answer(answer)[1], data))
    return subsample(items, config.limit)


def requests(config: GSM8KBenchmark, items: Sequence[Item], chat: bool) -> list[tuple[Generation]]:
    """One generation per item."""
    return [(item_request(config, item, chat),) for item in items]


def item_request(config: GSM8KBenchmark, item: Item, chat: bool) -> Generation:
    if not chat:
        blocks = [f"Question: {question}\nAnswer: {answer}" for question, answer in item.data["shots"]]
        prompt = Prompt(text="\n\n".join([*blocks, f"Question: {item.data['question']}\nAnswer:"]))
        # A completion would go on with the next block, so a blank line ends it; a chat ends by itself.
        return Generation(prompt, config.max_new_tokens, (*_STOP, "\n\n"))
    messages: list[Message] = []
    for question, answer in item.data["shots"]:
        messages.append(Message(role="user", content=f"Question: {question}"))
        messages.append(Message(role="assistant", content=f"{CUE} {answer}"))
    messages.append(Message(role="user", content=f"Question: {item.data['question']}"))
    return Generation(Prompt(messages=tuple(messages), cue=CUE), config.max_new_tokens, _STOP)


def score(config: GSM8KBenchmark, item: Item, answers: Sequence[str | LikelihoodAnswer], chat: bool) -> ItemScore:
    """Exact match of the last number."""
    (text,) = answers
    assert isinstance(text, str)
    if config.rules == "published":
        verdict = verify("gsm8k", text, item.gold, config.rules)
        return ItemScore({"exact_match": float(verdict.correct)}, text, verdict.extracted)
    correct, extracted = gsm8k_match(text, item.gold)
    return ItemScore({"exact_match": float(correct)}, text, extracted)
