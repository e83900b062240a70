"""The calls of ours between `olmo2 run` and the loss of pre-training, counted on the stacks of a real run."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST = 12
"""More of them pass things on that could be handed over directly; docs/architecture.md names each."""


def counting() -> ModuleType:
    """`benchmarks/house.py`, which is a script and not part of a package."""
    spec = importlib.util.spec_from_file_location("house", ROOT / "benchmarks/house.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_way_from_the_command_to_the_loss_stays_short():
    frames = counting().calls_to_loss(ROOT)
    names = [frame.split(":")[1] for frame in frames]
    assert names[0] == "run_command" and names[-1] == "objective", "the whole way was seen"
    assert len(frames) <= MOST, f"{len(frames)} calls: {', '.join(frames)}"
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    missing = [name for name in names if f"`{name}`" not in page and f".{name}`" not in page]
    assert not missing, f"docs/architecture.md names every call, but not {missing}"
