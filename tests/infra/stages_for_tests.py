"""Small real stages that the tests of the frame run: numbers in, numbers out."""

import os
import signal
import time
from pathlib import Path

from infra.phase import Phase
from infra.records.artifact import Artifact
from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from model.training.watchdog import Watchdog


class Number(Artifact):
    value: int


class NumberConfig(Config):
    value: int = 1
    parity_only: bool = False
    kill_marker: str = ""
    fail: str = ""


def make_number(ws: Workspace, config: NumberConfig) -> Number:
    if config.fail:
        raise ValueError(config.fail)
    value = config.value % 2 if config.parity_only else config.value
    ws.write_json("number.json", value)
    return ws.artifact(Number, value=value)


def add_numbers(ws: Workspace, numbers: list[Number], config: NumberConfig) -> Number:
    with ws.progress("adding", len(numbers), "numbers") as bar:
        total = config.value
        for place, number in enumerate(numbers):
            total += ws.read_json(number, "number.json")
            bar.advance()
            ws.log(step=place, loss=float(total))
    ws.note(pid=os.getpid())
    ws.write_json("number.json", total)
    return ws.artifact(Number, value=total)


def square_shards(ws: Workspace, config: NumberConfig) -> Number:
    items = [{"value": value, "marker": config.kill_marker} for value in range(config.value)]
    total = sum(ws.map(square_shard, items, description="square"))
    ws.write_json("number.json", total)
    return ws.artifact(Number, value=total)


def square_shard(ws: Workspace, item: dict) -> int:
    if item["marker"]:
        with Path(item["marker"]).open("a") as log:
            log.write(f"{item['value']}\n")
        if item["value"] == 3 and not Path(item["marker"] + ".killed").exists():
            Path(item["marker"] + ".killed").touch()
            raise KeyboardInterrupt
    ws.write(f"squares/{item['value']}.txt", str(item["value"] ** 2).encode())
    return item["value"] ** 2


def kill_self(ws: Workspace, config: NumberConfig) -> Number:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def hang_in_a_step(ws: Workspace, config: NumberConfig) -> Number:
    with Watchdog(ws.compute.stall_seconds):
        time.sleep(60)
    raise AssertionError("unreachable")


def wait_for_number(ws: Workspace, config: NumberConfig) -> Number:
    """Ends once another stage, which needs the only core, has made its number; as one waits for a server's answers."""
    Path(config.kill_marker).touch()
    deadline = time.monotonic() + 10
    while not list(Path(ws.store.full("number")).glob("*/record-*.json")):
        if time.monotonic() > deadline:
            raise TimeoutError("nobody else could run")
        time.sleep(0.01)
    return ws.artifact(Number, value=config.value)


def note_wait_policy(ws: Workspace, config: NumberConfig) -> Number:
    ws.note(wait_policy=os.environ["OMP_WAIT_POLICY"])
    return ws.artifact(Number, value=config.value)


def note_allocator(ws: Workspace, config: NumberConfig) -> Number:
    ws.note(allocator=os.environ.get("PYTORCH_ALLOC_CONF", ""))
    return ws.artifact(Number, value=config.value)


number = stage(make_number, name="number", version=1)
total = stage(add_numbers, name="total", version=1)
total_in_process = stage(add_numbers, name="total", version=1, process=True)
squares = stage(square_shards, name="squares", version=1)
waiter = stage(wait_for_number, name="waiter", version=1, waits=True)
suicide = stage(kill_self, name="suicide", version=1, process=True)
waiting_threads = stage(note_wait_policy, name="waiting", version=1, process=True)
allocator = stage(note_allocator, name="allocator", version=1, process=True)
hanging = stage(hang_in_a_step, name="hanging", version=1, process=True)


@Phase
def diamond(first: NumberConfig, second: NumberConfig) -> tuple[Number, Number]:
    """Two numbers, their sum, and the sum's sum: the smallest graph with something below something."""
    left, right = number.labelled("left")(first), number.labelled("right")(second)
    added = total([left, right], NumberConfig(value=0))
    return added, total.labelled("again")([added], NumberConfig(value=100))


@Phase
def with_failure(good: NumberConfig, bad: NumberConfig) -> tuple[Number, Number]:
    return number.labelled("good")(good), total([number.labelled("bad")(bad)], NumberConfig())


@Phase
def with_threads(config: NumberConfig) -> Number:
    return waiting_threads(config)


@Phase
def one_process(config: NumberConfig) -> Number:
    return total_in_process([number(config)], config)


@Phase
def shards(config: NumberConfig) -> Number:
    return squares(config)


@Phase
def waiting_first(config: NumberConfig) -> tuple[Number, Number]:
    waited = waiter(config)
    while not Path(config.kill_marker).exists():
        time.sleep(0.01)
    return waited, number(NumberConfig(value=config.value))


@Phase
def dying(config: NumberConfig) -> Number:
    return suicide(config)


@Phase
def stalling(config: NumberConfig) -> Number:
    return hanging(config)
