"""Stage: raw sources to Dolma documents (RECIPE C.1, C.2).

One source per artifact: files (`local`), a `datasets` dataset (`hub`), a dump of Stack Exchange (`stackexchange`) or the
installed Python (`python`).
Rows that cannot be used, documents whose id came before among them, are counted and kept in `bad/*.jsonl.zst` with
file and line; above the source's share of them the stage fails. A stage's identity is a hash of its config, so
`resolve` first writes into the config what will be read: package versions, file hashes, or a commit.
"""

from typing import Annotated

from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from tasks.artifacts import Documents
from tasks.data.documents.dolma_files import add_counts
from tasks.data.sources.hub import HubSource, collect_hub, hub_items, resolve_hub
from tasks.data.sources.local import LocalSource, collect_local, local_items, resolve_local
from tasks.data.sources.python import PythonSource, collect_python, python_items, resolve_python
from tasks.data.sources.repeated import REPEATED, set_repeated_ids_aside
from tasks.data.sources.stackexchange import (
    StackExchangeSource,
    collect_stackexchange,
    resolve_stackexchange,
    stackexchange_items,
)

AnySource = LocalSource | HubSource | StackExchangeSource | PythonSource
Source = Annotated[AnySource, Field(discriminator="kind")]


def resolve(config: AnySource) -> AnySource:
    """The config with what it will read pinned. Cheap for `python`, hashes the files of `local`, asks the hub
    for `hub`."""
    if isinstance(config, LocalSource):
        return resolve_local(config)
    if isinstance(config, HubSource):
        return resolve_hub(config)
    if isinstance(config, StackExchangeSource):
        return resolve_stackexchange(config)
    return resolve_python(config)


def collect_documents(ws: Workspace, config: AnySource) -> Documents:
    """Read one resolved source into document shards.

    Raises ValueError if it holds no document, or if more than `max_bad_fraction` of its rows are unusable.
    """
    if isinstance(config, LocalSource):
        function, items = collect_local, local_items(config)
    elif isinstance(config, HubSource):
        function, items = collect_hub, hub_items(config)
    elif isinstance(config, StackExchangeSource):
        function, items = collect_stackexchange, stackexchange_items(config)
    else:
        function, items = collect_python, python_items(config)
    plain = config.model_dump(mode="json")
    results = ws.map(function, [{**item, "config": plain} for item in items], description=f"collect {config.name}")
    files = config.files if isinstance(config, LocalSource | StackExchangeSource) else ()
    results += set_repeated_ids_aside(ws, results, files)
    documents = sum(result["documents"] for result in results)
    bad = add_counts(results, "bad")
    examples = [example for result in results for example in result["examples"]][:3]
    _check(config.name, documents, bad, config.max_bad_fraction, examples)
    repaired = sum(result["repaired"] for result in results)
    ws.write_json("collect.json", {"documents": documents, "bad": bad, "repaired": repaired, "examples": examples})
    return ws.artifact(
        Documents,
        documents=documents,
        bytes=sum(result["bytes"] for result in results),
        sources={config.name: documents},
        dropped=bad,
    )


def _check(name: str, documents: int, bad: dict[str, int], allowed: float, examples: list[str]) -> None:
    rows = documents + sum(bad.values())
    if rows == 0:
        raise ValueError(f"source {name!r} is empty: its files hold no rows; check its paths and filters")
    if sum(bad.values()) > allowed * rows:
        raise ValueError(
            f"source {name!r}: {sum(bad.values()):,} of {rows:,} rows are unusable ({bad}), more than "
            f"max_bad_fraction={allowed}; the first: {'; '.join(examples)}. Repair them or raise max_bad_fraction"
            + (", or set id_field to '' to name documents after file and position" if REPEATED in bad else "")
        )
    if documents == 0:
        raise ValueError(f"source {name!r} holds no usable document: {bad}; the first: {'; '.join(examples)}")


collect = stage(collect_documents, name="collect", version=2)
