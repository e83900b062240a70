"""Stage: questions solved by programs, kept when the program is safe and runs, annotated with values (RECIPE C.7, TinyGSM).

Paper §4.4.1: of TinyGSM's 12 million synthetic pairs of question and code, those whose code executes and consists of
assignments, every assignment followed by its value. What a language model makes of them is the rewrite stage's.
"""

from collections import Counter
from typing import Literal, Self

from pydantic import Field

from infra.stage import stage
from infra.workspace import ShardItem, ShardResult, Workspace
from model.config import Config
from tasks.artifacts import Documents
from tasks.data.documents.dolma_files import LineWriter, Row, add_counts
from tasks.data.sources.rows import RowSource, read_rows
from tasks.synthetic.programs import Refused, evaluate_program


class ProgramsConfig(Config):
    """Rows of questions with programs."""

    kind: Literal["programs"] = "programs"
    name: str = "programs"
    """Source name of the documents."""
    rows: RowSource = RowSource(dataset="TinyGSM/TinyGSM")
    """Questions with programs."""
    question: str = "question"
    """Field of the question."""
    program: str = "code"
    """Field of the program: assignments, alone or as the body of one Python function."""
    max_dropped: float = Field(default=0.9, ge=0, le=1)
    """The stage fails when a larger share of rows is dropped (the paper does not say how many remained)."""

    def pinned(self) -> Self:
        """The config with its rows pinned."""
        return self.model_copy(update={"rows": self.rows.pinned()})

    def made(self, label: str) -> Documents:
        """The documents, of a stage with this label."""
        return programs.labelled(label)(self)


def run_programs(ws: Workspace, config: ProgramsConfig) -> Documents:
    """Question and annotated program per row; refused ones in `dropped/` with the reason. Each file of rows is one shard.

    Raises ValueError when nothing is left or too much is dropped.
    """
    # A limit counts over all files, so they are then one shard.
    sources = [config.rows]
    if config.rows.files and config.rows.limit is None:
        sources = [config.rows.model_copy(update={"files": (file,)}) for file in config.rows.files]
    items = [
        {"number": number, "config": config.model_copy(update={"rows": rows}).model_dump(mode="json")}
        for number, rows in enumerate(sources)
    ]
    results = ws.map(_run_shard, items, description=f"run {config.name}")
    kept, dropped = sum(result["documents"] for result in results), add_counts(results, "dropped")
    refused = sum(dropped.values())
    if not kept or refused > config.max_dropped * (kept + refused):
        raise ValueError(
            f"{refused:,} of {kept + refused:,} programs of {config.name!r} are dropped: {dropped}; check the fields "
            f"{config.question!r} and {config.program!r}, or raise max_dropped={config.max_dropped}"
        )
    size = sum(result["bytes"] for result in results)
    return ws.artifact(Documents, documents=kept, bytes=size, sources={config.name: kept}, dropped=dropped)


def _run_shard(ws: Workspace, item: ShardItem) -> ShardResult:
    """Shard function: the rows of one file."""
    config = ProgramsConfig.model_validate(item["config"])
    dropped: Counter[str] = Counter()
    documents = size = 0
    name = f"{item['number']:05d}-000.jsonl.zst"
    with LineWriter(ws, f"documents/{name}") as keep, LineWriter(ws, f"dropped/{name}") as drop:
        for number, (place, row) in enumerate(read_rows(config.rows)):
            id = f"{config.name}-{item['number']:05d}-{number:08d}"
            text, answer, reason = solved(row, config)
            # Counted with its reason and passed over, since one bad program must not end the shard.
            if reason:
                drop.write({"id": id, "source": config.name, "reason": reason, "detail": place, "text": text})
                dropped[reason] += 1
                continue
            metadata = {"answer": answer, "origin": "program"}
            keep.write({"id": id, "source": config.name, "text": text, "metadata": metadata})
            documents += 1
            size += len(text.encode())
    return {"documents": documents, "bytes": size, "dropped": dict(dropped)}


def solved(row: Row | None, config: ProgramsConfig) -> tuple[str, str, str]:
    """(question and annotated program, answer, reason why it is left out or "")."""
    if row is None:
        return "", "", "not a JSON object"
    question, program = row.get(config.question), row.get(config.program)
    if not isinstance(question, str) or not isinstance(program, str) or not question.strip():
        return "", "", "no question or program"
    try:
        # Evaluated as assignments, never by Python itself: programs of the web are not trusted.
        run = evaluate_program(program)
    except Refused as refusal:
        return program, "", str(refusal)
    return f"{question.strip()}\n\n{run.annotated}", run.answer, ""


programs = stage(run_programs, name="programs", version=2)
