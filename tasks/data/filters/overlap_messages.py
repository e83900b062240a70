"""Chats, prompts and preference pairs that overlap with evaluation items are removed (RECIPE C.6, F, G, H).

Each message is judged by itself, and the whole conversation. The measure is that of documents (`tasks.data.filters.overlap`);
the recipe's default here is the share of an item, because conversations share the wording of tasks and constraints with
evaluation sets by design. What was removed is in `dropped/`, with the item; `report.json` counts it per benchmark.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from infra.records.artifact import Artifact
from infra.workspace import Workspace
from tasks.artifacts import Prompts
from tasks.data.documents.dolma_files import LineWriter, Row, batches
from tasks.data.filters.overlap import (
    REASON,
    DecontaminateConfig,
    Items,
    Overlap,
    OverlapExample,
    benchmark_report,
    count_values,
    example_of,
    find_overlaps,
    write_items,
)

_EXAMPLES = 50
"""Removed rows whose words the report may show."""


def sift(
    ws: Workspace,
    artifact: Artifact,
    name: str,
    fields: tuple[str, ...],
    config: DecontaminateConfig,
    sources: list[str],
    datasets: Counter[str] | None = None,
) -> tuple[Counter[str], dict[str, int]]:
    """Write the rows that stay; how many there are per source, and what was dropped."""
    owners, ids = write_items(ws, config, config.rules_of(sources))
    items = {rule.items_name: Items.read(ws, rule) for rule in config.rules_of(sources)}
    kept: Counter[str] = Counter()
    touched: Counter[str] = Counter()
    examples: list[OverlapExample] = []
    emptied: Counter[str] = Counter()
    with LineWriter(ws, name, empty=True) as keep, LineWriter(ws, f"dropped/{name}") as drop:
        # Rows are measured by their messages' text, and carried along whole.
        for batch in batches(_with_text(ws.read_jsonl(artifact, name), fields)):
            for row, source, overlap, limit in _judge(batch, items, config, fields, sources):
                touched.update(str(number) for number in overlap["items"])
                if overlap["share"] < limit:
                    keep.write(row)
                    kept[source] += 1
                    # Prompts are also counted by verifier, which only their stage asks for.
                    if datasets is not None:
                        datasets[row["dataset"]] += 1
                    continue
                emptied[source] += 1
                detail = f"{overlap['share']:.3f} of n-grams, limit {limit}: {overlap['shown']!r}"
                drop.write({**row, "reason": REASON, "detail": detail})
                examples.append(example_of(row["id"], overlap))
    gone = sorted(source for source in emptied if source not in kept)
    for source in gone:
        ws.warn(
            f"source {source!r} is emptied: each of its {emptied[source]:,} rows overlaps with an evaluation item; take it "
            "out of the recipe, or give it another rule under decontaminate_messages.sources"
        )
    result = {
        "touched": touched,
        "examples": examples[:_EXAMPLES],
        "removed": count_values(example["item"] for example in examples),
    }
    report = benchmark_report(config, owners, ids, [result])
    ws.write_json("report.json", report)
    ws.write_json("exempt.json", {source: why for source, why in config.exempt.items() if source in sources})
    if not kept:
        found = ", ".join(f"{row['benchmark']} {row['documents_removed']:,}" for row in report)
        raise ValueError(
            f"each of the {emptied.total():,} rows of {artifact.address} overlaps with an evaluation item ({found}); give "
            "training other data, or another rule under decontaminate_messages"
        )
    return kept, {REASON: emptied.total()} if emptied else {}


def _judge(
    batch: list[Row], items: dict[str, Items], config: DecontaminateConfig, fields: tuple[str, ...], sources: list[str]
) -> Iterable[tuple[Row, str, Overlap, float]]:
    """(row, source, its worst overlap, the limit of its source) of every row."""
    for made in batch:
        row = made["row"]
        source = _source_of(row, sources)
        rule = config.rule_of(source)
        # A limit of 2 is never reached, since shares are at most 1: exempt rows are kept.
        limit = 2.0
        worst: Overlap = {"share": 0.0, "items": [], "shown": ""}
        if rule is not None:
            texts = [{"text": text} for text in _texts(row, fields)]
            found = find_overlaps(texts, items[rule.items_name], rule.ngram, rule.direction).values()
            worst = max(found, key=lambda overlap: overlap["share"], default=worst)
            limit = rule.max_overlap
        yield row, source, worst, limit


def _texts(row: Row, fields: tuple[str, ...]) -> list[str]:
    """Each message of a row, once, and each of its conversations."""
    texts: list[str] = []
    for field in fields:
        said = [message["content"] for message in row[field]]
        texts += [*said, "\n".join(said)]
    # Each text once: the prompt of a pair stands on both sides.
    return list(dict.fromkeys(texts))


def _with_text(rows: Iterable[Row], fields: tuple[str, ...]) -> Iterator[Row]:
    """Rows as `batches` measures them."""
    for row in rows:
        yield {"row": row, "text": "\n".join(_texts(row, fields))}


def prompt_sources(ws: Workspace, prompts: Prompts) -> list[str]:
    return sorted({row["id"].rpartition("-")[0] for row in ws.read_jsonl(prompts, "prompts.jsonl.zst")})


def _source_of(row: Row, sources: list[str]) -> str:
    """A chat names its source, a prompt has it in its id; pairs are one source here."""
    if len(sources) == 1:
        return sources[0]
    return row["source"] if "source" in row else row["id"].rpartition("-")[0]
