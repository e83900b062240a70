"""The report stage on a real store with a small made-up run.

Oracles: arithmetic done by hand on the made-up figures; an HTML parser of the standard library for the page's form;
the stage itself run twice for its bytes.
"""

import copy
import hashlib
import json
import math
import re
import sys
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.execution.attempt import commit
from infra.records.record import Input, Record, content_digest, payload_address
from infra.settings import StatedSite
from infra.storage.store import Store
from infra.workspace import Workspace
from tasks.artifacts import (
    Checkpoint,
    Documents,
    Mix,
    Preferences,
    Ranking,
    RewardModel,
    Scores,
)
from tasks.evaluation.report import ConformanceRow, ReportConfig, write_report
from tasks.evaluation.reporting import words as report_words
from tasks.evaluation.reporting.compared import compared_run, comparison_panels
from tasks.evaluation.reporting.histogram import Histogram, position, shown_bins
from tasks.evaluation.reporting.page import gain_rows, render_page, tried_mixes
from tasks.evaluation.reporting.report_values import Bounds, curve, judge_difference
from tasks.evaluation.reporting.sankey import FlowStep, depths_of, place

SHARE = {"lower_is_better": False}
BOUNDS = Bounds(likely_from=2.0, clear_from=3.0)
LABELS = ["base", "first <seed>", "second", "soup", "sft"]

NO_SITE = StatedSite()


class Run:
    """Commits made-up artifacts to a store, as stages would."""

    def __init__(self, root: Path):
        self.store = Store(str(root))
        self.numbers = count()

    def workspace(self, stage: str, id: str) -> Workspace:
        return Workspace(
            self.store,
            stage=stage,
            id=id,
            payload=payload_address(stage, id, 1),
            progress_folder=f"_progress/{stage}/{id}/g0001",
        )

    def make(
        self,
        cls: type,
        stage: str,
        inputs: list[Any],
        seconds: float = 2.0,
        metrics: Any = None,
        payload: Any = None,
        energy_joules: float | None = None,
        site: StatedSite = NO_SITE,
        **facts: Any,
    ) -> Any:
        number = next(self.numbers)
        ws = self.workspace(stage, hashlib.sha256(f"{stage}{number}".encode()).hexdigest()[:16])
        ws.write_json("made.json", number)
        for name, value in (payload or {}).items():
            ws.write_json(name, value)
        if metrics:
            ws.write_jsonl("metrics.jsonl", metrics)
        digest = content_digest(ws.written)
        artifact = ws.artifact(cls, **facts).model_copy(update={"digest": digest})
        named = [
            Input(name=f"in[{i}]", **{key: getattr(item, key) for key in ("kind", "stage", "id", "digest", "address")})
            for i, item in enumerate(inputs)
        ]
        record = Record(
            kind=artifact.kind, stage=stage, version=1, id=ws.id, label=f"{stage}:{number}", generation=1,
            address=ws.payload, digest=digest, facts=artifact.facts(), config={"note": "</pre><script>"}, inputs=named,
            files=ws.written, created=f"2024-12-31T10:{number:02d}:00+00:00", seconds=seconds, attempts=1,
            resumed_from="", peak_memory_bytes=2**30 + number, host="here", device="cpu", threads=2,
            code={"commit": "0123456789abcdef", "dirty": number == 0}, packages={"torch": "2.13.0"}, python="3.11.7",
            notes={}, flow_run="", energy_joules=energy_joules, site=site,
        )  # fmt: skip
        commit(self.store, record, lambda: None)
        return artifact


AXES = {"seeds": 2, "noise_floor": 0.02}


def losses(steps: int) -> list[dict[str, float]]:
    return [{"step": step, "loss": 8 / step**0.2, "lr": 1e-3 * (1 - step / steps)} for step in range(1, steps + 1)]


def trained(run: Run, stage: str, inputs: list[Any], parent: str, metrics: Any) -> Checkpoint:
    return run.make(
        Checkpoint, stage, inputs, metrics=metrics, steps=100, tokens=1_000, parameters=2_631_808, loss=2.0,
        ranks=4096, parent=parent, flops=1e12,
    )  # fmt: skip


def scored(run: Run, checkpoint: Checkpoint, label: str, adding: float, choosing: float, bits: float) -> Scores:
    values = {"adding": adding, "choosing": choosing, "text": bits}
    errors = {"adding": 0.01, "choosing": 0.03, "text": 0.02}
    metrics = {"adding": "exact_match", "choosing": "acc", "text": "bits_per_byte"}
    rows = [
        {"name": name, "primary": metrics[name], "score": value, "n": 50, "lower_is_better": name == "text"}
        for name, value in values.items()
    ]
    return run.make(
        Scores, "evaluate", [checkpoint], payload={"scores.json": {"benchmarks": rows}}, label=label,
        checkpoint=checkpoint.digest, primary=values, stderr=errors,
    )  # fmt: skip


def ranked(rank: int, name: str, score: float, behind: float) -> dict[str, Any]:
    return {
        "rank": rank, "candidate": name, "score": score, "stderr": 0.03, "n": 50, "behind_best": behind,
        "behind_best_stderr": 0.05, "tied_with_best": True, "items_to_decide": 900 if rank > 1 else 0,
        "seeds_to_decide": 4 if rank > 1 else 0, "tokens": 8192, "stopped": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    run = Run(tmp_path_factory.mktemp("store"))
    reading = {
        "files": 3, "bad_files": 1, "rows": 120, "read": 101, "documents": 100, "bad": {"not_json": 19, "repeated_id": 1},
    }  # fmt: skip
    raw = run.make(
        Documents, "collect", [], documents=100, bytes=10_000, sources={"web": 100}, payload={"collect.json": reading}
    )
    kept = run.make(
        Documents, "filter", [raw], documents=90, bytes=7_000, sources={"web": 90}, dropped={"short": 3, "odd": 7}
    )
    mix = run.make(Mix, "mix", [kept], tokens=5_000, ranks=4096, shares={"web": 0.8, "maths": 0.2})
    base = trained(run, "pretrain", [mix], "", losses(100))
    first, second = (trained(run, "anneal", [base, mix], base.digest, losses(40)) for _ in range(2))
    soup = run.make(
        Checkpoint, "soup", [first, second], steps=0, tokens=0, parameters=2_631_808, loss=2.0, ranks=4096,
        parent=base.digest,
    )  # fmt: skip
    sft = trained(run, "sft", [soup], soup.digest, losses(30))
    pairs = run.make(Preferences, "preferences", [sft], pairs=80, ties=20, mean_chosen=4.0, mean_rejected=1.5)
    reward = run.make(
        RewardModel, "reward", [sft, pairs], metrics=losses(20), steps=20, tokens=500, parameters=2_631_808, loss=0.4,
        accuracy=0.8, accuracy_stderr=0.1, pairs_held_out=50, ranks=4096, parent=sft.digest, flops=5e11,
    )  # fmt: skip
    values = [(0.10, 0.25, 2.0), (0.30, 0.25, 2.0), (0.34, 0.27, 2.0), (0.36, 0.27, 2.0), (0.36, 0.20, 1.8)]
    checkpoints = [base, first, second, soup, sft]
    scores = [scored(run, item, label, *pair) for item, label, pair in zip(checkpoints, LABELS, values, strict=True)]
    trial = [scored(run, first, "unfiltered", 0.0, 0.0, 2.0), scored(run, second, "filtered", 0.0, 0.0, 1.9)]
    table = [ranked(1, "b", 0.34, 0.0), ranked(2, "a", 0.30, 0.04)]
    ranking = run.make(
        Ranking,
        "rank",
        scores[1:3],
        order=["b", "a"],
        scores={"a": 0.30, "b": 0.34},
        stderr={"a": 0.03, "b": 0.03},
        payload={
            "ranking.json": {
                "benchmark": "adding",
                "metric": "exact_match",
                "seeds": 2,
                "noise_floor": 0.02,
                "candidates": table,
            }
        },
    )
    config = ReportConfig(
        recipe="toy & test", checkpoint_labels=LABELS, funnel_labels=["collect", "filter"], mix_labels=["stage 1"]
    )
    return run, {
        "funnel": [raw, kept], "mixes": [mix], "checkpoints": checkpoints, "single": [reward, pairs, ranking],
        "scores": scores, "trial": trial, "config": config,
    }  # fmt: skip


@pytest.fixture(scope="module")
def written(arguments: tuple[Run, dict[str, Any]]) -> tuple[Workspace, Any]:
    run, inputs = arguments
    ws = run.workspace("report", "report")
    return ws, write_report(ws, **inputs)


def read(ws: Workspace, name: str) -> str:
    return ws.store.read(f"{ws.payload}/{name}").decode()


def values_of(ws: Workspace) -> dict[str, Any]:
    import orjson

    return orjson.loads(read(ws, "report.json"))


def test_steps_are_judged_along_the_main_line(written: tuple[Workspace, Any]) -> None:
    """By hand: base -> soup adds 26 points with sqrt(2) of error each, soup -> sft nothing; ingredients are no steps."""
    found = values_of(written[0])
    changes = {(item["start"], item["end"], item["benchmark"]): item for item in found["changes"]}
    assert set(changes) == {
        (a, b, c) for a, b in (("base", "soup"), ("soup", "sft")) for c in ("adding", "choosing", "text")
    }
    gain = changes["base", "soup", "adding"]
    assert gain["ratio"] == pytest.approx(0.26 / (0.01 * math.sqrt(2)))
    assert gain["verdict"] == "clear gain"
    assert changes["soup", "sft", "adding"]["verdict"] == "no change"
    assert changes["soup", "sft", "choosing"]["verdict"] == "within noise"


def test_fewer_bits_are_a_gain(written: tuple[Workspace, Any]) -> None:
    """By hand: 2.0 -> 1.8 bits per byte with sqrt(2) · 0.02 of error is 7.07 errors down, and good."""
    found = next(
        item for item in values_of(written[0])["changes"] if (item["end"], item["benchmark"]) == ("sft", "text")
    )
    assert found["ratio"] == pytest.approx(-0.2 / (0.02 * math.sqrt(2)))
    assert found["verdict"] == "clear gain"
    assert "improves text by 0.200 (7.1 s.e.)" in read(written[0], "report.html")


def test_soup_is_compared_with_the_mean_of_its_ingredients(written: tuple[Workspace, Any]) -> None:
    """By hand: 0.36 against (0.30 + 0.34) / 2, error sqrt(0.01² + (0.01² + 0.01²) / 4)."""
    row = values_of(written[0])["soup"][0]
    assert row["gain"]["difference"] == pytest.approx(0.04)
    assert row["gain"]["stderr"] == pytest.approx(math.sqrt(0.01**2 + 0.5 * 0.01**2))
    assert set(row["ingredients"]) == {"first <seed>", "second"}


def test_every_step_states_its_gain_with_its_error(written: tuple[Workspace, Any]) -> None:
    """By hand: the trial moves bits alone, by 0.1; 80 % of pairs are 30 points over chance; the sweep ties."""
    ws, report = written
    gains = report.gains
    assert list(gains) == ["curation", "sweep", "soup", "sft", "reward"]
    assert values_of(ws)["gains"] == gains
    assert all(gain["stderr"] > 0 for gain in gains.values())
    assert (gains["curation"]["gain"], gains["curation"]["metric"]) == (pytest.approx(0.1), "bits_per_byte")
    assert (gains["reward"]["gain"], gains["reward"]["stderr"], gains["reward"]["n"]) == (pytest.approx(0.3), 0.1, 50)
    assert gains["reward"]["words"] == "gain"
    assert (gains["sweep"]["gain"], gains["sweep"]["words"]) == (0.04, "no effect shown")
    assert gains["soup"]["over_mean"]["gain"] < gains["soup"]["gain"]
    text = " ".join(read(ws, "report.html").split())
    assert "What each step gained" in text
    assert "soup over the best ingredient" in text


def test_a_gain_is_told_in_the_unit_of_its_metric() -> None:
    """A trial of curation may be asked shares alone; those are told in percent points like every other step's."""
    gain = {"gain": 0.1, "stderr": 0.01, "n": 10, "discordant": 3, "words": "gain"}
    gains = {"curation": gain, "soup": {**gain, "metric": "bits_per_byte"}, "sweep": {**gain, "metric": "acc_raw"}}
    rows = gain_rows(cast(Any, {"gains": gains}))
    assert [(step, unit) for step, _, unit in rows] == [("curation", 100.0), ("soup", 1.0), ("sweep", 100.0)]


def test_funnel_and_costs_add_up(written: tuple[Workspace, Any]) -> None:
    found = values_of(written[0])
    collect, kept = found["funnel"]
    assert kept["documents"] + sum(kept["dropped"].values()) == collect["documents"]
    assert (kept["bytes_in"], collect["bytes_in"]) == (10_000, None)
    assert math.fsum(row["share"] for row in found["costs"]) == pytest.approx(1.0)
    assert sum(row["seconds"] for row in found["costs"]) == found["headline"]["seconds"]
    assert found["headline"]["tokens"] == 4 * 1_000 + 500
    assert found["headline"]["flops"] == 4.5e12


def test_a_source_that_was_not_read_whole_is_told_in_red(written: tuple[Workspace, Any]) -> None:
    text = " ".join(read(written[0], "report.html").split())
    assert '<td class="short">101 <span class="pm">84.16 %</span></td>' in text
    said = "collect read 84.16 % of the rows that its files hold, less than 99.9 %: 19 rows are not in the data."
    assert f'<p class="short">{said}</p>' in text
    assert re.search(r"p\.short \{ color: var\(--dpo\)", text), "the page's red"


def test_lineage_names_inputs_before_their_users_and_each_once(written: tuple[Workspace, Any]) -> None:
    nodes = values_of(written[0])["lineage"]
    place = {item["address"]: index for index, item in enumerate(nodes)}
    assert len(place) == len(nodes) == 18
    assert all(place[parent] < place[item["address"]] for item in nodes for parent, _ in item["inputs"])


def test_sweep_lead_within_its_error_is_said_to_be_chance(written: tuple[Workspace, Any]) -> None:
    text = " ".join(read(written[0], "report.html").split())
    assert "b leads a by 4.0 ± 5.0: their order may be chance; 900 items would decide" in text


def swept(mixes: dict[str, dict[str, float]]) -> dict[str, Any]:
    rows = [{"label": label, "tokens": 1, "shares": shares} for label, shares in mixes.items()]
    return {"mixes": rows, "ranking": {"candidates": [{"candidate": "a"}, {"candidate": "b"}]}}


@pytest.mark.parametrize(
    ("mixes", "said"),
    [
        (
            {"try a": {"a": 0.2, "web": 0.8}, "try b": {"b": 0.2, "web": 0.8}},
            "on a mix of 20.0 % candidate and 80.0 % web",
        ),
        (
            {"pretrain": {"web": 1.0}, "try a": {"a": 0.2, "web": 0.8}, "try b": {"web": 0.5, "b": 0.5}},
            "on a mix of its own (a: 20.0 % candidate and 80.0 % web; b: 50.0 % candidate and 50.0 % web)",
        ),
        ({"pretrain": {"web": 1.0}}, "on a mix of its own"),
    ],
)
def test_sweep_says_the_shares_that_its_mixes_have(mixes: dict[str, dict[str, float]], said: str) -> None:
    """Shares are those given; where no mix of a candidate is known, none is claimed."""
    assert tried_mixes(swept(mixes)) == said


def test_head_tells_two_runs_of_one_recipe_apart(arguments: tuple[Run, dict[str, Any]], written: Any) -> None:
    """The last checkpoint's id stands in the title and over the heading."""
    id = arguments[1]["checkpoints"][-1].id[:8]
    text = read(written[0], "report.html")
    assert f"<title>toy &amp; test {id} – training report</title>" in text
    assert f"training report · checkpoint {id}</p>" in text


def test_summary_is_the_last_checkpoint_and_the_totals(written: tuple[Workspace, Any]) -> None:
    assert written[1].summary["score/choosing"] == 0.20
    assert written[1].summary["tokens"] == 4_500


class Page(HTMLParser):
    """Collects what a page refers to, its ids, and whether its elements nest."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.pictures = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.references += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag == "svg":
            self.pictures += 1
            assert found["role"] == "img"
            assert found["aria-label"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_one_valid_file_that_fetches_nothing(written: tuple[Workspace, Any]) -> None:
    text = read(written[0], "report.html")
    page = Page(text)
    assert page.open == []
    assert page.pictures >= 9
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"@import|url\((?!#)|<script|https?:", text)
    # Links lead somewhere; nothing has the id of something else.
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_page_escapes_what_it_is_given_and_follows_the_scheme(written: tuple[Workspace, Any]) -> None:
    text = read(written[0], "report.html")
    assert "toy &amp; test" in text
    assert "first &lt;seed&gt;" in text
    assert "first <seed>" not in text
    body = text[text.index("<body>") :]
    assert not re.search(r"#[0-9a-f]{6}\b(?=[;\"])", re.sub(r'href="[^"]*"', "", body)), (
        "a colour that ignores the scheme"
    )
    assert "prefers-color-scheme: dark" in text


PLANTED = "<img src=x onerror=alert(1)>\"'><script>alert(1)</script></svg></title>$\\frac{$<!--"


def planted(value: Any, kept: frozenset[str], name: str = "") -> Any:
    """A JSON value with markup at the end of each text and key, but for those that the page looks up or computes with."""
    if isinstance(value, str):
        return value if name in kept else value + PLANTED
    if isinstance(value, list):
        return [planted(item, kept, name) for item in value]
    if isinstance(value, dict):
        of_data = name in {"primary", "stderr", "ingredients", "errors", "dropped", "sources", "shares", "series"}
        return {key + PLANTED if of_data else key: planted(item, kept, key) for key, item in value.items()}
    return value


def elements(text: str) -> set[tuple[str, tuple[str, ...]]]:
    """Each kind of element of a page with the names of its attributes."""
    found = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.add((tag, tuple(sorted(name for name, _ in attrs))))

        handle_startendtag = handle_starttag

    Reader().feed(text)
    return found


def test_markup_in_any_text_of_a_report_stays_text(written: tuple[Workspace, Any]) -> None:
    """Labels, sources, reasons, benchmarks, metrics, versions: none of them adds an element or an attribute to the page."""
    values = values_of(written[0])
    kept = frozenset({"created", "metric", "primary_metric"})
    text = render_page(planted(values, kept))
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 50
    assert "<script" not in text
    assert "<!--" not in text
    assert {tag for tag, _ in elements(text)} <= {tag for tag, _ in elements(render_page(values))} | {
        "small",
        "g",
        "use",
    }
    assert not [name for _, names in elements(text) for name in names if name.startswith("on") or name == "src"]
    assert Page(text).open == []


def test_energy_is_on_the_page_where_it_is_known(written: tuple[Workspace, Any]) -> None:
    values = copy.deepcopy(values_of(written[0]))
    assert '<th scope="col">Energy</th>' not in render_page(values)
    values["headline"]["energy_joules"], values["costs"][0]["energy_joules"] = 7.2e6, 3.6e6
    text = render_page(values)
    assert "<dt>Energy</dt><dd>2.00 kWh</dd>" in text
    assert "<td>1.00 kWh</td>" in text
    assert text.count("<td>2.00 kWh</td>") == 1, "the total"


def test_without_energy_and_site_the_page_has_no_co2_and_says_why(written: tuple[Workspace, Any]) -> None:
    values = values_of(written[0])
    stages = values["headline"]["stages"]
    footprint = values["headline"]["footprint"]
    assert (footprint["co2_kg"], footprint["water_litres"], footprint["sites"]) == (None, None, [])
    text = read(written[0], "report.html")
    assert "<dt>CO2</dt>" not in text and "<dt>Water</dt>" not in text
    assert "No figure for CO2. No figure for water." in text
    assert f"{stages} of {stages} stages lack energy, which nothing counted" in text
    assert f"{stages} of {stages} stages lack a stated execution.site.carbon." in text


def test_co2_and_water_are_on_the_page_where_energy_and_site_are_known(tmp_path: Path) -> None:
    """Table 19's 7B, in kWh: 131 at PUE 1.2, 0.332 kg and 1.29 L give 52.19 kg and 202.8 L. Half of it has no water stated."""
    run = Run(tmp_path)
    whole = StatedSite(pue=1.2, carbon=0.332, water=1.29)
    joules = 131 * 3.6e6
    documents = run.make(
        Documents, "collect", [], documents=1, bytes=1, sources={"web": 1}, energy_joules=joules / 2, site=whole
    )
    checkpoint = run.make(
        Checkpoint, "pretrain", [documents], steps=1, tokens=1, parameters=1, loss=1.0, ranks=256, parent="", flops=1e9,
        energy_joules=joules / 2, site=whole.model_copy(update={"water": None}),
    )  # fmt: skip
    ws = run.workspace("report", "a" * 16)
    write_report(
        ws,
        [documents],
        [],
        [checkpoint],
        [],
        [],
        [],
        ReportConfig(recipe="x", checkpoint_labels=["base"], funnel_labels=["web"]),
    )
    headline, text = values_of(ws)["headline"], read(ws, "report.html")
    assert headline["footprint"]["co2_kg"] == pytest.approx(131 * 1.2 * 0.332)
    assert headline["footprint"]["water_litres"] == pytest.approx(131 / 2 * 1.2 * 1.29)
    assert "<dt>CO2</dt><dd>52.2 kg</dd>" in text
    assert "<dt>Water</dt><dd>101 L</dd>" in text
    assert "CO2: 52.2 kg, of 2 of 2 stages. Water: 101 L, of 1 of 2 stages." in text
    assert "PUE 1.2, 0.332 kg of CO2 per kWh, 1.29 L of water per kWh; and PUE 1.2, 0.332 kg of CO2 per kWh." in text
    assert "1 of 2 stages lack a stated execution.site.water." in text
    assert "lack energy" not in text


def test_same_artifacts_give_the_same_bytes(
    arguments: tuple[Run, dict[str, Any]], written: tuple[Workspace, Any]
) -> None:
    run, inputs = arguments
    again = run.workspace("report", "again")
    write_report(again, **inputs)
    assert again.written == written[0].written


def test_parts_that_were_not_made_have_no_section(arguments: tuple[Run, dict[str, Any]]) -> None:
    run, inputs = arguments
    ws = run.workspace("report", "bare")
    nothing = {
        "funnel": [],
        "mixes": [],
        "scores": [],
        "single": [],
        "trial": [],
    }
    config = ReportConfig(recipe="bare", checkpoint_labels=["base"])
    write_report(ws, **{**inputs, **nothing, "checkpoints": inputs["checkpoints"][:1], "config": config})
    text = read(ws, "report.html")
    sections = re.findall(r'<section id="(\w+)"', text)
    assert sections == ["training", "cost", "lineage", "versions"]
    assert {reference[1:] for reference in Page(text).references} >= set(sections)


def test_a_table_of_published_values_has_a_section(arguments: tuple[Run, dict[str, Any]]) -> None:
    run, inputs = arguments
    ws = run.workspace("report", "conforming")
    row = ConformanceRow(topic="β < 1", paper="0.07", code="0.05", ours="0.3", verdict="ours", why="a & b")
    config = inputs["config"].model_copy(update={"conformance": (row,)})
    write_report(ws, **{**inputs, "config": config})
    text = read(ws, "report.html")
    assert re.findall(r'<section id="(\w+)"', text)[-4:] == ["conformance", "cost", "lineage", "versions"]
    assert "β &lt; 1" in text and "a &amp; b" in text and '<td class="left short">ours</td>' in text
    assert json.loads(read(ws, "report.json"))["conformance"] == [row.model_dump()]


def test_a_compared_run_is_judged_and_drawn_by_its_own_values() -> None:
    norms = [1.0, 1.2, 0.9, 1.1, 1.0, 50.0, 1.0, 1.1]
    rows = [{"step": step, "loss": 3.0 - step / 10, "grad_norm": norm} for step, norm in enumerate(norms, 1)]
    found = compared_run("<one>", rows, 5, 400)
    assert (found["steps"], found["judged"], found["last_loss"]) == (8, 3, pytest.approx(2.2))
    assert found["spikes"]["grad_norm"] == pytest.approx(100 / 3)
    (loss, _), (norm, svg) = comparison_panels({"title": "Norms", "runs": [found, found | {"label": "two"}]})
    assert (loss, norm) == ("training loss", "gradient norm before clipping")
    assert "&lt;one&gt;" in svg and "<one>" not in svg


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint_labels": LABELS[:4]}, "report.checkpoint_labels has 4 names .* for 5 artifacts"),
        ({"mix_labels": []}, "report.mix_labels has 0 names"),
        ({"checkpoint_labels": ["base", "base", "second", "soup", "sft"]}, "one name of its own"),
        ({"checkpoint_labels": ["other", *LABELS[1:]]}, "no such label"),
        ({"checkpoint_labels": [LABELS[1], LABELS[0], *LABELS[2:]]}, "label scores as their checkpoints"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    arguments: tuple[Run, dict[str, Any]], change: dict[str, Any], message: str
) -> None:
    run, inputs = arguments
    config = inputs["config"].model_copy(update=change)
    with pytest.raises(ValueError, match=message):
        write_report(run.workspace("report", "refused"), **{**inputs, "config": config})


@pytest.mark.parametrize(
    ("difference", "stderr", "verdict"),
    [
        (0.019, 0.01, "within noise"),
        (-0.02, 0.01, "likely loss"),
        (0.0301, 0.01, "clear gain"),
        (0.5, 0.0, "no error known"),
        (0.0, 0.0, "no change"),
    ],
)
def test_verdicts(difference: float, stderr: float, verdict: str) -> None:
    assert judge_difference(difference, stderr, BOUNDS)[1] == verdict


@given(logged=st.integers(1, 500), points=st.integers(2, 50))
def test_thinned_curves_keep_order_first_and_last(logged: int, points: int) -> None:
    """Property: at most `points` steps, in order, the first and the last logged among them (a single one alone)."""
    artifact = Checkpoint(
        stage="sft",
        id="x",
        address="sft/x/g0001",
        digest="",
        steps=1,
        tokens=1,
        parameters=1,
        loss=1.0,
        ranks=1,
        parent="",
    )
    found = curve("sft", artifact, ({"step": 3 * step, "loss": 1.0, "lr": 0.1} for step in range(logged)), "", points)
    assert found is not None
    assert found.steps == sorted(set(found.steps))
    assert len(found.steps) <= points
    assert (found.steps[0], found.steps[-1]) == (0, 3 * (logged - 1))


def test_a_metric_that_is_missing_somewhere_has_no_curve() -> None:
    artifact = Checkpoint(
        stage="sft",
        id="x",
        address="sft/x/g0001",
        digest="",
        steps=1,
        tokens=1,
        parameters=1,
        loss=1.0,
        ranks=1,
        parent="",
    )
    rows = [{"step": step, "loss": loss, "kl": kl, "lr": 0.5} for step, loss, kl in ((1, 2.0, 0.1), (2, None, 0.2))]
    found = curve("sft", artifact, rows, "", 10)
    assert found is not None
    assert found.series == {"kl": [0.1, 0.2], "lr": [0.5, 0.5]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (report_words.amount(9_999), "9,999"),
        (report_words.amount(2_631_808), "2.63 M"),
        (report_words.amount(999_960), "1.00 M"),
        (report_words.size(31_240_000), "31.2 MB"),
        (report_words.memory(2**31), "2.00 GiB"),
        (report_words.duration(59.7), "1 min 00 s"),
        (report_words.duration(3_725), "1 h 02 min"),
        (report_words.power(9.999e13), "1.00 × 10¹⁴"),
        (report_words.power(0), "–"),
        (report_words.energy(1.26e7), "3.50 kWh"),
        (report_words.energy(None), "–"),
        (report_words.mass(0.00664), "6.64 g"),
        (report_words.mass(52_190), "52.2 t"),
        (report_words.volume(3.096), "3.10 L"),
        (report_words.volume(202_800), "203 kL"),
        (report_words.points(-0.0312, SHARE), "−3.1"),
        (report_words.points(-0.0001, SHARE), "0.0"),
        (report_words.score_words(0.41, SHARE), "41.0"),
        (report_words.score_words(2.7141, {"lower_is_better": True}), "2.714"),
        (report_words.day("2024-12-31T10:02:00+00:00"), "2024-12-31 10:02"),
    ],
)
def test_numbers_are_written_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_matplotlib_loads_only_when_a_report_is_drawn() -> None:
    import subprocess

    code = "import sys, tasks.evaluation.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_flow_of_text_puts_steps_after_their_inputs_and_bands_in_proportion():
    """Oracle: two sources by hand, joined by a third step that takes both."""
    rows = [
        ("a", [], 60.0, 60.0),
        ("b", [], 40.0, 40.0),
        ("a kept", ["a"], 60.0, 30.0),
        ("both", ["a kept", "b"], 70.0, 70.0),
    ]
    steps = [FlowStep(label, "step", inputs, taken, kept, label, "") for label, inputs, taken, kept in rows]
    depths = depths_of(steps)
    assert depths == {"a": 0, "b": 0, "a kept": 1, "both": 2}
    placed = place(steps, depths)
    assert placed["a"].taken == pytest.approx(1.5 * placed["b"].taken)
    assert placed["a kept"].kept == pytest.approx(placed["a kept"].taken / 2)
    assert placed["b"].top > placed["a"].top + placed["a"].taken
    assert placed["both"].x > placed["a kept"].x > placed["a"].x
    assert placed["both"].taken == pytest.approx(placed["a kept"].kept + placed["b"].kept)


def test_a_histogram_shows_the_bins_with_documents_and_puts_limits_between_edges():
    scores = Histogram(edges=[0, 1, 2, 4, 8], kept=[0, 0, 5, 0], dropped=[0, 2, 0, 0], limits=[3])
    assert shown_bins(scores) == (1, 3)
    assert [position(value, scores.edges) for value in (-1, 0.5, 3, 9)] == [0, 0.5, 2.5, 4]
