"""What the dashboard can do with artifacts that exist: compare two, export a checkpoint, adopt one; and try a grid of values.

Parameters are names, ids and small values; their docstrings become the forms. An export goes below `exports/` of the folder that
the dashboard was started in, since whoever reaches the dashboard names it.
"""

import os
from dataclasses import asdict
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.inspection.artifacts import export_checkpoint, find_record
from flows.running.measuring import compare_artifacts
from flows.running.run import load_recipe, plan, run
from flows.running.sessions import naming_failures
from flows.starting import adopt_command
from infra.execution.compare import record_differences
from infra.execution.markdown import code, escaped
from infra.execution.plan import flatten
from infra.session import matches
from infra.storage.store import Store, checked_name
from tasks.artifacts import Scores

EXPORTS = "exports"
MOST_CELLS = 64
"""Combinations of a grid: more is a typing error rather than a plan."""


def _store(url: str | None) -> Store:
    """The store of a form: as the command line chooses it."""
    return Store(url or os.environ.get("OLMO2_STORE") or "store")


@flow(name="comparison", flow_run_name="compare {first} and {second}", persist_result=False)
def comparison(first: str, second: str, store: str | None = None) -> None:
    """Say how two artifacts differ; two evaluations also item by item, with errors.

    Args:
        first: Artifact id, its beginning, or a tag.
        second: Another.
        store: Root of the artifacts; that of OLMO2_STORE, or `store`, when empty.
    """
    found = _store(store)
    records = [find_record(found, id) for id in (first, second)]
    if all(record.kind == Scores.__name__ for record in records):
        create_table_artifact([asdict(row) for row in compare_artifacts(found, first, second)], key="comparison-scores")
    lines = [f"# {escaped(records[0].label)} and {escaped(records[1].label)}", ""]
    for section, told in record_differences(*records).items():
        if told:
            lines += [f"## {escaped(section)}", "", *(f"* {escaped(line)}" for line in told), ""]
    create_markdown_artifact("\n".join(lines), key="comparison-differences")


@flow(name="export", flow_run_name="export {artifact}", persist_result=False)
def export(artifact: str, folder: str, store: str | None = None) -> str:
    """Copy a checkpoint out as a Hugging Face folder with a model card.

    Args:
        artifact: Checkpoint id, its beginning, or a tag.
        folder: A new name below `exports/`, where the dashboard was started.
        store: Root of the artifacts; that of OLMO2_STORE, or `store`, when empty.
    """
    # The name comes from whoever reaches the dashboard, so it may not leave the folder.
    place = Path(EXPORTS) / checked_name(folder)
    written = export_checkpoint(_store(store), artifact, place)
    files = "\n".join(f"* {code(name)}" for name in written)
    create_markdown_artifact(f"Exported to {code(str(place.absolute()))}\n\n{files}", key="export-files")
    return str(place)


@flow(name="adoption", flow_run_name="adopt {source} as {place}", persist_result=False)
def adoption(
    source: str, place: Literal["base", "soup", "sft", "dpo"], revision: str = "", store: str | None = None
) -> str:
    """Make a checkpoint an artifact that a recipe can start from.

    Args:
        source: Hugging Face folder, hub id, or a permanent save point as ID@STEP.
        place: What it stands for.
        revision: Branch, tag or commit on the hub.
        store: Root of the artifacts; that of OLMO2_STORE, or `store`, when empty.
    """
    adopted = adopt_command(_store(store), source, revision, place, None)
    said = f"start: {{{place}: {adopted['id']}}}"
    create_markdown_artifact(
        f"Adopted as {code(adopted['address'])}; a recipe starts there with {code(said)}", key="adopted"
    )
    return adopted["id"]


@flow(name="grid", flow_run_name="grid on {recipe} until {until}", persist_result=False)
def grid(
    values: dict[str, list[Any]],
    recipe: str = "laptop",
    until: str = "pretrain",
    store: str | None = None,
    overrides: list[str] | None = None,
) -> list[str]:
    """Run a recipe up to one stage for each combination of values, and compare what that stage came to.

    Args:
        values: Recipe fields with the values to try, such as {"sft.learning_rate": [0.001, 0.003], "dpo.beta": [5, 10]}.
        recipe: Name in recipes/ or path of a YAML file.
        until: The stage whose artifacts are compared; what several combinations share is made once.
        store: Root of the artifacts; the recipe's own when empty.
        overrides: Changes for all combinations, as stage.field=value.
    """
    rows, ids = [], []
    for cell in cells(values):
        changes = [f"{field}={value}" for field, value in cell.items()]
        config = load_recipe(recipe, [*(overrides or []), *changes], store)
        with naming_failures():
            run(config, until)
        # The plan after the run tells which artifacts this cell's stage has, made or reused.
        made = [row for row in plan(config, until) if row.artifact is not None and matches(until, row.stage, row.label)]
        for row in made:
            assert row.artifact is not None
            facts = {
                name: fact for name, fact in flatten(row.artifact.facts()).items() if isinstance(fact, int | float)
            }
            rows.append({"stage": row.label, "id": row.id} | cell | facts)
            ids.append(row.id)
    create_table_artifact(rows, key="grid", description=f"Each combination's {escaped(until)}")
    return ids


def cells(values: dict[str, list[Any]]) -> list[dict[str, object]]:
    """Every combination. Raises ValueError for none, or for more than anybody means."""
    # Counted before any combination is built: ten fields of ten values are 10^10.
    count = prod(len(tried) for tried in values.values())
    # A field without values makes the product 0.
    if not values or not 0 < count <= MOST_CELLS:
        raise ValueError(f"a grid of {len(values)} fields has {count} combinations; give 1 to {MOST_CELLS}")
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]
