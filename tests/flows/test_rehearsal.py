"""Rehearsals: the recipe's own graph at small size. Oracles: the plan and settings of the recipe at full size, the prompts that
the stages send, the files that the samples' script writes.
"""

import filecmp
import json
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.config.files import load
from flows.config.recipe_config import RecipeConfig
from flows.rehearsing.local_rows import sample_files, split_patterns
from flows.rehearsing.rehearsal import LENGTH_FIELDS, LENGTHS, MOST, ROWS, rehearsed
from flows.rehearsing.stand_in_writer import answer, completion, stand_in_writer
from flows.running.run import plan
from infra.execution.plan import flatten
from infra.language_models.protocol import Answer
from infra.settings import StatedSite
from tasks.data.classifying.label import VERDICTS
from tasks.data.synthesis.personas import LEAD, read_solution
from tasks.data.synthesis.rewrite import states
from tasks.prompting import fill_template, prompt_text
from tasks.training.answers.model_judge import LanguageModelJudge, aspect_questions, judge_request, read_judgements
from tests.flows.conftest import olmo2
from tests.samples.make_samples import write

SAMPLES = Path(__file__).parents[1] / "samples" / "hub"
PUBLISHED = ("olmo2-1b", "olmo2-7b", "olmo2-13b", "olmo2-32b", "olmo2-7b-synthesis")
CHANGED = LENGTH_FIELDS | MOST.keys() | {
    "batch_size", "steps", "every", "tokens", "requested_tokens", "length", "warmup",
    "episodes", "limit", "max_bytes", "path", "paths", "dataset", "subset", "split", "name", "d_model", "n_layers", "n_heads",
    "n_kv_heads", "head_dim", "mlp_hidden", "vocab_size", "ranks",
}  # fmt: skip
"""What a rehearsal may say otherwise outside of `execution`."""


def small(recipe: str, *overrides: str, rows: Path | None = SAMPLES, store: str = "nowhere") -> RecipeConfig:
    return rehearsed(load(recipe, list(overrides)), rows, store)


def test_a_rehearsal_does_not_claim_the_site_of_the_training():
    assert load("olmo2-13b").execution.site != StatedSite()
    assert small("olmo2-13b").execution.site == StatedSite()


def labels(config: RecipeConfig, store: Path) -> list[tuple[str, tuple[str, ...]]]:
    execution = config.execution.model_copy(update={"store": str(store)})
    return [(row.label, row.inputs) for row in plan(config.model_copy(update={"execution": execution}))]


@pytest.mark.parametrize("recipe", [*PUBLISHED, "laptop", "smoke"])
def test_a_rehearsal_has_the_graph_of_its_recipe_and_changes_amounts_only(recipe: str, tmp_path: Path) -> None:
    full, tiny = load(recipe), small(recipe)
    assert labels(tiny, tmp_path) == labels(full, tmp_path)
    before, after = (flatten(config.model_dump(mode="json", exclude={"execution", "name"})) for config in (full, tiny))
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    other = {path for path in changed if not {part for part in path.split(".") if not part.isdigit()} & CHANGED}
    assert not other
    assert full.pretrain.optim == tiny.pretrain.optim
    assert [item.rules for item in full.filter.values()] == [item.rules for item in tiny.filter.values()]


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_the_model_is_the_variants_own_and_small(recipe: str) -> None:
    full, tiny = load(recipe).pretrain.model, small(recipe).pretrain.model
    assert 200_000 < tiny.parameters < 800_000
    assert tiny.n_heads // tiny.n_kv_heads == full.n_heads // full.n_kv_heads
    assert tiny.mlp_hidden / tiny.d_model == pytest.approx(full.mlp_hidden / full.d_model, rel=0.1)
    for field in ("rope_theta", "norm_eps", "norm_placement", "qk_norm", "init", "init_std"):
        assert getattr(tiny, field) == getattr(full, field)
    assert tiny.max_sequence_length * LENGTHS == full.max_sequence_length


def test_what_does_not_fit_at_full_size_does_not_fit_in_a_rehearsal() -> None:
    """Lengths keep their ratios, so the same rule refuses the same fault, whichever of both is asked first."""
    data = load("olmo2-7b")
    asked = data.evaluation.tuned
    (ifeval,) = (item for item in asked.benchmarks if item.name == "ifeval")
    others = tuple(item for item in asked.benchmarks if item.name != "ifeval")
    tight = asked.model_copy(update={"benchmarks": (*others, ifeval.model_copy(update={"context": 2048}))})
    broken = data.model_copy(update={"evaluation": data.evaluation.model_copy(update={"tuned": tight})})
    with pytest.raises(ValueError, match=r"ifeval\.max_new_tokens=256 leaves no room for a prompt in a context of 256"):
        rehearsed(broken, SAMPLES, "nowhere")


def test_the_schedule_keeps_its_shares_and_the_sizes_are_the_rules() -> None:
    full, tiny = load("olmo2-7b"), small("olmo2-7b")
    steps = 5e12 / (1024 * 4096)
    whole = tiny.pretrain.schedule.length / (tiny.pretrain.batch_size * tiny.pretrain.sequence_length)
    assert whole / (tiny.pretrain.steps or 0) == pytest.approx(steps / (full.pretrain.steps or 0), rel=0.01)
    assert all(getattr(source, "max_documents", None) == ROWS for source in tiny.collect.values())
    limits = {item.name: item.model_dump()["limit"] for item in tiny.evaluation.every_benchmark}
    assert limits == {item.name: 2 for item in full.evaluation.every_benchmark}
    assert tiny.execution.ray == "off"
    assert tiny.execution.device == "cpu"


def test_from_the_hub_every_data_set_keeps_its_name_and_only_its_first_rows_are_read() -> None:
    tiny = small("olmo2-7b", rows=None)
    source = tiny.collect["web"].model_dump()
    assert (source["path"], source["subset"], source["max_documents"]) == ("allenai/olmo-mix-1124", "dclm", ROWS)
    rows = tiny.rlvr_prompts.sources[0].model_dump()["rows"]
    assert (rows["dataset"], rows["limit"]) == ("allenai/RLVR-GSM-MATH-IF-Mixed-Constraints", ROWS)


def test_explain_prints_the_rule_and_a_missing_sample_is_named(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["rehearse", "olmo2-7b", "--explain"])
    assert shown.exit_code == 0
    for said in (f"divided by {LENGTHS}", f"first {ROWS} rows", "2 rollouts of 8 prompts", "2 items of each benchmark"):
        assert said in shown.output
    with pytest.raises(ValueError, match=r"has no samples of allenai/dolmino-mix-1124; `olmo2 sample RECIPE"):
        small("olmo2-7b", rows=tmp_path)


def test_a_card_says_which_files_are_read(tmp_path: Path) -> None:
    (file,) = sample_files(SAMPLES, "openai/gsm8k", "socratic", "test")
    assert file.name == "test-00000-of-00001.parquet"
    assert len(sample_files(SAMPLES, "allenai/tulu-3-sft-olmo-2-mixture", "", "train")) == 2
    with pytest.raises(ValueError, match="no configuration 'algebra'; it has main, socratic"):
        sample_files(SAMPLES, "openai/gsm8k", "algebra", "train")
    with pytest.raises(ValueError, match=r"no split 'validation' of 'main'; it has \['train', 'test'\]"):
        sample_files(SAMPLES, "openai/gsm8k", "main", "validation")
    card = tmp_path / "README.md"
    assert split_patterns(card, "", "train") == ["**/*"]
    card.write_text("---\nconfigs:\n- config_name: one\n  default: true\n  data_files: a/*\n---\n")
    assert split_patterns(card, "", "train") == ["a/*"]
    card.write_text("# no front matter\n")
    assert split_patterns(card, "one", "train") == ["one/**/*"]


def test_the_committed_samples_are_what_their_script_writes(tmp_path: Path) -> None:
    write(tmp_path)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert made == sorted(path.relative_to(SAMPLES) for path in SAMPLES.rglob("*") if path.is_file())
    _, different, missing = filecmp.cmpfiles(tmp_path, SAMPLES, [str(name) for name in made], shallow=False)
    assert not missing
    # Parquet names the library that wrote it, so its bytes differ between versions, and its rows are compared.
    assert not [name for name in different if not name.endswith(".parquet")]
    for name in different:
        assert pq.read_table(tmp_path / name).to_pylist() == pq.read_table(SAMPLES / name).to_pylist(), name


def test_the_stand_in_answers_in_the_form_that_every_stage_asks_for() -> None:
    for subject in ("mathematics", "grade_school", "algebra"):
        said = answer(fill_template(prompt_text(f"problem_{subject}"), persona="A baker"))
        assert said.startswith(LEAD) and "A baker" in said
    solved = Answer(
        completion(fill_template(prompt_text("solution"), problem="How much is 12 and 5?")), remembered=False
    )
    assert read_solution(solved)[::2] == ("", "17")
    for style in ("two_students", "problem_solving"):
        said = answer(
            fill_template(prompt_text(f"rewrite_{style}"), text="Ann has 8 pens.\n\nShe buys 35. So the answer is 43.")
        )
        assert states(said, "43") and len(said.split()) >= 50
    for rubric, pattern in VERDICTS.items():
        assert pattern.search(answer(fill_template(prompt_text(f"label_{rubric}"), text="A page on fractions.")))


def test_the_stand_in_judges_as_many_texts_as_it_is_shown() -> None:
    judge = LanguageModelJudge()
    texts = ["Elbe.", "Rhine.", "No."]
    asked = {
        question: judge_request(judge, question, "Name a river.", texts) for question in aspect_questions(judge, 0)
    }
    answers = {
        question: Answer(completion(request.body["messages"][-1]["content"]), remembered=False)
        for question, request in asked.items()
    }
    found = read_judgements(answers, 3, "strict")
    assert found.reason == ""
    assert [set(rating.values()) for rating in found.ratings] == [{2}, {3}, {4}]


def test_the_stand_in_speaks_the_protocol() -> None:
    body = {
        "model": "any",
        "messages": [{"role": "user", "content": fill_template(prompt_text("solution"), problem="2 + 2?")}],
    }
    with stand_in_writer() as url:
        asked = Request(f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(asked, timeout=10) as reply:
            found = json.load(reply)
    assert found["choices"][0]["message"]["content"].endswith("I hope it is correct.")
    assert found["usage"]["completion_tokens"] > 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all rehearsals: what two recipes have in common is made once."""
    return tmp_path_factory.mktemp("rehearsals")


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("recipe", PUBLISHED)
def test_every_published_recipe_goes_through_to_its_report(recipe: str, shared: Path) -> None:
    output = olmo2("rehearse", recipe, "--rows", str(SAMPLES), "--store", str(shared), store=shared, seconds=900)
    found = listed(output)
    assert all("(run)" not in line and "(resume)" not in line for line in found.values())
    assert "report: " in output and "the report" in found["report"]
    assert "48 rows (" in found["collect:web"] and "metadata.url" not in found["collect:code"]
    assert "48 documents" in found["collect:filtered_web"]
    assert found.keys() == {label for label, _ in labels(small(recipe), shared)}
    assert (shared / f"{recipe}-rehearsal.yaml").is_file()


def listed(output: str) -> dict[str, str]:
    """Lines of the list by their stage."""
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("stage ") and "dropped and why" in line)
    # What a stage made may go on below it, under its column.
    rows = [line for line in lines[first + 1 :] if line.strip() and not line.startswith(" ")]
    return {line.split()[0]: line for line in rows}


@pytest.mark.slow
def test_a_rehearsal_names_the_stage_that_fails_and_what_it_found_before(shared: Path, tmp_path: Path) -> None:
    """A fault in the data of one source: an unknown instruction of the benchmark, as a new release may bring."""
    import shutil

    rows = shutil.copytree(SAMPLES, tmp_path / "hub")
    file = rows / "google/IFEval/ifeval_input_data.jsonl"
    file.write_text(file.read_text().replace("punctuation:no_comma", "punctuation:no_dash"))
    arguments: list[Any] = ["rehearse", "olmo2-7b", "--rows", str(rows), "--store", str(shared)]
    output = olmo2(*arguments, store=shared, code=1)
    assert "instruction 'punctuation:no_dash' is unknown" in output
    found = listed(output)
    assert "(run)" in found["report"] and "48 rows" in found["collect:math"]
