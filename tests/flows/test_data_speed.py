"""`olmo2 data bench`: what is measured on a sample and projected. Oracle: the bytes of the files."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.inspection.data_speed import sample_of
from tasks.data.sources.files.listing import SourceFile


def recipe(folder: Path) -> tuple[Path, int]:
    """A recipe on ten files of the same length, and the bytes of their texts."""
    (folder / "in").mkdir()
    texts = 0
    for number in range(10):
        rows = [
            {"id": f"{number}-{row}", "text": f"Row {row:04d} of file {number} has a text of its own."}
            for row in range(300)
        ]
        texts += sum(len(row["text"]) for row in rows)
        (folder / "in" / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "own.yaml"
    path.write_text(
        f"extends: smoke\ncollect:\n  web: {{kind: local, name: web, paths: [{folder}/in]}}\n"
        "classifiers: {quality: null}\nfilter: {web: {rules: [{kind: length, min_chars: 1}]}}\n"
    )
    return path, texts


def test_a_sample_is_projected_to_the_whole_source(tmp_path: Path):
    path, texts = recipe(tmp_path)
    words = ["data", "bench", str(path), "--source", "web", "--megabytes", "0.1", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    (speed,) = json.loads(result.output)
    assert (speed["files"], speed["sample_files"]) == (10, 5)
    assert speed["listed_bytes"] == sum(file.stat().st_size for file in (tmp_path / "in").iterdir())
    assert speed["whole_text_bytes"] == pytest.approx(texts, rel=0.01)
    assert set(speed["mb_per_second_per_core"]) == {"collect", "score", "filter", "dedup", "encode"}
    seconds = sum(speed["text_bytes"] / 1e6 / value for value in speed["mb_per_second_per_core"].values())
    assert speed["whole_core_hours"] == pytest.approx(seconds * speed["whole_text_bytes"] / speed["text_bytes"] / 3600)
    shown = CliRunner().invoke(
        app, ["data", "bench", str(path), "--source", "web", "--megabytes", "0.1", "--cores", "10"]
    )
    assert "core-hours" in shown.output and "hours on 10 cores" in shown.output
    wrong = CliRunner().invoke(app, ["data", "bench", str(path), "--source", "nothing"])
    assert wrong.exit_code != 0


def files(*sizes: int) -> list[SourceFile]:
    return [SourceFile(root="r", name=f"{number}", size=size) for number, size in enumerate(sizes)]


def test_a_sample_takes_large_files_only_where_there_are_no_others():
    assert [file.size for file in sample_of(files(0, 10**9, 10**8), 1e6, 0)] == [10**8]
    assert {file.size for file in sample_of(files(0, 10**9, 500_000, 600_000), 1e6, 0)} == {500_000, 600_000}
    with pytest.raises(ValueError, match="all 2 files of the source are empty"):
        sample_of(files(0, 0), 1e6, 0)
