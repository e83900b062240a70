"""The health check of devices, and what follows when one fails. Oracle: a fault that the test has planted, or none."""

import socket
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from flows.config.stages import STAGES
from infra.compute.cordoning import unfit_slots
from infra.compute.health import DeviceUnfit, GroupUnfit, Proof, casts_doubt, clock_finding, examine
from infra.compute.nodes import ID_LABEL, ClusterNode, keep_off
from infra.compute.placed import Claim
from infra.events import Event, Warned
from infra.execution.attempt import Caller, Outcome, run_stage
from infra.execution.prefect_engine import PrefectEngine
from infra.records.nodes import cordons, known_health, lift_cordon, set_cordon
from infra.records.record import all_records
from infra.session import Devices, NoDeviceLeft, Session, open_session
from infra.settings import ComputeSettings, Execution, Placement
from infra.storage.store import Store
from infra.workspace import WorkSettings, Workspace
from tests.infra.faulty_devices import FAULTY, faulty_matmul, number_of_device, on_device
from tests.infra.stages_for_tests import NumberConfig
from tests.model.groups import run_group

HOST = socket.gethostname()


def test_a_device_that_works_passes_and_leaves_nothing_behind():
    state = torch.get_rng_state()
    found = examine("cpu")
    assert found.passed, found
    assert [finding.check for finding in found.findings] == ["fp32 matmul", "bf16 matmul", "copy", "memory"]
    assert min(found.speeds.values()) > 0
    assert torch.equal(torch.get_rng_state(), state)


def wrong_bit(call: Any) -> Any:
    """The same method of a tensor, but for one word of its result."""

    def changed(self: torch.Tensor, *arguments: Any) -> torch.Tensor:
        result = call(self, *arguments)
        result.view(-1)[len(result) // 2] ^= 1 << 40
        return result

    return changed


@pytest.mark.parametrize(
    ("target", "fault", "failed"),
    [
        (torch, {"matmul": faulty_matmul}, ["fp32 matmul", "bf16 matmul"]),
        (torch, {"matmul": lambda a, b: (a @ b) * float("nan")}, ["fp32 matmul", "bf16 matmul"]),
        (torch.Tensor, {"copy_": wrong_bit(torch.Tensor.copy_)}, ["copy"]),
        (torch.Tensor, {"fill_": wrong_bit(torch.Tensor.fill_)}, ["memory"]),
    ],
)
def test_each_fault_is_found_by_its_check(monkeypatch: pytest.MonkeyPatch, target: Any, fault: Any, failed: list[str]):
    for name, replacement in fault.items():
        monkeypatch.setattr(target, name, replacement)
    assert [finding.check for finding in examine("cpu").failed] == failed


def test_an_error_of_the_driver_is_a_finding(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nmore lines")

    monkeypatch.setattr(torch, "matmul", fail)
    (only,) = examine("cpu").findings
    assert (only.passed, only.measured) == (False, "RuntimeError: CUDA error: uncorrectable ECC error encountered")


@pytest.mark.parametrize(("store", "passed"), [(1000.0, True), (1060.5, True), (939.0, False), (1100.0, False)])
def test_a_clock_is_compared_with_the_stores(store: float, passed: bool):
    finding = clock_finding(1000.0, store, 1001.0)
    assert finding.passed is passed, finding


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FloatingPointError("loss nan"), True),
        (RuntimeError("[gloo] Timed out waiting 1800000ms for recv operation to complete"), True),
        (torch.distributed.DistBackendError("NCCL timeout"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("the request timed out"), False),
    ],
)
def test_which_ends_cast_doubt_on_a_device(error: Exception, expected: bool):
    assert casts_doubt(error) is expected


def test_it_is_asked_for_where_the_device_is_no_cpu():
    settings = [("cpu", None), ("cuda:1", None), ("cpu", True), ("cuda", False)]
    assert [ComputeSettings(device=device, health=health).checks_first for device, health in settings] == [
        False, True, True, False,
    ]  # fmt: skip


def run(store: Store, *listed: str, held: Devices | None = None, **settings: Any) -> tuple[Outcome, list[Event]]:
    """The stage in a process of its own, on a slot of `held` or on the CPU; what is listed is faulty."""
    store.write(FAULTY, "\n".join(listed).encode())
    told: list[Event] = []
    config = NumberConfig(value=5, fail=settings.pop("fail", ""))
    session = Session(store, Execution(ray="off", **settings))
    arguments = on_device.bind(config)
    if held is None:
        return run_stage(on_device, session, arguments, told.append), told
    with held.take(together=False) as slot:
        return run_stage(on_device, session, arguments, told.append, Caller(held=slot)), told


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_a_stage_notes_what_its_device_showed(store: Store):
    outcome, _ = run(store, health=True)
    (row,) = outcome.record.notes["health"]
    assert (row["place"], row["passed"], row["failed"]) == (HOST, True, [])
    assert row["speeds"].keys() == {"fp32_tflops", "bf16_tflops", "copy_gb_per_s"}
    assert known_health(store) == [row]
    again, _ = run(Store(f"{store.url}-2"))
    assert "health" not in again.record.notes


def test_a_stage_goes_on_with_another_slot_and_the_failed_one_is_given_to_nobody(store: Store):
    slots = Devices(lambda: 3, kind="cpu")
    outcome, told = run(store, "cpu:0", "cpu:1", held=slots, health=True)
    assert outcome.record.notes["ran_on"] == "cpu:2"
    assert set(cordons(store)) == {f"{HOST}/cpu:0", f"{HOST}/cpu:1"}
    assert "fp32 matmul: largest error" in cordons(store)[f"{HOST}/cpu:0"].text
    assert [row["device"] for row in outcome.record.notes["unfit_devices"]] == ["cpu:0", "cpu:1"]
    assert len([event for event in told if isinstance(event, Warned)]) == 2
    with slots.take(together=True, unfit=unfit_slots(store, slots.kind)) as held:
        assert held.numbers == {2}


def test_with_nothing_left_it_says_which_device_which_check_and_the_way_out(store: Store):
    with pytest.raises(NoDeviceLeft) as raised:
        run(store, "cpu:0", "cpu:1", held=Devices(lambda: 2, kind="cpu"), health=True)
    for said in (f"{HOST}/cpu:0", f"{HOST}/cpu:1", "fp32 matmul", "expected at most 1", "olmo2 nodes --uncordon"):
        assert said in str(raised.value)


def test_a_machine_that_fails_is_cordoned_until_somebody_lifts_it(store: Store):
    with pytest.raises(NoDeviceLeft, match=r"bf16 matmul.*expected at most 1.*--uncordon"):
        run(store, "cpu", health=True)
    with pytest.raises(NoDeviceLeft, match="health check of cpu"):
        run(store, health=True)
    lift_cordon(store, HOST)
    outcome, _ = run(store, health=True)
    assert outcome.artifact.facts()["value"] == 5


def test_a_persons_cordon_counts_although_the_check_passes_and_keeps_its_reason(store: Store):
    mark = set_cordon(store, f"{HOST}/cpu:0", "fan is loud")
    slots = Devices(lambda: 2, kind="cpu")
    # The slot was taken before the cordon was known to this process: its stage still runs and passes.
    outcome, _ = run(store, "cpu:0", held=slots, health=True)
    assert outcome.record.notes["ran_on"] == "cpu:1"
    assert cordons(store)[f"{HOST}/cpu:0"] == mark


def test_a_device_that_the_recipe_names_is_not_used_while_it_is_cordoned(store: Store):
    set_cordon(store, f"{HOST}/cpu:1", "fan is loud")
    with pytest.raises(NoDeviceLeft, match="fan is loud"):
        run(store, device="cpu:1")
    assert run(store, device="cpu:0")[0].record.notes["ran_on"] == "cpu:0"


@pytest.mark.parametrize(("place", "why"), [("../x", "loud"), ("gpu7/", "loud"), ("", "loud"), ("gpu7", " ")])
def test_a_cordon_needs_a_node_and_a_reason(store: Store, place: str, why: str):
    with pytest.raises(ValueError, match=r"node|reason"):
        set_cordon(store, place, why)


def test_numbers_that_a_sound_device_does_not_lose_are_made_on_one(store: Store):
    """The loss is not finite on cpu:0, which then fails its check; the stage goes on on cpu:1."""
    outcome, _ = run(store, "cpu:0", held=Devices(lambda: 2, kind="cpu"), fail="cpu:0")
    assert outcome.record.notes["ran_on"] == "cpu:1"
    assert set(cordons(store)) == {f"{HOST}/cpu:0"}


def test_numbers_that_were_lost_on_a_sound_device_stay_lost(store: Store):
    with pytest.raises(
        FloatingPointError, match=r"step 7: loss nan\. The health check ran afterwards: its device passed"
    ):
        run(store, fail="everywhere")
    assert cordons(store) == {}
    with pytest.raises(FloatingPointError, match=r"loss nan$"):
        run(store, fail="everywhere", health=False)


@pytest.mark.usefixtures("prefect_server")
def test_a_run_gives_its_stages_the_gpus_that_are_not_cordoned(store: Store):
    """The stage only notes its GPU: this machine need not have one."""
    set_cordon(store, f"{HOST}/cuda:0", "fan is loud")
    execution = Execution(ray="off", device="cuda", health=False)
    session = Session(store, execution, engine=PrefectEngine(), devices=Devices(lambda: 2))
    with open_session(session):
        assert number_of_device(NumberConfig(value=5)).facts()["value"] == 5
    (record,) = all_records(store)
    assert record.notes["ran_on"] == "cuda:1"


def test_a_placement_is_kept_off_nodes_and_let_on_them_again():
    asked = Placement(labels={"kind": "cpu"})
    off = keep_off(asked, ["b", "a"])
    assert Claim(cpus=4, gpus=0, placement=off).text() == (
        "4 CPU, label kind=cpu, but for 2 that are cordoned (olmo2 nodes)"
    )
    nodes = [
        ClusterNode(id, "host", {"CPU": 4.0}, {"kind": kind, ID_LABEL: id})
        for id, kind in zip("abcd", ["cpu", "cpu", "cpu", "gpu"], strict=True)
    ]
    assert [node.room_for({"CPU": 2.0}, off.labels) for node in nodes] == [0, 0, 2, 0]
    assert keep_off(off, []) == asked
    pinned = Placement(labels={ID_LABEL: "a"})
    assert keep_off(pinned, ["a"]) == pinned


# --- groups: two processes of gloo ---


def proven_together(root: str, wrong: list[int]) -> Any:
    """What one rank notes, or ends with, where the all-reduce of the ranks `wrong` adds wrongly."""
    rank = dist.get_rank()
    ws = Workspace(
        Store(root),
        stage="s",
        id="i",
        payload="s/i/g0001",
        progress_folder="_progress/s/i",
        settings=WorkSettings(compute=ComputeSettings(health=True)),
    )
    reduce = dist.all_reduce

    def all_reduce(values: torch.Tensor, **names: Any) -> None:
        reduce(values, **names)
        if rank in wrong:
            values[7] += 1

    dist.all_reduce = all_reduce
    try:
        Proof(ws, label=f"cpu:{rank}", grouped=True).before()
    except DeviceUnfit as error:
        return [device.device for device in error.devices]
    except GroupUnfit as error:
        return str(error)
    finally:
        dist.all_reduce = reduce
    return ws.notes["health"]


def test_what_trains_proves_its_devices_and_nothing_else_does(store: Store):
    """An evaluation may leave its device to other processes, or to a server."""
    assert {noun.name for noun in STAGES if noun.trains} == {
        "pretrain", "anneal", "sft", "dpo", "reward", "rlvr", "ppo",
    }  # fmt: skip
    still = replace(on_device, trains=False)
    store.write(FAULTY, b"cpu")
    session = Session(store, Execution(ray="off", health=True))
    outcome = run_stage(still, session, still.bind(NumberConfig()), lambda event: None)
    assert "health" not in outcome.record.notes


def test_all_ranks_of_a_group_are_proven_and_noted(tmp_path: Path):
    first, second = run_group(2, proven_together, str(tmp_path), [])
    assert first == second
    assert [row["device"] for row in first] == ["cpu:0", "cpu:1"]
    assert all(row["passed"] and row["speeds"]["all_reduce_gb_per_s"] > 0 for row in first)


def test_the_rank_that_adds_wrongly_is_named_by_all(tmp_path: Path):
    assert run_group(2, proven_together, str(tmp_path), [1]) == [["cpu:1"], ["cpu:1"]]


def test_a_sum_that_is_wrong_everywhere_names_nobody(tmp_path: Path):
    for said in run_group(2, proven_together, str(tmp_path), [0, 1]):
        assert "wrong sum on all 2 ranks" in said


def wait_for_nobody() -> tuple[bool, str]:
    """Whether what rank 0 ends with casts doubt, where rank 1 does not come to a collective call; and its words."""
    group = dist.new_group(timeout=timedelta(seconds=1))
    if dist.get_rank() == 1:
        # It lives on, for its end would be another error.
        time.sleep(4)
        return False, ""
    try:
        dist.all_reduce(torch.zeros(1), group=group)
    except Exception as error:  # gloo's
        return casts_doubt(error), f"{type(error).__name__}: {error}"
    return False, "it did not wait"


def test_a_collective_that_times_out_casts_doubt():
    """The words and the class of the error are gloo's own."""
    (doubtful, said), _ = run_group(2, wait_for_nobody)
    assert doubtful, said


def test_the_errors_travel_between_processes():
    import pickle

    found = examine("cpu")
    assert str(pickle.loads(pickle.dumps(DeviceUnfit((found,))))) == str(DeviceUnfit((found,)))
