"""Stage: worked word problems as documents, as they are or with other numbers (RECIPE C.7: GSM8K train, and its substitution).

Rows are a question and an answer in GSM8K's form: a solution with calculator annotations, and a last line `#### 72`. The
annotations are for computing and are left out of the text. Deviation: problems whose numbers cannot be traced with certainty
give no variants (`tasks.synthetic.substitution`).
"""

from collections import Counter
from random import Random
from typing import Literal, Self

from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Documents
from tasks.data.documents.dolma_files import Row
from tasks.data.documents.numbered_files import Drafts
from tasks.data.sources.rows import RowSource, read_rows
from tasks.synthetic.programs import Refused
from tasks.synthetic.substitution import substitute, trace, without_annotations


class WorkedConfig(Config):
    """Rows of worked problems and what is made of them."""

    kind: Literal["worked"] = "worked"
    name: str = "worked"
    """Source name of the documents."""
    rows: RowSource = RowSource(dataset="openai/gsm8k", subset="main")
    """Questions with worked answers; a training split."""
    question: str = "question"
    """Field of the question."""
    answer: str = "answer"
    """Field of the solution with its annotations and final line."""
    numbers: Literal["original", "substituted"] = "substituted"
    """The problems as they are, or with new numbers."""
    copies: int = Field(default=6, ge=1)
    """Variants of each problem with new numbers (the paper's "resample 6x")."""
    max_dropped: float = Field(default=0.9, ge=0, le=1)
    """The stage fails when a larger share gives nothing (how many the paper's rules refused is not published)."""
    seed: int = 6198
    """Of the new numbers."""

    def pinned(self) -> Self:
        """The config with its rows pinned."""
        return self.model_copy(update={"rows": self.rows.pinned()})

    def made(self, label: str) -> Documents:
        """The documents, of a stage with this label."""
        return worked.labelled(label)(self)


def write_worked_problems(ws: Workspace, config: WorkedConfig) -> Documents:
    """A document per problem, or several with new numbers; refused problems in `dropped/` with the reason.

    Raises ValueError when too many are refused.
    """
    with Drafts(ws) as drafts, ws.progress(f"write {config.name}", config.rows.limit, "problems") as bar:
        for number, (place, row) in enumerate(read_rows(config.rows)):
            id = f"{config.name}-{number:08d}"
            try:
                for made in documents_of(row, id, config):
                    drafts.keep(made)
            except Refused as refusal:
                drafts.drop({"id": id, "source": config.name, "text": ""}, str(refusal), place)
            bar.advance()
    return drafts.finish(config.max_dropped)


def documents_of(row: Row | None, id: str, config: WorkedConfig) -> list[Row]:
    """The documents of one problem. Raises Refused with the reason when there are none."""
    question, answer = (None, None) if row is None else (row.get(config.question), row.get(config.answer))
    if not isinstance(question, str) or not isinstance(answer, str):
        raise Refused("no question or answer")
    if config.numbers == "original":
        solution, final = without_annotations(answer)
        return [document(id, question.strip(), solution, final, config)]
    worked = trace(question, answer)
    # Keyed by the problem's id: its variants do not depend on the problems before it.
    rng = Random(f"{config.seed}/{id}")
    # Counter keeps each variant once, in order; small ranges repeat themselves.
    found = Counter(substitute(worked, rng) for _ in range(config.copies))
    return [
        document(f"{id}-{copy}", variant.question, variant.solution, variant.answer, config)
        for copy, variant in enumerate(found)
    ]


def document(id: str, question: str, solution: str, answer: str, config: WorkedConfig) -> Row:
    """Question, solution and answer as one text, in the form of the other problem documents."""
    text = f"Question: {question}\nAnswer: {solution} So the answer is {answer}."
    return {
        "id": id,
        "source": config.name,
        "text": text,
        "metadata": {"answer": answer, "numbers": config.numbers},
    }


worked = stage(write_worked_problems, name="worked", version=2)
