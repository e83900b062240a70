"""DPO as a stage: log 2 at the reference, preference learnt, exact resume, a reference pass that is made once. Oracle: RECIPE G;
the bytes of an undisturbed run."""

import json
import math

import pytest

from infra.events import Warned
from tasks.data.post_training.pairs import PairsConfig, build_pairs
from tasks.data.sources.rows import RowSource
from tasks.training import dpo as module
from tasks.training.dpo import DPOConfig, train_dpo
from tests.tasks.training.conftest import assistant, user

CONFIG = DPOConfig(learning_rate=1e-3, epochs=3, batch_size=4, max_tokens=64, precision="fp32")


def run(bench, **changes):
    return bench.outcome(
        train_dpo,
        policy=bench.base(),
        pairs=bench.preferences(),
        config=CONFIG.model_copy(update=changes),
    )


def test_it_starts_at_log_two_and_learns_the_preference(bench):
    made = run(bench).artifact
    rows = [json.loads(line) for line in bench.read(made, "metrics.jsonl").splitlines()]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["loss"] < 0.6
    assert rows[-1]["accuracy"] == 1.0
    assert rows[-1]["margin"] > rows[0]["margin"]
    assert made.steps == 9
    assert {"chosen_log_prob", "rejected_log_prob"} <= rows[0].keys()


def test_it_starts_at_log_two_in_bf16_too(bench):
    made = run(bench, precision="bf16", epochs=1).artifact
    rows = [json.loads(line) for line in bench.read(made, "metrics.jsonl").splitlines()]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=2e-2)


def test_a_resumed_run_writes_the_same_bytes(make_bench, killed):
    undisturbed = run(make_bench("a", save_every=4))
    broken = make_bench("b", save_every=4)
    killed(4)
    with pytest.raises(KeyboardInterrupt):
        run(broken)
    resumed = run(broken)
    assert resumed.record.resumed_from == "step 4"
    assert resumed.artifact.digest == undisturbed.artifact.digest


@pytest.fixture
def passed(monkeypatch):
    """Rows that went through the reference, whichever attempt asked."""
    rows = []
    log_probs = module.row_log_probs

    def counted(model, asked, **options):
        rows.extend(asked)
        return log_probs(model, asked, **options)

    monkeypatch.setattr(module, "row_log_probs", counted)
    return rows


def test_a_resumed_training_does_not_ask_the_reference_again(make_bench, killed, passed):
    undisturbed = run(make_bench("a", save_every=4))
    pairs = len(passed) // 2
    broken = make_bench("b", save_every=4)
    killed(4)
    with pytest.raises(KeyboardInterrupt):
        run(broken)
    passed.clear()
    resumed = run(broken)
    assert passed == []
    assert resumed.record.notes["reference_pairs_reused"] == pairs
    assert resumed.artifact.digest == undisturbed.artifact.digest
    # Kept for the attempts at this artifact only: what is finished has no work left over.
    assert not [name for name in broken.session.store.walk("_progress") if "/references/" in name]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_reference_pass_goes_on_where_it_was_killed(make_bench, monkeypatch, passed, damaged):
    undisturbed = run(make_bench("a"))
    pairs = len(passed) // 2
    monkeypatch.setattr(module, "PART_PAIRS", 4)
    broken, parts = make_bench("b"), []
    keep = module.keep_references

    def keep_two(ws, start, values):
        keep(ws, start, values)
        parts.append(ws.address(f"references/{start:010d}", "work"))
        if len(parts) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "keep_references", keep_two)
    with pytest.raises(KeyboardInterrupt):
        run(broken)
    store = broken.session.store
    if damaged:
        content = store.read(parts[1])
        store.write(parts[1], content[:-1] + bytes([content[-1] ^ 1]))
    passed.clear()
    resumed = run(broken)
    known = 4 if damaged else 8
    assert len(passed) == 2 * (pairs - known) > 0
    assert resumed.artifact.digest == undisturbed.artifact.digest
    warned = [event.text for event in broken.events if isinstance(event, Warned)]
    assert [("from pair 4 on are damaged" in text) for text in warned] == [True] * damaged


def test_released_pairs_train_it_and_no_judge_runs(bench, tmp_path):
    rows = [
        {
            "id": f"p{i}",
            "prompt": f"Name {i} rivers.",
            "chosen": [user(f"Name {i} rivers."), assistant("Elbe, Rhine.")],
            "rejected": [user(f"Name {i} rivers."), assistant("No.")],
        }
        for i in range(200)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = bench.run(build_pairs, config=PairsConfig(rows=RowSource(paths=(str(path),))).pinned())
    assert pairs.pairs == 200
    config = DPOConfig(learning_rate=1e-3, batch_size=40, max_tokens=64, precision="fp32")
    made = bench.run(train_dpo, policy=bench.base(), pairs=pairs, config=config)
    log = [json.loads(line) for line in bench.read(made, "metrics.jsonl").splitlines()]
    assert made.steps == 5
    assert log[-1]["margin"] > 0.1
