"""The model card of an exported checkpoint: what it is, what it was made from, how well it does, and how to load it.

Everything comes from records: the checkpoint's, those of its lineage, and those of evaluations of it in the same store. A licence
that no record names is not guessed.
"""

from collections.abc import Iterator, Mapping

import yaml

from infra.execution.markdown import code, escaped
from infra.records.footprint import JOULES_PER_KWH, footprint
from infra.records.index import Index
from infra.records.record import Record, lineage, load_record
from infra.storage.store import Store
from tasks.artifacts import Scores
from tasks.evaluation.reporting.words import footprint_words

CARD = "README.md"
CHATS = ("sft", "dpo", "rlvr", "ppo")
"""Stages whose checkpoints are addressed through the chat template."""
ADOPTED = ("adopt", "adopt_step")
_PLACES = ("dataset", "paths", "path", "packages", "templates")
"""Fields of a source that say where its rows come from."""


def model_card(store: Store, record: Record) -> str:
    """The card as Markdown with the front matter that the hub reads."""
    made = lineage(store, record)
    sources = list(_sources(made))
    evaluations = _evaluations(store, record)
    lines = [
        "---",
        yaml.safe_dump(_front_matter(record, sources, made), sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {escaped(record.label)} ({record.id[:8]})",
        "",
        f"An Olmo2 model of {int(record.facts.get('parameters', 0)):,} parameters.",
        f"It is the {escaped(record.stage)} step of an OLMo 2 recipe.",
        "",
        "## How to load",
        "",
        *_loading(record),
        "## Data",
        "",
        "| stage | source | from | licence |",
        "|---|---|---|---|",
        *(f"| {escaped(stage)} | {escaped(name)} | {place} | {licence} |" for stage, name, place, licence in sources),
        "",
        "## Scores",
        "",
        *_scores(evaluations),
        "## How it was made",
        "",
        "| stage | version | id | seconds | device |",
        "|---|---|---|---|---|",
        *(
            f"| {escaped(r.label)} | {r.version} | {code(r.id)} | {r.seconds:,.1f} | {escaped(r.device)} |"
            for r in made
        ),
        "",
        *_cost(made),
        f"Code: {escaped(str(record.code.get('commit') or record.code.get('version', 'unknown')))}"
        f"{' with uncommitted changes' if record.code.get('dirty') else ''}; "
        f"torch {escaped(record.packages.get('torch', 'unknown'))}, Python {escaped(record.python)}. "
        f"Digest of the checkpoint: {code(record.digest)}.",
        "",
    ]
    return "\n".join(lines)


def _front_matter(
    record: Record, sources: list[tuple[str, str, str, str]], made: list[Record]
) -> dict[str, str | list[str]]:
    """What the hub indexes; data sets and the base model where they are of the hub."""
    datasets = [
        one for item in made for source in _configs(item) if isinstance(one := source.get("dataset"), str) and one
    ]
    bases = [str(item.config["source"]) for item in made if item.stage in ADOPTED and item.config.get("source")]
    matter: dict[str, str | list[str]] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if datasets:
        matter["datasets"] = sorted(set(datasets))
    if bases:
        matter["base_model"] = bases[-1]
    return matter | {"tags": ["olmo2", record.stage]}


def _loading(record: Record) -> list[str]:
    chat = record.stage in CHATS
    prompt = [
        'text = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True)'
        if chat
        else 'text = "The"'
    ]
    return [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("PATH")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        *prompt,
        'answer = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=40)',
        "print(tokenizer.decode(answer[0]))",
        "```",
        "",
    ]


def _configs(record: Record) -> list[Mapping[str, object]]:
    """The sources in a stage's config: itself where it is one, or those that it lists."""
    config = record.config
    listed = config.get("sources")
    nested = config.get("source") if isinstance(config.get("source"), dict) else None
    found = listed if isinstance(listed, list) else [nested or config]
    return [item for item in found if isinstance(item, dict)]


def _sources(made: list[Record]) -> Iterator[tuple[str, str, str, str]]:
    """(stage, source, where it is from, licence) of all that was read or written for the model."""
    for record in made:
        if record.inputs:
            continue
        for source in _configs(record):
            name = str(source.get("name") or record.label)
            place = next((source[field] for field in _PLACES if source.get(field)), None)
            said = ", ".join(map(str, place[:3])) if isinstance(place, list) else str(place or source.get("kind", ""))
            revision = f" at {source['revision']}" if source.get("revision") else ""
            yield record.stage, name, escaped(f"{said}{revision}"), _licence(source)


def _licence(source: Mapping[str, object]) -> str:
    if source.get("kind") in ("problems", "synthetic"):
        return "none needed: made from a seed"
    if source.get("kind") == "python":
        return "each document names its package's, in its metadata"
    if source.get("dataset"):
        return "see the data set's card on the hub"
    return "not recorded"


def _evaluations(store: Store, record: Record) -> list[Record]:
    """The newest evaluation of this checkpoint with each label."""
    found: dict[str, Record] = {}
    for summary, body in Index(store).bodies():
        if summary["kind"] == Scores.__name__ and any(item["address"] == record.address for item in body["inputs"]):
            scored = load_record(store, summary["stage"], summary["id"], summary["generation"])
            if scored is not None:
                found[scored.label] = scored
    return list(found.values())


def _scores(evaluations: list[Record]) -> list[str]:
    if not evaluations:
        return ["It was not evaluated in this store.", ""]
    lines = ["| evaluation | benchmark | score | standard error |", "|---|---|---|---|"]
    for record in evaluations:
        for name, value in record.facts.get("primary", {}).items():
            error = record.facts.get("stderr", {}).get(name)
            told = "unknown" if error is None else f"{error:.4f}"
            lines.append(f"| {escaped(record.label)} | {escaped(name)} | {value:.4f} | {told} |")
    return [*lines, ""]


def _cost(made: list[Record]) -> list[str]:
    """Time, operations, energy, CO2 and water of all that it took. Energy is told where it was counted or stated
    (`execution.watts`), CO2 and water where the site was stated too (`execution.site`).
    """
    seconds, flops = sum(item.seconds for item in made), sum(float(item.facts.get("flops", 0.0)) for item in made)
    counted = [item.energy_joules for item in made if item.energy_joules is not None]
    energy = (
        f"{sum(counted) / JOULES_PER_KWH:,.4g} kWh in {len(counted)} of {len(made)} stages"
        if counted
        else "not counted there"
    )
    return [
        f"Together {seconds:,.0f} s of stages and {flops:.4g} FLOPs of training; energy: {energy}. "
        f"{footprint_words(footprint(made))}",
        "",
    ]
