"""Recipes that start at a given checkpoint. Oracle: the issue's promise that what only leads there is not run; the plan of the
whole recipe.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.config.errors import RecipeError
from flows.config.files import load, read_recipe
from flows.config.needed import needed_classifiers, needed_sources
from flows.config.recipe_config import RecipeConfig
from flows.deployments import shown_ranking
from flows.inspection.artifacts import find_record
from flows.phases.microanneal import sweep
from flows.running.run import load_recipe, plan, run_evaluation, run_sweep
from flows.running.sessions import StageError, listening, naming_failures, new_session, plan_rows
from flows.starting import adopt_command
from infra.events import Failed
from infra.execution.attempt import run_stage
from infra.records.record import all_records
from infra.session import Session
from infra.settings import Execution
from infra.stage import stage
from infra.stopping import Interrupted
from infra.storage.store import Store
from infra.workspace import Workspace
from model.config import Config, ModelConfig
from model.files.weights import save_hf
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Preferences, Ranking
from tasks.data.synthesis.rewrite import RewriteConfig
from tasks.prompting import LanguageModelConfig
from tasks.training.reward import RewardConfig, reward
from tests.flows.conftest import olmo2

RANKS = 490
TOKENIZER = Tokenizer(RANKS)
FRESH = ["anneal.moments=fresh", "microanneal.anneal.moments=fresh"]


def folder_of(root: Path, ranks: int = RANKS) -> Path:
    """A Hugging Face folder of the smoke recipe's shape."""
    tokenizer = Tokenizer(ranks)
    shape = ModelConfig(
        d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, mlp_hidden=64, max_sequence_length=256,
        vocab_size=tokenizer.padded_vocab_size,
    )  # fmt: skip
    save_hf(Transformer(shape, seed=1), shape, tokenizer, root / f"hf-{ranks}")
    return root / f"hf-{ranks}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("start")


@pytest.fixture(scope="module")
def store(root: Path) -> Store:
    return Store(str(root / "store"))


@pytest.fixture(scope="module")
def id(root: Path, store: Store) -> str:
    return adopt_command(store, str(folder_of(root)), "", "base", None)["id"]


@pytest.fixture(scope="module")
def whole(store: Store) -> set[str]:
    return {row.label for row in plan(load_recipe("smoke", None, store.url))}


def planned(store: Store, *overrides: str) -> dict[str, str]:
    """Action per label."""
    return {row.label: row.action for row in plan(load_recipe("smoke", list(overrides), store.url))}


def test_a_base_replaces_pre_training_alone(store: Store, id: str, whole: set[str]):
    rows = planned(store, f"start.base={id[:8]}", *FRESH)
    # The trial of curation is one of pre-training's text.
    trial = {"set_aside:trial"}
    for name in ("filtered", "unfiltered"):
        trial |= {f"set_aside:{name}", f"perplexity:{name}"}
        trial |= {f"{stage}:trial-{name}" for stage in ("encode", "mix", "pretrain")}
    others = {"pretrain", "mix:pretrain", "synthesize:maths", "encode:maths"}
    assert whole - rows.keys() == others | trial, "maths is stage 1's"
    assert rows.keys() - whole == {"start:base"}
    assert rows["start:base"] == "reused"


@pytest.mark.parametrize(("place", "first", "absent"), [
    ("soup", "sft", {"soup", "anneal:42", "rank", "collect:web"}),
    ("sft", "preferences", {"sft", "chats", "soup"}),
    ("dpo", "rlvr", {"dpo", "sft", "preferences", "reward", "evaluate:sft"}),
])  # fmt: skip
def test_later_starts_leave_out_all_that_leads_there(
    store: Store, id: str, whole: set[str], place: str, first: str, absent: set[str]
):
    rows = planned(store, f"start.{place}={id}")
    assert not absent & rows.keys()
    assert {first, "evaluate:instruct", "report", f"start:{place}"} <= rows.keys()
    assert rows.keys() - whole == {f"start:{place}"}


def test_until_and_rerun_know_the_shortened_recipe(store: Store, id: str):
    config = load_recipe("smoke", [f"start.sft={id}"], store.url)
    assert {row.label for row in plan(config, until="dpo") if row.action != "left out"} == {
        "start:sft", "prompts:preference", "decontaminate_prompts:preference", "preferences", "dpo",
    }  # fmt: skip
    with pytest.raises(RecipeError, match=r"no stage 'pretrain' \(it begins at start:sft, and what only leads there"):
        plan(config, until="pretrain")


def test_a_sweep_anneals_the_given_base_and_refuses_to_start_past_it(store: Store, id: str):
    config = load_recipe("smoke", [f"start.base={id}", *FRESH], store.url)
    rows = {row.label: row for row in plan_rows(config, new_session(config), sweep)}
    assert rows["anneal:try-arithmetic"].inputs == ("start:base", "mix:try-arithmetic")
    assert not {"pretrain", "mix:pretrain", "soup", "sft"} & rows.keys()
    for place in ("soup", "sft", "dpo"):
        config = load_recipe("smoke", [f"start.{place}={id}"], store.url)
        with pytest.raises(RecipeError, match=rf"starts at start\.{place}={id}, past the base checkpoint"):
            run_sweep(config, [*config.candidates])
    assert {record.stage for record in all_records(store)} == {"adopt"}


def test_a_sweep_without_the_endpoint_that_a_candidate_asks_is_refused_before_it_starts(store: Store):
    config = load_recipe("smoke", None, store.url)
    rewritten = config.candidates[0].model_copy(
        update={"rewrite": RewriteConfig(writer=LanguageModelConfig(model="writer"))}
    )
    with pytest.raises(ValueError, match="no endpoint is known for model 'writer'"):
        run_sweep(config, [rewritten, config.candidates[1]])


def test_candidates_that_cannot_be_are_told_as_a_recipe_s_mistakes_are(store: Store):
    config = load_recipe("smoke", None, store.url)
    with pytest.raises(RecipeError, match="recipe smoke with these candidates cannot be used:\n  ") as told:
        run_sweep(config, [config.candidates[0], config.candidates[0]])
    assert "input_value" not in str(told.value)


def test_an_evaluation_of_nothing_is_refused(store: Store):
    with pytest.raises(ValueError, match="no checkpoint is given"):
        run_evaluation(load_recipe("smoke", None, store.url), [], chat=False)


def test_a_sweep_s_table_is_that_of_its_ranking_and_says_where_it_is(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(root)
    rows = [
        {"rank": 1, "candidate": "a", "tied_with_best": True},
        {"rank": 2, "candidate": "b", "tied_with_best": False},
    ]
    ranking = Ranking(stage="rank", id="0", address="rank/0/g0001", digest="", order=["a", "b"], scores={}, stderr={})
    Store("ranked").write(f"{ranking.address}/ranking.json", json.dumps({"candidates": rows}).encode())
    # Where a payload lies is its record's to say (tests/infra/test_one_writer.py); here only the table is looked at.
    monkeypatch.setattr("flows.deployments.payload_at", lambda store, address: address)
    shown, text = shown_ranking(load_recipe("smoke", None, "ranked"), ranking)
    assert shown == rows
    assert text.endswith(f" `{root}/ranked/{ranking.address}/ranking.json`")


@naming_failures()
def fail_as(stage_told: str, error: Exception, store: Store) -> None:
    """End as a run does whose stage failed; without the name of one, as a run that no stage ended."""
    listener = new_session(load_recipe("smoke", None, store.url)).listener
    assert listener is not None
    if stage_told:
        listener(stage_told, Failed(error))
    raise error


def test_a_failure_that_nobody_is_told_of_names_its_stage(store: Store):
    with pytest.raises(StageError, match=r"^stage dpo failed: ValueError: positives select 0\. Mend the cause"):
        fail_as("dpo", ValueError("positives select 0"), store)
    with pytest.raises(RecipeError, match="no such stage"):
        fail_as("", RecipeError("no such stage"), store)
    with pytest.raises(Interrupted):
        fail_as("dpo", Interrupted("stopped"), store)
    told: list[tuple[str, type]] = []
    with (
        listening(lambda label, event: told.append((label, type(event)))),
        pytest.raises(ValueError, match="as it was"),
    ):
        fail_as("dpo", ValueError("as it was"), store)
    assert told == [("dpo", Failed)]


def test_what_is_given_cannot_be_made_anew(store: Store, id: str):
    config = load_recipe("smoke", [f"start.base={id}", *FRESH], store.url)
    for name in ("adopt", "start:base"):
        with pytest.raises(RecipeError, match=f"'{name}' means start:base, which is given"):
            plan(config, rerun=[name])


def test_a_start_that_does_not_fit_says_what_to_change(root: Path, store: Store, id: str):
    with pytest.raises(RecipeError, match=r"--set anneal\.moments=fresh --set microanneal\.anneal\.moments=fresh"):
        load_recipe("smoke", [f"start.base={id}"], store.url)
    other = adopt_command(store, str(folder_of(root, 300)), "", "base", None)["id"]
    with pytest.raises(RecipeError, match=r"--set encode\.ranks=300"):
        load_recipe("smoke", [f"start.base={other}", *FRESH], store.url)
    with pytest.raises(ValueError, match="no artifact with id 'abc'"):
        load_recipe("smoke", ["start.sft=abc"], store.url)
    with pytest.raises(RecipeError, match="start names sft and dpo, but a recipe begins at one checkpoint"):
        load_recipe("smoke", [f"start.sft={id}", f"start.dpo={id}"], store.url)


def test_into_writes_a_recipe_that_extends_and_fits(
    root: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    made = adopt_command(store, str(folder_of(root, 300)), "", "base", "smoke")
    content = yaml.safe_load(Path(made["recipe"]).read_text())
    assert content == {
        "extends": "smoke",
        "start": {"base": made["id"]},
        "encode": {"ranks": 300},
        "anneal": {"moments": "fresh"},
        "microanneal": {"anneal": {"moments": "fresh"}},
    }
    config = load_recipe(made["recipe"], None, store.url)
    assert (config.start, config.encode.ranks) == ({"base": made["id"]}, 300)
    with pytest.raises(RecipeError, match="exists; use it"):
        adopt_command(store, str(folder_of(root, 300)), "", "base", "smoke")
    with pytest.raises(RecipeError, match="already starts at"):
        adopt_command(store, str(folder_of(root, 300)), "", "sft", made["recipe"])
    beside = tmp_path / "own"
    beside.mkdir()
    (beside / "mine.yaml").write_text("extends: smoke\n")
    made = adopt_command(store, str(folder_of(root)), "", "sft", str(beside / "mine.yaml"))
    assert Path(made["recipe"]).parent == beside
    assert read_recipe(made["recipe"])["start"] == {"sft": made["id"]}


def test_an_unknown_place_is_refused_before_anything_is_read(store: Store):
    with pytest.raises(RecipeError, match="did you mean 'base'"):
        adopt_command(store, "/nowhere", "", "bse", None)


def test_adopting_again_reuses(root: Path, store: Store, id: str):
    again = adopt_command(store, str(folder_of(root)), "", "sft", None)
    assert again["reused"]
    assert again["id"] == id
    assert find_record(store, id).facts["ranks"] == RANKS
    assert "start" in RecipeConfig.model_fields


@pytest.mark.parametrize(
    ("places", "made", "absent"),
    [
        ({"rlvr": "id"}, set(), {"rlvr", "dpo", "reward", "prompts:rlvr", "evaluate:dpo"}),
        ({"reward": "judge"}, {"pretrain", "sft", "preferences", "dpo", "rlvr"}, {"reward"}),
        ({"dpo": "id", "reward": "judge"}, {"rlvr", "prompts:rlvr"}, {"reward", "preferences", "sft"}),
    ],
)
def test_a_recipe_starts_at_a_reward_model_or_after_reinforcement(
    store: Store, id: str, judge: str, whole: set[str], places: dict[str, str], made: set[str], absent: set[str]
):
    start = {place: {"id": id, "judge": judge}[what] for place, what in places.items()}
    rows = planned(store, f"start={json.dumps(start)}")
    assert not absent & rows.keys()
    assert made | {"evaluate:instruct", "report"} <= rows.keys()
    assert rows.keys() - whole == {f"start:{place}" for place in places}


def test_ppo_goes_on_from_a_given_dpo_model_with_a_given_reward_model(store: Store, id: str, judge: str):
    ppo = "rlvr={algorithm: ppo, episodes: 8, prompts_per_rollout: 8, max_new_tokens: 8}"
    with pytest.raises(RecipeError, match=r"give one too, start: \{dpo: ID, reward: ID\}"):
        load_recipe("smoke", [f"start.dpo={id}", ppo], store.url)
    config = load_recipe("smoke", [f"start={{dpo: {id}, reward: {judge}}}", ppo], store.url)
    rows = {row.label: row for row in plan(config)}
    assert rows["ppo"].inputs == ("start:dpo", "start:reward", "decontaminate_prompts:rlvr")
    with pytest.raises(RecipeError, match=rf"start\.dpo={judge} is a RewardModel .*, not a Checkpoint"):
        load_recipe("smoke", [f"start.dpo={judge}"], store.url)
    with pytest.raises(RecipeError, match=rf"start\.reward={id} is a Checkpoint .*, not a RewardModel"):
        load_recipe("smoke", [f"start.reward={id}"], store.url)


@pytest.mark.slow
@pytest.mark.parity
def test_ppo_runs_from_adopted_folders_of_both_models(root: Path, store: Store, tmp_path: Path):
    """As with allenai/OLMo-2-1124-7B-DPO and -RM: both are adopted, and the recipe that begins there runs to its report."""
    import torch
    from transformers import Olmo2Config, Olmo2ForSequenceClassification

    torch.manual_seed(1)
    shape = Olmo2Config(
        vocab_size=TOKENIZER.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, pad_token_id=TOKENIZER.pad_id, rms_norm_eps=1e-6, num_labels=1,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )  # fmt: skip
    shape.eos_token_id = TOKENIZER.eos_id
    Olmo2ForSequenceClassification(shape).save_pretrained(tmp_path / "rm")
    TOKENIZER.save(tmp_path / "rm")
    (tmp_path / "own.yaml").write_text(
        "extends: smoke\nrlvr: {algorithm: ppo, episodes: 8, prompts_per_rollout: 8, max_new_tokens: 8}\n"
    )
    with pytest.raises(RecipeError, match=r"give one too, start: \{dpo: ID, reward: ID\}"):
        adopt_command(store, "/nowhere", "", "dpo", str(tmp_path / "own.yaml"))
    first = adopt_command(store, str(tmp_path / "rm"), "", "reward", str(tmp_path / "own.yaml"))
    both = adopt_command(store, str(folder_of(root)), "", "dpo", first["recipe"])
    config = load_recipe(both["recipe"], ["execution.ray=off"], store.url)
    assert config.start == {"dpo": both["id"], "reward": first["id"]}
    rows = {row.label: row for row in plan(config)}
    assert rows["ppo"].inputs == ("start:dpo", "start:reward", "decontaminate_prompts:rlvr")
    output = olmo2("run", both["recipe"], "--set", "execution.ray=off", store=Path(store.url))
    assert "report" in output
    with pytest.raises(RecipeError, match=r"already starts at .*dpo"):
        adopt_command(store, str(folder_of(root)), "", "sft", both["recipe"])
    with pytest.raises(ValueError, match="a reward model without a language head; adopt it as reward"):
        adopt_command(store, str(tmp_path / "rm"), "", "dpo", None)


@pytest.fixture(scope="module")
def judge(store: Store, id: str) -> str:
    """A reward model of the smoke recipe's shape, trained on two pairs made here."""
    message = [{"role": "user", "content": "2 + 2?"}]
    rows = [
        {
            "id": str(number),
            "chosen": [*message, {"role": "assistant", "content": "4"}],
            "rejected": [*message, {"role": "assistant", "content": "5"}],
            "chosen_rating": 2.0,
            "rejected_rating": 1.0,
        }
        for number in range(4)
    ]
    session = Session(store, Execution(store=store.url, ray="off"))
    pairs = run_stage(
        stage(write_pairs, name="preferences", version=1), session, {"config": Pairs(rows=rows)}, lambda event: None
    )
    policy = find_record(store, id).artifact()
    arguments = {"parent": policy, "pairs": pairs.artifact, "config": RewardConfig(batch_size=2, held_out=0.5)}
    return run_stage(reward, session, arguments, lambda event: None).record.id


class Pairs(Config):
    rows: list[dict[str, Any]]


def write_pairs(ws: Workspace, config: Pairs) -> Preferences:
    ws.write_jsonl("preferences.jsonl.zst", config.rows)
    return ws.artifact(Preferences, pairs=len(config.rows), ties=0, mean_chosen=2.0, mean_rejected=1.0)


def test_a_recipe_from_a_base_reads_only_what_later_stages_read(store: Store, tmp_path: Path):
    """Case: olmo2-7b from a base must not plan pre-training's 22 TB. Oracle: Table 13's sources."""
    tokenizer, shape = (
        Tokenizer(),
        ModelConfig(d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=16, mlp_hidden=64),
    )
    save_hf(Transformer(shape, seed=1), shape, tokenizer, tmp_path / "hf")
    base = adopt_command(store, str(tmp_path / "hf"), "", "base", None)["id"]
    config = load("olmo2-7b", [f"start.base={base}", *FRESH])
    assert needed_sources(config) == {"filtered_web", "papers", "wiki"}
    config = config.model_copy(update={"execution": Execution(store=store.url)})
    collected = {row.label for row in plan(config) if row.stage == "collect"}
    assert collected == {
        f"collect:{name}" for name in ("filtered_web", "papers", "wiki", "flan", "stackexchange", "math")
    }
    late = load("olmo2-7b", ["start.soup=0123456789abcdef"])
    assert needed_sources(late) == set()
    whole = load("olmo2-7b")
    assert needed_sources(whole) == set(whole.collect)


def test_a_classifier_that_a_later_rule_asks_keeps_its_sources():
    rule = "[{kind: quality, threshold: 0.5}]"
    config = load("laptop", ["start.base=0123456789abcdef", f"candidates.0.filter={{rules: {rule}}}"])
    assert needed_classifiers(config, needed_sources(config)) == ["quality"]
    assert needed_sources(config) == {"web", "code"}
    only_code = ["anneal_mix.sources=[{source: code, ratio: 1}]", "microanneal.web=code"]
    config = load("laptop", ["start.base=0123456789abcdef", *only_code])
    assert needed_sources(config) == {"code"}
    assert needed_classifiers(config, needed_sources(config)) == []


def test_a_pool_takes_checkpoints_of_the_store_and_nothing_else(store: Store, id: str):
    def config(answering: str):
        # In quotes: one id in some forty has eight digits and no letter, which YAML reads as a number.
        pool = f"{{on_policy: 0.5, members: [{{kind: checkpoint, name: other, checkpoint: '{answering}'}}]}}"
        return load_recipe("smoke", [f"start.sft={id}", f"preferences.pool={pool}"], store.url)

    assert next(row for row in plan(config(id[:8])) if row.label == "preferences").action == "run"
    with pytest.raises(ValueError, match="no artifact with id 'ffffffff'"):
        plan(config("ffffffff"))
    session = Session(store, Execution(store=store.url, ray="off"))
    pairs = stage(write_pairs, name="pool-pairs", version=1)
    other = run_stage(pairs, session, {"config": Pairs(rows=[])}, lambda event: None).record
    with pytest.raises(ValueError, match=rf"preferences\.pool: other is {other.id}, a Preferences and no Checkpoint"):
        plan(config(other.id))
