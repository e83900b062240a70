"""`olmo2 eval`, `rescore` and `compare` on a tiny model and local copies in the schemas of the public sets."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from typer.testing import CliRunner

from flows.cli.main import app
from model.config import ModelConfig
from model.files.weights import save_hf
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from tasks.data.documents.dolma_files import written_rows
from tests.openai_server import OpenAIServer

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

    again = olmo2("rescore", first["id"], "--why", "a new metric", *store)
    assert again["id"] != first["id"]
    assert again["benchmarks"] == first["benchmarks"]

    looks = olmo2("looks", *store)
    assert {tuple(look["benchmarks"]) for look in looks} == {("gsm8k_bpb",)}, "development scores are looked at freely"
    runs = [look["run"].split()[:2] for look in looks]
    # Each stage once, though one was reused; the commands each time, a comparison for both evaluations.
    assert sorted(runs) == sorted(
        [["stage", "evaluate"]] * 2 + [["stage", "rescore"]] + [["olmo2", "eval"]] * 3 + [["olmo2", "compare"]] * 4
        + [["olmo2", "rescore"]]
    )  # fmt: skip
    assert [look["why"] for look in looks if look["run"].startswith("olmo2 rescore")] == ["a new metric"]
    assert all("@" in look["who"] and look["when"] for look in looks)
    assert {look["scores"] for look in olmo2("looks", again["id"], *store)} == {again["address"]}


@pytest.mark.slow
def test_two_workers_that_hold_a_model_together_give_its_scores(tmp_path, copies):
    model = save_model(tmp_path / "one", 1)
    common = ["eval", model, "--tasks", "piqa", "--data", copies]
    alone = olmo2(*common, "--store", str(tmp_path / "alone"))
    # In a process of its own, as a user's command: Ray forks its servers, and a fork of all that is loaded here failed once.
    program = [sys.executable, "-m", "flows.cli", *common, "--store", str(tmp_path / "together"), "--workers", "2"]
    together = json.loads(subprocess.check_output([*program, "--threads", "1", "--json"]))
    assert [row["score"] for row in together["benchmarks"]] == [row["score"] for row in alone["benchmarks"]]
    record = json.loads(next((tmp_path / "together").glob(f"{together['address']}/../record-*.json")).read_text())
    assert (record["notes"]["workers"], record["notes"]["parallel"]) == (2, "fsdp")


def served(folder: Path, *, ranks: int = 320) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A reply of the completions route as vLLM's, echo included, by transformers' model of the folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    own = Tokenizer(ranks)

    @torch.inference_mode()
    def reply(body: dict[str, Any]) -> dict[str, Any]:
        ids, given, cache = list(body["prompt"]), len(body["prompt"]), DynamicCache()
        values: list[float | None] = [None]
        stopped = False
        while not stopped and len(ids) < given + body["max_tokens"]:
            fed = ids[len(values) - 1 :]
            logprobs = model(torch.tensor([fed]), past_key_values=cache, use_cache=True).logits[0].log_softmax(-1)
            ids.append(int(logprobs[-1, : own.vocab_size].argmax()))
            values += [float(logprobs[place, token]) for place, token in enumerate(ids[len(values) :])]
            text = own.decode(ids[given:])
            stopped = ids[-1] == own.eos_id or any(stop in text for stop in body.get("stop", ()))
        shown = 0 if body.get("echo") else given
        choice = {
            "index": 0,
            "text": own.decode(ids[shown:]),
            "finish_reason": "stop" if stopped else "length",
            "token_ids": ids[given:],
            "logprobs": {"tokens": [str(i) for i in ids[shown:]], "token_logprobs": values[shown:]},
        }
        return {"choices": [choice], "usage": {"prompt_tokens": given, "completion_tokens": len(ids) - given}}

    return reply


def test_a_served_model_has_the_scores_of_its_weights(tmp_path, copies):
    """Oracle: the local evaluation of the same folder. The server answers with another library."""
    folder, store = save_model(tmp_path / "one", 1), ["--store", str(tmp_path / "store")]
    common = ["--tasks", "piqa,arc_easy:cloze,gsm8k", "--limit", "2", "--data", copies, *store]
    here = olmo2("eval", folder, *common)
    with OpenAIServer(served(Path(folder))) as server:
        server.models = [{"id": "tiny", "max_model_len": 2048}, {"id": "other"}]
        with pytest.raises(ValueError, match="serves tiny, other; name one of them with --model"):
            CliRunner().invoke(app, ["eval", server.url, *common], catch_exceptions=False)
        asked = ["eval", server.url, "--model", "tiny", "--tokenizer", folder, *common]
        there = olmo2(*asked)
        sent = server.sent.total()
        assert olmo2(*asked)["reused"]
        assert server.sent.total() == sent + 1, "the probe alone"
    drop = ("id", "address", "reused", "not_computed")
    for one, other in zip(here["benchmarks"], there["benchmarks"], strict=True):
        assert one["name"] == other["name"]
        assert other["score"] == pytest.approx(one["score"], abs=1e-5)
    assert {key for key in here if key not in drop} == {key for key in there if key not in drop}
    for row in olmo2("compare", here["id"], there["id"], *store):
        assert row["difference"] == pytest.approx(0, abs=1e-5)
    items = [
        list(written_rows(tmp_path / "store" / one["address"] / "items" / f"{name}.jsonl.zst"))
        for one in (here, there)
        for name in ("piqa_mc", "gsm8k")
    ]
    for one, other in zip(items[:2], items[2:], strict=True):
        for first, second in zip(one, other, strict=True):
            for mine, theirs in zip(first["answers"], second["answers"], strict=True):
                assert mine.keys() == theirs.keys()
                assert mine.pop("logprob", 0.0) == pytest.approx(theirs.pop("logprob", 0.0), abs=1e-4)
                numbers = {"per_char", "per_token"}
                assert {k: v for k, v in mine.items() if k not in numbers} == {
                    k: v for k, v in theirs.items() if k not in numbers
                }
    assert olmo2("rescore", there["id"], *store)["benchmarks"] == there["benchmarks"]


def test_other_weights_under_the_same_name_are_asked_again_and_another_tokenizer_is_refused(tmp_path, copies):
    store = ["--store", str(tmp_path / "store")]
    common = ["--tasks", "piqa:rc", "--limit", "1", "--data", copies, *store]
    found = []
    for seed in (1, 2):
        folder = save_model(tmp_path / str(seed), seed)
        with OpenAIServer(served(Path(folder))) as server:
            server.models = [{"id": "tiny"}]
            found.append(olmo2("eval", server.url, "--tokenizer", folder, *common))
    assert [one["reused"] for one in found] == [False, False]
    assert found[0]["id"] != found[1]["id"]
    # Ids of the shorter vocabulary are other words to a server with a longer one.
    with OpenAIServer(served(tmp_path / "1", ranks=300)) as server:
        server.models = [{"id": "tiny"}]
        with pytest.raises(ValueError, match="its tokenizer is another one; give the folder"):
            CliRunner().invoke(
                app, ["eval", server.url, "--tokenizer", str(tmp_path / "1"), *common], catch_exceptions=False
            )


def test_a_server_without_echoed_log_probabilities_is_refused(tmp_path, copies):
    with OpenAIServer(lambda body: "a text") as server:
        server.models = [{"id": "tiny"}]
        with pytest.raises(ValueError, match="gives no log-probabilities for the probe"):
            CliRunner().invoke(
                app,
                ["eval", server.url, "--tasks", "piqa", "--data", copies, "--store", str(tmp_path / "store")],
                catch_exceptions=False,
            )


def test_limits_and_errors_are_said(tmp_path, copies):
    store = ["--store", str(tmp_path / "store")]
    model = save_model(tmp_path / "one", 1)
    shown = olmo2("eval", model, "--tasks", "piqa:rc", "--limit", "2", "--data", copies, *store)
    assert shown["benchmarks"][0]["n"] == 2
    for arguments, message in (
        (["eval", model, "--tasks", "poetry"], "'poetry' is no task and no table"),
        (["eval", model, "--tasks", "csqa", "--data", copies], "no copy of tau/commonsense_qa"),
        (
            ["eval", "http://127.0.0.1:9/v1", "--tasks", "piqa", "--data", copies],
            "nothing answers at http://127.0.0.1:9/v1",
        ),
        (["compare", "abcd", "abce"], "abcd"),
    ):
        found = CliRunner().invoke(app, [*arguments, *store])
        assert isinstance(found.exception, ValueError)
        assert message in str(found.exception)
