"""Saved states at other numbers of processes. Oracle: the training that was not interrupted."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from model.config import Compute, Parallel
from model.parallel.group import Group
from model.training.configs import OptimConfig
from model.training.loop import Course, Listeners, new_state, train
from model.training.state_files import file_name, is_needed, load_state, save_state, snapshot, write_tensors
from tests.model.groups import KINDS, SCHEDULE, STEPS, model_of, run_group, train_kind, train_kinds

KIND = "language model"
LAYOUTS = {
    "one": Parallel(),
    "ddp": Parallel(workers=2),
    "fsdp": Parallel(workers=2, data="fsdp"),
}


Resumed = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the state of every layout at half time."""
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def resumed(saved: Path) -> Resumed:
    """Saves every state and resumes it in every layout: (saved, resumed) -> metrics, weights and moments.

    All in one group; the runs that nothing disturbed are under the name "undisturbed".
    """
    half = STEPS // 2
    train_kind(KIND, Parallel(), steps=half, save=saved / "one")
    keys = [("save", name) for name in ("ddp", "fsdp")]
    keys += [(before, after) for before in ("undisturbed", *LAYOUTS) for after in ("ddp", "fsdp")]
    cases: list[tuple[str, dict[str, Any]]] = []
    for before, after in keys:
        options: dict[str, Any] = {"parallel": LAYOUTS[after]}
        if before == "save":
            options |= {"steps": half, "save": saved / after}
        elif before != "undisturbed":
            options |= {"load": saved / before}
        cases.append((KIND, options))
    found = dict(zip(keys, run_group(2, train_kinds, cases)[0], strict=True))
    found |= {(before, "one"): train_kind(KIND, Parallel(), load=saved / before) for before in LAYOUTS}
    return found | {("undisturbed", "one"): train_kind(KIND, Parallel())}


@pytest.mark.parametrize("after", LAYOUTS)
@pytest.mark.parametrize("before", LAYOUTS)
def test_a_run_begun_in_one_layout_goes_on_in_another(before: str, after: str, resumed: Resumed) -> None:
    alone, found = resumed["undisturbed", "one"], resumed[before, after]
    assert [line["step"] for line in found["lines"]] == [3, 4]
    for mine, ours in zip(alone["lines"][2:], found["lines"], strict=True):
        assert ours["loss"] == pytest.approx(mine["loss"], rel=1e-6)
    for part in ("weights", "moments"):
        for name, value in alone[part].items():
            np.testing.assert_allclose(found[part][name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_layout_resumes_to_the_same_bits(layout: str, resumed: Resumed) -> None:
    for part in ("weights", "moments"):
        for key, value in resumed["undisturbed", layout][part].items():
            assert np.array_equal(resumed[layout, layout][part][key], value), key


def test_every_shard_is_written_once_and_without_pickle(saved: Path, resumed: Resumed) -> None:
    kinds = ("weights", "exp_avg", "exp_avg_sq", "counters")
    expected = {file_name(kind, shard, 2) for kind in kinds for shard in range(2)} | {"state.json"}
    assert {path.name for path in (saved / "fsdp").iterdir()} == expected
    whole = {file_name(kind, 0, 1) for kind in kinds} | {"state.json"}
    assert (
        {path.name for path in (saved / "ddp").iterdir()} == whole == {path.name for path in (saved / "one").iterdir()}
    )
    sizes = [(saved / "fsdp" / file_name("weights", shard, 2)).stat().st_size for shard in range(2)]
    assert sum(sizes) < 1.2 * (saved / "one" / "weights.safetensors").stat().st_size


def test_a_process_reads_its_own_shard_only_when_the_cutting_is_the_same() -> None:
    group = Group(rank=1, world=2, shard=1, shards=2)
    assert not is_needed("weights-00000-of-00002.safetensors", group)
    assert is_needed("exp_avg_sq-00001-of-00002.safetensors", group)
    assert is_needed("weights-00000-of-00004.safetensors", group)
    assert is_needed("state.json", group) and is_needed("weights.safetensors", group)


def test_a_missing_shard_is_named(saved: Path, resumed: Resumed, tmp_path: Path) -> None:
    for file in (saved / "fsdp").iterdir():
        if file.name != "exp_avg-00001-of-00002.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    state = new_state(model_of(KIND), OptimConfig(), Compute())
    with pytest.raises(ValueError, match=r"has no exp_avg-00001-of-00002\.safetensors: not a training state"):
        load_state(state, tmp_path)


def test_random_state_is_part_of_it(tmp_path: Path) -> None:
    """Dropout, or anything else that draws numbers while training, goes on where it was."""

    def noisy(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, metrics = KINDS[KIND][0]()(model, batch)
        return loss * (1 + 0.1 * torch.rand(())), metrics

    def run(state, steps, **told):
        course = Course(objective=noisy, batches=KINDS[KIND][1], schedule=SCHEDULE, steps=steps)
        return train(state, course, Compute(), Listeners(**told))

    torch.manual_seed(5)
    state = new_state(model_of(KIND), OptimConfig(), Compute())
    run(state, 4, checkpoint=lambda state: save_state(state, tmp_path / "half"), checkpoint_every=2)
    save_state(state, tmp_path / "whole")
    torch.manual_seed(6)
    again = load_state(new_state(model_of(KIND), OptimConfig(), Compute()), tmp_path / "half")
    save_state(run(again, 4), tmp_path / "resumed")
    digests = [
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (tmp_path / name).iterdir()}
        for name in ("whole", "resumed")
    ]
    assert digests[0] == digests[1]


@given(shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=4), octets=st.integers(0, 9))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_are_what_the_safetensors_library_reads(tmp_path: Path, shapes: list[list[int]], octets: int) -> None:
    tensors = {f"b{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    tensors["a"] = torch.arange(octets, dtype=torch.uint8)
    write_tensors(tmp_path / "file", tensors)
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in tensors.items())


def test_a_snapshot_stands_still_and_its_memory_is_used_again() -> None:
    state = new_state(model_of(KIND), OptimConfig(), Compute())
    objective, batches = KINDS[KIND]

    def run(steps: int) -> None:
        train(state, Course(objective=objective(), batches=batches, schedule=SCHEDULE, steps=steps), Compute())

    run(1)
    first = snapshot(state)
    assert first is not None
    copies = {name: value.clone() for name, value in first.tensors["weights"].items()}
    run(2)
    assert all(torch.equal(value, copies[name]) for name, value in first.tensors["weights"].items())
    second = snapshot(state, first)
    assert second is not None and second.counters["step"] == 2
    assert not torch.equal(second.tensors["weights"]["norm.weight"], copies["norm.weight"])
    addresses = [{name: value.data_ptr() for name, value in one.tensors["exp_avg"].items()} for one in (first, second)]
    assert addresses[0] == addresses[1]
