"""A small pipeline for hundreds of accidents: files, shards, a training with save points, and what joins them.

Each stage takes some tenths of a second, so that an accident at a random moment meets each kind of work.
"""

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from infra.execution.attempt import run_stage
from infra.records.artifact import Artifact
from infra.records.record import Record
from infra.session import Session
from infra.settings import Execution
from infra.stage import stage
from infra.storage.store import Store
from infra.workspace import Workspace
from model.config import Config

STALE_SECONDS = 1.5
"""A holder that has not beaten for so long is taken for gone: pauses are longer in these tests."""
STEPS, SAVE_EVERY = 16, 3
SLOWER = 1.0
"""How much longer a shard takes; drivers on Ray set it, so that its workers can be met at their work."""


class Part(Artifact):
    value: int


class PartConfig(Config):
    seed: int = 0
    pause: float = 0.004


def make_text(ws: Workspace, config: PartConfig) -> Part:
    for place in range(4):
        ws.write(f"text/{place}.txt", f"{config.seed} {place} ".encode() * 2000)
        time.sleep(config.pause * 5)
    return ws.artifact(Part, value=config.seed)


def make_shards(ws: Workspace, text: Part, config: PartConfig) -> Part:
    items = [{"place": place, "pause": config.pause * SLOWER} for place in range(6)]
    total = sum(ws.map(one_shard, items, description="shard"))
    ws.write_json("total.json", total)
    return ws.artifact(Part, value=total)


def one_shard(ws: Workspace, item: dict) -> int:
    time.sleep(item["pause"] * 5)
    ws.write(f"shards/{item['place']}.txt", str(item["place"]).encode() * 5000)
    return item["place"] ** 2


def train(ws: Workspace, shards: Part, config: PartConfig) -> Part:
    """A state that grows step by step, as weights do: resumed or not, it ends with the same bytes."""
    step, state = 0, config.seed
    if (point := ws.resume_point()) is not None:
        step = point[0]
        state = json.loads((point[1] / "state.json").read_text())
    while step < STEPS:
        step += 1
        state = (state * 6364136223846793005 + step) % 2**63
        time.sleep(config.pause)
        if step % SAVE_EVERY == 0:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "state.json"
                file.write_text(json.dumps(state))
                ws.save_point(step, [file])
    ws.write_json("state.json", state)
    return ws.artifact(Part, value=state % 1000)


def join(ws: Workspace, parts: list[Part], config: PartConfig) -> Part:
    ws.write_json("joined.json", [part.value for part in parts])
    return ws.artifact(Part, value=sum(part.value for part in parts))


TEXT = stage(make_text, name="text", version=1)
SHARDS = stage(make_shards, name="shards", version=1)
TRAIN = stage(train, name="train", version=1)
JOIN = stage(join, name="join", version=1)


def execution(ray: str = "off") -> Execution:
    """How these stages run: shards here, or on the Ray at an address."""
    return Execution(ray=ray, on_cluster="shards", lease_stale_seconds=STALE_SECONDS)


def run_all(store: Store, ray: str = "off", *, apart: bool = False) -> dict[str, Record]:
    """The whole pipeline on a store: what exists is reused, what was begun goes on. With `apart` it trains in a process of
    its own."""
    session = Session(store, execution(ray))
    made: dict[str, Record] = {}

    def run(which, **arguments) -> Part:
        outcome = run_stage(which, session, arguments | {"config": PartConfig()}, lambda *_: None)
        made[which.name] = outcome.record
        found = outcome.artifact
        assert isinstance(found, Part)
        return found

    text = run(TEXT)
    shards = run(SHARDS, text=text)
    trained = run(replace(TRAIN, process=apart), shards=shards)
    run(JOIN, parts=[text, shards, trained])
    return made


def drive(url: str, cache: str, patience: float) -> None:
    """One driver: a process that runs it all and ends."""
    store = Store(url, Path(cache))
    store.patience_seconds = patience
    run_all(store)
