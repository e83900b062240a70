"""The published recipes. Oracles: golden/{schedules,model_sizes,dolmino_mix,posttraining_hparams}.json, RECIPE C.9 and D-G."""

import json
import math
import socket
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flows.config.files import load
from flows.config.recipe_config import RecipeConfig
from flows.config.sizes.training_runs import training_runs
from flows.running.run import plan
from infra.execution.plan import PlanRow
from model.network.transformer import Transformer
from model.training.schedule import ScheduleConfig, learning_rate
from tasks.data.mix import MixConfig
from tasks.data.post_training.chats import ChatRows
from tasks.data.post_training.prompts import PromptRows
from tasks.data.sources.hub import HubSource
from tasks.evaluation.benchmarks.roles import role_of
from tasks.training.anneal import AnnealConfig, anneal_schedule
from tasks.training.fitting.fit import adamw
from tasks.training.ppo import PPOConfig
from tasks.training.rlvr import RLVRConfig

SIZES = ("1b", "7b", "13b", "32b")
STAGE_1 = {
    "1b": "stage1_1B_lr4e-4_batch512x4096",
    "7b": "stage1_7B_lr3e-4_batch1024x4096",
    "13b": "stage1_13B_lr9e-4_batch2048x4096",
    "32b": "stage1_32B_lr6e-4_steps",
}
STAGE_2 = {
    "1b": "1B_50e9T_lr7.4487e-5_max=23842",
    "7b": "7B_50e9T_lr6.1499e-5_steps(units steps, max=ceil(50e9/4194304)=11921, stop_at 11931)",
    "13b": "13B_100e9T_lr9e-5_max=11921",
}
MIX_SOURCES = {
    "filtered_web": "Filtered DCLM",
    "flan": "Decontaminated FLAN",
    "stackexchange": "StackExchange Q&A",
    "papers": "peS2o",
    "wiki": "Wikipedia/Wikibooks",
    "math": "Dolmino Math",
}
MIX_COLUMNS = {"1b": "50B", "7b": "50B", "13b": "100B", "32b": "100B"}


def golden(name: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parents[1] / f"golden/{name}.json").read_text())


SCHEDULES, TUNING = golden("schedules"), golden("posttraining_hparams")


def recipe(size: str) -> RecipeConfig:
    return load(f"olmo2-{size}")


def planned(size: str, store: Path) -> dict[str, PlanRow]:
    """The plan's rows by label."""
    config = recipe(size)
    config = config.model_copy(update={"execution": config.execution.model_copy(update={"store": str(store)})})
    return {row.label: row for row in plan(config)}


def lr_name(size: str) -> str:
    return size.upper()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a published recipe must load without a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("no_network")
def test_the_plan_has_the_stages_that_are_costed(size: str, tmp_path: Path) -> None:
    trained = {"pretrain", "anneal", "sft", "dpo", "reward", "rlvr", "ppo"}
    rows = planned(size, tmp_path)
    expected = sorted(run.label for run in training_runs(recipe(size)))
    assert sorted(label for label, row in rows.items() if row.stage in trained) == expected


@pytest.mark.parametrize("size", SIZES)
def test_shapes_have_the_published_number_of_parameters(size: str) -> None:
    name = "1B_released(olmo2_1B_v2)" if size == "1b" else lr_name(size)
    expected = golden("model_sizes")["sizes"][name]
    model = recipe(size).pretrain.model
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in Transformer(model, seed=None).parameters())
    assert counted == model.parameters == expected["total_params"]
    assert model.flops_per_token(4096) == expected["train_flops_per_token_seq4096"]
    assert {
        field: getattr(model, field) for field in ("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden")
    } == {field: expected[field] for field in ("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden")}


@pytest.mark.parametrize("size", SIZES)
def test_stage_1_learning_rate_at_every_golden_step(size: str) -> None:
    stage = recipe(size).pretrain
    batch = stage.batch_size * stage.sequence_length
    assert batch == SCHEDULES["tokens_per_step"][lr_name(size)]
    for row in SCHEDULES[STAGE_1[size]]:
        assert row["tokens"] == row["step"] * batch
        got = learning_rate(stage.schedule, step=row["step"], tokens=row["tokens"], steps=stage.steps or 0)
        assert got == pytest.approx(row["lr"], rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("row", SCHEDULES["consistency_checks"], ids=lambda row: row["size"])
def test_stage_1_stops_where_published_and_stage_2_starts_at_its_learning_rate(row: dict[str, Any]) -> None:
    config = recipe(row["size"].lower())
    assert config.pretrain.steps == row["final_step"]
    published = row["config_stage2_lr"]
    expected = published if isinstance(published, float) else row["cosine_lr_at_final_step"]
    assert config.anneal.learning_rate == config.microanneal.anneal.learning_rate == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", STAGE_2)
def test_stage_2_learning_rate_at_every_golden_step(size: str) -> None:
    stage = recipe(size).anneal
    assert stage.steps is not None
    schedule: ScheduleConfig = anneal_schedule(stage, stage.steps)
    for row in SCHEDULES["stage2_linear_to_zero"][STAGE_2[size]]:
        got = learning_rate(schedule, step=row["step"], tokens=0, steps=stage.steps)
        assert got == pytest.approx(row["lr"], rel=1e-9, abs=1e-18)


@given(st.integers(1, 5000), st.floats(0, 0.9))
def test_an_anneal_ends_at_a_share_of_its_start(steps: int, share: float) -> None:
    schedule = anneal_schedule(AnnealConfig(learning_rate=1.0, final_ratio=share), steps)
    first, last = (learning_rate(schedule, step=step, tokens=0, steps=steps) for step in (1, steps))
    assert last == pytest.approx(share, abs=1 / steps)
    # The first update counts itself.
    assert first == pytest.approx(1 - (1 - share) / steps, abs=1 / steps)


def test_stage_2_of_32b_has_the_published_steps() -> None:
    stage = recipe("32b").anneal
    assert (stage.steps, stage.batch_size) == (11_921, 2048)  # RECIPE E


@pytest.mark.parametrize("size", ["13b", "32b"])
def test_the_ingredient_of_300b_tokens(size: str) -> None:
    """RECIPE C.9 and E: 35,763 steps of seed 2662; all else as in the other anneals. Its learning rate is golden too (13B)."""
    config = recipe(size)
    (item,) = config.further_ingredients
    own, others = item.anneal(config.anneal), config.anneal
    assert (own.seed, own.steps) == (2662, 35_763 if size == "32b" else math.ceil(300e9 / (2048 * 4096)))
    assert own.model_copy(update={"seed": others.seed, "steps": others.steps}) == others
    if size == "13b":
        schedule = anneal_schedule(own, own.steps or 0)
        (name,) = (name for name in SCHEDULES["stage2_linear_to_zero"] if name.startswith("13B_300e9T"))
        for row in SCHEDULES["stage2_linear_to_zero"][name]:
            got = learning_rate(schedule, step=row["step"], tokens=0, steps=own.steps or 0)
            assert got == pytest.approx(row["lr"], rel=1e-9, abs=1e-18)


def test_ingredients_of_each_soup() -> None:
    """RECIPE E: 1B none (the anneal of seed 42 is released), 7B 3, 13B 3 and 1, 32B 2 and 1 (section 0, row 8)."""
    counts = {
        size: (len(config.anneal_seeds), len(config.further_ingredients))
        for size, config in zip(SIZES, map(recipe, SIZES), strict=True)
    }
    assert counts == {"1b": (1, 0), "7b": (3, 0), "13b": (3, 1), "32b": (2, 1)}


@pytest.mark.usefixtures("no_network")
def test_soups_and_stages_of_reinforcement_stand_in_the_plan(tmp_path: Path) -> None:
    small = planned("1b", tmp_path)
    assert "soup" not in small
    assert small["sft"].inputs == ("anneal:42", "decontaminate_chats")
    assert "ppo" not in small
    assert small["rlvr:math"].inputs == ("rlvr", "decontaminate_prompts:rlvr-math")
    assert small["evaluate:instruct"].inputs == ("rlvr:math",)
    assert small["evaluate:rlvr"].inputs == ("rlvr",)
    large = planned("13b", tmp_path)
    assert large["soup"].inputs == ("anneal:1110", "anneal:2662", "anneal:6209", "anneal:300b")
    assert {"pretrain", "mix:anneal-300b"} == set(large["anneal:300b"].inputs)
    assert large["sft"].inputs == ("soup", "decontaminate_chats")
    assert large["ppo"].inputs == ("dpo", "reward", "decontaminate_prompts:rlvr")
    assert large["ppo:math"].inputs == ("ppo:gsm8k", "reward", "decontaminate_prompts:rlvr-math")


@pytest.mark.parametrize("size", SIZES)
def test_mid_training_mix_is_table_13(size: str) -> None:
    table, config = golden("dolmino_mix")["table13"], recipe(size)
    mixes: dict[str, MixConfig] = {MIX_COLUMNS[size]: config.anneal_mix}
    mixes |= {item.name.upper(): item.mix for item in config.further_ingredients}
    for name, mix in mixes.items():
        column = table["columns"].index(f"{name}_source_pct")
        published = {row[0]: row[column] / 100 for row in table["rows"]}
        assert mix.part == "whole_files"
        passes = {MIX_SOURCES[item.source]: item.passes for item in mix.sources}
        assert passes == pytest.approx(published, rel=1e-12)


def test_the_50b_mix_has_the_printed_shares() -> None:
    """Source % of the sources' printed sizes gives the printed Mix % up to the rounding of the sizes."""
    table = golden("dolmino_mix")["table13"]
    rows = {row[0]: row for row in table["rows"]}
    column = table["columns"].index("50B_mix_pct")
    tokens = {item.source: item.passes * rows[MIX_SOURCES[item.source]][1] for item in recipe("7b").anneal_mix.sources}
    for name, amount in tokens.items():
        assert 100 * amount / sum(tokens.values()) == pytest.approx(rows[MIX_SOURCES[name]][column], abs=0.1)


def test_every_mix_names_sources_that_the_recipe_has() -> None:
    for size in SIZES:
        config = recipe(size)
        known = {*config.collect, *(candidate.name for candidate in config.candidates)}
        assert {item.source for item in config.anneal_mix.sources} <= known
        assert config.pretrain_mix.sources == ()  # one pass over everything (RECIPE C.2)


def test_sources_are_the_released_mixes() -> None:
    config = recipe("7b")
    sources = [*config.collect.values(), *(candidate.collect for candidate in config.candidates)]
    found = {(item.path, item.subset) for item in sources if isinstance(item, HubSource)}
    assert len(found) == len(sources)
    stage_1 = ("dclm", "starcoder", "pes2o", "arxiv", "open-web-math", "algebraic-stack", "wiki")
    assert {subset for path, subset in found if path == "allenai/olmo-mix-1124"} == set(stage_1)
    assert next(iter(config.collect)) == "filtered_web"  # deduplication keeps the first of two equal documents


@pytest.mark.parametrize("size", SIZES)
def test_trainer_of_each_size(size: str) -> None:
    """RECIPE D and section 0, rows 1, 14 and 15: the 32B came from another trainer."""
    config = recipe(size)
    for stage in (config.pretrain, config.anneal, config.microanneal.anneal):
        later = size == "32b"
        assert stage.optim.kind == ("skip_step_adamw" if later else "adamw")
        assert stage.mask_repetitions is not later
        assert stage.loss.z_weight == (1e-5 if later else 1e-4)
        assert stage.loss.normalisation == ("labels" if later else "positions")
        optim = stage.optim
        assert (optim.beta1, optim.beta2, optim.eps) == (0.9, 0.95, 1e-8)
        assert (optim.weight_decay, optim.clip_norm, optim.decay) == (0.1, 1.0, "all_but_embedding")


def test_seeds() -> None:
    """RECIPE C.9 and section 0, row 8."""
    assert [recipe(size).pretrain.init_seed for size in SIZES] == [6198, 6198, 6198, 12536]  # RECIPE A.4
    assert [recipe(size).pretrain.data_seed for size in SIZES] == [6198, 6198, 6198, 34521]
    assert [recipe(size).pretrain.order for size in SIZES] == ["published"] * 3 + ["published_core"]
    assert [recipe(size).anneal.order for size in SIZES] == ["published"] * 3 + ["published_core"]
    assert [recipe(size).pretrain.target_length for size in SIZES] == [0, 0, 0, 8192]
    assert recipe("1b").anneal_seeds == (42,)
    assert set(recipe("7b").anneal_seeds) == {42, 42069, 666}
    assert recipe("13b").anneal_seeds == (1110, 2662, 6209)
    assert recipe("32b").anneal_seeds == (1110, 2662)
    assert all(recipe(size).microanneal.anneal.seed == 7201 for size in SIZES)


def test_cadences() -> None:
    """RECIPE D (permanent and ephemeral checkpoints) and J (garbage collection)."""
    execution = {size: recipe(size).execution for size in SIZES}
    assert [item.save_every for item in execution.values()] == [1000, 250, 250, 200]
    assert [item.keep_every for item in execution.values()] == [1000] * 4
    assert [item.gc_every for item in execution.values()] == [10, 1, 1, 1000]


@pytest.mark.parametrize("size", SIZES)
def test_finetuning_is_golden(size: str) -> None:
    sft, published = recipe(size).sft, TUNING["sft"]
    key = "7B_table17_and_archived_lineage" if size == "7b" else lr_name(size)
    assert sft.learning_rate == published["lr"][key]
    assert (sft.epochs, sft.batch_size, sft.max_tokens) == (
        published["epochs"],
        published["batch"],
        published["max_seq"],
    )
    assert sft.warmup_ratio == published["warmup_ratio_code"]
    assert adamw(sft.clip_norm, sft.precision).weight_decay == published["weight_decay"]
    assert sft.loss == ("sum" if size in ("7b", "13b") else "mean")
    (source,) = recipe(size).chats.sources
    assert isinstance(source, ChatRows)
    suffix = "" if size in ("7b", "13b") else "-0225"
    assert source.rows.dataset == f"allenai/tulu-3-sft-olmo-2-mixture{suffix}"


@pytest.mark.parametrize("size", SIZES)
def test_preference_tuning_and_reward_model_are_golden(size: str) -> None:
    dpo, published = recipe(size).dpo, TUNING["dpo"]
    assert dpo.learning_rate == published["lr"][lr_name(size)]
    assert (dpo.beta, dpo.epochs, dpo.batch_size, dpo.max_tokens, dpo.warmup_ratio) == tuple(
        published[key] for key in ("beta", "epochs", "batch", "max_seq", "warmup_ratio")
    )
    reward, published = recipe(size).reward, TUNING["rm"]
    assert (
        reward.learning_rate,
        reward.batch_size,
        reward.max_tokens,
        reward.epochs,
        reward.eps,
        reward.clip_norm,
    ) == tuple(published[key] for key in ("lr", "batch", "max_len", "epochs", "adam_eps", "grad_clip"))


def test_reinforcement_of_1b_and_32b_is_golden() -> None:
    small, published = recipe("1b").rlvr, TUNING["grpo"]["1B"]
    assert isinstance(small, RLVRConfig)
    assert (small.learning_rate, small.kl_coefficient, small.samples, small.prompts_per_rollout) == tuple(
        published[key] for key in ("lr", "beta", "samples", "prompts_per_step")
    )
    assert (small.mini_batches, small.epochs, small.episodes, small.kl_estimator, small.unfinished_score) == tuple(
        published[key] for key in ("minibatches", "epochs", "episodes", "kl", "no_eos_score")
    )
    # Of the stage itself, whose test sees it: tests/tasks/training/test_rlvr.py.
    assert published["schedule"] == "constant"
    large, published = recipe("32b").rlvr, TUNING["grpo"]["32B_paper"]
    assert isinstance(large, RLVRConfig)
    assert (large.learning_rate, large.kl_coefficient, large.samples) == tuple(
        published[key] for key in ("lr", "beta", "samples")
    )


def ppo_stages(size: str) -> list[PPOConfig]:
    config = recipe(size)
    stages = [config.rlvr, *(item.rlvr for item in config.further_rlvr)]
    assert all(isinstance(stage, PPOConfig) for stage in stages)
    return cast(list[PPOConfig], stages)


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_ppo_of_7b_and_13b_is_golden(size: str) -> None:
    """Table 18; the 13B's three stages differ in β alone (and in what they are asked)."""
    published, name = TUNING["ppo"], lr_name(size)
    betas = published["beta_table18"][name]
    stages = ppo_stages(size)
    # Of the stage itself, whose tests see them: tests/tasks/training/test_ppo.py, tests/model/test_ppo.py.
    assert (published["schedule"], published["warmup"], published["kl_estimator"]) == ("linear", 0.0, "k1")
    assert [stage.kl_coefficient for stage in stages] == (betas if isinstance(betas, list) else [betas])
    for stage in stages:
        by_size = (stage.learning_rate, stage.prompts_per_rollout, stage.episodes)
        assert by_size == tuple(published[key][name] for key in ("lr", "batch", "episodes"))
        fields = {
            "gamma": stage.gamma, "lambda": stage.gae_lambda, "minibatches": stage.mini_batches, "epochs_K": stage.epochs,
            "clip": stage.clip, "value_clip": stage.value_clip, "value_coef": stage.value_coefficient,
            "temperature": stage.temperature, "verified_reward": stage.correct_score,
            "no_eos_score": stage.unfinished_score, "max_response": stage.max_new_tokens,
            "max_prompt": stage.max_prompt_tokens,
        }  # fmt: skip
        assert fields == {key: published[key] for key in fields}
        # Whitened by GPU (RECIPE H.2 step 5), of which each rolls out as many answers.
        assert stage.whiten_batch == golden("rl_arithmetic")["ppo_batch"][name]["local_rollout_per_gpu"]


def test_the_13b_is_reinforced_on_the_mix_then_gsm8k_then_math() -> None:
    config = recipe("13b")
    asked = [config.rlvr_prompts, *(item.prompts for item in config.further_rlvr)]
    datasets = [source.rows.dataset for item in asked for source in item.sources if isinstance(source, PromptRows)]
    assert datasets == ["allenai/RLVR-GSM-MATH-IF-Mixed-Constraints", "allenai/RLVR-GSM", "allenai/RLVR-MATH"]


def test_the_1b_is_reinforced_twice() -> None:
    """The golden stages of the 1B: the mix, then MATH alone, with the same values."""
    config = recipe("1b")
    assert TUNING["grpo"]["1B"]["stages"] == ["GSM8K+MATH+IF", "MATH"]
    (second,) = config.further_rlvr
    assert second.rlvr == config.rlvr
    datasets = [
        source.rows.dataset
        for stage in (config.rlvr_prompts, second.prompts)
        for source in stage.sources
        if isinstance(source, PromptRows)
    ]
    assert datasets == ["allenai/RLVR-GSM-MATH-IF-Mixed-Constraints", "allenai/RLVR-MATH"]


def test_a_size_by_name_replaces_the_model() -> None:
    config = load("olmo2-1b", ["pretrain.model=7B", "pretrain.optim.variant=olmo-0424"])
    assert config.pretrain.model == recipe("7b").pretrain.model
    assert (config.pretrain.optim.decay, config.pretrain.optim.eps) == ("all", 1e-5)
    changed = load("olmo2-1b", ["pretrain.model.n_layers=18"]).pretrain.model
    assert changed.n_layers == 18
    assert changed.d_model == 2048


def test_another_algorithm_replaces_the_values_of_the_one_below(tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("extends: olmo2-13b\nrlvr: {algorithm: grpo, samples: 4}\nfurther_rlvr: []\n")
    assert load(str(child)).rlvr == RLVRConfig(samples=4)
    child.write_text("extends: olmo2-13b\nrlvr: {gamma: 0.5}\n")
    assert load(str(child)).rlvr == ppo_stages("13b")[0].model_copy(update={"gamma": 0.5})
    assert "algorithm" not in RLVRConfig().model_dump()


def test_ppo_needs_the_reward_model() -> None:
    with pytest.raises(ValueError, match=r"rlvr\.algorithm=ppo needs the reward model"):
        load("olmo2-7b", ["start={dpo: 0123456789abcdef}"])


def test_further_stages_need_names_of_their_own() -> None:
    item = "{name: 300b, seed: 1, mix: {preset: dolmino-300b}}"
    with pytest.raises(ValueError, match="further_ingredients has 300b more than once"):
        load("olmo2-7b", [f"further_ingredients=[{item}, {item}]"])


def test_suites_of_tables_20_21_and_24_by_the_kind_of_model() -> None:
    """Table 20's held-out half and Table 24 are asked of the last model of a kind alone; the sweep ranks by GSM*."""
    for size in SIZES:
        asked = recipe(size).evaluation
        base, last_base, tuned, last_tuned = (
            [item.name for item in asked.of("x", chat=chat, last=last).benchmarks]
            for chat in (False, True)
            for last in (False, True)
        )
        multiple = ("arc_challenge", "arc_easy", "boolq", "csqa", "hellaswag", "openbookqa", "piqa", "socialiqa")
        formats = [f"{task}_{form}" for task in (*multiple, "winogrande", "mmlu") for form in ("mc", "rc")]
        assert base == ["gsm_star", *formats, "naturalqs", "drop", "squad", "coqa", "jeopardy"]
        held_out = ["agi_eval_mc", "gsm8k_held_out", "mmlu_pro_mc", "triviaqa", "bbh", "minerva_math"]
        assert last_base == [*base, *held_out]
        assert tuned == [
            "gsm_star", "mmlu_cot", "popqa", "truthfulqa", "bbh_chat", "drop_3shot", "gsm8k", "minerva_math", "humaneval",
            "humaneval_plus", "ifeval",
        ]  # fmt: skip
        assert last_tuned == [*tuned, "agi_eval_cot", "deepmind_math", "gpqa", "ifeval_ood", "mmlu_pro_cot"]
        assert recipe(size).microanneal.rank_by == "gsm_star"
        assert not {role_of(item) for item in asked.of("x").benchmarks} - {"dev"}


def test_a_benchmark_of_ones_own_replaces_the_tables_of_its_name_or_is_asked_too() -> None:
    given = "[{kind: ifeval, max_new_tokens: 512}, {kind: olmes, task: lambada}]"
    changed = load("olmo2-7b", [f"evaluation.tuned.benchmarks={given}"]).evaluation.tuned
    own = recipe("7b").evaluation.tuned
    assert [item.name for item in changed.benchmarks] == [*(item.name for item in own.benchmarks), "lambada_bpb"]
    assert changed.benchmarks[-2].model_dump()["max_new_tokens"] == 512
    written = recipe("7b").evaluation.model_dump(mode="json")
    assert type(recipe("7b").evaluation).model_validate(written) == recipe("7b").evaluation
    with pytest.raises(ValueError, match="'poetry' is no task and no table"):
        load("olmo2-7b", ["evaluation.base.tables=[poetry]"])
