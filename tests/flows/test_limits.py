"""What cannot fit is refused when a recipe is read. Oracles: the stages' own refusals, Table 5's sizes."""

import json
import re
from typing import Any

import pytest

from flows.config.errors import RecipeError
from flows.config.files import load
from flows.config.sizes.known_sizes import source_tokens
from flows.config.sizes.limits import check_mix, known_tokens, mix_notes
from tasks.artifacts import Tokens
from tasks.data.mix import MixConfig, MixSource, plan_mix
from tasks.evaluation.benchmarks.gsm8k import GSM8KBenchmark
from tasks.evaluation.benchmarks.ifeval import IFEvalBenchmark
from tasks.evaluation.scoring.room import context_of, longest_answer, prompt_room

PUBLISHED = ("olmo2-1b", "olmo2-7b", "olmo2-13b", "olmo2-32b", "olmo2-7b-synthesis")
TABLE_5 = {
    "flan": 17.0e9, "stackexchange": 1.26e9, "tinygsm_students": 3.41e9, "tinygsm_solving": 3.06e9, "gsm8k_main": 1.23e6,
    "gsm8k_socratic": 1.51e6, "gsm8k_numbers": 1.08e6, "gsm8k_students": 8.53e6, "gsm8k_solving": 8.53e6,
    "arithmetic": 9.03e6, "multi_addition": 2.21e6, "persona_maths": 191.58e6, "persona_grade_school": 21.8e6,
    "persona_algebra": 19.74e6,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_answer_of_a_published_recipe_leaves_room_for_its_prompt(name: str) -> None:
    config = load(name)
    window = config.pretrain.model.max_sequence_length
    rooms = {
        item.name: prompt_room(longest_answer(item), context_of(item, config.evaluation.max_context, window))
        for item in config.evaluation.every_benchmark
    }
    assert rooms["ifeval"] == 2048
    assert rooms["gsm_star"] == 2048 - 512


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "evaluation.tuned.benchmarks=[{kind: ifeval, context: 2048}]",
            r"evaluation\.tuned\.benchmarks\.ifeval\.max_new_tokens=2,048 leaves no room",
        ),
        (
            "evaluation.tuned.benchmarks=[{kind: ifeval, max_new_tokens: 4096}]",
            r"ifeval\.max_new_tokens=4,096 .*max_sequence_length=4,096 bounds it",
        ),
        (
            "evaluation.benchmarks.0.max_new_tokens=2048",
            r"gsm_star\.max_new_tokens=2,048 leaves no room .* context of 2,048",
        ),
        ("evaluation.benchmarks.0.context=512", r"gsm_star\.max_new_tokens=512 leaves no room"),
        ("preferences={kind: sampled, max_new_tokens: 4096}", r"preferences\.max_new_tokens=4,096 leaves no room"),
        ("rlvr.max_new_tokens=5000", r"rlvr\.max_new_tokens=5,000 leaves no room"),
        (
            "rlvr_prompts.sources.0.rows.limit=1",
            r"rlvr: rollouts of 1 answer show no difference",
        ),
    ],
)
def test_answers_and_prompts_that_do_not_fit_are_refused_at_load(change: str, message: str) -> None:
    start = (
        ["rlvr_prompts.sources=[{kind: rows, name: r, rows: {dataset: allenai/RLVR-GSM}}]"] if "limit" in change else []
    )
    with pytest.raises(RecipeError, match=message):
        load("olmo2-7b", [*start, change])


def test_a_context_is_the_benchmarks_own_within_the_window() -> None:
    assert context_of(IFEvalBenchmark(), 2048, 4096) == 4096
    assert context_of(IFEvalBenchmark(context=3000), 2048, 4096) == 3000
    assert context_of(IFEvalBenchmark(), 2048, 1024) == 1024
    assert context_of(GSM8KBenchmark(), 2048, 4096) == 2048


def test_a_mini_batch_more_than_a_rollouts_answers_is_refused() -> None:
    changes = ["rlvr.mini_batches=20", "rlvr_prompts.sources.0.rows.limit=16"]
    rows = "rlvr_prompts.sources=[{kind: rows, name: r, rows: {dataset: allenai/RLVR-GSM}}]"
    with pytest.raises(
        RecipeError, match=r"rlvr\.mini_batches=20 are more than the 16 answers of a rollout to 16 prompts"
    ):
        load("olmo2-7b", [rows, *changes])


def tokens_of(name: str, count: int) -> Tokens:
    """Token files of 200 MB, as a source of that size has them."""
    size = 50_000_000
    files = {f"{part:04d}.npy": min(size, count - part * size) for part in range(-(-count // size))}
    return Tokens(
        stage="encode", id=name, address=f"encode/{name}/g0001", digest=name, source=name, tokens=count, documents=1,
        ranks=100_256, files=files,
    )  # fmt: skip


@pytest.mark.parametrize("name", TABLE_5)
def test_every_micro_anneal_of_the_synthesis_recipe_has_a_mix(name: str) -> None:
    """Case: candidates as large as Table 5 says; repeats within the limit, then the web's share grows."""
    config = load("olmo2-7b-synthesis")
    (candidate,) = (item for item in config.candidates if item.name == name)
    size = int(TABLE_5[name])
    assert known_tokens(config)[name] == size
    web = tokens_of("filtered_web", 6_000_000_000)
    entries = plan_mix({"filtered_web": web, name: tokens_of(name, size)}, config.candidate_mix(candidate))
    total, own = sum(entry.tokens for entry in entries), sum(e.tokens for e in entries if e.source == name)
    batch = config.microanneal.anneal.batch_size * 4096
    assert total == -(-config.microanneal.tokens // batch) * batch
    assert own <= size * config.microanneal.max_repetition
    wanted = min(total / 2, size * 4)
    assert own == pytest.approx(wanted, rel=0.01)
    notes = mix_notes(config)
    assert (f"mix:try-{name}" in notes) == (size * 4 < 500_000_000)
    if size * 4 < 500_000_000:
        said = re.search(r"([\d.]+)% of the mix instead of 50%, so filtered_web is", notes[f"mix:try-{name}"])
        assert said is not None
        assert float(said[1]) == pytest.approx(100 * own / total, abs=0.05)


def test_without_a_source_that_fills_too_small_a_source_is_refused() -> None:
    halves = [{"source": "web", "ratio": 0.5}, {"source": "small", "ratio": 0.5, "max_repetition_ratio": 2}]
    mix: dict[str, Any] = {"sources": halves, "requested_tokens": 4096 * 8, "sequence_length": 4096, "batch_size": 1}
    sizes = {"web": 100_000, "small": 4096}
    with pytest.raises(
        ValueError, match=r"mine: source 'small' needs 16,384 tokens .* allow 8,192 .* another source as `fill`"
    ):
        check_mix("mine", MixConfig.model_validate(mix), sizes)
    assert check_mix("mine", MixConfig.model_validate(mix | {"fill": "web"}), sizes) == {"web": 24_576, "small": 8_192}
    with pytest.raises(ValueError, match=r"'web' needs 24,576 tokens .*and what others lack"):
        check_mix("mine", MixConfig.model_validate(mix | {"fill": "web"}), {"web": 20_000, "small": 4096})
    with pytest.raises(ValueError, match="fill='nothing' takes what other sources"):
        MixConfig.model_validate(mix | {"fill": "nothing"})
    with pytest.raises(ValueError, match="give requested_tokens"):
        MixConfig(sources=(MixSource(source="web"),), fill="web")


def test_a_mix_of_known_sources_is_checked_when_the_recipe_is_read() -> None:
    """Whichever mix: a source whose size is a released one's, asked for more than it has."""
    ratios = json.dumps([{"source": "wiki", "ratio": 0.5}, {"source": "papers", "ratio": 0.5}])
    mix = f"anneal_mix={{preset: null, sources: {ratios}, requested_tokens: 50000000000}}"
    with pytest.raises(
        RecipeError, match=r"anneal_mix: source 'wiki' needs 25,000,000,000 tokens .* 3,700,000,000 tokens allow"
    ):
        load("olmo2-7b", [mix])
    config = load("olmo2-7b")
    assert source_tokens(config.collect["filtered_web"]) == 752_000_000_000
