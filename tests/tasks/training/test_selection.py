"""Selection among save points. Oracles: a training that ends at the chosen step, an undisturbed run, scores by hand."""

import json

import pytest

from model.training.configs import OptimConfig
from tasks.evaluation.benchmarks.synthetic import SyntheticBenchmark
from tasks.evaluation.scoring.suites import SuiteConfig
from tasks.synthetic.arithmetic import ArithmeticConfig
from tasks.training.anneal import AnnealConfig, anneal_checkpoint
from tasks.training.dpo import DPOConfig, train_dpo
from tasks.training.fitting.asked_tasks import AnswersInLoop
from tasks.training.fitting.selection import SelectConfig, best_step, scored_steps
from tasks.training.ppo import PPOConfig, train_ppo
from tasks.training.pretrain import train_base
from tasks.training.reward import RewardConfig, train_reward
from tasks.training.rlvr import train_rlvr
from tasks.training.sft import SFTConfig, train_sft
from tests.tasks.training.test_in_loop import CONFIG as PRETRAIN
from tests.tasks.training.test_in_loop import made_mix
from tests.tasks.training.test_rlvr import CONFIG as RLVR

PROBLEMS = (ArithmeticConfig(max_operand=9),)
WRITTEN = SyntheticBenchmark(name="written", items=20, shots=0, max_new_tokens=4, problems=PROBLEMS)
CLOZE = SyntheticBenchmark(name="cloze", format="cloze", items=20, shots=0, problems=PROBLEMS)
SUITE = SuiteConfig(name="both", tasks=(("written",), ("cloze",)))
SELECT = SelectConfig(by="cloze", points=4, items=8).filled((WRITTEN, CLOZE), (SUITE,))
TOLD = AnswersInLoop(every=2, tasks=("written",), items=4, temperature=1.0).filled((WRITTEN,))


def chosen_of(bench, made) -> dict:
    return json.loads(bench.read(made, "selection.json"))


def rows_of(bench, made) -> dict[int, dict]:
    return {row["step"]: row for row in map(json.loads, bench.read(made, "metrics.jsonl").splitlines())}


def test_candidates_are_spread_evenly_and_end_with_the_training():
    assert SELECT.steps_of(100, 1) == (25, 50, 75, 100)
    assert SELECT.steps_of(10, 4) == (4, 8, 10), "whole rollouts, but for the end"
    assert SELECT.steps_of(2, 1) == (1, 2)


def test_the_best_of_equals_is_the_earliest_and_what_is_not_finite_never_wins():
    scored = {step: {"score": score, "stderr": 0.1} for step, score in ((2, None), (4, 0.5), (6, 0.5), (8, 0.2))}
    assert best_step(scored, by="dev", lower_is_better=False) == 4
    assert best_step(scored, by="dev", lower_is_better=True) == 8
    with pytest.raises(ValueError, match="no save point has a finite score of 'dev'"):
        best_step({2: scored[2]}, by="dev", lower_is_better=False)


def test_a_suite_brings_its_benchmarks_and_unknown_names_are_refused():
    filled = SelectConfig(by="both").filled((WRITTEN, CLOZE), (SUITE,))
    assert {one.name for one in filled.benchmarks} == {"written", "cloze"} and filled.suites == (SUITE,)
    with pytest.raises(ValueError, match=r"select.by names dev; the benchmarks under evaluation are written"):
        SelectConfig(by="dev").filled((WRITTEN,), ())


def test_the_chosen_state_is_that_of_a_training_that_ends_there(bench):
    """A constant learning rate, so a shorter training passes through the same states."""
    config = RLVR.model_copy(update={"select": SELECT, "in_loop": TOLD})
    policy, prompts = bench.base(), bench.prompts(6)
    made = bench.run(train_rlvr, policy=policy, prompts=prompts, config=config)
    found = chosen_of(bench, made)
    assert [row["step"] for row in found["save_points"]] == [2, 4, 6, 8]
    scores = {row["step"]: row["score"] for row in found["save_points"]}
    assert found["chosen"] == min(scores, key=lambda step: (-scores[step], step)) == made.steps
    rows = rows_of(bench, made)
    assert len(rows) == 8, "the whole training is told"
    assert {step: row["select/cloze"] for step, row in rows.items() if "select/cloze" in row} == scores
    assert [step for step, row in rows.items() if "task/written/sampled" in row] == [2, 4, 6, 8]
    shorter = RLVR.model_copy(update={"episodes": 24 * made.steps // 2})
    other = bench.run(train_rlvr, policy=policy, prompts=prompts, config=shorter)
    assert bench.read(made, "model.safetensors") == bench.read(other, "model.safetensors")
    assert (made.tokens, made.loss) == (other.tokens, pytest.approx(other.loss))


def test_a_resumed_training_chooses_alike(make_bench, killed):
    config = RLVR.model_copy(update={"select": SELECT})

    def run(bench):
        return bench.run(train_rlvr, policy=bench.base(), prompts=bench.prompts(6), config=config)

    whole = run(make_bench("whole", save_every=100))
    broken = make_bench("broken", save_every=100)
    killed(4)
    with pytest.raises(KeyboardInterrupt):
        run(broken)
    assert run(broken).digest == whole.digest


@pytest.mark.parametrize("by", ["cloze", "both"])
def test_every_training_stage_can_choose(bench, by):
    select = SelectConfig(by=by, points=2, items=4).filled((WRITTEN, CLOZE), (SUITE,))
    base, mix = bench.base(), made_mix(bench)
    shape = {"learning_rate": 1e-3, "batch_size": 4, "precision": "fp32", "select": select}
    anneal = AnnealConfig(
        learning_rate=1e-3, sequence_length=16, batch_size=4, steps=4, log_every=2, norms_every=0, moments="fresh",
        optim=OptimConfig(precision="fp32"), select=select,
    )  # fmt: skip
    judge = bench.run(train_reward, parent=base, pairs=bench.preferences(), config=RewardConfig(precision="fp32"))
    ppo = PPOConfig(
        episodes=16, prompts_per_rollout=4, epochs=1, max_new_tokens=8, precision="fp32", select=select, in_loop=TOLD
    )
    made = [
        bench.run(train_base, mix=mix, config=PRETRAIN.model_copy(update={"select": select})),
        bench.run(anneal_checkpoint, parent=base, mix=mix, config=anneal),
        bench.run(train_sft, parent=base, chats=bench.chats(), config=SFTConfig(in_loop=TOLD, **shape)),
        bench.run(train_dpo, policy=base, pairs=bench.preferences(), config=DPOConfig(in_loop=TOLD, **shape)),
        bench.run(train_ppo, policy=base, judge=judge, prompts=bench.prompts(4), config=ppo),
    ]
    for one in made:
        found = chosen_of(bench, one)
        assert (found["by"], found["chosen"]) == (by, one.steps)
        assert len(found["save_points"]) == 2


def test_benchmarks_that_no_recipe_filled_in_are_missed(bench):
    config = RLVR.model_copy(update={"select": SelectConfig(by="cloze")})
    with pytest.raises(ValueError, match=r"select.by='cloze' is given without its benchmarks"):
        bench.run(train_rlvr, policy=bench.base(), prompts=bench.prompts(6), config=config)


def test_a_chosen_save_point_that_is_gone_is_told(bench, monkeypatch):
    config = RLVR.model_copy(update={"select": SELECT})
    line = b'{"step": 2, "select/cloze": 1.0, "select/cloze/stderr": 0.1}\n'
    found = scored_steps(line, "select/cloze")
    assert found == {2: {"score": 1.0, "stderr": 0.1}}
    monkeypatch.setattr("tasks.training.fitting.fit.best_step", lambda *given, **how: 3)
    with pytest.raises(Exception, match=r"save point 3 of train_rlvr/.* is damaged"):
        bench.run(train_rlvr, policy=bench.base(), prompts=bench.prompts(6), config=config)
