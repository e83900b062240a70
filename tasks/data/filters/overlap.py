"""Overlap of texts with evaluation items, by word n-grams (RECIPE C.6; paper section 4.3).

Shared by the stages that remove what overlaps: documents, chats, prompts and preference pairs. It works in two directions.
One is the share of a text's n-grams that some item has (the paper's FLAN rule as read in C.6, 10 %). The other is the share
of one item's n-grams that the text has, which finds an item hidden in a long text. An item counts as its question with the
gold answer, and as its question. Both sides are normalised alike: NFKC, case, invisible characters and punctuation do not
hide an item. Deviation: n and the direction are not published; n = 8 words is the choice made in RECIPE C.6. The paper takes
the training split of evaluation tasks too, for FLAN; other published sources are made of GSM8K's training split, so `splits`
is per source.
"""

from typing import Any, Literal, TypedDict

import numpy as np
from pydantic import Field

from infra.json_values import JsonObject
from infra.workspace import ShardResult, Workspace
from model.config import Config
from tasks.data.documents.dolma_files import Row, add_counts, read_own
from tasks.data.filters.ngrams import NGrams, NGramSet, word_ngrams
from tasks.evaluation.benchmarks import BenchmarkConfig
from tasks.evaluation.benchmarks.splits import Splits, items_of_splits

REASON = "contaminated"
OWNED = np.dtype([("hash", "<u8"), ("unit", "<u4")])
"""An n-gram of a unit, sorted by hash. A unit is an item's question with its answer, or its question alone."""
UNIT = np.dtype([("ngrams", "<u4"), ("item", "<u4")])
"""Distinct n-grams of a unit, and its item."""
Direction = Literal["document", "item"]

_EXAMPLES = 3
_PIECE_CHARACTERS = 4_000_000


class OverlapRule(Config):
    """How much overlap is too much."""

    ngram: int = Field(default=8, ge=1)
    """Words per n-gram (RECIPE C.6). A shorter text is one n-gram of all its words."""
    direction: Direction = "document"
    """Share of the document's n-grams found in any item, or share of an item's n-grams found in the document.
    """
    max_overlap: float = Field(default=0.10, gt=0, le=1)
    """What has this share or more is removed (paper section 4.3)."""
    splits: Splits = "held_out"
    """`held_out`: every row of the evaluated split and of the other splits that no model trains on. `all`: training splits and
    few-shot examples too, as the paper has it for FLAN."""

    @property
    def items_name(self) -> str:
        """Where its items are kept next to the payload."""
        return f"items/{self.ngram}-{self.splits}"


class DecontaminateConfig(OverlapRule):
    """The evaluation sets, and how much overlap is too much."""

    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """Benchmarks whose items must not be in the documents."""
    sources: dict[str, OverlapRule] = Field(default_factory=dict)
    """Other rules for some sources, by name, such as flan: {splits: all}."""
    exempt: dict[str, str] = Field(default_factory=dict)
    """Sources that cannot hold an item by construction, with the reason; filled in by the recipe."""

    def rule_of(self, source: str) -> OverlapRule | None:
        """The rule of one source; None where it is exempt."""
        return None if source in self.exempt else self.sources.get(source, self)

    def rules_of(self, sources: list[str]) -> list[OverlapRule]:
        """The rules that sources are judged by."""
        return [rule for source in sources if (rule := self.rule_of(source))]


class Items:
    """The items' n-grams as a shard uses them."""

    def __init__(self, owned: np.ndarray, units: np.ndarray):
        self.owned = owned
        self.units = units
        self.ngrams = NGramSet(owned["hash"])

    @classmethod
    def read(cls, ws: Workspace, rule: OverlapRule) -> "Items":
        """What `write_items` wrote for a rule."""
        owned = np.frombuffer(read_own(ws, f"{rule.items_name}.ngrams"), dtype=OWNED)
        return cls(owned, np.frombuffer(read_own(ws, f"{rule.items_name}.units"), dtype=UNIT))

    def having(self, hash: np.uint64) -> list[int]:
        """Units that have an n-gram."""
        # The first and the next hash bound the run of equal ones.
        first, end = np.searchsorted(self.owned["hash"], [hash, hash + np.uint64(1)])
        return self.owned["unit"][first:end].tolist()


def write_items(ws: Workspace, config: DecontaminateConfig, rules: list[OverlapRule]) -> tuple[np.ndarray, list[str]]:
    """Put the items' n-grams where every shard finds them. Returns each item's benchmark number, and the item ids."""
    # The items of all splits are read once where any rule asks for them.
    asked = "all" if any(rule.splits == "all" for rule in rules) else "held_out"
    texts: list[str] = []
    item_of: list[int] = []
    held_out: list[bool] = []
    owners: list[int] = []
    ids: list[str] = []
    for number, benchmark in enumerate(config.benchmarks if rules else ()):
        for split, item in items_of_splits(benchmark, asked):
            # Question with answer, and question alone: either may stand in a text.
            for text in dict.fromkeys((item.text, item.question)):
                texts.append(text)
                item_of.append(len(ids))
                held_out.append(split == "held_out")
            ids.append(item.id)
            owners.append(number)
    # Sources may share a rule; its items are written once.
    for rule in {rule.items_name: rule for rule in rules}.values():
        grams = word_ngrams(texts, rule.ngram, fold=True)
        counted = np.array(held_out, dtype=bool) | (rule.splits == "all")
        chosen = counted[grams.text] if len(texts) else np.zeros(0, dtype=bool)
        owned = np.zeros(int(chosen.sum()), dtype=OWNED)
        owned["hash"], owned["unit"] = grams.hashes[chosen], grams.text[chosen]
        # Distinct and sorted by hash: an item that repeats itself counts each n-gram once.
        owned = np.unique(owned)
        units = np.zeros(len(texts), dtype=UNIT)
        units["ngrams"], units["item"] = np.bincount(owned["unit"], minlength=len(texts)), item_of
        ws.write(f"{rule.items_name}.ngrams", owned.tobytes())
        ws.write(f"{rule.items_name}.units", units.tobytes())
    return np.array(owners, dtype=np.int64), ids


class Overlap(TypedDict):
    """What a text has of evaluation items."""

    share: float
    """Of its n-grams or of an item's, in the asked direction."""
    items: list[int]
    """Numbers of the items, the most shared first."""
    shown: str
    """Words of the first n-gram that is shared."""


class OverlapExample(TypedDict):
    """A removed document, for the report."""

    document: str
    share: float
    words: str
    item: int
    """Number of the item that it shares most with."""


class BenchmarkOverlap(TypedDict):
    """A row of the report: one benchmark."""

    benchmark: str
    items: int
    items_found: int
    touched: dict[str, int]
    """Documents that share an n-gram, by item id."""
    documents_touched_by_items: int
    documents_removed: int
    examples: list[JsonObject]
    """Each an OverlapExample whose item is named by its id."""


def find_overlaps(documents: list[Row], items: Items, n: int, direction: Direction) -> dict[int, Overlap]:
    """For each document with any n-gram of an item: the share in the asked direction, the items (most shared
    first), the words."""
    pieces = [(index, piece) for index, row in enumerate(documents) for piece in _pieces(row["text"], n)]
    grams = word_ngrams([piece for _, piece in pieces], n, fold=True)
    owner = np.array([index for index, _ in pieces], dtype=np.int64)[grams.text]
    # All n-grams of a document, repeated ones too: the share is of its text.
    totals = np.bincount(owner, minlength=len(documents))
    found = items.ngrams.find(grams.hashes)
    overlaps: dict[int, Overlap] = {}
    for index in np.unique(owner[found]).tolist():
        mine = found[owner[found] == index]
        overlaps[index] = _overlap(grams, mine, int(totals[index]), items, direction)
    return overlaps


def _overlap(grams: NGrams, found: np.ndarray, total: int, items: Items, direction: Direction) -> Overlap:
    counts: dict[int, int] = {}
    for hash in np.unique(grams.hashes[found]):
        for unit in items.having(hash):
            counts[unit] = counts.get(unit, 0) + 1
    shares: dict[int, float] = {}
    for unit, count in counts.items():
        size, number = items.units[unit].tolist()
        # The larger share of an item's two units, question alone or with its answer.
        shares[number] = max(shares.get(number, 0.0), count / size)
    # Ties are broken by number, so that reports are equal on every machine.
    order = sorted(shares, key=lambda number: (-shares[number], number))
    share = len(found) / total if direction == "document" else shares[order[0]]
    return {"share": share, "items": order, "shown": grams.show(int(found[0]))}


def example_of(document: str, overlap: Overlap) -> OverlapExample:
    """A removed document as the report may show it."""
    return {
        "document": document,
        "share": round(overlap["share"], 4),
        "words": overlap["shown"],
        "item": overlap["items"][0],
    }


def _pieces(text: str, n: int) -> list[str]:
    """A very long text in pieces that together have its n-grams once each, so that memory stays bounded."""
    if len(text) <= _PIECE_CHARACTERS:
        return [text]
    pieces, start = [], 0
    while len(text) - start > _PIECE_CHARACTERS:
        # Cut at a space, so that no word is cut in two.
        cut = text.rfind(" ", start + 1, start + _PIECE_CHARACTERS)
        cut = cut if cut > 0 else start + _PIECE_CHARACTERS
        pieces.append(text[start:cut])
        start = cut
    pieces.append(text[start:])
    # Each piece begins with the last n - 1 words of the one before, so no n-gram is lost at a cut.
    tails = ["", *(_last_words(piece, n - 1) for piece in pieces[:-1])]
    return [f"{tail} {piece}" for tail, piece in zip(tails, pieces, strict=True)]


def _last_words(text: str, count: int) -> str:
    # Words of 100 characters on average would be extraordinary, so this tail holds enough of them.
    grams = word_ngrams([text[-100 * (count + 1) :]], 1, fold=True)
    return "" if not count or not len(grams.start) else grams.normalised[grams.start[-count:][0] :].decode()


def count_values(values: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[str(value)] = counts.get(str(value), 0) + 1
    return counts


def benchmark_report(
    config: DecontaminateConfig, owners: np.ndarray, ids: list[str], results: list[ShardResult]
) -> list[BenchmarkOverlap]:
    """One row per benchmark; `touched` says how many documents share an n-gram with each evaluated item."""
    touched, removed = add_counts(results, "touched"), add_counts(results, "removed")
    examples = [example for result in results for example in result["examples"]]
    rows: list[BenchmarkOverlap] = []
    for number, benchmark in enumerate(config.benchmarks):
        numbers = np.flatnonzero(owners == number).tolist()
        mine = set(map(str, numbers))
        # Items of other splits may bear the ids of those that are evaluated, which come first.
        firsts = list({ids[index]: index for index in reversed(numbers)}.values())[::-1]
        shown = [example for example in examples if str(example["item"]) in mine][:_EXAMPLES]
        rows.append(
            {
                "benchmark": benchmark.name,
                "items": len(mine),
                "items_found": len(mine & touched.keys()),
                "touched": {ids[number]: touched[str(number)] for number in firsts if str(number) in touched},
                "documents_touched_by_items": sum(touched[key] for key in mine & touched.keys()),
                "documents_removed": sum(removed[key] for key in mine & removed.keys()),
                "examples": [{**example, "item": ids[example["item"]]} for example in shown],
            }
        )
    return rows
