"""Energy counters. Oracle: the kernel's powercap layout, written by hand."""

from pathlib import Path

from infra.execution.energy import joules_between, read_joules


def package(root: Path, name: str, counter: int, limit: int = 1_000_000_000) -> None:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(str(counter))
    (folder / "max_energy_range_uj").write_text(str(limit))


def test_packages_are_summed_and_parts_of_them_left_out(tmp_path: Path):
    package(tmp_path, "intel-rapl:0", 5_000_000)
    package(tmp_path, "intel-rapl:1", 1_000_000)
    package(tmp_path, "intel-rapl:0:0", 900_000)
    before = read_joules(tmp_path)
    package(tmp_path, "intel-rapl:0", 8_000_000)
    package(tmp_path, "intel-rapl:1", 1_500_000)
    assert joules_between(before, read_joules(tmp_path)) == 3.5


def test_a_counter_that_wrapped_is_counted_on(tmp_path: Path):
    package(tmp_path, "intel-rapl:0", 9_000_000, limit=10_000_000)
    before = read_joules(tmp_path)
    package(tmp_path, "intel-rapl:0", 1_000_000, limit=10_000_000)
    assert joules_between(before, read_joules(tmp_path)) == 2.0


def test_no_counter_is_no_figure(tmp_path: Path):
    assert joules_between(read_joules(tmp_path), read_joules(tmp_path)) is None
