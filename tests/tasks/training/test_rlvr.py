"""GRPO as a stage: arithmetic of a rollout, learning on a rewarded habit, exact resume at rollout boundaries."""

import json

import numpy as np
import pytest
import torch

from model.decoding.generate import Completion
from model.network.transformer import Transformer
from tasks.training.answers.verified_answers import EncodedPrompt, VerifiedAnswer, decoding_rows
from tasks.training.rlvr import GRPORollouts, RLVRConfig, answer_row, rollouts_of, score_groups, train_rlvr
from tasks.verifiers import Verdict
from tests.tasks.training.conftest import TINY, TOKENIZER, user

CONFIG = RLVRConfig(
    learning_rate=1e-3,
    episodes=4 * 24,
    prompts_per_rollout=6,
    samples=4,
    max_prompt_tokens=64,
    max_new_tokens=8,
    precision="fp32",
)


def answer(ids: list[int], correct: bool, finish: str) -> VerifiedAnswer:
    made = Completion(ids=ids, text="", logprobs=[0.0] * len(ids), finish=finish)
    return VerifiedAnswer(made, Verdict(correct, "", ""))


def run(bench, **changes):
    config = CONFIG.model_copy(update=changes)
    return bench.outcome(train_rlvr, policy=bench.base(), prompts=bench.prompts(6), config=config)


def test_scores_follow_the_verdict_and_the_end():
    groups = [[answer([1], True, "stop"), answer([1], True, "length"), answer([1], False, "stop")]]
    assert score_groups(groups, CONFIG)[0].tolist() == [[10.0, 0.0, 0.0]]
    harsh = CONFIG.model_copy(update={"unfinished_score": -10.0})
    assert score_groups(groups, harsh)[0].tolist() == [[10.0, -10.0, 0.0]]
    mild = CONFIG.model_copy(update={"unfinished_score": None})
    assert score_groups(groups, mild)[0].tolist() == [[10.0, 10.0, 0.0]]


def test_only_the_answer_and_its_end_are_trained():
    prompt = EncodedPrompt({"messages": [user("1+1")]}, [5, 6, 7])
    eos = TOKENIZER.eos_id
    finished = answer_row(prompt, answer([8, 9], True, "stop"), eos)
    assert finished.ids.tolist() == [5, 6, 7, 8, 9, eos]
    assert finished.labels.tolist() == [-100, -100, 8, 9, eos, -100]
    assert answer_row(prompt, answer([8, eos], True, "stop"), eos).ids.tolist() == [5, 6, 7, 8, eos]
    assert answer_row(prompt, answer([8, 9], True, "length"), eos).ids.tolist() == [5, 6, 7, 8, 9]


def test_episodes_are_whole_rollouts():
    assert rollouts_of(CONFIG) == 4
    with pytest.raises(ValueError, match="less than one rollout"):
        rollouts_of(CONFIG.model_copy(update={"episodes": 23}))
    assert rollouts_of(RLVRConfig()) == 2604


def test_metrics_and_steps(bench):
    made = run(bench).artifact
    rows = [json.loads(line) for line in bench.read(made, "metrics.jsonl").splitlines()]
    assert made.steps == len(rows) == 8
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert rows[-1]["kl"] >= 0
    assert {"score", "correct", "finished", "answer_tokens", "entropy", "zero_std_groups"} <= rows[0].keys()
    assert 0 < rows[0]["entropy"] < np.log(TINY.vocab_size) + 1
    assert {row["lr"] for row in rows} == {1e-3}
    assert rows[0]["score"] == rows[1]["score"]


@pytest.mark.learning
def test_a_rewarded_habit_grows(bench, monkeypatch):
    """A verifier that accepts answers beginning with a printable ASCII character, a quarter of the tokens.

    Over four seeds, with AVX-512 and with AVX2, the share at the end is 0.986 to 1.
    """
    monkeypatch.setattr(
        "tasks.training.answers.verified_answers.verify",
        lambda dataset, text, truth, rules: Verdict("!" <= text[:1] <= "~", text, ""),
    )
    made = run(
        bench,
        episodes=15 * 24,
        max_new_tokens=1,
        unfinished_score=None,
        learning_rate=2e-2,
        kl_coefficient=0.0,
    ).artifact
    rows = [json.loads(line) for line in bench.read(made, "metrics.jsonl").splitlines()]
    assert np.mean([row["correct"] for row in rows[:4]]) < 0.7
    assert np.mean([row["correct"] for row in rows[-6:]]) > 0.9


def members_of(keep: list[bool]) -> list[int]:
    actor = GRPORollouts.__new__(GRPORollouts)
    actor.config = CONFIG.model_copy(update={"mini_batches": 1})
    return sorted(next(actor.members(0, torch.tensor(keep))))


def test_only_kept_answers_are_trained_unless_none_is():
    assert members_of([True, False, True, False]) == [0, 2]
    assert members_of([False, False]) == [0, 1]


def test_the_mean_over_answers_weighs_each_alike():
    rows = [answer_row(EncodedPrompt({}, [5]), answer([8] * n, True, "stop"), TOKENIZER.eos_id) for n in (1, 6)]
    weights = {}
    for mean in ("tokens", "answers"):
        actor = GRPORollouts.__new__(GRPORollouts)
        actor.config, actor.tokenizer = CONFIG.model_copy(update={"loss_mean": mean}), TOKENIZER
        actor.pass_tokens = 256
        zeros = [np.zeros(len(row.ids), dtype=np.float32) for row in rows]
        (batch,) = actor.update_batches([0, 1], rows, np.ones(2, dtype=np.float32), zeros, zeros)
        weights[mean] = sorted(batch["weights"].sum(axis=1).tolist())
    assert weights["tokens"] == pytest.approx([2 / 9, 7 / 9])
    assert weights["answers"] == pytest.approx([0.5, 0.5])
    with pytest.raises(ValueError, match="leave micro_batch at 0"):
        RLVRConfig(loss_mean="answers", micro_batch=4)


def test_how_many_rows_decode_together_depends_on_memory_alone(bench):
    model = Transformer(TINY, seed=0)
    prompts = [EncodedPrompt({}, [5] * 10)]
    row_bytes = 2 * 2 * 2 * 16 * 18 * 4  # keys and values, layers, heads, head_dim, tokens, fp32
    assert decoding_rows(model, prompts, 8, "fp32", memory=10**12) == 1024
    assert decoding_rows(model, prompts, 8, "fp32", memory=8 * 30 * row_bytes) == 24
    assert decoding_rows(model, prompts, 8, "bf16", memory=8 * 30 * row_bytes) == 48
    assert decoding_rows(model, prompts, 8, "fp32", memory=1) == 1


def test_rows_that_decode_together_change_no_token(make_bench, monkeypatch):
    many = run(make_bench("a")).artifact
    monkeypatch.setattr("tasks.training.answers.rollouts.decoding_rows", lambda *arguments: 5)
    bench = make_bench("b")
    few = run(bench).artifact
    first, second = (
        [json.loads(line) for line in b.read(made, "metrics.jsonl").splitlines()]
        for b, made in ((make_bench("a"), many), (bench, few))
    )
    for name in ("score", "answer_tokens", "longest_answer_tokens"):
        assert [row[name] for row in first] == [row[name] for row in second]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epochs": 2, "zero_std_groups": "drop", "micro_batch": 2},
        {"unfinished": "masked", "loss_mean": "answers", "clip_high": 0.28, "kl_estimator": "k1"},
    ],
)
def test_a_resumed_run_writes_the_same_bytes(make_bench, killed, changes):
    undisturbed = run(make_bench("a", save_every=3), **changes)
    broken = make_bench("b", save_every=3)
    killed(4)
    with pytest.raises(KeyboardInterrupt):
        run(broken, **changes)
    resumed = run(broken, **changes)
    assert resumed.record.resumed_from == "step 4"
    assert resumed.artifact.digest == undisturbed.artifact.digest


def test_the_initial_policy_is_not_touched(bench):
    base = bench.base()
    before = bench.read(base, "model.safetensors")
    torch.manual_seed(0)
    bench.run(train_rlvr, policy=base, prompts=bench.prompts(6), config=CONFIG)
    assert bench.read(base, "model.safetensors") == before
