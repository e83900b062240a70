"""Stage: a sample of documents labelled by a language model, for a quality classifier to learn from (RECIPE C.3, C.7).

Two rubrics: `educational`, 0 to 5 points, as FineWeb-Edu's classifier was trained on, and `mathematics`, yes or no, as the
paper's OpenWebMath classifier (fastText on 10,000 pages labelled by GPT-4o). The label becomes a metadata field of the
document, so that the classifier's selections can name it: `positives: {metadata: {educational: ["3", "4", "5"]}}`.
Deviation: the prompts are ours.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from infra.language_models.protocol import Answer, Request
from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Documents
from tasks.data.documents.document_random import draw
from tasks.data.documents.dolma_files import Row, document_files, read_documents
from tasks.data.documents.numbered_files import Drafts
from tasks.prompting import LanguageModelConfig, check_prompt, fill_template, prompt_text, unusable

Rubric = Literal["educational", "mathematics"]

VERDICTS: dict[Rubric, re.Pattern[str]] = {
    "educational": re.compile(r"^\W*score\W*([0-5])\b(?!\s*\.\d)", re.IGNORECASE | re.MULTILINE),
    "mathematics": re.compile(r"^\W*mathematics\W*(yes|no)\b(?! or)", re.IGNORECASE | re.MULTILINE),
}
"""Where an answer states its label; the last one counts, for the explanation may weigh others."""


class LabelConfig(Config):
    """What is labelled, by whom and how."""

    name: str = "educational"
    """Metadata field that holds the label."""
    rubric: Rubric = "educational"
    """`educational`: 0 to 5; `mathematics`: yes or no. Its prompt is used unless another one is given."""
    sources: tuple[str, ...] = ()
    """Sources to sample from; empty for all."""
    count: int = Field(default=10_000, ge=1)
    """Documents to label, about: each is drawn by itself (the paper's OpenWebMath sample: 10,000)."""
    max_characters: int = Field(default=4_000, ge=1)
    """What the model sees of a document, from its beginning."""
    writer: LanguageModelConfig = LanguageModelConfig(model="gpt-4o-2024-08-06", temperature=0.0, max_tokens=300)
    """Who labels (the paper: GPT-4o)."""
    prompt: str = ""
    """Jinja template with {{ text }}; the rubric's is filled in."""
    max_dropped: float = Field(default=0.2, ge=0, le=1)
    """The stage fails when a larger share of answers has no label."""
    seed: int = 0
    """Of the sample."""

    @model_validator(mode="before")
    @classmethod
    def _fill_prompt(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("prompt"):
            return data | {"prompt": prompt_text(f"label_{data.get('rubric', 'educational')}")}
        return data

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        check_prompt(self.prompt, "text")
        return self


def label_documents(ws: Workspace, documents: list[Documents], config: LabelConfig) -> Documents:
    """The sampled documents with their labels; those whose answer states none in `dropped/`.

    Raises ValueError for a source that is not there or too many answers without a label, EndpointError when the model
    does not answer.
    """
    # The share follows from the total and each document is drawn by itself, so `count` is approximate.
    total = sum(count for part in documents for name, count in part.sources.items() if is_asked(name, config))
    missing = sorted(set(config.sources) - {name for part in documents for name in part.sources})
    if missing or not total:
        there = ", ".join(sorted({name for part in documents for name in part.sources}))
        raise ValueError(f"nothing to label in {', '.join(missing) or 'the documents'}; the sources are {there}")
    labels: Counter[str] = Counter()
    with (
        Drafts(ws) as drafts,
        ws.endpoint(config.writer.model) as endpoint,
        ws.progress(f"label {config.name}", min(total, config.count), "documents") as bar,
    ):
        chosen = sampled(ws, documents, config, config.count / total)
        for row, answer in endpoint.ask_each((row, request_for(row, config)) for row in chosen):
            reason, label = read_label(answer, config.rubric)
            if reason:
                drafts.drop(row, reason, answer.refused or answer.text)
            else:
                labels[label] += 1
                drafts.keep({**row, "metadata": (row.get("metadata") or {}) | {config.name: label}})
            bar.advance()
        ws.note(endpoint=endpoint.facts())
    ws.write_json("labels.json", labels)
    ws.table("labels", [{"label": label, "documents": labels[label]} for label in sorted(labels)])
    return drafts.finish(config.max_dropped)


def is_asked(source: str, config: LabelConfig) -> bool:
    """Whether a source is sampled from."""
    return not config.sources or source in config.sources


def sampled(ws: Workspace, documents: list[Documents], config: LabelConfig, share: float) -> Iterator[Row]:
    """Documents of the asked sources, each drawn with this probability by its source, id and the seed alone."""
    for part in documents:
        for name in document_files(ws, part):
            for row in read_documents(ws, part, name):
                asked = is_asked(row["source"], config) and row["text"].strip()
                # By source and id: equal ids in two sources are drawn independently.
                if asked and draw(config.seed, row["source"], row["id"]) < share:
                    yield row


def request_for(row: Row, config: LabelConfig) -> Request:
    """The question about one document."""
    return config.writer.request(fill_template(config.prompt, text=row["text"].strip()[: config.max_characters]))


def read_label(answer: Answer, rubric: Rubric) -> tuple[str, str]:
    """(reason why there is no label or "", the label)."""
    if reason := unusable(answer):
        return reason, ""
    found = VERDICTS[rubric].findall(answer.text)
    # The last statement counts, since an explanation may weigh other labels first.
    return ("", found[-1].lower()) if found else ("no label", "")


label = stage(label_documents, name="label", version=1, waits=True)
