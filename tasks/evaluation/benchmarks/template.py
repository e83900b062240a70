"""A benchmark of one's own: any rows, a Jinja template for the prompt, and Jinja expressions for choices and answers.

Prompts follow RECIPE I.1: shots and query with a blank line between them, and " " before each answer. Templates run in Jinja's
sandbox, and a field that a row lacks is an error.

Example: `{kind: template, name: capitals, rows: {paths: [capitals.jsonl]}, prompt: "Question: What is the capital of
{{ country }}?\\nAnswer:", format: cloze, choices: options, gold: options.index(city)}`.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any, Literal, Self

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, model_validator

from model.config import Config
from model.tokens.chat import Message
from tasks.data.sources.rows import RowSource, read_good_rows
from tasks.evaluation.benchmarks.items import (
    Generation,
    Item,
    ItemScore,
    Likelihood,
    LikelihoodAnswer,
    Prompt,
    subsample,
)
from tasks.evaluation.benchmarks.olmes.answers import squad_f1, squad_match
from tasks.evaluation.benchmarks.olmes.ranked import Normalisation, score_bits, score_ranked
from tasks.evaluation.benchmarks.olmes.task import LETTERS, Format, Role
from tasks.verifiers import Rules, verify
from tasks.verifiers.sandbox import run_program

Metric = Literal["exact_match", "f1", "number", "math", "code"]
"""How a written answer is judged: normalised words equal or shared, the last number, an equal formula, or tests that run."""


class TemplateBenchmark(Config):
    """Rows that a template makes into questions."""

    kind: Literal["template"] = "template"
    name: str
    """Name in scores and reports."""
    rows: RowSource
    """Where the questions come from."""
    prompt: str
    """Jinja template of the query, with the cue for the answer at its end."""
    format: Format = "generate"
    choices: str = ""
    """Jinja expression of the list of choices; `multiple_choice` shows them as lettered lines where the template has
    `{{ lettered }}`."""
    gold: str = ""
    """Jinja expression of the right choice's place, from 0, or its letter."""
    answer: str = ""
    """Jinja expression of the right answer, or of a list of accepted ones, of which a shot shows the first."""
    tests: str = ""
    """Jinja template of the tests that run after the answer, for `metric: code`."""
    metric: Metric = "exact_match"
    rules: Rules = "correct"
    """How a number or a formula is read; `published` keeps the historical rules."""
    normalisation: Normalisation = "per_char"
    """Of cloze choices."""
    shot_rows: RowSource | None = None
    """Rows of the worked examples, the first ones; None for no shots."""
    shots: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)
    """Items to evaluate; None for all."""
    max_new_tokens: int = Field(default=256, ge=1)
    stop: tuple[str, ...] = ("\n\n",)
    context: int | None = Field(default=None, ge=2)
    """Tokens of prompt and answer together; None for the evaluation's."""
    role: Role = "dev"
    """`held_out` benchmarks rank nothing."""

    @model_validator(mode="after")
    def check_parts(self) -> Self:
        ranked = self.format in ("cloze", "multiple_choice")
        lacking = [name for name in (("choices", "gold") if ranked else ("answer",)) if not getattr(self, name)]
        if self.metric == "code" and self.format == "generate":
            # Code is judged by its tests and needs no gold answer.
            lacking = [] if self.tests else ["tests"]
        if lacking:
            raise ValueError(f"benchmark {self.name!r} of format {self.format} needs {' and '.join(lacking)}")
        if bool(self.shots) != (self.shot_rows is not None):
            raise ValueError(f"benchmark {self.name!r} has shots={self.shots}; give shots and shot_rows together")
        return self

    @property
    def primary(self) -> str:
        match self.format:
            case "generate":
                return "f1" if self.metric == "f1" else "exact_match"
            case "bits_per_byte":
                return "bits_per_byte"
            case _:
                return f"acc_{self.ranked_by}"

    @property
    def ranked_by(self) -> Normalisation:
        return "raw" if self.format == "multiple_choice" else self.normalisation

    def pinned(self) -> Self:
        """The config with its rows pinned."""
        shot_rows = None if self.shot_rows is None else self.shot_rows.pinned()
        return self.model_copy(update={"rows": self.rows.pinned(), "shot_rows": shot_rows})


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja without access to anything but the row."""
    # keep_trailing_newline: a template's last newline is part of the prompt.
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


def load_items(config: TemplateBenchmark) -> list[Item]:
    """Items in the order of the rows. Raises ValueError naming the row that a template does not fit."""
    examples = list(islice(read_good_rows(config.shot_rows), config.shots)) if config.shot_rows else []
    if len(examples) < config.shots:
        raise ValueError(f"{config.name}: shot_rows has {len(examples)} rows for {config.shots} shots")
    shots = [_make_item(config, row, place, ()) for place, row in enumerate(examples, 1)]
    rows = list(read_good_rows(config.rows))
    items = [_make_item(config, row, place, shots) for place, row in enumerate(rows, 1)]
    # Own rows are evaluated whole: OLMES's rule of 1,000 is for its own sets.
    return subsample(items, config.limit or len(items))


def _make_item(config: TemplateBenchmark, row: Mapping[str, Any], place: int, shots: Sequence[Item]) -> Item:
    """One row as an item."""
    try:
        choices = [str(choice) for choice in _evaluated(config.choices, row)] if config.choices else []
        gold = _gold_place(_evaluated(config.gold, row)) if config.gold else -1
        if choices and not 0 <= gold < len(choices):
            raise ValueError(f"gold is {gold}, and it has {len(choices)} choices")
        if blank := [place for place, text in enumerate(choices) if not text.strip()]:
            raise ValueError(
                f"choice {blank[0]} is empty, and an empty continuation is as likely as can be to every model"
            )
        lettered = "\n".join(f" {letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))
        query = _environment().from_string(config.prompt).render({**row, "lettered": lettered})
        accepted = _evaluated(config.answer, row) if config.answer else choices[gold] if choices else ""
        tests = _environment().from_string(config.tests).render(row) if config.tests else ""
    except (TemplateError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"row {place} of benchmark {config.name!r} does not fit its templates: {error}; "
            f"its fields are {', '.join(sorted(row))}"
        ) from error
    answers = [str(one) for one in accepted] if isinstance(accepted, list | tuple) else [str(accepted)]
    target = LETTERS[gold] if config.format == "multiple_choice" else answers[0]
    data = {
        "query": query,
        "choices": choices,
        "gold": gold,
        "answers": answers,
        "target": target,
        "tests": tests,
        "prefix": "".join(f"{shot.data['query']} {shot.data['target']}\n\n" for shot in shots),
        "shots": [(shot.data["query"], shot.data["target"]) for shot in shots],
    }
    return Item(str(row.get("id", place)), f"{query}\n{answers[0]}", answers[0], data)


def _evaluated(expression: str, row: Mapping[str, Any]) -> Any:
    """The value of a Jinja expression. Raises TemplateError for a field that the row lacks."""
    # undefined_to_none=False: a misspelt field is an error and not None.
    return _environment().compile_expression(expression, undefined_to_none=False)(**row)


def _gold_place(value: Any) -> int:
    """A place from 0, or a letter's place."""
    text = str(value).strip()
    # A letter is a place; a digit is one too, so "1" is the second choice.
    return LETTERS.index(text) if len(text) == 1 and text in LETTERS else int(text)


def requests(config: TemplateBenchmark, items: Sequence[Item], chat: bool) -> list[tuple[Generation | Likelihood, ...]]:
    """What to ask for each item."""
    return [_item_requests(config, item, chat) for item in items]


def _item_requests(config: TemplateBenchmark, item: Item, chat: bool) -> tuple[Generation | Likelihood, ...]:
    prompt, space = Prompt(text=item.data["prefix"] + item.data["query"]), " "
    if chat:
        turns = [
            Message(role=role, content=text)
            for shot in item.data["shots"]
            for role, text in zip(("user", "assistant"), shot, strict=True)
        ]
        prompt, space = Prompt(messages=(*turns, Message(role="user", content=item.data["query"]))), ""
    if config.format == "generate":
        return (Generation(prompt, config.max_new_tokens, () if chat else config.stop),)
    if config.format == "bits_per_byte":
        return (Likelihood(prompt, f"{space}{item.data['answers'][0]}"),)
    wanted = [Likelihood(prompt, f"{space}{text}") for text in shown_choices(config, item)]
    if config.ranked_by == "pmi":
        # The same continuations after "Answer:" alone are the unconditional scores.
        wanted += [Likelihood(Prompt(text="Answer:"), one.continuation) for one in list(wanted)]
    return tuple(wanted)


def shown_choices(config: TemplateBenchmark, item: Item) -> Sequence[str]:
    """What is ranked: letters or texts."""
    choices = item.data["choices"]
    return LETTERS[: len(choices)] if config.format == "multiple_choice" else choices


def score(config: TemplateBenchmark, item: Item, answers: Sequence[str | LikelihoodAnswer], chat: bool) -> ItemScore:
    """Metrics of one item, by its format."""
    if config.format == "generate":
        (text,) = answers
        assert isinstance(text, str)
        return _judged(config, item, text)
    ranked = [answer for answer in answers if isinstance(answer, LikelihoodAnswer)]
    space = "" if chat else " "
    if config.format == "bits_per_byte":
        return score_bits(f"{space}{item.data['answers'][0]}", ranked[0])
    texts = [f"{space}{text}" for text in shown_choices(config, item)]
    return score_ranked(texts, item.data["gold"], ranked[: len(texts)], ranked[len(texts) :] or None, config.ranked_by)


def _judged(config: TemplateBenchmark, item: Item, text: str) -> ItemScore:
    """The score of a written answer."""
    accepted = item.data["answers"]
    match config.metric:
        case "code":
            ran = run_program(f"{text}\n{item.data['tests']}\n")
            return ItemScore({"exact_match": float(ran.passed)}, text, ran.detail)
        case "number" | "math":
            kind = "gsm8k" if config.metric == "number" else "math"
            verdicts = [verify(kind, text, one, config.rules) for one in accepted]
            return ItemScore({"exact_match": float(any(one.correct for one in verdicts))}, text, verdicts[0].extracted)
        case _:
            metrics = {"f1": squad_f1(text, accepted), "exact_match": squad_match(text, accepted)}
            return ItemScore(metrics, text, text.strip())
