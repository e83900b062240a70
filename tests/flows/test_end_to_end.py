"""The smoke recipe through the command line: run, reuse, rerun, plan, look, export. Oracle: the issue's own promises."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.flows.conftest import olmo2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(finished_smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one finished smoke run, for these tests to go on from."""
    return shutil.copytree(finished_smoke, tmp_path_factory.mktemp("smoke") / "store")


def artifacts(store: Path) -> list[dict]:
    return json.loads(olmo2("ls", "--json", store=store))


def of_label(store: Path, label: str) -> dict:
    return max((row for row in artifacts(store) if row["label"] == label), key=lambda row: row["generation"])


def test_a_second_run_reuses_every_stage(store: Path):
    output = olmo2("run", "smoke", store=store)
    assert "0 stages run" in output


def test_plan_reuses_all_and_names_a_changed_field(store: Path):
    rows = json.loads(olmo2("plan", "smoke", "--json", store=store))
    assert {row["action"] for row in rows} == {"reused"}
    rows = json.loads(olmo2("plan", "smoke", "--set", "dpo.beta=1", "--json", store=store))
    by_label = {row["label"]: row for row in rows}
    assert by_label["dpo"]["why"] == "beta: 5.0 → 1.0"
    changed = {label for label, row in by_label.items() if row["action"] != "reused"}
    assert changed == {"dpo", "rlvr", "evaluate:dpo", "evaluate:instruct", "report"}


def test_what_changes_rounding_only_leaves_every_id_as_it_is(store: Path):
    changed = [
        "execution.micro_instances={default: 1}", "execution.pass_tokens={default: 64, ppo: 7}",
        "execution.answers_at_once={evaluate: 3}", "execution.threads={default: 2}", "execution.gc_every=3",
    ]  # fmt: skip
    settings = [word for change in changed for word in ("--set", change)]
    rows = json.loads(olmo2("plan", "smoke", *settings, "--json", store=store))
    assert {row["action"] for row in rows} == {"reused"}


def test_rerun_makes_dpo_and_exactly_what_lies_below_anew(store: Path):
    before = {(row["label"], row["generation"]) for row in artifacts(store)}
    olmo2("rerun", "smoke", "dpo", store=store)
    new = {row["label"] for row in artifacts(store) if (row["label"], row["generation"]) not in before}
    assert new == {"dpo", "rlvr", "evaluate:dpo", "evaluate:instruct", "report"}


def test_until_stops_there(tmp_path: Path):
    olmo2("run", "smoke", "--until", "filter:web", store=tmp_path)
    assert {row["stage"] for row in artifacts(tmp_path)} == {"collect", "classifier", "score", "filter"}


def test_show_has_the_lineage_up_to_raw_inputs(store: Path):
    shown = json.loads(olmo2("show", of_label(store, "rlvr")["id"], "--json", store=store))
    labels = {parent["label"] for parent in shown["lineage"]}
    assert {"collect:web", "encode:code", "pretrain", "soup", "sft", "dpo", "rlvr"} <= labels
    assert "collect:web" in olmo2("show", of_label(store, "pretrain")["id"][:8], store=store)


def test_the_report_is_one_file_without_network(store: Path):
    row = of_label(store, "report")
    page = next(store.glob(f"report/{row['id']}/g*/report.html")).read_text()
    for outside in ('src="http', 'href="http', "@import", "<link"):
        assert outside not in page


def test_export_loads_in_transformers_with_the_same_logits(store: Path, tmp_path: Path):
    """Oracle: transformers' Olmo2ForCausalLM, fp32, on random ids and real text."""
    import torch
    from transformers import AutoTokenizer, Olmo2ForCausalLM

    from model.files.weights import load_hf
    from model.tokens.tokenizer import Tokenizer

    olmo2("export", of_label(store, "rlvr")["id"], str(tmp_path / "hf"), store=store)
    theirs = Olmo2ForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ours, config = load_hf(tmp_path / "hf")
    tokenizer = Tokenizer.load(tmp_path / "hf")
    text = "Question: What is 12 + 34?\nAnswer:"
    ids = AutoTokenizer.from_pretrained(tmp_path / "hf")(text)["input_ids"]
    assert ids[-len(tokenizer.encode(text)) :] == tokenizer.encode(text)
    random = torch.randint(0, config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))
    for batch in (random, torch.tensor([ids])):
        with torch.no_grad():
            torch.testing.assert_close(ours(batch), theirs(batch).logits, atol=1e-4, rtol=0)


def test_bad_input_exits_2_and_names_it(store: Path):
    assert "did you mean 'beta'" in olmo2("run", "smoke", "--set", "dpo.bta=1", store=store, code=2)
    assert "no stage 'dop'; did you mean 'dpo'" in olmo2("rerun", "smoke", "dop", store=store, code=2)
    assert "has no artifact with id 'zzz'" in olmo2("show", "zzz", store=store, code=2)
    assert "is a file: give a new folder" in olmo2(
        "export", of_label(store, "rlvr")["id"], __file__, store=store, code=2
    )
    assert "only checkpoints" in olmo2("export", of_label(store, "rank")["id"], "/tmp/never", store=store, code=2)


def test_clean_removes_what_a_killed_process_left_and_nothing_else(store: Path):
    before = sorted(path for path in store.rglob("*") if path.is_file())
    left = next(store.glob("pretrain/*/g0001")) / f".tmp-{'0' * 32}"
    left.write_bytes(b"half a file")
    assert "temporary files of the store: 0 removed; kept 1 (11 bytes)" in olmo2("clean", store=store)
    os.utime(left, (0, 0))
    found = json.loads(olmo2("clean", "--json", store=store))
    assert (found[0]["removed"], found[0]["freed_bytes"]) == (1, 11)
    assert sorted(path for path in store.rglob("*") if path.is_file()) == before
    assert "there is no store" in olmo2("clean", store=store / "elsewhere", code=2)


def test_an_unwritable_store_exits_2_before_anything_starts(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in olmo2("run", "smoke", store=tmp_path / "file" / "store", code=2)


def test_a_failing_stage_exits_1_and_says_how_to_resume(store: Path):
    changed = ["--set", "rlvr.max_prompt_tokens=1", "--store", str(store)]
    output = olmo2("run", "smoke", *changed, store=store, code=1)
    assert "stage rlvr failed" in output
    assert "full traceback:" in output
    assert "resume with: olmo2 run smoke" in output
