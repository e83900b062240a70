"""Recipe files and overrides: merging, and errors that name path, value and way out. Oracle: issue text and DESIGN section 4."""

import re
from pathlib import Path

import pytest
import yaml

from flows.config.errors import RecipeError
from flows.config.files import apply_override, load, merge, read_recipe, recipe_names
from flows.config.stages import STAGE_NAMES
from flows.config.strict_yaml import parse_yaml


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid(name: str):
    assert load(name).name == name


def test_smoke_has_the_same_stages_as_laptop():
    laptop, smoke = load("laptop"), load("smoke")
    assert laptop.collect.keys() == smoke.collect.keys()
    assert [item.name for item in laptop.candidates] == [item.name for item in smoke.candidates]
    assert laptop.anneal_seeds == smoke.anneal_seeds


def test_a_typo_names_path_and_nearest_field():
    with pytest.raises(RecipeError, match=r"dpo\.bta: there is no such field; did you mean 'beta'\?"):
        load("laptop", ["dpo.bta=1"])


def test_a_typo_inside_a_tagged_union_is_found():
    with pytest.raises(RecipeError, match=r"collect\.web\.python\.max_byte: .* did you mean 'max_bytes'\?"):
        load("laptop", ["collect.web.max_byte=1"])


def test_a_wrong_type_names_path_and_value():
    with pytest.raises(RecipeError, match=r"sft\.epochs: .*\(given: 'many'\)"):
        load("laptop", ["sft.epochs=many"])


@pytest.mark.parametrize("field", ["threads.pretrian=2", "compile.pretrian=blocks", "parallel.pretrian.workers=1"])
def test_a_setting_for_a_stage_that_does_not_exist_is_refused(field: str):
    named = ".".join(field.partition("=")[0].split(".")[:2])
    with pytest.raises(
        RecipeError, match=rf"execution\.{named}: there is no stage 'pretrian'; did you mean 'pretrain'"
    ):
        load("laptop", [f"execution.{field}"])


def test_settings_may_name_every_stage_there_is():
    """Oracle: the sources, searched for wrapped stages. Checkpoints are adopted by commands, outside of recipes."""
    files = (Path(__file__).resolve().parents[2] / "tasks").rglob("*.py")
    wrapped = {
        name for file in files for name in re.findall(r'^\w+ = stage\(\w+, name="(\w+)"', file.read_text(), re.M)
    }
    assert {name for name in wrapped if not name.startswith("adopt")} == set(STAGE_NAMES)


@pytest.mark.parametrize(("layout", "says"), [
    ("{data: fsdp, replicas: 2}", "replicas=2 is a setting of hsdp, not of fsdp; leave it out"),
    ("{data: hsdp, workers: 4, replicas: 3}", "workers=4 is not a multiple of replicas=3; change either"),
])  # fmt: skip
def test_a_group_that_the_trainer_does_not_know_is_refused(layout: str, says: str):
    with pytest.raises(RecipeError) as raised:
        load("laptop", ["execution.cores=8", f"execution.parallel.sft={layout}"])
    assert str(raised.value) == f"recipe laptop cannot be used:\n  recipe: execution.parallel.sft: {says}"


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'laptop'"):
        load("labtop")


def test_a_missing_file_and_a_file_that_is_not_yaml(tmp_path: Path):
    with pytest.raises(RecipeError, match="no recipe file"):
        read_recipe(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [1, 2")
    with pytest.raises(RecipeError, match="is not YAML"):
        read_recipe(str(tmp_path / "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(RecipeError, match="not a mapping"):
        read_recipe(str(tmp_path / "list.yaml"))


@pytest.mark.parametrize("id", ["0123456789012345", "12345678", "1234e567", "00ab"])
def test_an_id_that_looks_like_a_number_stays_an_id(id: str) -> None:
    assert load("smoke", [f"start.sft={id}"]).start == {"sft": id}
    assert load("smoke", [f"start.sft={id}", "start.sft=null"]).start == {}


def test_overrides_reach_lists_and_nested_fields():
    data = {"a": {"b": [{"c": 1}, {"c": 2}]}}
    apply_override(data, "a.b.1.c=[3, 4]")
    apply_override(data, "a.d.e=true")
    assert data == {"a": {"b": [{"c": 1}, {"c": [3, 4]}], "d": {"e": True}}}


@pytest.mark.parametrize("override", ["dpo.beta", "=1", "a.b.9.c=1", "name.x.y=1", "a.b=[1"])
def test_malformed_overrides_are_refused(override: str):
    with pytest.raises(RecipeError):
        apply_override({"a": {"b": [{"c": 1}]}, "name": "x"}, override)


def test_merge_replaces_lists_and_other_kinds():
    below = {"x": {"kind": "a", "p": 1}, "y": [1, 2], "z": {"q": 1}}
    above = {"x": {"kind": "b"}, "y": [3], "z": {"r": 2}}
    assert merge(below, above) == {"x": {"kind": "b"}, "y": [3], "z": {"q": 1, "r": 2}}


def write(folder: Path, **recipes: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text)


def test_an_own_file_of_a_built_in_name_extends_the_built_in_one(tmp_path: Path):
    write(tmp_path, laptop="extends: laptop\ndpo: {beta: 0.25}\n", child="extends: laptop\n", own="extends: own\n")
    config = load(str(tmp_path / "laptop.yaml"))
    assert config.dpo.beta == 0.25
    assert config.pretrain == load("laptop").pretrain
    assert load(str(tmp_path / "child.yaml")).dpo.beta == 0.25, "a file beside goes before a built-in one"
    with pytest.raises(RecipeError, match="there is no recipe 'own'"):
        read_recipe(str(tmp_path / "own.yaml"))


def test_a_loop_of_extends_names_its_chain(tmp_path: Path):
    write(tmp_path, a="extends: b\n", b="extends: ./a\n", c="extends: c.yaml\n")
    for name, chain in {"a": r"a\.yaml → \S*b\.yaml → \S*a\.yaml;", "c": r"c\.yaml → \S*c\.yaml;"}.items():
        with pytest.raises(RecipeError, match=chain):
            read_recipe(str(tmp_path / f"{name}.yaml"))


def test_what_extends_names_starts_at_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "elsewhere")
    write(tmp_path / "mine", base="x: mine\n", child="extends: base.yaml\n")
    write(tmp_path / "other", child="extends: ../mine/base\n", absolute=f"extends: {tmp_path}/mine/base.yaml\n")
    write(tmp_path / "elsewhere", base="x: elsewhere\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for file in ("mine/child", "other/child", "other/absolute"):
        assert read_recipe(str(tmp_path / f"{file}.yaml")) == {"name": Path(file).name, "x": "mine"}


@pytest.mark.parametrize("parent", ["[]", "[laptop, 3]", "3", "{a: b}", "''", "false"])
def test_extends_is_a_name_or_a_list_of_names(parent: str, tmp_path: Path):
    write(tmp_path, child=f"extends: {parent}\n")
    with pytest.raises(RecipeError, match=r"child\.yaml: extends=.* is not the name or path of a recipe"):
        read_recipe(str(tmp_path / "child.yaml"))


def test_a_key_that_is_there_twice_is_refused_with_both_lines(tmp_path: Path):
    write(tmp_path, twice="extends: laptop\ndpo: {beta: 1}\nsft: {}\ndpo: {learning_rate: 1.0}\n")
    with pytest.raises(RecipeError, match=r"twice\.yaml: dpo is there twice, on line 2 and on line 4"):
        read_recipe(str(tmp_path / "twice.yaml"))
    with pytest.raises(RecipeError, match=r"a\.1\.b is there twice, on line 3 and on line 4"):
        parse_yaml("a:\n- 1\n- b: 1\n  b: 2\n")
    with pytest.raises(RecipeError, match=r"override 'dpo=.*': beta is there twice"):
        apply_override({}, "dpo={beta: 1, beta: 2}")
    anchors = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: [*a, *a]\n"
    assert parse_yaml(anchors) == yaml.safe_load(anchors), "a merge key may be overridden"
    assert parse_yaml("") is None


def test_null_takes_out_a_named_thing(tmp_path: Path):
    removed = "collect: {code: null}\nfilter: {code: null}\npretrain: {steps: null}\n"
    write(
        tmp_path,
        parent="collect: {web: {a: 1}, code: {a: 2}}\nfilter: {web: {}, code: {}}\npretrain: {steps: 3}\n",
        child=f"extends: parent\n{removed}",
        back="extends: child\ncollect: {code: {b: 3}}\n",
        typo="extends: parent\ncollect: {cade: null}\n",
    )
    child = read_recipe(str(tmp_path / "child.yaml"))
    assert child == {"name": "child", "collect": {"web": {"a": 1}}, "filter": {"web": {}}, "pretrain": {"steps": None}}
    assert read_recipe(str(tmp_path / "back.yaml"))["collect"] == {"web": {"a": 1}, "code": {"b": 3}}
    with pytest.raises(RecipeError, match=r"collect\.cade: null takes out .*; did you mean 'code'\?"):
        read_recipe(str(tmp_path / "typo.yaml"))
    data = read_recipe("laptop")
    apply_override(data, "classifiers.quality=null")
    apply_override(data, "pretrain.steps=null")
    assert "quality" not in data["classifiers"]
    assert data["pretrain"]["steps"] is None


def test_deployments_name_real_flows():
    """Contract: every entry point of prefect.yaml is a module path that loads as a Prefect flow with those parameters."""
    from prefect import Flow
    from prefect.flows import load_flow_from_entrypoint

    root = Path(__file__).resolve().parents[2]
    for deployment in yaml.safe_load((root / "prefect.yaml").read_text())["deployments"]:
        flow = load_flow_from_entrypoint(deployment["entrypoint"])
        assert isinstance(flow, Flow)
        assert set(deployment["parameters"]) <= set(flow.parameters.properties)


@pytest.mark.parametrize(
    ("override", "now"),
    [
        ("pretrain.schedule.peak_lr=1e-3", "learning_rate"),
        ("anneal.start_lr=1e-3", "learning_rate"),
        ("microanneal.anneal.start_lr=1e-3", "learning_rate"),
        ("classifiers.quality.lr=0.5", "learning_rate"),
        ("classifiers.quality.epoch=2", "epochs"),
        ("pretrain.batch_instances=8", "batch_size"),
        ("anneal.batch_instances=8", "batch_size"),
        ("sft.batch=8", "batch_size"),
        ("dpo.batch=8", "batch_size"),
        ("reward.batch=8", "batch_size"),
    ],
)
def test_an_old_name_is_told_its_new_one(override: str, now: str) -> None:
    field = override.partition("=")[0].replace(".", r"\.")
    with pytest.raises(RecipeError, match=rf"{field}: there is no such field; it is now called '{now}'"):
        load("laptop", [override])


@pytest.mark.parametrize(
    ("override", "now"),
    [
        ("pretrain.micro_instances=1", "execution.micro_instances.pretrain"),
        ("microanneal.anneal.micro_instances=1", "execution.micro_instances.anneal"),
        ("sft.pass_tokens=4096", "execution.pass_tokens.sft"),
        ("rlvr.pass_tokens=4096", "execution.pass_tokens.rlvr"),
        ("evaluation.batch_size=8", "execution.answers_at_once.evaluate"),
    ],
)
def test_what_became_a_setting_is_named(override: str, now: str) -> None:
    with pytest.raises(RecipeError, match=rf"there is no such field; it is now the setting {now}"):
        load("laptop", [override])


def test_a_compile_policy_may_be_that_of_a_label():
    config = load("laptop", ["execution.compile={default: blocks, 'pretrain:trial-filtered': 'off'}"])
    compiled = {
        label: config.execution.compute("pretrain", label).compile for label in ("pretrain", "pretrain:trial-filtered")
    }
    assert compiled == {"pretrain": "blocks", "pretrain:trial-filtered": "off"}
    with pytest.raises(RecipeError, match=r"execution\.compile\.pretrian:x: there is no stage"):
        load("laptop", ["execution.compile={'pretrian:x': 'off'}"])
    with pytest.raises(RecipeError, match=r"execution\.threads\.pretrain:x: there is no stage"):
        load("laptop", ["execution.threads={'pretrain:x': 1}"])


def test_a_kernel_of_attention_is_a_setting_by_stage():
    execution = load("laptop", ["execution.attention={default: flash, sft: math}"]).execution
    assert [execution.compute(name).attention for name in ("pretrain", "sft")] == ["flash", "math"]
    assert load("laptop").execution.compute("pretrain").attention == "auto"
    with pytest.raises(RecipeError, match=r"execution\.attention\.pretrian: there is no stage"):
        load("laptop", ["execution.attention={pretrian: flash}"])
    with pytest.raises(RecipeError, match=r"execution\.attention\.sft"):
        load("laptop", ["execution.attention={sft: xformers}"])


@pytest.mark.parametrize(("change", "says"), [
    ("curation_trial.source=wep", "curation_trial.source='wep' is not a collected source; they are web, code"),
    ("curation_trial.pretrain.steps=null", "pretrain.steps is not given, so the larger text would be read for longer"),
    ("curation_trial.passage_tokens=128", "max_sequence_length=128 is less than sequence_length=64 or passage_tokens=128"),
    ("curation_trial.pretrain.model.vocab_size=256", "has no row for each of the 5"),
])  # fmt: skip
def test_a_trial_of_curation_that_cannot_be_run_is_refused(change: str, says: str):
    with pytest.raises(RecipeError, match=re.escape(says)):
        load("laptop", [change])
