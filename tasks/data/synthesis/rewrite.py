"""Stage: documents rewritten as conversations by a language model (paper §4.4.1, after MIND; RECIPE C.7).

The paper rewrites TinyGSM's annotated programs (6.48B tokens) and GSM8K's training set in two of MIND's styles, "two
students" and "problem solving", with Qwen2.5-7B-Instruct. Deviations: the prompts are ours, and documents are rewritten
whole (MIND cuts long pages into pieces of 500 tokens; these sources are short, and longer ones are left out).
A rewrite that has lost the answer which its document carries is not used; the paper does not say that it checked.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from infra.language_models.protocol import Answer, Request
from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Documents
from tasks.data.documents.dolma_files import Row, document_files, read_documents
from tasks.data.documents.numbered_files import Drafts
from tasks.prompting import LanguageModelConfig, check_prompt, fill_template, prompt_text, unusable

Style = Literal["two_students", "problem_solving"]


class RewriteConfig(Config):
    """Style, model and checks of one rewriting."""

    name: str = "rewritten"
    """Source name of the new documents."""
    style: Style = "two_students"
    """MIND's style; its prompt is used unless another one is given."""
    writer: LanguageModelConfig = LanguageModelConfig(model="Qwen/Qwen2.5-7B-Instruct")
    """Who writes (the paper's model)."""
    prompt: str = ""
    """Jinja template with {{ text }}; the style's is filled in."""
    copies: int = Field(default=1, ge=1)
    """Rewrites of each document, with seeds of their own."""
    limit: int | None = Field(default=None, ge=1)
    """Documents to rewrite at most, from the first; None for all."""
    max_characters: int = Field(default=12_000, ge=1)
    """Longer documents are left out."""
    min_words: int = Field(default=50, ge=0)
    """A shorter rewrite is not used (MIND drops conversations of under 50 tokens)."""
    max_dropped: float = Field(default=0.2, ge=0, le=1)
    """The stage fails when a larger share of answers cannot be used."""

    @model_validator(mode="before")
    @classmethod
    def _fill_prompt(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("prompt"):
            return data | {"prompt": prompt_text(f"rewrite_{data.get('style', 'two_students')}")}
        return data

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        check_prompt(self.prompt, "text")
        return self


def rewrite_documents(ws: Workspace, documents: Documents, config: RewriteConfig) -> Documents:
    """The conversations, in the order of the documents; what could not be used is in `dropped/` with its reason.

    Raises ValueError when too many answers cannot be used, EndpointError when the model does not answer.
    """
    count = min(documents.documents, config.limit or documents.documents)
    with (
        Drafts(ws) as drafts,
        ws.endpoint(config.writer.model) as endpoint,
        ws.progress(f"rewrite {config.name}", count * config.copies, "documents") as bar,
    ):
        requests = requests_for(_first_rows(ws, documents, count), config, drafts)
        for row, answer in endpoint.ask_each(requests):
            reason = why_unusable(row, answer, config)
            if reason:
                drafts.drop(row, reason, answer.refused or answer.text)
            else:
                drafts.keep({**row, "text": answer.text.strip()})
            bar.advance()
        ws.note(endpoint=endpoint.facts())
    return drafts.finish(config.max_dropped)


def _first_rows(ws: Workspace, documents: Documents, count: int) -> Iterator[Row]:
    """The first documents, file by file."""
    for name in document_files(ws, documents):
        for row in read_documents(ws, documents, name):
            if count <= 0:
                return
            count -= 1
            yield row


def requests_for(rows: Iterator[Row], config: RewriteConfig, drafts: Drafts) -> Iterator[tuple[Row, Request]]:
    """A new row without text and its request, for every copy of every document that is short enough."""
    for row in rows:
        metadata = {
            **(row.get("metadata") or {}),
            "rewritten_from": f"{row['source']}/{row['id']}",
            "style": config.style,
            "model": config.writer.model,
        }
        for copy in range(config.copies):
            id = f"{config.name}-{row['source']}-{row['id']}" + (f"-{copy}" if config.copies > 1 else "")
            made = {"id": id, "source": config.name, "metadata": metadata, "text": ""}
            if len(row["text"]) > config.max_characters:
                drafts.drop(made, "too long", f"{len(row['text']):,} characters")
                continue
            # A seed per copy, or a remembered answer would be returned for every copy.
            writer = config.writer.model_copy(update={"seed": config.writer.seed + copy})
            yield made, writer.request(fill_template(config.prompt, text=row["text"]))


def why_unusable(row: Row, answer: Answer, config: RewriteConfig) -> str:
    """The reason, or empty: cut off, too short, or without the answer that the document carries."""
    if reason := unusable(answer):
        return reason
    if len(answer.text.split()) < config.min_words:
        return "too short"
    expected = row["metadata"].get("answer")
    return "" if expected is None or states(answer.text, str(expected)) else "answer lost"


def states(text: str, number: str) -> bool:
    """Whether a text contains the number by itself; thousands may be set apart by commas."""
    # Digits, or a point with digits, on either side would make it another number: 12 is not in 112 or 12.5.
    return re.search(rf"(?<![\d.]){re.escape(number)}(?!\d|\.\d)", text.replace(",", "")) is not None


rewrite = stage(rewrite_documents, name="rewrite", version=1, waits=True)
