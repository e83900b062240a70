"""A local directory of OLMES-rendered requests: `config.json` and `requests.jsonl(.gz)`, one row per request (RECIPE I.1–I.3).

Rows have request_type, doc, request {context, continuation, stop_sequences, generation_kwargs}, idx, task_name, doc_id,
native_id, label. The prompt is used as rendered, shots included. Rows whose doc_id is offset by
`metric_kwargs.uncond_docid_offset` hold the context "Answer:" for the pmi normalisation; when they are missing the same
requests are made here. Primary normalisations are those of RECIPE I.2, not the rendered file's, which differ for three tasks.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, Self, TypedDict

from pydantic import Field

from model.config import Config
from tasks.data.documents.dolma_files import open_lines
from tasks.data.sources.files.listing import SourceFile, find_files
from tasks.evaluation.benchmarks.items import (
    LARGE_SET_LIMIT,
    Boundary,
    Generation,
    Item,
    ItemScore,
    Likelihood,
    LikelihoodAnswer,
    Prompt,
    subsample,
)
from tasks.evaluation.benchmarks.olmes.answers import (
    drop_exact,
    drop_f1,
    gsm8k_match,
    squad_f1,
    squad_match,
)
from tasks.evaluation.benchmarks.olmes.ranked import Normalisation, score_bits, score_ranked
from tasks.evaluation.benchmarks.olmes.task import Role
from tasks.verifiers import verify

Scoring = Literal["rendered", "rank", "bits_per_byte", "generate"]

PUBLISHED_NORMALISATION: dict[str, Normalisation] = {
    "arc_challenge": "pmi",
    "arc_easy": "per_char",
    "boolq": "raw",
    "csqa": "pmi",
    "hellaswag": "per_char",
    "openbookqa": "pmi",
    "piqa": "per_char",
    "socialiqa": "per_char",
    "winogrande": "raw",
}
"""Cloze normalisation of each task (RECIPE I.2); MMLU subjects and everything else are per_char."""

DRAWN_FROM = frozenset({"arc_easy", "boolq", "drop", "hellaswag", "naturalqs_open", "piqa", "socialiqa", "squad"})
"""Tasks of which OLMES evaluates 1,000 items; every other set is whole, however large (RECIPE I.2, I.3)."""

_UNCONDITIONAL_CONTEXT = "Answer:"
BITS_METRICS = ("bits_per_byte", "logits_per_byte")
DEFAULT_NEW_TOKENS = 512
_FILES = ("config.json", "requests.jsonl", "requests.jsonl.gz")


class _RenderedRequest(TypedDict):
    """What a row asks."""

    context: str
    continuation: NotRequired[str]
    stop_sequences: NotRequired[list[str] | None]
    generation_kwargs: NotRequired[Mapping[str, object] | None]


class _RenderedRow(TypedDict):
    """What is read of a line of `requests.jsonl`."""

    doc_id: int
    idx: int
    """Place of the request's choice among those of its document."""
    task_name: str
    request_type: str
    doc: Mapping[str, object]
    request: _RenderedRequest
    label: int | str | list[Any]
    """Place of the gold choice, or accepted answers: strings, or lists of spans for DROP."""


class _MetricSettings(TypedDict, total=False):
    uncond_docid_offset: int | None


class _TaskSettings(TypedDict, total=False):
    """What is read of `config.json`'s `task_config`."""

    task_core: str | None
    metric_kwargs: _MetricSettings | None
    metadata: Mapping[str, object] | None
    primary_metric: str
    compute_gold_bpb: bool


class OlmesRequestsBenchmark(Config):
    """One rendered task variant."""

    kind: Literal["olmes_requests"] = "olmes_requests"
    name: str
    """Name in scores and reports."""
    path: str
    """Folder with `config.json` and `requests.jsonl` or `requests.jsonl.gz`."""
    scoring: Scoring = "rendered"
    """`rendered`: as the rows' request types say. `bits_per_byte` scores the gold continuation of any variant,
    `generate` answers freely where rows carry stop sequences."""
    normalisation: Normalisation | Literal["published"] = "published"
    """Of ranked choices; `published` follows RECIPE I.2, raw for lettered choices."""
    boundary: Boundary = "lm_eval"
    """Whether whitespace that ends a context is encoded with the continuation (`lm_eval`) or with the context (`in_loop`)."""
    limit: int | None = Field(default=None, ge=1)
    """Items to evaluate; None evaluates all, but 1,000 of the sets that OLMES draws from (RECIPE I.2, I.3)."""
    context: int | None = Field(default=None, ge=2)
    """Tokens of prompt and answer together; None for the evaluation's."""
    role: Role | None = None
    """`dev` or `held_out` (Table 20); None judges by the folder's name."""
    files: tuple[SourceFile, ...] = ()
    """The folder's two files, pinned by content; `pinned` fills them in."""

    def pinned(self) -> Self:
        """The config with its files pinned. ValueError when the folder is not a rendered task."""
        found = find_files((self.path,), _FILES)
        names = [file.name.rsplit("/", 1)[-1] for file in found]
        if len(found) != 2 or "config.json" not in names:
            raise ValueError(
                f"{self.path} is not a rendered task: it needs config.json and one of requests.jsonl and "
                f"requests.jsonl.gz, and holds {', '.join(names)}"
            )
        return self.model_copy(update={"files": found})


def _read_rows(config: OlmesRequestsBenchmark) -> tuple[_TaskSettings, list[_RenderedRow]]:
    """The task's settings and all its rows. ValueError when it is not pinned or a row is not JSON."""
    if not config.files:
        raise ValueError(
            f"benchmark {config.name!r} is not pinned; call its method `pinned` first, so that "
            "the identity of its scores covers what is read"
        )
    # config.json first, in whichever order the listing named the two.
    settings_file, rows_file = sorted(config.files, key=lambda file: not file.name.endswith("config.json"))
    with settings_file.open() as raw:
        settings = json.loads(raw.read())["task_config"]
    rows = []
    with rows_file.open() as raw:
        for number, line in enumerate(open_lines(raw, rows_file.name), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(f"{rows_file.url} line {number} is not JSON: {error}") from None
    if not rows:
        raise ValueError(f"{rows_file.url} has no rows")
    return settings, rows


def load_items(config: OlmesRequestsBenchmark) -> list[Item]:
    """One item per document, in the file's order; 1,000 of the sets that OLMES draws from."""
    settings, rows = _read_rows(config)
    # Without an offset no row is unconditional.
    offset = (settings.get("metric_kwargs") or {}).get("uncond_docid_offset") or float("inf")
    groups: dict[int, list[_RenderedRow]] = defaultdict(list)
    unconditional: set[int] = set()
    for row in rows:
        if row["doc_id"] >= offset:
            unconditional.add(row["doc_id"])
        else:
            groups[row["doc_id"]].append(row)
    items = [_make_item(config, settings, group) for group in groups.values()]
    # OLMES draws from some sets only, however large the others are.
    drawn = LARGE_SET_LIMIT if items and items[0].data["core"] in DRAWN_FROM else len(items)
    return subsample(items, config.limit or drawn)


def _make_item(config: OlmesRequestsBenchmark, settings: _TaskSettings, group: list[_RenderedRow]) -> Item:
    """The rows of one document as an item."""
    # The file may list choices in any order; `idx` is their place.
    group = sorted(group, key=lambda row: row["idx"])
    first = group[0]
    scoring = (
        rendered_scoring(group, asks_for_bits(config, settings)) if config.scoring == "rendered" else config.scoring
    )
    request = first["request"]
    gold = gold_text(group, first["label"])
    core = str(settings.get("task_core") or first["task_name"].split(":")[0])
    data = {
        "scoring": scoring,
        "core": core,
        "contexts": [row["request"]["context"] for row in group],
        "continuations": [row["request"].get("continuation", "") for row in group],
        "label": first["label"],
        "references": references(first),
        "stop": tuple(request.get("stop_sequences") or ()),
        "max_new_tokens": (request.get("generation_kwargs") or {}).get("max_gen_toks") or DEFAULT_NEW_TOKENS,
        "normalisation": choose_normalisation(config, core, first["task_name"]),
    }
    # A label that is no place cannot be compared with a ranked choice.
    if scoring == "rank" and not isinstance(first["label"], int):
        raise ValueError(f"{config.name}: document {first['doc_id']} has label {first['label']!r}, which no choice has; "
                         "use scoring: bits_per_byte or generate")  # fmt: skip
    if scoring == "generate" and not (data["stop"] or request.get("generation_kwargs")):
        raise ValueError(f"{config.name}: rows carry no stop sequences to generate with; use scoring: rank")
    return Item(str(first["doc_id"]), f"{question_text(first)}\n{gold}", gold, data)


def asks_for_bits(config: OlmesRequestsBenchmark, settings: _TaskSettings) -> bool:
    """Whether the task was rendered for the bits per byte of its gold answers, whatever its requests' type.

    Its primary metric, `compute_gold_bpb`, its alias or the name of its folder say so.
    """
    names = (str((settings.get("metadata") or {}).get("alias", "")), config.path.rstrip("/").rsplit("/", 1)[-1])
    metric = str(settings.get("primary_metric", ""))
    return (
        metric.startswith(BITS_METRICS) or bool(settings.get("compute_gold_bpb")) or any("bpb" in one for one in names)
    )


def rendered_scoring(group: Sequence[_RenderedRow], bits: bool) -> str:
    """Lettered or cloze choices are ranked, a lone continuation is scored in bits, the rest is generated."""
    if len(group) > 1:
        return "rank"
    alone = group[0]
    generated = alone["request_type"].startswith("generate_until")
    return "generate" if generated and not (bits and alone["request"].get("continuation")) else "bits_per_byte"


def choose_normalisation(config: OlmesRequestsBenchmark, core: str, task_name: str) -> Normalisation:
    if config.normalisation != "published":
        return config.normalisation
    return "raw" if ":mc" in task_name else PUBLISHED_NORMALISATION.get(core, "per_char")


QUESTION_FIELDS = ("query", "question", "problem", "sentence")


def gold_text(group: Sequence[_RenderedRow], label: object) -> str:
    """The gold answer as words: the option's text for lettered choices too."""
    first = group[0]
    if isinstance(label, int) and len(group) > 1:
        # A lettered choice says " B"; its text stands in the question's own lines.
        choice = group[label]["request"].get("continuation", "").strip()
        options = [line for line in asked(first).splitlines() if line.startswith(f" {choice}. ")]
        return options[-1][len(choice) + 3 :].strip() if options else choice
    return str(first["request"].get("continuation") or label).strip()


def asked(row: _RenderedRow) -> str:
    """The document's own wording of the question, or an empty text."""
    return next((str(row["doc"][name]) for name in QUESTION_FIELDS if row["doc"].get(name)), "")


def question_text(row: _RenderedRow) -> str:
    """The question alone: the document's own wording, else the last block of the rendered prompt."""
    # Without a wording of its own the question is what follows the last shot.
    question = asked(row) or row["request"]["context"].split("\n\n")[-1]
    return question.removesuffix("Answer:").strip()


def references(row: _RenderedRow) -> list[Any]:
    """Accepted answers of a generative row: strings, or lists of spans for DROP."""
    label = row["label"]
    return label if isinstance(label, list) else [label]


def requests(
    config: OlmesRequestsBenchmark, items: Sequence[Item], chat: bool
) -> list[tuple[Generation | Likelihood, ...]]:
    """What to ask for each item: the rendered completion prompts, of chat models too, as OLMES does for DROP."""
    return [_item_requests(item, config.boundary) for item in items]


def _item_requests(item: Item, boundary: Boundary) -> tuple[Generation | Likelihood, ...]:
    data = item.data
    prompts = [Prompt(text=context) for context in data["contexts"]]
    if data["scoring"] == "generate":
        return (Generation(prompts[0], data["max_new_tokens"], data["stop"]),)
    if data["scoring"] == "bits_per_byte":
        place = _gold_place(data["label"], data["continuations"])
        return (Likelihood(prompts[place], data["continuations"][place], boundary),)
    wanted = [Likelihood(prompt, text, boundary) for prompt, text in zip(prompts, data["continuations"], strict=True)]
    if data["normalisation"] == "pmi":
        wanted += [Likelihood(Prompt(text=_UNCONDITIONAL_CONTEXT), text, boundary) for text in data["continuations"]]
    return tuple(wanted)


def _gold_place(label: int, continuations: Sequence[str]) -> int:
    # A lone continuation is the gold one, whatever its label says.
    return label if len(continuations) > 1 else 0


def score(
    config: OlmesRequestsBenchmark, item: Item, answers: Sequence[str | LikelihoodAnswer], chat: bool
) -> ItemScore:
    """Metrics of one item, by how it was asked."""
    data = item.data
    if data["scoring"] == "generate":
        (text,) = answers
        assert isinstance(text, str)
        return score_generated(data["core"], text, data["references"])
    ranked = [answer for answer in answers if isinstance(answer, LikelihoodAnswer)]
    if data["scoring"] == "bits_per_byte":
        continuations = data["continuations"]
        return score_bits(continuations[_gold_place(data["label"], continuations)], ranked[0])
    choices = len(data["continuations"])
    unconditional = ranked[choices:] or None
    return score_ranked(data["continuations"], data["label"], ranked[:choices], unconditional, data["normalisation"])


def score_generated(core: str, text: str, accepted: Sequence[Any]) -> ItemScore:
    """Exact match and F1 by the task's rules (RECIPE I.3)."""
    if core.startswith("gsm8k"):
        correct, extracted = gsm8k_match(text, str(accepted[0]))
        return ItemScore({"exact_match": float(correct)}, text, extracted)
    if core.startswith(("minerva_math", "math")):
        verdict = verify("math", text, str(accepted[0]))
        return ItemScore({"exact_match": float(verdict.correct)}, text, verdict.extracted)
    if core.startswith(("drop", "naturalqs")):
        spans = [[span] if isinstance(span, str) else list(span) for span in accepted]
        metrics = {"f1": drop_f1(text.strip(), spans), "exact_match": drop_exact(text.strip(), spans)}
        return ItemScore(metrics, text, text.strip())
    metrics = {"f1": squad_f1(text, accepted), "exact_match": squad_match(text, accepted)}
    return ItemScore(metrics, text, text.strip())


def requests_metric(config: OlmesRequestsBenchmark, items: Sequence[Item]) -> str:
    """The metric that stands for the task."""
    data = items[0].data
    if data["scoring"] == "rank":
        return f"acc_{data['normalisation']}"
    if data["scoring"] == "bits_per_byte":
        return "bits_per_byte"
    return "exact_match" if data["core"].startswith(("gsm8k", "minerva_math", "math")) else "f1"
