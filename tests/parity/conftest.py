"""One table of all comparisons, printed at the end of the run, and the environment of OLMo-core."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Row:
    """The worst of all comparisons of one thing with one peer."""

    worst: float
    bound: float
    where: str
    comparisons: int


Check = Callable[[str, str, str, float, float], None]
"""(what, peer, where, relative difference, bound): records the comparison; raises AssertionError beyond the bound."""

rows = pytest.StashKey[dict[tuple[str, str], Row]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[rows] = {}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are tiny: on a busy machine more threads wait for each other many times longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Check:
    table = request.config.stash[rows]

    def record(what: str, peer: str, where: str, value: float, bound: float) -> None:
        known = table.get((what, peer))
        count = 1 + (known.comparisons if known else 0)
        if known is None or not value <= known.worst:
            known = Row(value, bound, where, count)
        known.comparisons = count
        table[what, peer] = known
        assert value <= bound, f"{what} against {peer} ({where}): relative difference {value:.2e}, bound {bound:.0e}"

    return record


@pytest.fixture(scope="session")
def core_python() -> Path:
    """Python of an environment with OLMo-core; a missing one is an error, because who asks for parity wants the answer."""
    path = Path(os.environ.get("OLMO_CORE_PYTHON") or ROOT / ".venv-olmo-core/bin/python")
    if not path.is_file():
        pytest.fail(
            f"{path} does not exist; `make parity` makes an environment with OLMo-core, or set OLMO_CORE_PYTHON to the "
            "Python of one that has ai2-olmo-core 3.0.0",
            pytrace=False,
        )
    return path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.stash[rows]:
        return
    terminalreporter.section("parity")
    head = ("what", "peer", "worst relative difference", "bound", "ok", "comparisons", "worst at")
    lines = [
        (
            what,
            peer,
            f"{r.worst:.2e}",
            f"{r.bound:.0e}",
            "yes" if r.worst <= r.bound else "NO",
            str(r.comparisons),
            r.where,
        )
        for (what, peer), r in config.stash[rows].items()
    ]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    for line in [head, tuple("-" * width for width in widths), *lines]:
        terminalreporter.write_line(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
