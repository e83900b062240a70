"""Documents as they are written one after another: files of a fixed number of rows, and what could not be used next to them.

For stages whose documents come in one stream, because a language model writes them. Such a stage resumes from the answers
that the store remembers, so its files need no commits of their own.
"""

from collections import Counter
from types import TracebackType

from infra.workspace import Workspace
from tasks.artifacts import Documents
from tasks.data.documents.dolma_files import LineWriter, Row

DOCUMENTS_PER_FILE = 10_000
"""Rows in one file: a unit of parallel work for the stages that follow."""


class Drafts:
    """Writes `documents/*.jsonl.zst` and `dropped/*.jsonl.zst` in the order of the calls; a context manager."""

    def __init__(self, ws: Workspace, per_file: int = DOCUMENTS_PER_FILE):
        self.ws = ws
        self.sources: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.bytes = 0
        self._per_file = per_file
        self._writers: dict[str, tuple[LineWriter, int]] = {}

    def keep(self, row: Row) -> None:
        """A document."""
        self._write("documents", row, self.sources.total())
        self.sources[row["source"]] += 1
        self.bytes += len(row["text"].encode())

    def drop(self, row: Row, reason: str, detail: str = "") -> None:
        """What could not be used, with the reason and the text that was wrong."""
        self._write("dropped", {**row, "reason": reason, "detail": detail}, self.dropped.total())
        self.dropped[reason] += 1

    def finish(self, max_dropped: float) -> Documents:
        """The artifact. ValueError when nothing was kept, or a larger share than `max_dropped` was not."""
        kept, dropped = self.sources.total(), self.dropped.total()
        if not kept:
            raise ValueError(f"no document could be used: {dict(self.dropped) or 'there was nothing to read'}")
        if dropped > max_dropped * (kept + dropped):
            raise ValueError(
                f"{dropped:,} of {kept + dropped:,} answers could not be used: {dict(self.dropped)}; more than "
                f"max_dropped={max_dropped}. Better the prompt, the model or its limits, or raise it"
            )
        reasons = dict(sorted(self.dropped.items()))
        self.ws.table("dropped", [{"reason": reason, "documents": number} for reason, number in reasons.items()])
        sources = dict(sorted(self.sources.items()))
        return self.ws.artifact(Documents, documents=kept, bytes=self.bytes, sources=sources, dropped=reasons)

    def __enter__(self) -> "Drafts":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also after an error: the writer then closes its file without putting it.
        for writer, _ in self._writers.values():
            writer.__exit__(kind, error, trace)

    def _write(self, folder: str, row: Row, place: int) -> None:
        # The number of a file follows from the count of rows, so a resumed stage cuts alike.
        number = place // self._per_file
        writer, open_number = self._writers.get(folder, (None, -1))
        if writer is None or open_number != number:
            if writer is not None:
                writer.__exit__(None)
            writer = LineWriter(self.ws, f"{folder}/{number:05d}-000.jsonl.zst")
            self._writers[folder] = (writer, number)
        writer.write(row)
