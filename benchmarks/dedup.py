"""Deduplication: what MinHash finds against brute force, and a million short documents in bounded memory, next to datasketch
and datatrove.

Run alone: `python benchmarks/dedup.py [--documents 1000000] [--peer-python PATH]`; peers get an environment of their own
(.venv-dedup), made when missing.

* Quality: 8,000 documents of 60 to 200 words, of which one in ten is a copy changed to a Jaccard similarity (of
  5-grams) of 0.6 to 0.95, and one in twenty one of 0.3 to 0.55, which is to stay. Truth is every pair at 0.6 or more,
  by brute force over all pairs that share an n-gram. A pair is found when both are in one cluster. At the published 14
  bands of 8 rows and at 25 of 5, with the recall that theory expects of a pair by itself.
* Scale: the `dedup` stage (exact, then MinHash) over short documents in shards of 16 MB, one process with one thread doing
  the work of all shards: its peak memory is that of the largest shard or partition. Peers run on a part of the documents; rates
  are per second of processor time. The limit is the rate of the bare loop over permutations in cache.
* Paragraphs and n-grams: the same over a fifth of the documents, twenty to one, as its paragraphs.

Each contestant is a process of its own. The last line is one JSON object.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from peers.environment import peer_python

PEERS = ("datasketch==2.0.0", "datatrove==0.10.1", "spacy", "regex", "nltk", "xxhash<4", "tokenizers", "orjson")
SETTINGS = ((14, 8), (25, 5))
NGRAM = 5
BINS = (0.6, 0.7, 0.8, 0.9, 1.01)
WANTED = 0.6
PEER_DOCUMENTS = 20_000


def spelt(number: int) -> str:
    """A number in letters: datatrove takes all digits for the same."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def word(rng: random.Random) -> str:
    """A word of a vocabulary of 50,000 whose frequencies fall like those of a language."""
    return spelt(int(50_000 ** rng.random()))


def changed(words: list[str], rng: random.Random) -> list[str]:
    """A copy with some words replaced and some added at the end."""
    copy = list(words)
    for place in rng.sample(range(len(copy)), rng.randrange(len(copy) // 12)):
        copy[place] = word(rng)
    return copy + [word(rng) for _ in range(rng.randrange(8))]


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[place : place + NGRAM]) for place in range(len(words) - NGRAM + 1)}


def similarity(one: set[Any], two: set[Any]) -> float:
    return len(one & two) / len(one | two)


def quality_corpus(documents: int) -> list[list[str]]:
    """Texts as words; planted copies are shuffled in."""
    rng = random.Random(0)
    near, far = documents // 10, documents // 20
    texts = [[word(rng) for _ in range(rng.randrange(60, 200))] for _ in range(documents - near - far)]
    originals = rng.sample(texts, near + far)
    for number, original in enumerate(originals):
        low, high = (0.6, 0.95) if number < near else (0.3, 0.55)
        copy = changed(original, rng)
        while not low <= similarity(shingles(original), shingles(copy)) <= high:
            copy = changed(copy if similarity(shingles(original), shingles(copy)) > high else original, rng)
        texts.append(copy)
    rng.shuffle(texts)
    return texts


def brute_force(texts: list[list[str]]) -> dict[tuple[int, int], float]:
    """Similarity of every pair that shares an n-gram."""
    sets = [shingles(text) for text in texts]
    having: dict[Any, list[int]] = defaultdict(list)
    for number, grams in enumerate(sets):
        for gram in grams:
            having[gram].append(number)
    pairs = {(one, two) for group in having.values() for at, two in enumerate(group) for one in group[:at]}
    return {pair: similarity(sets[pair[0]], sets[pair[1]]) for pair in pairs}


def judge(kept: dict[str, str], truth: dict[tuple[int, int], float], bands: int, rows: int) -> dict[str, Any]:
    """Precision and recall of clusters as pairs, against all pairs at the wanted similarity."""
    clusters: dict[str, list[int]] = defaultdict(list)
    for id, first in kept.items():
        clusters[first].append(int(id))
    members = [sorted([int(first), *ids]) for first, ids in clusters.items()]
    found = {(one, two) for ids in members for at, two in enumerate(ids) for one in ids[:at]}
    wanted = {pair: value for pair, value in truth.items() if value >= WANTED}
    by_bin = {}
    for low, high in pairwise(BINS):
        inside = [pair for pair, value in wanted.items() if low <= value < high]
        theory = sum(1 - (1 - wanted[pair] ** rows) ** bands for pair in inside) / max(1, len(inside))
        share = sum(pair in found for pair in inside) / max(1, len(inside))
        by_bin[f"{low}-{min(high, 1.0)}"] = {
            "pairs": len(inside),
            "recall": round(share, 3),
            "theory": round(theory, 3),
        }
    return {
        "precision": round(len(found & wanted.keys()) / max(1, len(found)), 4),
        "recall": round(len(found & wanted.keys()) / len(wanted), 4),
        "pairs": len(wanted),
        "recall_by_similarity": by_bin,
    }


def write_lines(path: Path, texts: Any) -> None:
    with path.open("w") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")


def short_texts(documents: int) -> Any:
    """Documents of 20 to 80 words; one in ten a copy of an earlier one with one word changed, one in fifty an exact one."""
    rng = random.Random(1)
    pool = [word(rng) for _ in range(1_000_003)]
    recent: list[list[str]] = []
    for number in range(documents):
        start, size = rng.randrange(1_000_000 - 80), rng.randrange(20, 81)
        words = pool[start : start + size : 1]
        words[rng.randrange(size)] = f"x{spelt(number)}"
        words[0] = f"y{spelt(number)}"
        rng.shuffle(words)
        if number % 10 == 9:
            words = list(rng.choice(recent))
            words[rng.randrange(len(words))] = f"z{spelt(number)}"
        elif number % 50 == 48:
            words = rng.choice(recent)
        recent = [*recent[-999:], words]
        yield " ".join(words)


def run_stage_alone(file: str, config: dict[str, Any], shard_bytes: int, out: str) -> dict[str, Any]:
    """Collect a file and deduplicate it, in this process; time and peak memory of the second."""
    from infra.execution.attempt import run_stage
    from infra.records.reader import Reader
    from infra.session import Session
    from infra.settings import Execution
    from infra.storage.store import Store
    from tasks.data.collect import collect
    from tasks.data.dedup import DedupConfig, dedup
    from tasks.data.sources.local import LocalSource

    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        session = Session(store, Execution(store=folder, ray="off"))
        source = LocalSource(name="web", paths=(file,), shard_bytes=shard_bytes, max_bad_fraction=0.5).pinned()
        documents: Any = run_stage(collect, session, collect.bind(source), lambda event: None).artifact
        # What collecting needed is not what deduplication needs: reset the peak (Linux).
        Path("/proc/self/clear_refs").write_text("5")
        before, began = time.process_time(), time.monotonic()
        call = dedup.bind([documents], DedupConfig.model_validate(config))
        made = run_stage(dedup, session, call, lambda event: None)
        unique: Any = made.artifact
        seconds = time.process_time() - before
        reader = Reader(store)
        dropped = reader.files(unique, "dropped/") if out else []
        rows = [row for name in dropped for row in reader.read_jsonl(unique, name)]
        if out:
            Path(out).write_text(json.dumps({row["id"]: row["duplicate_of"] for row in rows}))
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return {
            "cpu_seconds": round(seconds, 3),
            "wall_seconds": round(time.monotonic() - began, 1),
            "peak_mb": round(int(peak.split()[1]) / 1024),
            "documents": documents.documents,
            "shards": len(reader.files(documents, "documents/")),
            "megabytes": round(documents.bytes / 1e6, 1),
            "dropped": unique.dropped,
            "clusters": reader.read_json(unique, "clusters.json"),
            "seconds_by_pass": {key.removesuffix("_seconds"): value for key, value in made.record.notes.items()},
        }


def bare_loop(ngrams_per_document: float, places: int) -> float:
    """Documents per second if only the permutations' arithmetic were done, on hashes that stay in cache."""
    import numpy as np

    hashes = np.random.default_rng(0).integers(0, 1 << 64, size=1 << 15, dtype=np.uint64)
    values, shifted, firsts = np.empty_like(hashes), np.empty_like(hashes), np.arange(0, 1 << 15, 50)
    best = float("inf")
    with np.errstate(over="ignore"):
        for _ in range(300):
            start = time.process_time()
            np.multiply(hashes, np.uint64(0x9E3779B97F4A7C15), out=values)
            np.add(values, np.uint64(12345), out=values)
            np.right_shift(values, np.uint64(29), out=shifted)
            np.bitwise_xor(values, shifted, out=values)
            np.minimum.reduceat(values, firsts)
            best = min(best, time.process_time() - start)
    return 1 / (best / len(hashes) * places * ngrams_per_document)


def run(command: list[str]) -> dict[str, Any]:
    """Run one contestant in a fresh process with one thread and read its last line."""
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def ours(file: Path, config: dict[str, Any], out: Path | str = "", shard_bytes: int = 16_000_000) -> dict[str, Any]:
    return run([sys.executable, __file__, "--stage", json.dumps([str(file), config, shard_bytes, str(out)])])


def peer(python: str, who: str, file: Path, bands: int, rows: int, out: Path) -> dict[str, Any]:
    script = Path(__file__).parent / "peers/near_duplicates.py"
    return run([python, str(script), who, str(file), str(bands), str(rows), str(NGRAM), str(out)])


def quality(folder: Path, python: str) -> list[dict[str, Any]]:
    """One row per contestant and setting."""
    texts = quality_corpus(8_000)
    file, out = folder / "quality.jsonl", folder / "kept.json"
    write_lines(file, map(" ".join, texts))
    truth = brute_force(texts)
    table = []
    for bands, rows in SETTINGS:
        for who in ("ours", "datasketch", "datatrove"):
            near = {"ngram": NGRAM, "bands": bands, "rows": rows}
            spent = ours(file, {"near": near}, out) if who == "ours" else peer(python, who, file, bands, rows, out)
            found = judge(json.loads(out.read_text()), truth, bands, rows)
            table.append(
                {"who": who, "bands": bands, "rows": rows, **found, "cpu_seconds": round(spent["cpu_seconds"], 1)}
            )
            show(table[-1])
    return table


def scale(folder: Path, python: str, documents: int) -> dict[str, Any]:
    """Ours on all documents; rates of ours and of the peers."""
    file, part, out = folder / "short.jsonl", folder / "part.jsonl", folder / "kept.json"
    write_lines(file, short_texts(documents))
    write_lines(part, short_texts(min(documents, PEER_DOCUMENTS)))
    exact, near = ours(file, {}), ours(file, {"near": {}})
    # 47 n-grams of five words in a document of 20 to 80 words, on average.
    limit = bare_loop(46, 14 * 8)
    result: dict[str, Any] = {"exact": exact, "near": near, "limit_documents_per_cpu_second": round(limit)}
    result["rate"] = round(near["documents"] / near["cpu_seconds"])
    result["limit_share"] = round(result["rate"] / limit, 3)
    show(result)
    for who in ("datasketch", "datatrove"):
        spent = peer(python, who, part, 14, 8, out)
        rate = min(documents, PEER_DOCUMENTS) / spent["cpu_seconds"]
        result[who] = {
            "rate": round(rate),
            "peak_mb": round(spent["peak_mb"]),
            "ratio": round(result["rate"] / rate, 1),
        }
        show({who: result[who]})
    return result


def within(folder: Path, documents: int) -> dict[str, Any]:
    """Paragraph and n-gram deduplication of longer documents, each of twenty short ones as paragraphs."""
    file = folder / "long.jsonl"
    texts = list(short_texts(documents))
    write_lines(file, ("\n".join(texts[start : start + 20]) for start in range(0, len(texts), 20)))
    result = {}
    for kind in ("paragraphs", "ngrams"):
        spent = ours(file, {"within": {"kind": kind}})
        result[kind] = {**spent, "megabytes_per_cpu_second": round(spent["megabytes"] / spent["cpu_seconds"], 1)}
        show({kind: result[kind]})
    return result


def show(row: dict[str, Any]) -> None:
    print(json.dumps(row), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--peer-python", help="Python of an environment with datasketch and datatrove")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(run_stage_alone(*json.loads(options.stage))))
        return
    python = peer_python("dedup", PEERS, options.peer_python)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = {
            "within": within(folder, options.documents // 5),
            "scale": scale(folder, python, options.documents),
            "quality": quality(folder, python),
        }
    result["ratio"] = min(result["scale"][who]["ratio"] for who in ("datasketch", "datatrove"))
    result["peak_mb"] = result["scale"]["near"]["peak_mb"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
