"""Supervised finetuning as a stage: it learns, drops what it must, refuses what it must, and resumes exactly."""

import json

import pytest

from model.tokens.chat import encode_chat
from tasks.artifacts import Checkpoint
from tasks.training.sft import SFTConfig, train_sft
from tests.tasks.training.conftest import TOKENIZER, Rows, Seed, assistant, make_chats, make_checkpoint, sums, user

CONFIG = SFTConfig(learning_rate=1e-2, warmup_ratio=0.1, epochs=4, batch_size=4, max_tokens=64, precision="fp32")


def lie_about_ranks(ws, config: Seed) -> Checkpoint:
    return make_checkpoint(ws, config).model_copy(update={"ranks": 321})


def test_it_learns_and_states_its_facts(bench):
    chats = bench.chats()
    base = bench.base()
    made = bench.run(train_sft, parent=base, chats=chats, config=CONFIG)
    rows = [json.loads(line) for line in bench.read(made, "metrics.jsonl").splitlines()]
    assert made.steps == len(rows) == 12
    assert rows[-1]["ce"] < 0.7 * rows[0]["ce"]
    assert "tokens_per_second" not in rows[0]
    assert made.parent == base.digest
    lengths = [len(encode_chat(TOKENIZER, [user(q), assistant(a)], 64).ids) for q, a in sums(12)]
    assert made.tokens == rows[-1]["tokens"] == 4 * sum(lengths)
    assert rows[0]["lr"] == 0.0
    assert max(row["lr"] for row in rows) == pytest.approx(1e-2)
    config = json.loads(bench.read(made, "generation_config.json"))
    assert config["bos_token_id"] == config["eos_token_id"] is not None


def test_chats_without_an_answer_are_dropped_and_counted(bench):
    rows = [
        {"id": "0", "messages": [user("1+1"), assistant("2")], "source": "test"},
        {"id": "1", "messages": [user("1+1")], "source": "test"},
        {"id": "2", "messages": [user("1 " * 200), assistant("2")], "source": "test"},
    ]
    chats = bench.run(make_chats, config=Rows(rows=rows))
    outcome = bench.outcome(train_sft, parent=bench.base(), chats=chats, config=CONFIG)
    assert outcome.record.notes["chats_trained"] == 1
    assert outcome.record.notes["chats_without_answer"] == 2
    only_bad = bench.run(make_chats, "bad", config=Rows(rows=rows[1:]))
    with pytest.raises(ValueError, match="no trainable example"):
        bench.run(train_sft, parent=bench.base(), chats=only_bad, config=CONFIG)


def test_a_vocabulary_that_does_not_fit_is_refused(bench):
    lying = bench.run(lie_about_ranks, config=Seed())
    with pytest.raises(ValueError, match="320 ranks"):
        bench.run(train_sft, parent=lying, chats=bench.chats(), config=CONFIG)


def test_a_resumed_run_writes_the_same_bytes(make_bench, killed):
    def run(bench):
        return bench.outcome(train_sft, parent=bench.base(), chats=bench.chats(), config=CONFIG)

    undisturbed = run(make_bench("a", save_every=5))
    broken = make_bench("b", save_every=5)
    killed(5)
    with pytest.raises(KeyboardInterrupt):
        run(broken)
    resumed = run(broken)
    assert resumed.record.resumed_from == "step 5"
    assert resumed.artifact.digest == undisturbed.artifact.digest
