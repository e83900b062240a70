"""Hostile inputs by one seed: each ends in time with an answer or an error that people can read, and touches nothing outside.

OLMO2_HOSTILE=2000 runs as many; CI runs 200. Oracles: the kinds of error that a command turns into a message, the processor's
time, the memory that the process has grown by, and the files of the folder around.
"""

import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest
import yaml
from starlette.testclient import TestClient

from flows.config.files import load
from flows.inspection.artifacts import find_record, list_rows
from flows.inspection.search import parse_condition, search
from flows.serving.app import make_app
from infra.execution.markdown import code, escaped, slug
from infra.language_models.client import shown
from infra.language_models.protocol import check_body
from infra.records.marks import add_note, set_tag
from infra.records.record import load_record, record_path
from infra.secrets import without_secrets
from infra.storage.store import Store
from tasks.verifiers.competition_math import verify_math
from tests.infra.stages_for_tests import NumberConfig, number
from tests.infra.test_index import run

COUNT, SEED = int(os.environ.get("OLMO2_HOSTILE", "200")), int(os.environ.get("OLMO2_HOSTILE_SEED", "0"))
SECONDS = 10
GROWTH_BYTES = 1 << 30
EXPECTED = (ValueError, OSError)
"""What the command line turns into a message (RecipeError, StoreError and their like are such)."""
ATOMS: tuple[Any, ...] = (
    "", " ", "\0", "\x1b[2J", "../../etc/passwd", "/etc/passwd", "..\\..\\x", "a" * 5_000,
    "\ud7ff\u202e\ufeff", "<script>alert(1)</script>",
    "${HOME}", "{{7*7}}", "$(touch x)", "%00", "💥" * 300, "!!python/object/apply:os.system [touch x]", "file:///etc/passwd",
    "http://user:planted@127.0.0.1:1/", "1e999", "-0", ".nan", "0x" + "f" * 400, "9" * 5_000,
    "(" * 500, "[" * 500, "^" * 50, "2^" * 40 + "2",
    0, -1, 2**63, 2**64, 10**30, 1e308, -1e308, float("inf"), float("nan"), True, None, [], {},
    [[]], {"": {}}, {"kind": "x"}, {"kind": None},
)  # fmt: skip


class TooLong(BaseException):
    """An input took more than its seconds."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TooLong after so much time of the processor; one that waits is ended by the test's own limit."""

    def ring(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def text(chance: random.Random) -> str:
    """Some text, from bytes to structures that look real."""
    signs = (": ", "- ", "\n", "  ", "&a ", "*a", "<<: ", "{", "}", "[", "]", ",", '"', "#", "=", "~", ">")
    pieces = [*map(str, ATOMS), *signs]
    return "".join(chance.choice(pieces)[: chance.choice((3, 40, 5000))] for _ in range(chance.randrange(1, 12)))


def spoiled(value: Any, chance: random.Random, depth: int = 0) -> Any:
    """A real structure with one or more of its values put in place by others."""
    if depth > 12 or chance.random() < 0.06:
        return chance.choice(ATOMS)
    if isinstance(value, dict) and value:
        found = dict(value)
        for key in chance.sample(list(found), k=min(len(found), 2)):
            found[key] = spoiled(found[key], chance, depth + 1)
        if chance.random() < 0.1:
            found[str(chance.choice(ATOMS))[:200]] = chance.choice(ATOMS)
        return found
    if isinstance(value, list) and value:
        found = list(value)
        place = chance.randrange(len(found))
        found[place] = spoiled(found[place], chance, depth + 1)
        return found
    return chance.choice(ATOMS)


class Inputs:
    """Every door that takes what others wrote, by name."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.store = Store(str(folder / "store"), folder / "cache")
        self.record = run(self.store, number, config=NumberConfig(value=7)).record
        self.body = orjson.loads(self.store.read(record_path("number", self.record.id, 1)))
        self.client = TestClient(make_app(self.store), raise_server_exceptions=True)
        self.recipe = yaml.safe_load((Path(__file__).parents[2] / "recipes/laptop.yaml").read_text())

    def recipe_text(self, chance: random.Random) -> None:
        path = self.folder / "hostile.yaml"
        path.write_text(text(chance), "utf-8", errors="replace")
        load(str(path))

    def recipe_values(self, chance: random.Random) -> None:
        path = self.folder / "hostile.yaml"
        path.write_text(yaml.safe_dump(spoiled(self.recipe, chance), allow_unicode=True), "utf-8", errors="replace")
        load(str(path))

    def override(self, chance: random.Random) -> None:
        field = chance.choice(
            ("execution.store", "pretrain.model.d_model", "collect.web", "candidates", "", text(chance)[:60])
        )
        load("smoke", [f"{field}={text(chance)}"])

    def a_record(self, chance: random.Random) -> None:
        made = chance.random() < 0.7
        data = json.dumps(spoiled(self.body, chance)).encode() if made else text(chance).encode()
        name = str(chance.random())
        other = Store(str(self.folder / "others" / name), self.folder / "cache-2" / name)
        other.write(record_path("number", self.record.id, 1), data)
        with suppress(*EXPECTED):
            load_record(other, "number", self.record.id)
        list_rows(other)

    def a_page(self, chance: random.Random) -> None:
        def said(most: int) -> str:
            return quote(text(chance)[:most])

        ids = (self.record.id, quote(text(chance)[:300], safe=""), "%2e%2e%2f%2e%2e", "x" * 4000)
        paths = (
            f"/artifact/{chance.choice(ids)}",
            f"/artifact/{chance.choice(ids)}/samples?file={said(500)}&page={said(30)}",
            f"/artifacts?stage={said(300)}&words={said(300)}",
            f"/compare?first={self.record.id}&second={said(99)}",
            f"/{said(2000)}",
        )
        method = chance.choice(("GET", "HEAD", "POST", "OPTIONS"))
        answer = self.client.request(method, chance.choice(paths), follow_redirects=False)
        assert answer.status_code in (200, 307, 400, 404, 405, 502), (answer.status_code, answer.request.url)
        assert "<script" not in answer.text and "Traceback" not in answer.text

    def a_reply(self, chance: random.Random) -> None:
        message = {"message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}
        body = {"choices": [message], "usage": {"prompt_tokens": 3}}
        assert isinstance(check_body(spoiled(body, chance)), str)
        assert len(shown(text(chance).encode("utf-8", "replace") * 50)) < 5_000

    def an_answer(self, chance: random.Random) -> None:
        """An answer that a verifier compares with the truth, as a formula may be."""
        truth = chance.choice(("4", "\\frac{1}{2}", "x^2", text(chance)[:100]))
        verify_math(f"the answer is \\boxed{{{text(chance)[:400]}}}", truth)

    def a_text(self, chance: random.Random) -> None:
        words = text(chance)
        assert "\n" not in escaped(words) + code(words)
        assert slug(words).replace("-", "").isalnum() and slug(words).isascii()
        assert "user:planted" not in without_secrets(words)

    def a_condition(self, chance: random.Random) -> None:
        parse_condition(text(chance))
        search(self.store, [f"value{chance.choice(('=', '<', '>', '~', '!='))}{text(chance)[:100]}"])

    def an_id(self, chance: random.Random) -> None:
        find_record(self.store, text(chance)[:200])

    def a_mark(self, chance: random.Random) -> None:
        words = text(chance)[:300]
        if chance.random() < 0.5:
            set_tag(self.store, words, self.record)
        else:
            add_note(self.store, self.record, words)

    def a_store(self, chance: random.Random) -> None:
        words = text(chance)[:200]
        # A scheme of the network would be asked; this is about names.
        if "://" not in words and not Path(words).is_absolute():
            Store(f"{self.folder}/stores/{words}", self.folder / "cache-3").names("")

    def doors(self) -> list[Callable[[random.Random], None]]:
        return [
            self.recipe_text, self.recipe_values, self.override, self.a_record, self.a_page, self.a_reply, self.an_answer,
            self.a_text, self.a_condition, self.an_id, self.a_mark, self.a_store,
        ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300 + 2 * COUNT)
def test_hostile_inputs_end_in_time_with_a_message_and_leave_nothing_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    monkeypatch.chdir(outside)
    inputs = Inputs(inside)
    doors, chance, bad = inputs.doors(), random.Random(SEED), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for place in range(COUNT):
        door, seed = doors[place % len(doors)], chance.getrandbits(32)
        try:
            with within(SECONDS):
                door(random.Random(seed))
        except EXPECTED:
            pass
        except TooLong:
            bad.append(f"{door.__name__} {seed}: more than {SECONDS} s")
        except BaseException as error:  # whatever else it is, a user would see a traceback
            bad.append(f"{door.__name__} {seed}: {type(error).__name__}: {str(error)[:300]}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert bad == [], "\n".join(bad)
    assert grown < GROWTH_BYTES
    assert list(outside.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"inside", "outside"}
    assert not list(tmp_path.parent.glob("*passwd*"))
