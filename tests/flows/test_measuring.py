"""`olmo2 eval`, `rescore` and `compare` on a tiny model and local copies in the schemas of the public sets."""

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from model.config import ModelConfig
from model.files.weights import save_hf
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "olmes"
TOKENIZER = Tokenizer(320)
TINY = ModelConfig(
    d_model=32,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    head_dim=16,
    mlp_hidden=64,
    vocab_size=TOKENIZER.padded_vocab_size,
    max_sequence_length=2048,
)


def save_model(folder: Path, seed: int) -> str:
    save_hf(Transformer(TINY, seed=seed), TINY, TOKENIZER, folder)
    return str(folder)


def rows_of(name: str) -> list[dict]:
    return json.loads(gzip.decompress((GOLDEN / f"{name}.json.gz").read_bytes()))["rows"]


@pytest.fixture
def copies(tmp_path: Path) -> str:
    for place, name in (
        ("ybisk/piqa/validation.jsonl", "piqa__val_rc_5shot"),
        ("allenai__ai2_arc/ARC-Easy/test.jsonl", "arc_easy__test_rc_5shot"),
        ("gsm8k/main/test.jsonl", "gsm8k__gold_bpb_5shot"),
    ):
        path = tmp_path / "data" / place
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(name)))
    return str(tmp_path / "data")


def olmo2(*arguments: str) -> dict:
    found = CliRunner().invoke(app, [*arguments, "--json"])
    assert found.exit_code == 0, (found.output, found.exception)
    return json.loads(found.stdout)


def test_eval_rescore_and_compare(tmp_path, copies):
    store = ["--store", str(tmp_path / "store")]
    common = ["--tasks", "piqa,arc_easy:cloze,gsm8k:bpb", "--data", copies, *store]
    first = olmo2("eval", save_model(tmp_path / "one", 1), *common)
    by_name = {row["name"]: row for row in first["benchmarks"]}
    assert list(by_name) == ["piqa_mc", "piqa_rc", "arc_easy_rc", "gsm8k_bpb", "piqa"]
    assert by_name["piqa"]["score"] == max(by_name["piqa_mc"]["score"], by_name["piqa_rc"]["score"])
    assert by_name["gsm8k_bpb"]["role"] == "held_out"
    assert olmo2("eval", str(tmp_path / "one"), *common)["reused"]

    second = olmo2("eval", save_model(tmp_path / "two", 2), *common, "--against", first["id"])
    bits = next(row for row in second["differences"] if row["benchmark"] == "gsm8k_bpb")
    other = next(row for row in second["benchmarks"] if row["name"] == "gsm8k_bpb")
    assert bits["difference"] == pytest.approx(other["score"] - by_name["gsm8k_bpb"]["score"])
    assert bits["items"] == bits["discordant"] == 3
    assert bits["lower_is_better"]

    page = tmp_path / "page.html"
    assert olmo2("compare", first["id"], second["id"], "--page", str(page), *store) == second["differences"]
    assert "Janet" in page.read_text()

    again = olmo2("rescore", first["id"], *store)
    assert again["id"] != first["id"]
    assert again["benchmarks"] == first["benchmarks"]


def test_limits_and_errors_are_said(tmp_path, copies):
    store = ["--store", str(tmp_path / "store")]
    model = save_model(tmp_path / "one", 1)
    shown = olmo2("eval", model, "--tasks", "piqa:rc", "--limit", "2", "--data", copies, *store)
    assert shown["benchmarks"][0]["n"] == 2
    for arguments, message in (
        (["eval", model, "--tasks", "poetry"], "'poetry' is no task and no table"),
        (["eval", model, "--tasks", "csqa", "--data", copies], "no copy of tau/commonsense_qa"),
        (["eval", "http://localhost:1/v1", "--tasks", "piqa", "--data", copies], "is a server"),
        (["compare", "abcd", "abce"], "abcd"),
    ):
        found = CliRunner().invoke(app, [*arguments, *store])
        assert isinstance(found.exception, ValueError)
        assert message in str(found.exception)
