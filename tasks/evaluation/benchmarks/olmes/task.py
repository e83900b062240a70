"""What a task of OLMES is: a table of facts, how a row is read, and how a document is written as a prompt (RECIPE I).

`tasks/` holds one small file per family. Its `TASKS` are `Task` values; nothing else has to name them. A k-shot prompt is an
optional description, the shots and the query, with a blank line between them; a shot is a query and " " + its answer.

Example: `Task(name="csqa", dataset="tau/commonsense_qa", split="validation", read=read_row, ...)`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tasks.evaluation.benchmarks.olmes.answers import squad_f1, squad_match
from tasks.evaluation.benchmarks.olmes.ranked import Normalisation

DatasetRow = Mapping[str, Any]
Format = Literal["cloze", "multiple_choice", "generate", "bits_per_byte"]
"""`cloze` ranks the answers' texts, `multiple_choice` their letters, `generate` compares a written answer, `bits_per_byte`
scores the gold answer alone."""
Role = Literal["dev", "held_out"]
"""Table 20: what decisions may be made on, and what only the last model is asked."""
ChatStyle = Literal["completion", "turns", "one_turn"]
"""How a chat model is asked: the plain prompt, every shot in turns of its own, or all shots in one user message."""
Average = Literal["micro", "macro"]
"""Over all items, or over the means of the groups (subjects)."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Document:
    """One row as a question."""

    id: str
    question: str
    """The query without options and without a cue for the answer."""
    answer: str
    """The gold answer as a shot shows it, without the space before it."""
    choices: tuple[str, ...] = ()
    gold: int = -1
    """Place of the gold answer among the choices."""
    references: tuple[Any, ...] = ()
    """Accepted answers of a generated one, as the task's score reads them."""
    group: str = ""
    """Subject, category or type that means are taken over."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else the family needs; JSON values."""


def plain_query(document: Document, format: Format) -> str:
    """The question, its options in the lettered format, and the cue "Answer:" (RECIPE I.1)."""
    return f"{document.question}\n{lettered(document) if format == 'multiple_choice' else ''}Answer:"


def lettered(document: Document) -> str:
    """One option a line: space, letter, full stop, space, text."""
    # zip ends with the choices: few tasks have as many as the letters.
    return "".join(f" {letter}. {text}\n" for letter, text in zip(LETTERS, document.choices, strict=False))


def plain_shot(task: "Task", document: Document, format: Format) -> str:
    """A query with its answer."""
    return f"{task.query(document, format)} {shown_answer(document, format)}"


def shown_answer(document: Document, format: Format) -> str:
    """The gold letter of lettered options, else the gold answer."""
    return LETTERS[document.gold] if format == "multiple_choice" else document.answer


def plain_pairs(task: "Task", document: Document, format: Format) -> list[tuple[str, str]]:
    """(query, continuation) of every choice; of the gold answer alone where there are no choices."""
    query = task.query(document, format)
    if format == "multiple_choice":
        return [(query, f" {letter}") for letter in LETTERS[: len(document.choices)]]
    return [(query, f" {text}") for text in document.choices or (document.answer,)]


Score = Callable[[Document, str], tuple[dict[str, float], str]]
"""Metrics and the extracted answer of a generated text."""


def squad_score(document: Document, text: str) -> tuple[dict[str, float], str]:
    """SQuAD's F1 and exact match, the best over the accepted answers."""
    accepted = document.references
    return {"f1": squad_f1(text, accepted), "exact_match": squad_match(text, accepted)}, text.strip()


def no_score(document: Document, text: str) -> tuple[dict[str, float], str]:
    """Tasks that are only ranked have no score for a written answer."""
    raise ValueError(f"document {document.id} belongs to a task without written answers; use cloze or multiple_choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The facts of one task and what is special about it."""

    name: str
    dataset: str
    """Hub id."""
    subset: str = ""
    split: str
    count: int
    """Documents of the split as published; a check for the reader, not a limit."""
    places: tuple[int, ...] | None = None
    """Places of the split's rows that the task has, in its order; None for all."""
    limit: int | None = None
    """Documents that OLMES draws from the split; None evaluates the whole split (RECIPE I.2, I.3)."""
    read: Callable[[DatasetRow, int], Document | Sequence[Document]]
    """A row and its place in the split, as one document or several."""
    formats: tuple[Format, ...]
    """The formats that the task has; the first is its default."""
    normalisation: Normalisation = "per_char"
    """Of cloze choices (RECIPE I.2)."""
    groups: tuple[str, ...] = ()
    """Subsets that are read one after the other, when the groups are subsets; `{group}` in `dataset` or `subset`."""
    average: Average = "micro"
    shots: int = 0
    """Shots of the published setting."""
    shot_split: str = ""
    """Split whose first rows are the shots; empty for the curated rows in `shots`."""
    other_groups: bool = False
    """Whether an item's shots are the first rows of every group but its own."""
    description: Callable[[str], str] = lambda group: ""
    """Text before the shots, by group, with the blank line after it."""
    query: Callable[[Document, Format], str] = plain_query
    shot: Callable[["Task", Document, Format], str] = plain_shot
    pairs: Callable[["Task", Document, Format], list[tuple[str, str]]] = plain_pairs
    bits_answer: Callable[[Document], str] = lambda document: document.answer
    """The text whose bits are counted, after a space."""
    score: Score = no_score
    published_score: Score | None = None
    """The same by the historical rules (`tasks.verifiers.verdict.Rules`), where they differ."""
    rank: Callable[[Document, Sequence[float]], dict[str, float]] | None = None
    """Further metrics of ranked choices from their log-likelihoods."""
    rank_metric: str = ""
    """The one of them that stands for the task."""
    primary: str = "exact_match"
    """The metric of written answers."""
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    """Answers per item; more than one needs a temperature, and its metrics are pass@1 and pass@10."""
    sample_metric: str = "passed"
    """The metric of one sample that says whether it is right."""
    max_context: int = 2048
    """Tokens of prompt and answer together (RECIPE I.1)."""
    role: Role = "dev"
    chat: ChatStyle = "completion"
    chat_query: Callable[[Document], str] | None = None
    """The user's turn, where it differs from the completion's query."""
    chat_answer: Callable[[Document], str] = lambda document: document.answer
    """The assistant's turn of a shot."""
    chat_stop: tuple[str, ...] = ()
    chat_cue: str = ""
    """Beginning of each answer, also forced on the model."""

    def sources(self) -> list[tuple[str, str, str]]:
        """(group, hub id, subset) of everything that is read."""
        return [
            # Subsets and data sets of a family differ by the group's name only.
            (group, self.dataset.format(group=group), self.subset.format(group=group))
            for group in self.groups or ("",)
        ]
