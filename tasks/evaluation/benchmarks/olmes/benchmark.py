"""Every task of OLMES from its public data set: the hub, or a local copy in the same schema (RECIPE I).

`task` names one of `tasks/`; `format` chooses how it is asked. A local copy is a folder with the files of the hub's
repository or of `save_to_disk`: JSON lines, Parquet or Arrow, in folders or names of subset and split.

Example: `{kind: olmes, task: arc_challenge, format: cloze, path: /data/ai2_arc}`.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import comb
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from model.config import Config
from model.tokens.chat import Message
from tasks.data.sources.rows import RowSource, read_good_rows
from tasks.evaluation.benchmarks.items import (
    Boundary,
    Generation,
    Item,
    ItemScore,
    Likelihood,
    LikelihoodAnswer,
    Prompt,
    subsample,
)
from tasks.evaluation.benchmarks.olmes.local_copy import split_files
from tasks.evaluation.benchmarks.olmes.ranked import Normalisation, score_bits, score_ranked
from tasks.evaluation.benchmarks.olmes.shots import shots_by_group
from tasks.evaluation.benchmarks.olmes.task import Average, Document, Format, Role, Task
from tasks.evaluation.benchmarks.olmes.tasks import find_task
from tasks.verifiers.verdict import Rules

_SUFFIXES: dict[Format, str] = {"cloze": "rc", "multiple_choice": "mc", "bits_per_byte": "bpb", "generate": "gen"}
_UNCONDITIONAL_CONTEXT = "Answer:"
PASS_AT = (1, 10)
"""Draws of pass@k."""


class OlmesBenchmark(Config):
    """One task of OLMES in one format."""

    kind: Literal["olmes"] = "olmes"
    task: str
    """Such as arc_challenge, mmlu or gsm8k."""
    format: Format
    """`cloze`, `multiple_choice`, `generate` or `bits_per_byte`; the task's first one when not given."""
    name: str
    """Name in scores and reports; when not given, the task's, with _rc, _mc or _bpb where it has several formats."""
    path: str = ""
    """Folder or URL of a local copy of the data set; empty reads the hub. A task of several data sets has a folder for each,
    by its name."""
    revision: str = ""
    """Branch, tag or commit on the hub; `pinned` pins the commit."""
    normalisation: Normalisation | Literal["published"] = "published"
    """Of cloze choices; `published` follows RECIPE I.2."""
    shots: int | None = Field(default=None, ge=0)
    """Worked examples; None for the published number."""
    boundary: Boundary = "lm_eval"
    """Whether whitespace that ends a context is encoded with the continuation (`lm_eval`) or with the context (`in_loop`)."""
    limit: int | None = Field(default=None, ge=1)
    """Items to evaluate; None for the published number, which is the whole split unless OLMES draws 1,000."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Of a written answer; None for the published number."""
    context: int | None = Field(default=None, ge=2)
    """Tokens of prompt and answer together; None for the task's own."""
    rules: Rules = "correct"
    """How written answers are read: `published` keeps the historical rules, of a task that has some."""
    pins: dict[str, RowSource] = Field(default_factory=dict)
    """What is read, pinned by content or commit; `pinned` fills it in."""

    @model_validator(mode="before")
    @classmethod
    def fill_in(cls, data: Any) -> Any:
        """Format and name from the task where they are not given."""
        if not isinstance(data, dict) or "task" not in data:
            return data
        task = find_task(data["task"])
        # None stands for "not given", as a form leaves fields empty.
        data = {"format": task.formats[0]} | {key: value for key, value in data.items() if value is not None}
        if data["format"] not in task.formats:
            raise ValueError(f"task {task.name!r} has no format {data['format']!r}; it has {', '.join(task.formats)}")
        # Tasks of several formats need different names in one table of scores.
        suffix = f"_{_SUFFIXES[data['format']]}" if data["format"] != "generate" and len(task.formats) > 1 else ""
        return {"name": task.name + suffix} | data

    @model_validator(mode="after")
    def has_rules(self) -> Self:
        """Raise ValueError where a task has no rules of its own history."""
        if self.rules == "published" and self.facts.published_score is None:
            raise ValueError(f"task {self.task!r} has one way of reading answers; leave rules: published out")
        return self

    @property
    def facts(self) -> Task:
        """The task's own table."""
        return find_task(self.task)

    @property
    def shot_count(self) -> int:
        return self.facts.shots if self.shots is None else self.shots

    @property
    def primary(self) -> str:
        match self.format:
            case "generate":
                return self.facts.primary
            case "bits_per_byte":
                return "bits_per_byte"
            case _:
                return self.facts.rank_metric or f"acc_{self.ranked_by}"

    @property
    def ranked_by(self) -> Normalisation:
        """Lettered choices are ranked by their plain log-likelihood."""
        if self.format == "multiple_choice":
            return "raw"
        return self.facts.normalisation if self.normalisation == "published" else self.normalisation

    @property
    def role(self) -> Role:
        return self.facts.role

    @property
    def average(self) -> Average:
        return self.facts.average

    def pinned(self) -> Self:
        """The config with every split that it reads pinned. ValueError when a local copy lacks one."""
        task = self.facts
        wanted = {"items": task.split}
        if task.shot_split and self.shot_count:
            wanted["shots"] = task.shot_split
        pins, commits = {}, {}
        for part, split in wanted.items():
            for group, dataset, subset in task.sources():
                if self.path:
                    # A task of several data sets has a folder for each, which the hub id names.
                    templated = "{group}" in task.dataset
                    folder = f"{self.path.rstrip('/')}/{dataset.rpartition('/')[2]}" if templated else self.path
                    source = RowSource(paths=split_files(folder, subset, split))
                else:
                    # Subsets of one repository have one commit, which the hub is asked for once.
                    known = commits.get(dataset, self.revision)
                    source = RowSource(dataset=dataset, subset=subset, split=split, revision=known)
                pins[f"{part}:{group}"] = pinned = source.pinned()
                commits[dataset] = pinned.revision
        return self.model_copy(update={"pins": pins})


def load_items(config: OlmesBenchmark) -> list[Item]:
    """The task's documents in evaluation order, each with its prompt. ValueError when the config is not pinned."""
    if not config.pins:
        raise ValueError(
            f"benchmark {config.name!r} is not pinned; call its method `pinned` first, so that "
            "the identity of its scores covers what is read"
        )
    task = config.facts
    shots = shots_by_group(task, config.shot_count, config.pins)
    whole = _read_documents(task, config)
    # The task's own limit is what OLMES draws; without one the whole split is asked.
    limit = config.limit or task.limit or len(whole)
    return [_make_item(config, task, document, shots) for document in subsample(whole, limit)]


def _read_documents(task: Task, config: OlmesBenchmark) -> list[Document]:
    """Documents of all groups in order. ValueError naming the row that does not fit the data set's schema."""
    found: list[Document] = []
    for group, _, _ in task.sources():
        rows = list(read_good_rows(config.pins[f"items:{group}"]))
        # A local copy may be shorter than the published split.
        places = range(len(rows)) if task.places is None else [place for place in task.places if place < len(rows)]
        for place in places:
            try:
                read = task.read(rows[place], place)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise ValueError(
                    f"row {place + 1} of {config.path or task.dataset} is not a row of task {task.name!r}: "
                    f"{type(error).__name__}: {error}; its fields are {', '.join(sorted(rows[place]))}"
                ) from error
            found += [in_group(document, group) for document in ([read] if isinstance(read, Document) else read)]
    return found


def in_group(document: Document, group: str) -> Document:
    """The document with the subset that it was read from as its group, and an id that is unique over subsets."""
    if not group:
        return document
    # Rows of different subsets are numbered from 0 each.
    return replace(document, group=group, id=f"{group}-{document.id}")


def _make_item(config: OlmesBenchmark, task: Task, document: Document, shots: dict[str, list[Document]]) -> Item:
    """A document with the requests that it needs."""
    examples = examples_of(task, document, shots)
    if config.shot_count and not examples:
        raise ValueError(
            f"{task.name}: group {document.group!r} has no shots; the groups with shots are {sorted(shots)}"
        )
    description = task.description(document.group)
    blocks = "".join(f"{task.shot(task, example, config.format)}\n\n" for example in examples)
    # A generated answer needs no continuations, whose making may be costly.
    pairs = task.pairs(task, document, config.format) if config.format != "generate" else []
    if config.format == "bits_per_byte":
        # Bits per byte are counted of the gold answer alone.
        pairs = [gold_pair(task, document)]
    data = {
        "query": task.query(document, config.format),
        "prefix": description + blocks,
        "pairs": [[f"{description}{blocks}{query}", continuation] for query, continuation in pairs],
        "gold": document.gold,
        "group": document.group,
        "document": document,
        "turns": chat_turns(task, document, examples),
    }
    return Item(document.id, f"{document.question}\n{document.answer}", document.answer, data)


def examples_of(task: Task, document: Document, shots: dict[str, list[Document]]) -> list[Document]:
    """The shots of a document: those of its group, of all other groups, or the same for all."""
    if task.other_groups:
        return [example for group, examples in shots.items() if group != document.group for example in examples]
    # A task without groups keeps its shots under "".
    return shots.get(document.group) or shots.get("", [])


def gold_pair(task: Task, document: Document) -> tuple[str, str]:
    """The query and the gold answer, whose bits are counted."""
    if document.choices:
        return task.pairs(task, document, "cloze")[document.gold]
    return task.pairs(task, replace(document, answer=task.bits_answer(document)), "bits_per_byte")[0]


def chat_turns(task: Task, document: Document, examples: Sequence[Document]) -> list[Message]:
    """The chat that asks for a document, by the task's style."""
    ask = task.chat_query or (lambda one: task.query(one, "generate"))
    description = task.description(document.group)
    if task.chat == "one_turn":
        blocks = "".join(f"{task.shot(task, example, 'generate')}\n\n" for example in examples)
        return [Message(role="user", content=f"{description}{blocks}{ask(document)}")]
    turns: list[Message] = []
    for example in examples:
        cue = f"{task.chat_cue} " if task.chat_cue else ""
        turns.append(Message(role="user", content=ask(example)))
        turns.append(Message(role="assistant", content=f"{cue}{task.chat_answer(example)}"))
    turns.append(Message(role="user", content=ask(document)))
    # The description opens the first turn, since the template has no place before it.
    turns[0] = Message(role="user", content=f"{description}{turns[0]['content']}")
    return turns


def requests(config: OlmesBenchmark, items: Sequence[Item], chat: bool) -> list[tuple[Generation | Likelihood, ...]]:
    """What to ask for each item."""
    return [_item_requests(config, item, chat) for item in items]


def _item_requests(config: OlmesBenchmark, item: Item, chat: bool) -> tuple[Generation | Likelihood, ...]:
    task = config.facts
    if config.format == "generate":
        return _generations(config, task, item, chat)
    if chat and task.chat == "one_turn":
        prompt = Prompt(messages=tuple(item.data["turns"]))
        # All shots stand in one user turn, so the choices are scored as its answer.
        return tuple(Likelihood(prompt, continuation, config.boundary) for _, continuation in item.data["pairs"])
    wanted = [
        Likelihood(Prompt(text=context), continuation, config.boundary) for context, continuation in item.data["pairs"]
    ]
    # pmi divides by what each choice is worth without the question: the same context for all.
    if config.ranked_by == "pmi" and config.format == "cloze":
        wanted += [
            Likelihood(Prompt(text=_UNCONDITIONAL_CONTEXT), continuation, config.boundary)
            for _, continuation in item.data["pairs"]
        ]
    return tuple(wanted)


def _generations(config: OlmesBenchmark, task: Task, item: Item, chat: bool) -> tuple[Generation, ...]:
    """The written answers of an item: one, or `samples`."""
    length = config.max_new_tokens or task.max_new_tokens
    if chat and task.chat != "completion":
        prompt, stop = Prompt(messages=tuple(item.data["turns"]), cue=task.chat_cue), task.chat_stop
    else:
        prompt, stop = Prompt(text=item.data["prefix"] + item.data["query"]), task.stop
    return tuple(Generation(prompt, length, stop, task.temperature, task.top_p) for _ in range(task.samples))


def score(config: OlmesBenchmark, item: Item, answers: Sequence[str | LikelihoodAnswer], chat: bool) -> ItemScore:
    """Metrics of one item, by its format."""
    if config.format == "generate":
        texts = [text for text in answers if isinstance(text, str)]
        judge = config.facts.score if config.rules == "correct" else config.facts.published_score
        assert judge is not None  # checked when the config was made
        results = [judge(item.data["document"], text) for text in texts]
        metrics = (
            # Several samples have no single score; pass@k is what they are drawn for.
            results[0][0] if len(results) == 1 else pass_at([found[config.facts.sample_metric] for found, _ in results])
        )
        return ItemScore(metrics, texts[0], results[0][1])
    ranked = [answer for answer in answers if isinstance(answer, LikelihoodAnswer)]
    continuations = [continuation for _, continuation in item.data["pairs"]]
    if config.format == "bits_per_byte":
        return score_bits(continuations[0], ranked[0])
    # The unconditional answers follow those of the choices, in the same order.
    count = len(continuations)
    found = score_ranked(continuations, item.data["gold"], ranked[:count], ranked[count:] or None, config.ranked_by)
    if config.facts.rank is None:
        return found
    further = config.facts.rank(item.data["document"], [answer.logprob for answer in ranked[:count]])
    return replace(found, metrics=found.metrics | further)


def pass_at(right: Sequence[float]) -> dict[str, float]:
    """pass@1 and pass@10 of samples, without bias: the chance that k of them drawn without return hold a right one."""
    count, correct = len(right), int(sum(right))
    # 1 - C(n - c, k) / C(n, k): the chance that k of n samples hold none of the c right ones.
    return {f"pass_at_{k}": 1 - comb(count - correct, k) / comb(count, k) for k in PASS_AT if k <= count}
