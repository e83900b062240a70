"""The held-out split of the synthetic maths problems: written, as a cloze task, as multiple choice, or as bits per byte.

Completion prompts are OLMES's question/answer blocks (RECIPE I.1) with shots from the training split; chat prompts are the
bare question, as in the chats of supervised finetuning. Wrong choices are near misses of the right number.
"""

from collections.abc import Sequence
from random import Random
from typing import Literal

from pydantic import Field

from model.config import Config
from model.tokens.chat import Message
from tasks.evaluation.benchmarks.items import (
    Generation,
    Item,
    ItemScore,
    Likelihood,
    LikelihoodAnswer,
    Prompt,
)
from tasks.evaluation.benchmarks.olmes.ranked import Normalisation, score_bits, score_ranked
from tasks.synthetic import KindConfig, Problem, generate_mixed
from tasks.verifiers import verify

_Format = Literal["generate", "cloze", "multiple_choice", "bits_per_byte"]
_LETTERS = "ABCDEFGHIJ"


class SyntheticBenchmark(Config):
    """Held-out synthetic problems."""

    kind: Literal["synthetic"] = "synthetic"
    name: str
    """Name in scores and reports."""
    problems: tuple[KindConfig, ...]
    """Kinds to ask, by their weights; training must use the same ranges for the score to mean generalisation."""
    items: int = Field(default=500, ge=1)
    """Distinct problems; 500 give a standard error of at most 2.2 points."""
    seed: int = 1234
    format: _Format = "generate"
    """`generate`: greedy answer, last number compared. `cloze`: the right answer ranked against near misses.
    `multiple_choice`: the same as lettered options (RECIPE I.1, MCF). `bits_per_byte`: how likely the worked answer is."""
    shots: int = Field(default=3, ge=0)
    """Worked examples before a completion prompt."""
    chat_shots: int = Field(default=0, ge=0)
    """Worked examples as earlier turns of a chat."""
    choices: int = Field(default=4, ge=2, le=len(_LETTERS))
    """Options of the ranked formats."""
    max_new_tokens: int = Field(default=64, ge=1)
    context: int | None = Field(default=None, ge=2)
    """Tokens of prompt and answer together; None for the evaluation's."""

    @property
    def primary(self) -> str:
        names = {"generate": "exact_match", "cloze": "acc_per_char", "multiple_choice": "acc_raw"}
        return names.get(self.format, "bits_per_byte")

    @property
    def normalisation(self) -> Normalisation:
        return "per_char" if self.format == "cloze" else "raw"


def load_items(config: SyntheticBenchmark) -> list[Item]:
    """Distinct problems of the evaluation split."""
    return [_make_item(config, problem, place) for place, problem in enumerate(draw_problems_of(config))]


def draw_problems_of(config: SyntheticBenchmark) -> list[Problem]:
    """The benchmark's problems. ValueError when their ranges hold fewer than `items`."""
    # "eval" problems are held apart from all training splits by their kind.
    return generate_mixed(config.problems, "eval", config.items, config.seed, distinct=True)


def _make_item(config: SyntheticBenchmark, problem: Problem, place: int) -> Item:
    ranked = config.format in ("cloze", "multiple_choice")
    options = near_misses(problem, config.choices, config.seed) if ranked else []
    data = {
        "question": problem.question,
        "response": problem.response,
        "problem_kind": problem.kind,
        "options": options,
    }
    text = f"{problem.question}\n{problem.response}"
    return Item(f"{config.name}-{place}", text, problem.answer, data)


def near_misses(problem: Problem, count: int, seed: int | str) -> list[str]:
    """The answer among `count - 1` different whole numbers near it, in a seeded order."""
    rng = Random(f"choices/{seed}/{problem.key}")
    answer = int(problem.answer)
    # Near misses, so that length and magnitude give the answer away as little as can be.
    near = [answer + offset for offset in (-10, -3, -2, -1, 1, 2, 3, 10, 20, 100) if answer + offset >= 0]
    options = [str(number) for number in [answer, *rng.sample(near, count - 1)]]
    rng.shuffle(options)
    return options


def requests(
    config: SyntheticBenchmark, items: Sequence[Item], chat: bool
) -> list[tuple[Generation | Likelihood, ...]]:
    """What to ask for each item."""
    examples = shots(config, chat)
    return [_item_requests(config, item, examples, chat) for item in items]


def shots(config: SyntheticBenchmark, chat: bool) -> list[Item]:
    """Worked examples from the training split, the same for every item."""
    count = config.chat_shots if chat else config.shots
    problems = generate_mixed(config.problems, "train", count, f"shots/{config.seed}") if count else []
    # Negative places keep the shots' ids apart from the items'.
    return [_make_item(config, problem, -1 - place) for place, problem in enumerate(problems)]


def _query(config: SyntheticBenchmark, item: Item) -> str:
    """The question as asked, with lettered options where the format has them."""
    if config.format != "multiple_choice":
        return item.data["question"]
    lines = [f" {letter}. {option}" for letter, option in zip(_LETTERS, item.data["options"], strict=False)]
    return "\n".join([item.data["question"], *lines])


def target(config: SyntheticBenchmark, item: Item) -> str:
    """What a worked example answers in this format."""
    match config.format:
        case "generate" | "bits_per_byte":
            return item.data["response"]
        case "cloze":
            return item.gold
        case "multiple_choice":
            return _LETTERS[item.data["options"].index(item.gold)]


def _item_requests(
    config: SyntheticBenchmark, item: Item, examples: Sequence[Item], chat: bool
) -> tuple[Generation | Likelihood, ...]:
    if chat:
        messages: list[Message] = []
        for example in examples:
            messages.append(Message(role="user", content=_query(config, example)))
            messages.append(Message(role="assistant", content=target(config, example)))
        messages.append(Message(role="user", content=_query(config, item)))
        prompt = Prompt(messages=tuple(messages))
    else:
        blocks = [f"Question: {_query(config, e)}\nAnswer: {target(config, e)}" for e in examples]
        prompt = Prompt(text="\n\n".join([*blocks, f"Question: {_query(config, item)}\nAnswer:"]))
    if config.format == "generate":
        # A completion would go on with the next question; a chat ends by itself.
        stop = () if chat else ("\n\n", "Question:")
        return (Generation(prompt, config.max_new_tokens, stop),)
    return tuple(Likelihood(prompt, text) for text in continuations(config, item, chat))


def continuations(config: SyntheticBenchmark, item: Item, chat: bool) -> list[str]:
    """Texts as scored: with a leading space after "Answer:", without one at the start of a chat answer."""
    options = item.data["options"]
    match config.format:
        case "bits_per_byte":
            choices = [item.data["response"]]
        case "cloze":
            choices = options
        case _:
            choices = list(_LETTERS[: len(options)])
    # The template of a chat ends in a newline, so its answer begins without a space.
    return [choice if chat else f" {choice}" for choice in choices]


def score(config: SyntheticBenchmark, item: Item, answers: Sequence[str | LikelihoodAnswer], chat: bool) -> ItemScore:
    """Exact match of the extracted number, accuracy of the best-ranked choice, or bits of the worked answer."""
    if config.format == "generate":
        (text,) = answers
        assert isinstance(text, str)
        verdict = verify(item.data["problem_kind"], text, item.gold)
        metrics = {
            "exact_match": float(verdict.correct),
            "exact_response": float(text.strip() == item.data["response"]),
        }
        return ItemScore(metrics, text, verdict.extracted)
    ranked = [answer for answer in answers if isinstance(answer, LikelihoodAnswer)]
    if config.format == "bits_per_byte":
        return score_bits(continuations(config, item, chat)[0], ranked[0])
    gold = item.data["options"].index(item.gold)
    return score_ranked(continuations(config, item, chat), gold, ranked, None, config.normalisation)
