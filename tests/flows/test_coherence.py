"""Contradictions inside a recipe. Oracle: what the stages themselves refuse, late, when they meet them; every recipe that is
shipped parses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.config.errors import RecipeError
from flows.config.files import load
from flows.running.readiness import asked_models, check_device, check_generation, check_precision, doubts
from flows.running.run import run
from infra.execution.plan import PlanRow
from infra.settings import EndpointSettings, Execution
from tasks.artifacts import Checkpoint
from tasks.data.post_training.pairs import PairsConfig

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_shipped_recipes_have_none(name: str) -> None:
    config = load(name)
    assert config.name == name
    # That small candidates are filled up with web text is said of the synthesis recipe, and meant (test_limits.py).
    assert not {label for label in doubts(config) if not label.startswith("mix:try-")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pretrain.model.vocab_size=128", r"pretrain\.model\.vocab_size=128 has no row .* use \d"),
        (
            "pretrain.sequence_length=512",
            r"pretrain\.sequence_length=512 exceeds pretrain\.model\.max_sequence_length=256",
        ),
        ("anneal.sequence_length=512", r"anneal\.sequence_length=512 exceeds"),
        ("microanneal.anneal.sequence_length=512", r"microanneal\.anneal\.sequence_length=512 exceeds"),
        ("preferences.max_new_tokens=256", r"preferences\.max_new_tokens=256 leaves no room"),
        ("rlvr.max_new_tokens=999", r"rlvr\.max_new_tokens=999 leaves no room"),
        (
            "execution.micro_instances={pretrain: 3}",
            r"execution\.micro_instances\.pretrain=3 does not divide .*; use 2",
        ),
        (
            "execution.micro_instances={anneal: 3}",
            r"micro_instances\.anneal=3 does not divide anneal\.batch_size=4; use 2",
        ),
        ("execution.pass_tokens={sfd: 3}", r"execution\.pass_tokens\.sfd: there is no stage 'sfd'; did you mean 'sft'"),
        (
            "pretrain_mix.sequence_length=128",
            r"pretrain_mix\.sequence_length=128 disagrees with pretrain\.sequence_length=64",
        ),
        ("anneal_mix.batch_size=8", r"anneal_mix\.batch_size=8 disagrees with anneal\.batch_size=4"),
        (
            "further_ingredients=[{name: own, seed: 1, mix: {sequence_length: 32}}]",
            r"further_ingredients\.own\.mix\.sequence_length=32 disagrees with anneal\.sequence_length=64",
        ),
        ("pretrain_mix.batch_tokens=2048", "it is the batch of the training that reads the mix, so leave it out"),
        (
            "candidates=[{name: mine, collect: {kind: python, content: docs, name: yours}}]",
            r"collect\.name='yours', but the documents of candidate 'mine' are called what it is called",
        ),
        ("pretrain.target_length=100", r"pretrain\.target_length=100 is not a multiple"),
        ("rlvr.episodes=1", "rlvr: episodes=1 is less than one rollout"),
        ("rlvr.mini_batches=9999", r"rlvr\.mini_batches=9,999 are more than"),
        (
            "rlvr={algorithm: ppo, prompts_per_rollout: 3, episodes: 6, mini_batches: 4, max_new_tokens: 8}",
            r"rlvr\.mini_batches=4 are more than the 3 answers of a rollout to 3 prompts",
        ),
        ("rlvr_prompts.ground_truth=optional", "rlvr_prompts may lack a ground truth"),
        ("preference_prompts.ground_truth=optional", "preference_prompts may lack a ground truth"),
        ("preference_prompts=null", "preferences are sampled, and preference_prompts is not given"),
        ("anneal_mix.winner=nothing", r"anneal_mix\.winner='nothing' is neither ranked-first nor a source"),
        ("pretrain_mix.sources=[{source: wab, ratio: 1}]", "pretrain_mix takes 'wab', which is not a source"),
        ("pretrain_mix.sources=[{source: winner, ratio: 1}]", "pretrain_mix takes 'winner'"),
        ("filter.mine={}", r"mine: \{rules: \[\]\} keeps everything"),
        ("candidates.0.name=winner", "called 'winner', which in a mix stands for"),
        ("candidates.0.name=ranked-first", "called 'ranked-first', which in a mix stands for"),
        (
            "collect.web.name=book",
            r"collect: .*web has name='book', but a source is called what its key is; leave name out",
        ),
        ("synthesize.maths.name=sums", r"synthesize: .*maths has name='sums'"),
        ("evaluation.suites=[{name: all, tasks: [[nothing]]}]", r"suite 'all' names \['nothing'\]"),
    ],
)
def test_a_contradiction_is_refused_when_the_recipe_is_read(change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load("smoke", [change])


def test_the_advice_on_rules_is_right() -> None:
    assert load("smoke", ["filter.web={rules: []}"]).filter["web"].rules == ()
    assert [rule.kind for rule in load("smoke", ["filter.web={}"]).filter["web"].rules] == ["repetition"]


def test_fewer_prompts_than_a_rollout_takes_bound_its_mini_batches() -> None:
    rlvr = "rlvr={algorithm: ppo, prompts_per_rollout: 224, episodes: 448, mini_batches: 4, max_new_tokens: 8}"
    with pytest.raises(RecipeError, match=r"mini_batches=4 are more than the 3 answers of a rollout to 3 prompts"):
        load("smoke", [rlvr, "rlvr_prompts.sources.0.count=3"])
    assert load("smoke", [rlvr, "rlvr_prompts.sources.0.count=4"]).rlvr.mini_batches == 4


def test_released_pairs_need_no_prompts_and_a_language_model_no_ground_truth() -> None:
    pairs = load("smoke", ["preferences={kind: pairs, rows: {paths: [x.jsonl]}}", "preference_prompts=null"])
    assert isinstance(pairs.preferences, PairsConfig)
    assert not asked_models(pairs)
    judged = load("smoke", ["preferences.judge={kind: language_model}"])
    assert judged.asked_prompts.ground_truth == "optional"
    assert load("smoke", []).asked_prompts.ground_truth == "required"


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        (
            ["pretrain.steps=3000"],
            "ends at step 30 of pretrain.steps=3,000: 99% of the run trains at a learning rate of 0.1",
        ),
        (["pretrain.steps=30"], ""),
        (["pretrain.steps=3000", "pretrain.schedule.kind=constant"], ""),
        (["pretrain.steps=8", "pretrain.schedule={unit: tokens, warmup: 1, length: 1024}"], "ends at step 4 of"),
    ],
)
def test_a_schedule_that_ends_long_before_the_steps_is_told(changes: list[str], doubt: str) -> None:
    told = doubts(load("smoke", changes))
    assert told.keys() == ({"pretrain"} if doubt else set())
    assert doubt in told.get("pretrain", "")


def test_a_given_checkpoint_has_a_model_of_its_own() -> None:
    contradiction = "pretrain.model.vocab_size=128"
    assert load("smoke", ["start.base=abc", contradiction]).pretrain.model.vocab_size == 128


def row(stage: str, action: str) -> PlanRow:
    return PlanRow(stage, stage, action, "", "0", (), {}, None)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("nonsense", "'nonsense' is not a device"),
        ("meta", "not one that this trains on"),
        ("cuda:9999", r"execution\.device='cuda:9999': .* and pretrain would run on it"),
    ],
)
def test_a_device_that_is_not_there_is_told_before_the_run(device: str, message: str, tmp_path: Path) -> None:
    rows, computing = [row("collect", "run"), row("pretrain", "resume")], {"pretrain"}
    with pytest.raises(ValueError, match=message):
        check_device(Execution(device=device), rows, computing)
    changes: list[Any] = [f"execution.device={device}", f"execution.store={tmp_path}"]
    with pytest.raises(ValueError, match=message):
        run(load("smoke", changes))
    assert not list(tmp_path.glob("collect/*")), "nothing was begun"


def test_a_device_is_asked_for_only_where_something_computes_here() -> None:
    away = Execution(device="cuda:9999", ray="cluster:10001")
    computing = {"pretrain", "preferences", "dpo"}
    check_device(away, [row("pretrain", "run"), row("preferences", "run")], computing)
    here = away.model_copy(update={"ray": "local"})
    check_device(here, [row("pretrain", "reused"), row("collect", "run")], computing)
    with pytest.raises(ValueError, match="preferences would run on it"):
        check_device(here, [row("preferences", "run")], computing)


def test_float8_on_a_device_without_it_is_told_before_the_run(tmp_path: Path) -> None:
    changes: list[Any] = ["pretrain.optim.precision=float8", f"execution.store={tmp_path}"]
    with pytest.raises(ValueError, match=r"precision=float8 on execution\.device=cpu: .* capability 8\.9"):
        run(load("smoke", changes))
    assert not list(tmp_path.glob("collect/*")), "nothing was begun"
    check_precision(load("smoke", [*changes, "execution.emulate_float8=true"]), [row("pretrain", "run")])
    check_precision(load("smoke", changes), [row("pretrain", "reused"), row("anneal", "run")])
    with pytest.raises(RecipeError, match=r"sft\.precision"):
        load("smoke", ["sft.precision=float8"])


def test_a_checkpoint_to_be_asked_at_an_endpoint_needs_one_before_the_run(tmp_path: Path) -> None:
    """What serves a checkpoint goes by its digest (tasks/generation.py), which is known once it is made."""
    digest, other = "ab" * 32, "cd" * 32
    made = Checkpoint.model_construct(stage="sft", id="5f", address="sft/5f", digest=digest)
    sft, asked = row("sft", "run"), [replace(row("preferences", "run"), inputs=("sft", "prompts"))]
    ready = replace(sft, action="reused", artifact=made)

    def check(first: PlanRow, *names: str, **generation: Any) -> None:
        endpoints = {name: EndpointSettings(url="http://nowhere/v1") for name in names}
        check_generation([first, *asked], Execution(endpoints=endpoints, generation=generation))

    for first, name in ((ready, digest), (ready, "default"), (sft, other), (sft, "default")):
        check(first, name, preferences="endpoint")
    check(sft)
    check(sft, evaluate="endpoint")
    with pytest.raises(ValueError, match=rf"olmo2 export 5f DIR\), serve .* \{{{digest}: "):
        check(ready, other, "judge", preferences="endpoint")
    with pytest.raises(ValueError, match=r"make it first \(--until sft\), export it \(olmo2 export ID DIR\)"):
        check(sft, "judge", default="endpoint")
    with pytest.raises(ValueError, match=r"no endpoint is known .* generation\.preferences local"):
        run(load("smoke", ["execution.generation.preferences=endpoint", f"execution.store={tmp_path}"]))
    assert not list(tmp_path.glob("collect/*")), "nothing was begun"


def test_more_generated_problems_than_there_are_are_told_before_the_run() -> None:
    message = r"evaluation\.benchmarks\.arithmetic\.items=4,000: arithmetic gave 2,247 of 4,000 distinct problems"
    with pytest.raises(RecipeError, match=message):
        load("laptop", ["evaluation.benchmarks.0.items=4000"])
