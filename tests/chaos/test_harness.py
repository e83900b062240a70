"""Accidents by one seed lose, change and double no artifact. OLMO2_CHAOS=300 (and OLMO2_CHAOS_SEED) for more."""

import json
import os
from pathlib import Path

import pytest

from tests.chaos.drivers import quicken
from tests.chaos.harness import Chaos
from tests.chaos.services import Services

COUNT, SEED = int(os.environ.get("OLMO2_CHAOS", "30")), int(os.environ.get("OLMO2_CHAOS_SEED", "0"))


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(120 + 20 * COUNT)
def test_accidents_lose_nothing_change_nothing_and_commit_nothing_twice(tmp_path: Path):
    """Oracle: digests of a calm run, hashes of all files, one record for each piece of work."""
    quicken()
    with Services(tmp_path) as services:
        chaos = Chaos(tmp_path, SEED, services)
        chaos.run(COUNT)
    assert chaos.problems == [], json.dumps(chaos.problems, indent=1)
    assert sum(chaos.done.values()) == COUNT
    assert chaos.reached["stage's process"] > 0, "a stage's process was killed"
    assert chaos.reached.total() > chaos.missed.total(), f"met {chaos.reached}, not met {chaos.missed}"
    assert chaos.faults.total() > 0, "object storage failed at some request"
    assert len(chaos.met) >= 3, "accidents met the pipeline at different places"
