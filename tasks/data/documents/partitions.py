"""Grouping the records of many shards by key, out of core: what deduplication and the check for repeated ids share.

A shard spills its records in pieces of bounded size, each sorted into buckets by the first bits of the key, with the
buckets' offsets in front. A partition is a run of buckets: reading it takes one range of every piece, so that the work of
a partition fits memory whatever the corpus. What a partition finds is written by shard in the same layout, so that a shard
reads its own part of it. The files live next to the shards' commits and go with them when the stage commits.

`execution.shuffle_bytes` bounds the memory of a piece and of a partition, so it decides how many there are. Nothing of a
result depends on it. The steps over partitions name how many there are: an attempt with another setting runs them again.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypedDict

import numpy as np
import orjson

from infra.workspace import ShardItem, ShardResult, Workspace

BUCKETS = 1 << 12
"""Buckets of a piece: the most partitions that there can be."""
RECORD_BYTES = 160
"""Memory of a record while a partition is sorted, compared and written: at most so much of any kind (tests measure it)."""
PIECE_BYTES = 256
"""Memory of a record that a shard holds until it spills them, while the piece is sorted and written."""

KEYED = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u4"), ("count", "<u4")])
"""A key of 128 bits, the first row of the piece that has it, and how many rows of the piece have it."""
REPEAT = np.dtype([("shard", "<u4"), ("row", "<u4"), ("kept_shard", "<u4"), ("kept_row", "<u4")])
"""A row whose key was seen before, and the first row that has it."""

_LARGEST = 20
_READ_AT_ONCE = 64


def put_work(ws: Workspace, name: str, data: bytes) -> None:
    """Write a file that later shards of this attempt or of the next one read."""
    ws.store.write(ws.address(name, "work"), data)


def read_work(ws: Workspace, name: str) -> bytes:
    """Such a file."""
    return ws.store.read(ws.address(name, "work"))


def _read_ranges(ws: Workspace, names: Sequence[str], ranges: Iterable[tuple[int, int]]) -> list[bytes]:
    """A range of bytes of each of these files."""
    wanted = [(ws.address(name, "work"), *pair) for name, pair in zip(names, ranges, strict=True)]
    return ws.store.read_ranges(wanted)


def write_groups(ws: Workspace, name: str, records: np.ndarray, group: np.ndarray, groups: int) -> None:
    """Records by their group, in the order they come within one, behind an offset per group and one for the end."""
    # Stable: records of a group keep the order of their rows.
    order = np.argsort(group, kind="stable")
    offsets = np.searchsorted(group[order], np.arange(groups + 1)).astype("<u8")
    put_work(ws, name, offsets.tobytes() + records[order].tobytes())


class GroupWriter:
    """Writes records that come group by group, without holding them: the layout of `write_groups`."""

    def __init__(self, ws: Workspace, name: str, groups: int):
        self._ws = ws
        self._name = name
        self._sizes = np.zeros(groups + 1, dtype="<u8")
        self._path = ws.scratch / name.replace("/", "__")
        self._file = self._path.open("w+b")
        # A place for the offsets, which are known only at the end.
        self._file.write(self._sizes.tobytes())

    def append(self, group: int, records: np.ndarray) -> None:
        """Records of a group, which is not before the one of the last call."""
        self._file.write(records.tobytes())
        self._sizes[group + 1] += len(records)

    def close(self) -> None:
        """Put the file into the work area."""
        self._file.seek(0)
        # Sizes become offsets: group g lies between the sums up to g and up to g + 1.
        self._file.write(np.cumsum(self._sizes, dtype="<u8").tobytes())
        self._file.close()
        self._ws.store.put(self._path, self._ws.address(self._name, "work"))
        self._path.unlink()


def read_groups(ws: Workspace, name: str, first: int, end: int, groups: int, dtype: np.dtype) -> np.ndarray:
    """Records of the groups from `first` up to `end`."""
    return next(read_many(ws, [name], first, end, groups, dtype))


def read_many(
    ws: Workspace, names: Sequence[str], first: int, end: int, groups: int, dtype: np.dtype
) -> Iterator[np.ndarray]:
    """The same groups of many files, one after another; a remote store is asked for a number of them at once."""
    for at in range(0, len(names), _READ_AT_ONCE):
        some = names[at : at + _READ_AT_ONCE]
        # Offsets of all files first, then their records: two rounds of requests, however many files.
        offsets = [
            np.frombuffer(data, dtype="<u8")
            for data in _read_ranges(ws, some, [(8 * first, 8 * (end + 1))] * len(some))
        ]
        data = 8 * (groups + 1)
        # Files without a record in this range are not asked again.
        full = [place for place, found in enumerate(offsets) if found[0] < found[-1]]
        bounds = [(int(offsets[place][0]), int(offsets[place][-1])) for place in full]
        ranges = [(data + start * dtype.itemsize, data + stop * dtype.itemsize) for start, stop in bounds]
        parts = dict(zip(full, _read_ranges(ws, [some[place] for place in full], ranges), strict=True))
        for place in range(len(some)):
            yield np.frombuffer(parts.pop(place, b""), dtype=dtype)


def group_sizes(ws: Workspace, names: Sequence[str], first: int, end: int) -> np.ndarray:
    """How many records each of these groups has in all these files."""
    sizes = np.zeros(end - first, dtype=np.int64)
    for at in range(0, len(names), _READ_AT_ONCE):
        some = names[at : at + _READ_AT_ONCE]
        for data in _read_ranges(ws, some, [(8 * first, 8 * (end + 1))] * len(some)):
            sizes += np.diff(np.frombuffer(data, dtype="<u8").astype(np.int64))
    return sizes


def bucket_of(keys: np.ndarray) -> np.ndarray:
    """Bucket of 64-bit keys: their first bits."""
    # Buckets are the first bits, so a run of buckets is a run of keys.
    return (keys >> np.uint64(64 - (BUCKETS.bit_length() - 1))).astype(np.int64)


def partitions(ws: Workspace, records: int, record_bytes: float = RECORD_BYTES) -> list[tuple[int, int]]:
    """Runs of buckets, (first, end), that each take about `execution.shuffle_bytes`, when a record takes `record_bytes`.

    There are no more than BUCKETS; a warning says so where that is not enough.
    """
    # -int(-x // y) rounds up.
    wanted = -int(-records * record_bytes // ws.compute.shuffle_bytes)
    if wanted > BUCKETS:
        each = int(records * record_bytes / BUCKETS)
        ws.warn(
            f"{records:,} records are compared in {BUCKETS:,} partitions, the most there can be, of {each:,} bytes of memory "
            f"each; execution.shuffle_bytes={ws.compute.shuffle_bytes:,} cannot be kept"
        )
    count = min(BUCKETS, max(1, wanted))
    # Borders by integer division: partitions differ by one bucket at most.
    borders = [BUCKETS * number // count for number in range(count + 1)]
    return list(pairwise(borders))


def piece_records(ws: Workspace) -> int:
    """Records that a shard holds before it spills them."""
    return max(1, ws.compute.shuffle_bytes // PIECE_BYTES)


class Spill:
    """Records of one shard, whose first field is a 64-bit key, on their way to pieces `<kind>/<shard>-<piece>`.

    `reduce` may leave out some of a piece's records before it is written.
    """

    def __init__(
        self, ws: Workspace, kind: str, shard: int, reduce: Callable[[np.ndarray], np.ndarray] = lambda records: records
    ):
        self.ws = ws
        self.kind = kind
        self.shard = shard
        self.most = piece_records(ws)
        self.pieces = 0
        self._reduce = reduce
        self.records = 0
        self._pending: list[np.ndarray] = []
        self._held = 0

    def add(self, records: np.ndarray) -> None:
        """Take records in the order of their rows."""
        self._pending.append(records)
        self._held += len(records)
        # Memory is bounded by the piece, whatever the shard holds.
        if self._held >= self.most:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a piece."""
        if not self._held:
            return
        records = self._reduce(np.concatenate(self._pending))
        assert records.dtype.names is not None
        name = piece_name(self.kind, self.shard, self.pieces)
        write_groups(self.ws, name, records, bucket_of(records[records.dtype.names[0]]), BUCKETS)
        self.pieces += 1
        self.records += len(records)
        self._pending, self._held = [], 0


def piece_name(kind: str, shard: int, piece: int) -> str:
    """Name of a spilled piece."""
    return f"{kind}/{shard:05d}-{piece:04d}.bin"


class KeySpill:
    """128-bit keys of the rows of one shard. Rows that repeat a key of their own piece are set apart at once, so that a key
    which half of the corpus has fills no partition."""

    def __init__(self, ws: Workspace, kind: str, shard: int):
        self._spill = Spill(ws, kind, shard)
        self._keys = bytearray()
        self._rows = array("I")
        self._repeats: list[np.ndarray] = []

    def add(self, key: bytes, row: int) -> None:
        """Take the 16 bytes of one row; rows come in order."""
        self._keys += key
        self._rows.append(row)
        if len(self._rows) >= self._spill.most:
            self._cut()

    def _cut(self) -> None:
        if not self._rows:
            return
        # [rows, 2]: the two halves of each 128-bit key.
        halves = np.frombuffer(bytes(self._keys), dtype="<u8").reshape(-1, 2)
        rows = np.array(self._rows, dtype="<u4")
        # lexsort takes its last key first, and is stable: equal keys stay in the order of rows.
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        halves, rows = halves[order], rows[order]
        first = first_of_equal(halves[:, 0], halves[:, 1])
        starts = np.flatnonzero(first)
        records = np.zeros(len(starts), dtype=KEYED)
        records["high"], records["low"], records["row"] = halves[first, 0], halves[first, 1], rows[first]
        # Runs of equal keys: their lengths are the differences of their starts.
        records["count"] = np.diff(np.append(starts, len(rows)))
        again = np.zeros(len(rows) - len(starts), dtype=REPEAT)
        again["shard"] = again["kept_shard"] = self._spill.shard
        # cumsum(first) - 1 is the run of each row; its start is the row that stays.
        again["row"], again["kept_row"] = rows[~first], rows[starts[np.cumsum(first) - 1]][~first]
        self._repeats.append(again)
        self._spill.add(records)
        self._spill.flush()
        self._keys, self._rows = bytearray(), array("I")

    def close(self) -> dict[str, int]:
        """Write what is left. Returns `pieces`, distinct `keys` and `repeats` inside pieces, as `find_all_repeats` wants."""
        self._cut()
        spill = self._spill
        repeats = np.concatenate(self._repeats) if self._repeats else np.zeros(0, dtype=REPEAT)
        name = f"{spill.kind}/own-{spill.shard:05d}.bin"
        write_groups(spill.ws, name, repeats, np.zeros(len(repeats), dtype=np.int64), 1)
        return {"pieces": spill.pieces, "keys": spill.records, "repeats": len(repeats)}


def first_of_equal(*keys: np.ndarray) -> np.ndarray:
    """Whether each place of sorted keys begins a run of equal ones."""
    first = np.ones(len(keys[0]), dtype=bool)
    # The first place always begins a run.
    first[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return first


def put_pieces(ws: Workspace, kind: str, pieces: list[int]) -> None:
    """Note how many pieces each shard has, once for all partitions."""
    put_work(ws, f"{kind}/pieces.json", orjson.dumps(pieces))


def read_pieces(ws: Workspace, kind: str) -> Iterator[tuple[int, str]]:
    """(shard, name) of all pieces, in order."""
    for shard, count in enumerate(orjson.loads(read_work(ws, f"{kind}/pieces.json"))):
        for piece in range(count):
            yield shard, piece_name(kind, shard, piece)


def read_partition(ws: Workspace, kind: str, first: int, end: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """All shards' records of a partition, in order of shard and row within a bucket; and the shard of each."""
    pieces = list(read_pieces(ws, kind))
    parts = list(read_many(ws, [name for _, name in pieces], first, end, BUCKETS, dtype))
    # A shard number per record: the files themselves do not hold it.
    shards = [np.full(len(part), shard, dtype="<u4") for (shard, _), part in zip(pieces, parts, strict=True)]
    # An empty array in front, since concatenate refuses an empty list.
    return np.concatenate([np.zeros(0, dtype=dtype), *parts]), np.concatenate([np.zeros(0, dtype="<u4"), *shards])


class ClusterCounts(TypedDict):
    """Groups of equal rows, of one partition or of all."""

    clusters: int
    rows: int
    """Of all groups together."""
    largest: list[int]
    """Sizes of the largest groups, descending."""


class FoundRepeats(TypedDict):
    """What a pass over all shards has found."""

    partitions: int
    """For `read_repeats` or `read_found`."""
    clusters: ClusterCounts


def find_all_repeats(ws: Workspace, kind: str, spilled: list[dict[str, int]]) -> FoundRepeats:
    """Find the repeated keys of all shards, by a map over partitions.

    Takes what `KeySpill.close` returned for every shard. Returns `partitions`, for `read_repeats`, and the `clusters` of
    equal rows: how many, with how many rows, the largest sizes.
    """
    put_pieces(ws, kind, [result["pieces"] for result in spilled])
    parts = partitions(ws, sum(result["keys"] for result in spilled))
    items = [
        {"kind": kind, "partition": number, "first": first, "end": end, "shards": len(spilled)}
        for number, (first, end) in enumerate(parts)
    ]
    results = ws.map(find_repeats, items, description=f"compare {kind} in {len(parts)}")
    return {"partitions": len(parts), "clusters": add_clusters(results)}


def add_clusters(results: list[ShardResult]) -> ClusterCounts:
    """The cluster counts of several partitions as one."""
    return {
        "clusters": sum(result["clusters"] for result in results),
        "rows": sum(result["rows"] for result in results),
        "largest": sorted((size for result in results for size in result["largest"]), reverse=True)[:_LARGEST],
    }


def count_clusters(sizes: np.ndarray) -> ClusterCounts:
    """Cluster counts of one partition from the sizes of its groups; groups of one are no clusters."""
    # Groups of one are documents without a copy.
    large = np.sort(sizes[sizes > 1])[::-1]
    return {"clusters": len(large), "rows": int(large.sum()), "largest": large[:_LARGEST].tolist()}


def find_repeats(ws: Workspace, item: ShardItem) -> ClusterCounts:
    """Shard function: the repeated keys of one partition, written by shard; the first row of a key is kept."""
    records, shards = read_partition(ws, item["kind"], item["first"], item["end"], KEYED)
    # A stable sort leaves equal keys in order of shard and row.
    order = np.lexsort((records["low"], records["high"]))
    records, shards = records[order], shards[order]
    first = first_of_equal(records["high"], records["low"])
    starts = np.flatnonzero(first)
    kept = starts[np.cumsum(first) - 1][~first]
    found = np.zeros(len(kept), dtype=REPEAT)
    found["shard"], found["row"] = shards[~first], records["row"][~first]
    found["kept_shard"], found["kept_row"] = shards[kept], records["row"][kept]
    name = f"{item['kind']}/repeats-{item['partition']:05d}.bin"
    write_groups(ws, name, found, found["shard"], item["shards"])
    return count_clusters(np.add.reduceat(records["count"].astype(np.int64), starts) if len(starts) else np.zeros(0))


def read_repeats(ws: Workspace, kind: str, shard: int, shards: int, partitions: int) -> np.ndarray:
    """The repeated rows of one shard, sorted by row, each with the first row of all shards that has its key."""
    # Found across shards: the first row there goes before the first row of the own piece.
    across = read_found(ws, kind, shard, shards, partitions)
    own = read_groups(ws, f"{kind}/own-{shard:05d}.bin", 0, 1, 1, REPEAT).copy()
    # A row that repeats one of its own piece points at that one, which may itself repeat an earlier shard's.
    if len(across) and len(own):
        place = np.minimum(np.searchsorted(across["row"], own["kept_row"]), len(across) - 1)
        also = across["row"][place] == own["kept_row"]
        for field in ("kept_shard", "kept_row"):
            own[field][also] = across[field][place[also]]
    return np.sort(np.concatenate([across, own]), order="row")


def read_found(ws: Workspace, kind: str, shard: int, shards: int, partitions: int) -> np.ndarray:
    """What partitions found about one shard, sorted by row."""
    names = [f"{kind}/repeats-{number:05d}.bin" for number in range(partitions)]
    parts = list(read_many(ws, names, shard, shard + 1, shards, REPEAT))
    return np.sort(np.concatenate(parts), order="row")
