"""Stage: documents through rules, decided by the scores next to them, in the order of the config (RECIPE C.3, C.4).

The first rule that refuses a document drops it: it goes to `dropped/` with the rule as reason, the value and
limit as detail and the attributes up to that rule. Documents in = documents kept + documents dropped, per reason.
`histograms.json` has the distribution of every score with its limits, for kept and dropped documents.
Nothing is measured here, so a changed threshold costs one pass over the files.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
import orjson
from pydantic import model_validator

from infra.stage import stage
from infra.workspace import ShardItem, ShardResult, Workspace
from model.config import Config
from tasks.artifacts import Attributes, Documents, LimitHistogram
from tasks.data.documents.dolma_files import LineWriter, Row, add_counts, document_files, shard_name, written_lines
from tasks.data.documents.file_sources import file_bytes
from tasks.data.filters.attributes import Span, attribute_name, bin_counts, broken_limit, edges
from tasks.data.filters.pii import MARKERS, Kind, PIIRule, mask
from tasks.data.filters.rules import Rule, Scorer, check_scorer_names, pin_rule, scorer_name
from tasks.data.filters.statistics.repetition import RepetitionRule


class FilterConfig(Config):
    """The rules a document must pass."""

    rules: tuple[Rule, ...] = (RepetitionRule(),)
    """Rules in the order in which they decide. What stands under a rule's `scorer` is measured by the score stage; all
    else can be changed without measuring again."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        check_scorer_names(self.scorers)
        return self

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """What the rules measure."""
        return tuple(rule.scorer for rule in self.rules)

    def pinned(self) -> Self:
        """The config with the lists and checkpoints that its rules read pinned."""
        return self.model_copy(update={"rules": tuple(pin_rule(rule) for rule in self.rules)})


def filter_documents(
    ws: Workspace, documents: Documents, config: FilterConfig, scores: Attributes | None = None
) -> Documents:
    """The documents that pass every rule; without rules all of them.

    Raises ValueError if the scores are of other documents or lack a rule's, or if nothing passes.
    """
    # Scores of other documents would line up by row and decide wrongly without an error.
    _check_scores(documents, config, scores)
    shared = {
        "documents": documents.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "scores": None if scores is None else scores.model_dump(mode="json"),
    }
    names = document_files(ws, documents)
    items = [{"name": name, **shared} for name in names]
    results = ws.map(filter_shard, items, description="filter", sizes=file_bytes(ws, documents, names))
    kept, dropped = add_counts(results, "sources"), add_counts(results, "dropped")
    count = sum(kept.values())
    # Nothing may vanish: each document is either kept or dropped with a reason.
    assert documents.documents == count + sum(dropped.values()), (documents.documents, kept, dropped)
    if not count:
        raise ValueError(f"no document of {documents.address} passes: {dropped}; loosen the rules")
    ws.write_json("filter.json", {"in": documents.documents, "kept": count, "dropped": dropped})
    ws.write_json("histograms.json", _histograms(config, results))
    ws.table("filter", [{"reason": reason, "documents": number} for reason, number in dropped.items()])
    size = sum(result["bytes"] for result in results)
    return ws.artifact(Documents, documents=count, bytes=size, sources=kept, dropped=dropped)


def _check_scores(documents: Documents, config: FilterConfig, scores: Attributes | None) -> None:
    names = [scorer_name(scorer) for scorer in config.scorers]
    missing = [name for name in names if scores is None or name not in scores.names]
    if missing:
        raise ValueError(
            f"there are no scores for the rules {', '.join(missing)}; run the score stage with their scorers"
        )
    if scores is not None and scores.of != documents.digest:
        raise ValueError(f"{scores.address} has the scores of other documents than {documents.address}; score these")


def filter_shard(ws: Workspace, item: ShardItem) -> ShardResult:
    """Shard function: one document file, with the attribute files next to it, through all rules."""
    config = FilterConfig.model_validate(item["config"])
    judge = Judge(config.rules)
    shard = f"{shard_name(item['name'])}.jsonl.zst"
    sources: dict[str, int] = {}
    dropped: dict[str, int] = {}
    size = 0
    with ExitStack() as stack:
        keep = stack.enter_context(LineWriter(ws, f"documents/{shard}"))
        drop = stack.enter_context(LineWriter(ws, f"dropped/{shard}"))
        for line, rows in _beside(ws, item, judge.names):
            document = orjson.loads(line)
            # Rows are matched by place; the ids prove that the files really belong together.
            assert all(row["id"] == document["id"] for row in rows), (item["name"], document["id"])
            reason, detail = judge.decide([row["attributes"] for row in rows])
            if reason:
                attributes = judge.attributes_until(reason, rows)
                drop.write({**document, "attributes": attributes, "reason": reason, "detail": detail})
                dropped[reason] = dropped.get(reason, 0) + 1
                continue
            text = judge.masked(document["text"], rows)
            # Nothing was masked, so the line is written as it was read, without the cost of serialising it.
            if text is document["text"]:
                keep.write_line(line)
            else:
                keep.write({**document, "text": text})
            size += len(text.encode())
            sources[document["source"]] = sources.get(document["source"], 0) + 1
    return {"sources": sources, "dropped": dropped, "bytes": size, "histograms": judge.histograms()}


def _beside(ws: Workspace, item: ShardItem, names: Sequence[str]) -> Iterator[tuple[bytes, list[Row]]]:
    """Each document's line with its row of every rule's attributes."""
    documents = Documents.model_validate(item["documents"])
    lines = written_lines(ws.path(documents, item["name"]))
    if not names:
        yield from ((line, []) for line in lines)
        return
    scores = Attributes.model_validate(item["scores"])
    shard = item["name"].rsplit("/", 1)[-1]
    files = [written_lines(ws.path(scores, f"attributes/{name}/{shard}")) for name in names]
    # strict: a file that ends early would pair documents with the scores of others.
    for line, *rows in zip(lines, *files, strict=True):
        yield line, [orjson.loads(row) for row in rows]


class Judge:
    """Decides document by document, and keeps each score for the histograms."""

    def __init__(self, rules: Sequence[Rule]):
        self.names = [scorer_name(rule.scorer) for rule in rules]
        self._limits = [
            [(attribute_name(name, limit.label), limit) for limit in rule.limits()]
            for name, rule in zip(self.names, rules, strict=True)
        ]
        self._masking = next((place for place, rule in enumerate(rules) if isinstance(rule, PIIRule)), None)
        self._kept: list[bool] = []
        self._values: dict[str, list[float]] = {name: [] for limits in self._limits for name, _ in limits}

    def decide(self, attributes: Sequence[Mapping[str, Sequence[Sequence[float]]]]) -> tuple[str, str]:
        """(rule, detail) of the first rule that refuses; empty when all pass."""
        verdict = ("", "")
        for name, limits, own in zip(self.names, self._limits, attributes, strict=True):
            # Also after a rule has refused: a histogram of a score counts every document.
            for key, _ in limits:
                self._values[key].append(own[key][0][2])
            if not verdict[0] and (detail := broken_limit(limits, own)):
                verdict = (name, detail)
        self._kept.append(not verdict[0])
        return verdict

    def attributes_until(self, reason: str, rows: Sequence[Row]) -> dict[str, list[Span]]:
        """The attributes of the rules up to the one that refused."""
        asked = rows[: self.names.index(reason) + 1]
        return {name: spans for row in asked for name, spans in row["attributes"].items()}

    def masked(self, text: str, rows: Sequence[Row]) -> str:
        """The text with personal data masked, where a rule asks for it; the same object when there is none."""
        if self._masking is None:
            return text
        name, attributes = self.names[self._masking], rows[self._masking]["attributes"]
        found: dict[Kind, list[Any]] = {kind: attributes[attribute_name(name, kind)] for kind in MARKERS}
        spans: list[tuple[int, int, Kind]] = [(start, end, kind) for kind in found for start, end, _ in found[kind]]
        # Sorted by start, since `mask` cuts the text from left to right.
        return mask(text, sorted(spans)) if spans else text

    def histograms(self) -> dict[str, dict[str, list[int]]]:
        """Attribute name -> documents per bin, kept and dropped."""
        kept = np.array(self._kept, dtype=bool)
        found = {}
        for limits in self._limits:
            for key, limit in limits:
                values = np.array(self._values[key], dtype=np.float64)
                parts = {"kept": values[kept], "dropped": values[~kept]}
                found[key] = {part: bin_counts(own, limit.scale).tolist() for part, own in parts.items()}
        return found


def _histograms(config: FilterConfig, results: Sequence[ShardResult]) -> list[LimitHistogram]:
    """One entry per limit: which score, where the limits are (None for none), and the documents per bin."""
    found: list[LimitHistogram] = []
    for rule in config.rules:
        name = scorer_name(rule.scorer)
        for limit in rule.limits():
            parts = [result["histograms"][attribute_name(name, limit.label)] for result in results]
            counts = {part: np.sum([own[part] for own in parts], axis=0).tolist() for part in ("kept", "dropped")}
            found.append(
                {
                    "rule": name,
                    "label": limit.label,
                    "least": _finite(limit.least),
                    "most": _finite(limit.most),
                    "scale": limit.scale,
                    # Six digits: edges are for reading, and float noise would differ between platforms.
                    "edges": [float(f"{edge:.6g}") for edge in edges(limit.scale)],
                    "kept": counts["kept"],
                    "dropped": counts["dropped"],
                }
            )
    return found


# JSON has no infinity, which is how a rule says that it has no limit on that side.
def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


filter = stage(filter_documents, name="filter", version=2)
