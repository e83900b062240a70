"""datasketch's and datatrove's side of benchmarks/dedup.py, run by the Python of an environment with both.

`python near_duplicates.py WHO FILE BANDS ROWS NGRAM OUT`: reads JSON lines, writes to OUT a JSON object of id -> id of the
first document of its cluster, for documents that are not the first, and prints CPU seconds and peak memory. datasketch is used as
its manual has it, MinHash per document and MinHashLSH, with candidates joined to components; datatrove runs its four
steps, one task each.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

Kept = dict[str, str]


def read(file: str) -> Iterator[dict[str, str]]:
    with open(file) as lines:
        yield from map(json.loads, lines)


def datasketch(file: str, bands: int, rows: int, ngram: int) -> Kept:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=bands * rows, params=(bands, rows))
    parents: Kept = {}

    def root(id: str) -> str:
        while parents[id] != id:
            parents[id] = parents[parents[id]]
            id = parents[id]
        return id

    for row in read(file):
        words = row["text"].split()
        sketch = MinHash(num_perm=bands * rows, seed=1)
        sketch.update_batch([" ".join(words[p : p + ngram]).encode() for p in range(max(1, len(words) - ngram + 1))])
        parents[row["id"]] = row["id"]
        for other in index.query(sketch):
            one, two = sorted((root(row["id"]), root(str(other))), key=int)
            parents[two] = one
        index.insert(row["id"], sketch)
    return {id: root(id) for id in parents if root(id) != id}


def datatrove(file: str, bands: int, rows: int, ngram: int) -> Kept:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config = MinhashConfig(n_grams=ngram, num_buckets=bands, hashes_per_bucket=rows)
    folder = Path(tempfile.mkdtemp())
    source, name = str(Path(file).parent), Path(file).name

    def reader() -> JsonlReader:
        return JsonlReader(source, glob_pattern=name, doc_progress=False)

    steps = [
        ([reader(), MinhashDedupSignature(str(folder / "signatures"), config)], 1),
        ([MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=config)], bands),
        (
            [MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config=config, save_cluster_id=True)],
            1,
        ),
        (
            [
                reader(),
                MinhashDedupFilter(
                    str(folder / "remove"),
                    exclusion_writer=JsonlWriter(str(folder / "dropped"), compression=None),
                    load_cluster_ids=True,
                ),
                JsonlWriter(str(folder / "kept"), compression=None),
            ],
            1,
        ),
    ]
    for number, (pipeline, tasks) in enumerate(steps):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(folder / f"logs{number}")).run()
    clusters: dict[int, list[str]] = {}
    for part in ("kept", "dropped"):
        for path in (folder / part).glob("*.jsonl"):
            for row in read(str(path)):
                if (cluster := row["metadata"].get("minhash_cluster_id", -1)) != -1:
                    clusters.setdefault(cluster, []).append(row["id"])
    firsts = [(min(ids, key=int), ids) for ids in clusters.values()]
    return {id: first for first, ids in firsts for id in ids if id != first}


def main(who: str, file: str, bands: str, rows: str, ngram: str, out: str) -> None:
    run = {"datasketch": datasketch, "datatrove": datatrove}[who]
    start = time.process_time()
    kept = run(file, int(bands), int(rows), int(ngram))
    seconds = time.process_time() - start
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    Path(out).write_text(json.dumps(kept))
    peak = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, children.ru_maxrss)
    print(json.dumps({"cpu_seconds": seconds + children.ru_utime + children.ru_stime, "peak_mb": peak / 1024}))


if __name__ == "__main__":
    main(*sys.argv[1:])
