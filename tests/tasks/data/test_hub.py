"""Datasets in the hub's layouts. Oracles: rows counted by hand, and a server that counts what it is asked."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data.collect import collect
from tasks.data.sources.files.hub_listing import Listing, choose_files, configs_of
from tasks.data.sources.hub import HubSource
from tests.hub_server import CountingHub


def card(folder: Path, *subsets: str) -> None:
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: data/{name}/**\n" for name in subsets
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\nlicense: mit\nconfigs:\n{configs}---\n# About\n")


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_files_of_two_converters_stand_in_one_subset(bench, tmp_path):
    folder = tmp_path / "two"
    card(folder, "math", "web")
    one = [
        {"id": f"a{i}", "text": f"one {i}", "metadata": {"url": "https://a.example", "score": 0.5}} for i in range(70)
    ]
    two = [
        {"id": f"b{i}", "text": f"two {i}", "added": "2024-08-01", "metadata": {"steps": [1, 2]}} for i in range(200)
    ]
    write(folder / "data/math/one/a.jsonl.gz", one)
    write(folder / "data/math/two/b.jsonl", two)
    write(folder / "data/web/c.jsonl", [{"text": "other subset"}])
    made = bench.run(collect, HubSource(name="web", path=str(folder), subset="math").pinned())
    rows = bench.rows(made, "documents/")
    assert (made.documents, made.dropped) == (270, {})
    assert rows[0]["metadata"] == {"url": "https://a.example", "score": 0.5}
    assert (rows[-1]["metadata"], rows[-1]["added"]) == ({"steps": [1, 2]}, "2024-08-01")
    with pytest.raises(ValueError, match=r"no subset 'code'; it has math, web"):
        HubSource(name="web", path=str(folder), subset="code").pinned()
    with pytest.raises(ValueError, match=r"several subsets; give one as `subset`: math, web"):
        HubSource(name="web", path=str(folder)).pinned()
    with pytest.raises(ValueError, match=r"no split 'test'; it has train"):
        HubSource(name="web", path=str(folder), subset="math", split="test").pinned()


CHANGES = {
    "new key": ({"k": 1}, {"k": 1, "later": 2}, {}),
    "null to text": ({"k": None}, {"k": "x"}, {}),
    "number to text": ({"k": 7}, {"k": "7"}, {}),
    "text to list": ({"k": "x"}, {"k": ["x", 1]}, {}),
    "object to text": ({"k": {"a": 1}}, {"k": "x"}, {}),
    "new column": ({"k": 1}, {"k": 1}, {"extra": 1}),
    "metadata to text": ({"k": 1}, '{"k": 2}', {}),
    "metadata to nothing": ({"k": 1}, None, {}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_rows_may_change_their_shape_within_a_file(bench, tmp_path, change):
    early, late, extra = CHANGES[change]
    card(tmp_path / "set", "web")
    filler = "words " * 20
    rows = [{"text": f"{filler}{i}", "metadata": early} for i in range(2000)]
    rows += [{"text": f"{filler}{i}", "metadata": late, **extra} for i in range(100)]
    write(tmp_path / "set/data/web/a.jsonl", rows)
    made = bench.run(collect, HubSource(name="web", path=str(tmp_path / "set"), subset="web").pinned())
    assert (made.documents, made.dropped) == (2100, {})
    last = bench.rows(made, "documents/")[-1]["metadata"]
    assert last == {**extra, **(json.loads(late) if isinstance(late, str) else late or {})}


def test_shards_of_a_table_may_have_other_columns(bench, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a", "b"]}), folder / "train-00000.parquet")
    pq.write_table(pa.table({"text": ["c"], "quality": [0.5]}), folder / "train-00001.parquet")
    pq.write_table(pa.table({"text": ["d"], "quality": ["high"]}), folder / "train-00002.PARQUET")
    with pa.ipc.new_stream(folder / "train-00003.arrow", pa.schema({"text": pa.large_string()})) as writer:
        writer.write_table(pa.table({"text": pa.array(["e", "f"], pa.large_string())}))
    made = bench.run(collect, HubSource(name="web", path=str(folder)).pinned())
    assert [(row["text"], row["metadata"].get("quality")) for row in bench.rows(made, "documents/")] == [
        ("a", None), ("b", None), ("c", 0.5), ("d", "high"), ("e", None), ("f", None)
    ]  # fmt: skip


def test_files_that_are_excluded_are_not_read_and_others_are_named(bench, tmp_path):
    folder = tmp_path / "set"
    card(folder, "math")
    write(folder / "data/math/train/a.jsonl", [{"text": "good"}])
    write(folder / "data/math/test/b.jsonl", [{"text": "held out"}])
    (folder / "data/math/notes.docx").write_bytes(b"x")
    source = HubSource(name="web", path=str(folder), subset="math", exclude=("**/test/**",))
    with pytest.raises(ValueError, match=r"no reader knows: data/math/notes\.docx.*\*\.docx"):
        source.pinned()
    made = bench.run(collect, source.model_copy(update={"exclude": ("**/test/**", "*.docx")}).pinned())
    assert [row["text"] for row in bench.rows(made, "documents/")] == ["good"]


def test_splits_follow_the_names_of_files_where_a_readme_says_nothing():
    names = (
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
    )
    listing = Listing(dict.fromkeys(("README.md", ".gitattributes", *names), 1), configs_of("# no head\n"))
    assert choose_files(listing, "", "train", ()) == list(names[:2])
    assert choose_files(listing, "", "test", ()) == [names[2]]
    assert choose_files(listing, "", "train", ("data/test*",)) == [names[2]]


READ = """
import json, sys
from pathlib import Path
from tasks.data.collect import collect
from tasks.data.sources.rows import RowSource, read_rows
from tasks.data.sources.hub import HubSource
from tests.tasks.data.conftest import Bench
bench = Bench(Path(sys.argv[1]))
config = HubSource(name="web", path=sys.argv[2], subset="dclm", shard_bytes=20_000).pinned()
made = bench.run(collect, config)
rows = list(read_rows(RowSource(dataset=sys.argv[2], subset="dclm", limit=30).pinned()))
print(json.dumps([made.documents, config.revision, bench.rows(made, "documents/")[0]["id"], len(rows), rows[-1][0]]))
"""


def test_a_dataset_is_listed_once_and_each_file_asked_for_once(tmp_path):
    with CountingHub(1100) as hub:
        environment = {
            "HF_ENDPOINT": hub.url,
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "HF_HOME": str(tmp_path / "hf"),
        }
        run = subprocess.run(
            [sys.executable, "-c", READ, str(tmp_path), hub.dataset],
            env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        counts = dict(hub.counts)
    documents, revision, first, rows, place = json.loads(run.stdout.splitlines()[-1])
    assert (documents, revision, first, rows) == (22_000, "a" * 40, "000000-0", 30)
    assert place == f"hf://datasets/{hub.dataset}@{revision}/data/dclm/0000/dclm-00001.json.gz:10"
    # Pinned twice (documents, rows), listed once in two pages, read once, and two files again for the rows.
    assert counts == {"info": 2, "tree": 2, "README": 1, "file": 1102}
