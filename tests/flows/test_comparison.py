"""Comparisons: variants of pre-training side by side. Oracles: the recipe's own fields, the metrics that trainings log."""

import json
import re
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.config.errors import RecipeError
from flows.config.files import load, recipe_folder
from flows.config.recipe_config import RecipeConfig
from flows.inspection.artifacts import find_record
from flows.inspection.costs.cost_table import plan_costs
from flows.rehearsing.rehearsal import rehearsed
from flows.running.run import plan
from infra.records.reader import Reader
from infra.records.record import stage_records
from infra.storage.store import Store
from model.tokens.tokenizer import Tokenizer
from model.training.measuring.diagnostics import spike_score
from tasks.artifacts import METRICS
from tasks.evaluation.reporting.compared import extremes
from tests.flows.conftest import olmo2

FOLDER = recipe_folder() / "ablations"
TOYS = sorted(path.stem for path in FOLDER.glob("*.yaml") if (FOLDER / f"{path.stem}-1b.yaml").is_file())
SMALL = (
    "pretrain.steps=24", "pretrain_mix.requested_tokens=24576", "comparison.window=8", "collect.web.max_bytes=200000",
    "collect.code.max_bytes=100000", "execution.ray=off",
)  # fmt: skip
VARIES = {
    "init": {"model.init"},
    "layer-norm": {"model.norm"},
    "reordered-norm": {"model.norm_placement", "model.qk_norm"},
    "z-loss": {"loss.z_weight"},
    "adam-epsilon": {"optim.eps"},
    "embedding-decay": {"optim.decay"},
    "repetitions": {"mask_repetitions"},
    "tokenizer": {"model.vocab_size"},
}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        path: leaf for key, member in value.items() for path, leaf in flat(member, f"{prefix}.{key}".strip(".")).items()
    }


def encodings(name: str) -> set[str]:
    """Every source once; of the tokenizers' comparison once in each vocabulary, and not in the recipe's."""
    ends = ["-OLMo-1", "-OLMo-2"] if name == "tokenizer" else [""]
    return {f"encode:{source}{end}" for source in ("web", "code") for end in ends}


def test_there_is_a_recipe_for_every_comparison() -> None:
    assert set(TOYS) == VARIES.keys()


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("size", ["", "-1b"])
def test_variants_differ_in_the_one_thing_and_are_planned(name: str, size: str, tmp_path: Path) -> None:
    recipe = str(FOLDER / f"{name}{size}.yaml")
    config = load(recipe, [f"execution.store={tmp_path}"])
    assert config.comparison is not None
    one, other = (flat(how.model_dump(mode="json")) for how in config.comparison.variants.values())
    assert {path for path in one if one[path] != other[path]} == VARIES[name]
    assert one["model.d_model"] == (2048 if size else 64)
    labels = [row.label for row in plan(config)]
    assert {label for label in labels if label.startswith("encode:")} == encodings(name)
    assert [label for label in labels if label.startswith("pretrain:")] == [
        f"pretrain:{found.replace(' ', '-')}" for found in config.comparison.variants
    ]
    assert labels[-1] == "report" and not {"sft", "anneal:42"} & set(labels)
    costs = plan_costs(None, recipe, [], 8, gpu="h100")
    assert [row["steps"] for row in costs["stages"]] == [10_000 if size else 400] * 2
    assert not size or all(row["hours"] for row in costs["others"] if row["label"].startswith("encode:"))


@pytest.mark.parametrize("name", ["init", "init-1b"])
def test_a_rehearsal_of_a_comparison_keeps_what_differs(name: str) -> None:
    samples = Path(__file__).parents[1] / "samples" / "hub"
    config = rehearsed(load(str(FOLDER / f"{name}.yaml")), samples, "nowhere")
    assert config.comparison is not None
    one, other = (flat(how.model_dump(mode="json")) for how in config.comparison.variants.values())
    assert {path for path in one if one[path] != other[path]} == VARIES["init"]
    assert (one["steps"], one["batch_size"], one["model.n_layers"], one["model.norm"]) == (8, 4, 3, "layer")


def test_the_baseline_is_olmo_0424_whole() -> None:
    config = load(str(FOLDER / "init.yaml"))
    assert config.comparison is not None
    how = config.comparison.variants["scaled"]
    assert (how.model.norm, how.model.qkv_clip, how.model.rope_theta, how.model.norm_eps) == (
        "layer",
        8.0,
        10_000.0,
        1e-5,
    )
    assert (how.optim.decay, how.optim.eps, how.loss.z_weight) == ("all", 1e-5, 0)


def test_an_override_of_pretrain_reaches_every_variant() -> None:
    config = load(str(FOLDER / "z-loss.yaml"), ["pretrain.optim.beta2=0.9", "pretrain.model.n_layers=2"])
    assert config.comparison is not None
    for how in config.comparison.variants.values():
        assert (how.optim.beta2, how.model.n_layers) == (0.9, 2)
    again = RecipeConfig.model_validate(config.model_dump(mode="json"))
    assert again.comparison == config.comparison


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("comparison.variants={one: {}}", r"comparison\.variants.*at least 2"),
        ("comparison.variants={one: {}, two: {betas: 1}}", r"variants\.two\.betas: there is no such field"),
        ("comparison.variants={one two: {}, one-two: {}}", "variants have the same label: one two, one-two"),
        ("comparison.variants={one: {}, two: {batch_size: 8}}", r"two\.batch_size=8 is not pretrain\.batch_size=16"),
        (
            "comparison.variants={one: {}, two: {model: {vocab_size: 640}}}",
            r"two\.model\.vocab_size=640 is not that of",
        ),
        ("comparison.encode={three: {}}", "encode names three; the variants are no z-loss, z-loss 1e-4"),
        ("comparison.encode={no z-loss: {tokenizer: olmo-2}}", r"tokenizer: Input should be 'dolma2' or 'olmo-1'"),
        (
            "comparison.encode={no z-loss: {tokenizer: olmo-1, ranks: 50_253}}",
            r"ranks=50,253 is not between 256 .* and 50,252 \(all of GPT-NeoX's",
        ),
        (
            "comparison.encode={no z-loss: {tokenizer: olmo-1}}",
            r"no z-loss\.model\.vocab_size=512 has no row for each of the 50,280 ids .* \(olmo-1 at 50,252 ranks\); use 50,304",
        ),
        ("start={base: abcd1234}", "comparison trains its variants from their initialisation, but start gives base"),
    ],
)
def test_a_comparison_that_is_none_is_refused(change: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load(str(FOLDER / "z-loss.yaml"), [change])


def test_later_parents_lie_over_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("extends: smoke\nsft: {epochs: 3, seed: 1}\n")
    (tmp_path / "two.yaml").write_text("sft: {epochs: 4}\ncollect: {code: null}\nfilter: {code: null}\n")
    (tmp_path / "mine.yaml").write_text("extends: [one, two]\npretrain_mix: {sources: [{source: web, ratio: 1}]}\n")
    (tmp_path / "none.yaml").write_text("extends: []\n")
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        mine.read_text() + "anneal_mix: {sources: [{source: web, ratio: 0.3}, {source: winner, ratio: 0.7}]}\n"
    )
    config = load(str(mine), ["classifiers.quality=null", "filter.web.rules=[]"])
    assert (config.sft.epochs, config.sft.seed, list(config.collect)) == (4, 1, ["web"])
    with pytest.raises(RecipeError, match=r"extends=\[\] is not the name or path of a recipe"):
        load(str(tmp_path / "none.yaml"))


def test_the_extremes_of_a_long_curve_stay() -> None:
    values = [1.0] * 1000
    values[437], values[438] = 9.0, -3.0
    steps, kept = extremes(list(range(1000)), values, 40)
    assert len(kept) <= 40
    assert (437, 9.0) in zip(steps, kept, strict=True) and min(kept) == -3.0
    assert extremes([1, 2], [3.0, 4.0], 40) == ([1, 2], [3.0, 4.0])


def test_a_comparison_goes_through_to_its_figure(tmp_path: Path) -> None:
    sets = [word for change in SMALL for word in ("--set", change)]
    output = olmo2("run", str(FOLDER / "init.yaml"), *sets, store=tmp_path)
    (page,) = re.findall(r"report: (.*report\.html)", output)
    found = json.loads(Path(page).with_suffix(".json").read_text())["comparison"]
    assert [run["label"] for run in found["runs"]] == ["scaled", "normal"]
    store = Store(str(tmp_path))
    logged = {
        record.label: list(Reader(store).read_jsonl(find_record(store, record.id).artifact(), METRICS))
        for record in stage_records(store, "pretrain")
    }
    for run in found["runs"]:
        norms = [row["grad_norm"] for row in logged[f"pretrain:{run['label']}"]]
        assert (run["steps"], run["judged"]) == (24, 16)
        assert run["spikes"]["grad_norm"] == spike_score(norms, 8)
        assert run["series"]["grad_norm"][1] == norms
    html = Path(page).read_text()
    assert "Initialisation: gradient norm before clipping over steps" in html
    assert "0.40 to 0.03" in html


def test_tokenizers_are_compared_by_the_bytes_of_their_text(tmp_path: Path) -> None:
    """Oracles: the texts of the token files, read back; cross-entropy per token over the bytes of a token."""
    sets = [word for change in SMALL for word in ("--set", change)]
    output = olmo2("run", str(FOLDER / "tokenizer.yaml"), *sets, store=tmp_path)
    (page,) = re.findall(r"report: (.*report\.html)", output)
    found = json.loads(Path(page).with_suffix(".json").read_text())["comparison"]
    store = Store(str(tmp_path))
    reader = Reader(store)
    trained = {record.label: record.artifact() for record in stage_records(store, "pretrain")}
    for run, kind in zip(found["runs"], (Tokenizer(612, "olmo-1"), Tokenizer(1258)), strict=True):
        label = f"-{run['label'].replace(' ', '-')}"
        sources = {
            record.label.removeprefix("encode:").removesuffix(label): record.artifact()
            for record in stage_records(store, "encode")
            if record.label.endswith(label)
        }
        (mixed,) = (record.artifact() for record in stage_records(store, "mix") if record.label.endswith(label))
        size = 0.0
        for source, tokens in sources.items():
            ids = [id for name in tokens.files for id in np.fromfile(reader.path(tokens, name), dtype="<u4").tolist()]
            assert (tokens.tokenizer, tokens.ranks, len(ids)) == (kind.name, kind.ranks, tokens.tokens)
            texts = kind.decode_bytes([id for id in ids if id != kind.eos_id])
            # NFC of OLMo 1's tokenizer may shorten a text; this text has nothing to shorten by more than a thousandth.
            assert len(texts) == pytest.approx(tokens.bytes, rel=1e-3)
            size += mixed.shares[source] * tokens.bytes / tokens.tokens
        assert run["token_bytes"] == pytest.approx(size, rel=1e-4)
        checkpoint = trained[f"pretrain:{run['label'].replace(' ', '-')}"]
        losses = [row["ce"] for row in reader.read_jsonl(checkpoint, METRICS)]
        assert run["series"]["bits_per_byte"][1] == pytest.approx([loss / size / log(2) for loss in losses], rel=1e-4)
        assert checkpoint.tokenizer == kind.name
    assert found["runs"][0]["token_bytes"] < found["runs"][1]["token_bytes"]
    assert "Tokenizer: training loss in bits per byte over steps" in Path(page).read_text()
