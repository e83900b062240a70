"""How two records differ, section by section, in words: for `olmo2 diff`."""

from infra.execution.fingerprint import differences
from infra.execution.plan import flatten
from infra.json_values import JsonObject
from infra.records.record import Input, Record


def record_differences(first: Record, second: Record) -> dict[str, list[str]]:
    """Section -> one line per difference, `field: before → after`."""
    sections = {
        "stage": ({"name": first.stage, "version": first.version}, {"name": second.stage, "version": second.version}),
        "config": (first.config, second.config),
        "inputs": (_digests(first.inputs), _digests(second.inputs)),
        "packages": (first.packages | {"python": first.python}, second.packages | {"python": second.python}),
        "place": (_place(first), _place(second)),
        "facts": (first.facts, second.facts),
        "files": (
            {n: e.sha256[:16] for n, e in first.files.items()},
            {n: e.sha256[:16] for n, e in second.files.items()},
        ),
    }
    found = {name: _changed(before, after) for name, (before, after) in sections.items()}
    return found | {"code": differences(first.fingerprint, second.fingerprint)}


def _digests(inputs: list[Input]) -> dict[str, str]:
    return {item.name: f"{item.stage} {item.digest[:16]}" for item in inputs}


def _place(record: Record) -> JsonObject:
    return {"device": record.device, "threads": record.threads}


def _changed(before: JsonObject, after: JsonObject) -> list[str]:
    was, now = flatten(before), flatten(after)
    return [
        f"{name}: {was.get(name, 'absent')} → {now.get(name, 'absent')}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name, "absent") != now.get(name, "absent")
    ]
