"""Order and windows. Oracle: RECIPE C.9 and C.4, NumPy's shuffle, and plain slicing of the files."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.batches import TokenFile, Window, WindowedTokens, WindowRules, documents_within, read_local
from model.data.labels import IGNORE, LossNormalisation
from model.data.order import PublishedShuffle, Shuffle, shuffle
from model.parallel.work_split import own_rows, share_of


@settings(max_examples=40)
@given(st.integers(1, 3000), st.integers(0, 10**6), st.integers(0, 5))
def test_shuffle_is_a_permutation_with_its_inverse(count: int, seed: int, epoch: int) -> None:
    order = Shuffle(count, seed, epoch)
    items = order.at(np.arange(count))
    assert sorted(items.tolist()) == list(range(count))
    assert (order.place_of(items) == np.arange(count)).all()


def test_shuffle_of_a_trillion_needs_no_memory() -> None:
    order = Shuffle(10**12, seed=6198, epoch=0)
    places = np.array([0, 1, 10**12 - 1])
    assert (order.place_of(order.at(places)) == places).all()
    assert len(set(order.at(np.arange(1000)).tolist())) == 1000


def test_shuffle_depends_on_seed_and_epoch_and_looks_random() -> None:
    runs = [Shuffle(5000, seed, epoch).at(np.arange(5000)) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert not any((a == b).mean() > 0.01 for a, b in ((runs[0], runs[1]), (runs[0], runs[2])))
    # A uniform permutation has mean displacement n/3 and no serial correlation (standard error 1/sqrt(n)).
    assert abs(np.abs(runs[0] - np.arange(5000)).mean() / 5000 - 1 / 3) < 0.02
    assert abs(np.corrcoef(runs[0][:-1], runs[0][1:])[0, 1]) < 0.06


def test_published_order_is_numpys() -> None:
    wanted = np.arange(100, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(6198 + 2)).shuffle(wanted)
    order = PublishedShuffle(100, 6198, 2)
    assert (order.at(np.arange(100)) == wanted).all()
    assert (order.place_of(order.at(np.arange(100))) == np.arange(100)).all()


def test_core_order_counts_epochs_from_one() -> None:
    core, old = shuffle("published_core", 50, 7, 0), shuffle("published", 50, 7, 1)
    assert (core.at(np.arange(50)) == old.at(np.arange(50))).all()
    with pytest.raises(ValueError, match="32-bit indices; use order: feistel"):
        PublishedShuffle((1 << 32) + 1, 0, 0)


@pytest.fixture
def files(tmp_path: Path) -> list[TokenFile]:
    made = []
    for number, tokens in enumerate((70, 33, 15, 129)):
        path = tmp_path / f"{number}.npy"
        (np.arange(tokens, dtype="<u4") + 1000 * number).tofile(path)
        made.append(TokenFile(path, tokens, f"source-{number}"))
    return made


def test_an_epoch_reads_every_window_once_and_drops_remainders(files: list[TokenFile]) -> None:
    data = WindowedTokens(files, 16, 2, seed=1)
    assert (data.instances, data.steps_per_epoch) == (4 + 2 + 0 + 8, 7)
    for epoch in range(2):
        steps = range(epoch * 7, epoch * 7 + 7)
        starts = sorted(int(row[0]) for step in steps for part in data.batch(step) for row in part["ids"])
        assert starts == [0, 16, 32, 48, 1000, 1016, *range(3000, 3128, 16)]
    assert data.locate(0) != data.locate(7)


def test_batch_is_pure_and_labels_are_the_next_token(files: list[TokenFile]) -> None:
    data = WindowedTokens(files, 16, 4, seed=3, micro_instances=2)
    first, again = data.batch(2), data.batch(2)
    assert len(first) == 2
    for one, two in zip(first, again, strict=True):
        assert (one["ids"] == two["ids"]).all()
        assert (one["labels"][:, :-1] == one["ids"][:, 1:]).all()
        assert (one["labels"][:, -1] == -100).all()
        assert float(one["divisor"]) == 4 * 15 / 2


def test_steps_reading_inverts_locate(files: list[TokenFile]) -> None:
    data = WindowedTokens(files, 16, 2, seed=1)
    for step in range(14):
        for window in data.locate(step):
            assert step in data.steps_reading(window.file, window.start + 3, window.start + 4, epochs=2)
    assert data.steps_reading(2, 0, 10) == []  # a file shorter than a window is never read
    assert data.steps_reading(0, 64, 70) == []  # nor is a remainder


def test_repetitive_instance_is_masked_whole_and_still_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.concatenate([np.arange(64), np.full(64, 7)]).astype("<u4").tofile(path)
    data = WindowedTokens([TokenFile(path, 128)], 64, 2, seed=0)
    [batch] = data.batch(0)
    masked = (batch["ids"] == 7).all(axis=1)
    assert (batch["labels"][masked] == -100).all()
    assert (batch["labels"][~masked][:, :-1] != -100).all()
    assert float(batch["divisor"]) == 63 + 64  # OLMo-core: trained labels plus all tokens of masked instances
    assert float(batch["masked_instances"]) == 0.5
    old = WindowedTokens([TokenFile(path, 128)], 64, 2, seed=0, rules=WindowRules(normalisation="positions"))
    assert float(old.batch(0)[0]["divisor"]) == 128


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("normalisation", ["labels", "positions"])
def test_workers_read_their_own_windows_and_have_the_batch_of_one_process(
    world: int, normalisation: LossNormalisation, tmp_path: Path
) -> None:
    """Oracle: what one process reads and makes. Every third window is removed by the repetition mask."""
    path = tmp_path / "a.npy"
    ids = np.random.default_rng(0).integers(0, 300, (24, 64)).astype("<u4")
    ids[::3] = 7
    ids.tofile(path)
    read: list[Window] = []

    def reader(windows: Sequence[Window]) -> list[np.ndarray]:
        read.extend(windows)
        return read_local([path], windows)

    data = WindowedTokens(
        [TokenFile(path, ids.size)],
        64,
        8,
        seed=1,
        micro_instances=2,
        reader=reader,
        rules=WindowRules(normalisation=normalisation),
    )
    for step in range(4):
        whole, windows = data.batch(step), data.locate(step)
        asked, found = [], []
        for rank in range(world):
            read.clear()
            found.append(data.rows(step, own_rows(4, 2, rank, world)))
            asked += read
        assert sorted(asked) == sorted(windows)
        masked = np.any([rows.masked for rows in found], axis=0)
        for rank, rows in enumerate(found):
            mine, ours = share_of(whole, rank, world), share_of(data.micro_batches(rows, masked), rank, world)
            for one, two in zip(mine, ours, strict=True):
                assert one.keys() == two.keys()
                trained = one["labels"] != IGNORE
                np.testing.assert_array_equal(two["labels"], one["labels"])
                np.testing.assert_array_equal(two["ids"][trained], one["ids"][trained])
                assert two["divisor"] == one["divisor"]
                assert two["masked_instances"] == one["masked_instances"]


def test_target_length_drops_the_longer_remainder(files: list[TokenFile]) -> None:
    assert WindowedTokens(files, 16, 1, seed=1, rules=WindowRules(target_length=64)).instances == 4 + 0 + 0 + 8


def test_held_out_windows_are_never_read_and_equal_in_every_mix(files: list[TokenFile]) -> None:
    web = [TokenFile(file.path, file.tokens, "web") for file in files]
    code = TokenFile(files[0].path.parent / "4.npy", 64, "code")
    (np.arange(64, dtype="<u4") + 4000).tofile(code.path)
    head = TokenFile(web[3].path, 40, "web")  # part of a further pass: two windows, both held out where whole
    data = WindowedTokens([*web, code, web[3], head], 16, 1, seed=1, rules=WindowRules(held_out=2))
    held = {source: data.read(windows) for source, windows in data.held_out().items()}
    assert {source: [int(row[0]) for row in rows] for source, rows in held.items()} == {
        "web": [0, 1000], "code": [4000, 4016],
    }  # fmt: skip
    assert data.instances == (4 - 1) + (2 - 1) + 0 + 8 + 2 + 8 + 2
    for step in range(2 * data.steps_per_epoch):
        [batch] = data.batch(step)
        assert not {0, 1000, 4000, 4016} & set(batch["ids"].flatten().tolist())
        [window] = data.locate(step)
        assert step in data.steps_reading(window.file, window.start, window.start + 1, epochs=2)
    assert data.steps_reading(0, 0, 16) == []
    assert data.steps_reading(0, 0, 17) == data.steps_reading(0, 16, 17) != []
    twice = WindowedTokens([web[3], web[3], head], 16, 1, seed=1, rules=WindowRules(held_out=4))
    assert [window.start for window in twice.held_out()["web"]] == [0, 16, 32, 48]
    assert twice.instances == 4 + 4 + 0, "a part that is all held out gives nothing"
    with pytest.raises(ValueError, match=r"'code' has 4 windows; holding out 3 .* hold out fewer"):
        WindowedTokens([*web, code], 16, 1, seed=1, rules=WindowRules(held_out=3))


def test_errors_name_the_values(files: list[TokenFile], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than one batch"):
        WindowedTokens(files, 64, 64, seed=1)
    with pytest.raises(ValueError, match="does not divide"):
        WindowedTokens(files, 16, 4, seed=1, micro_instances=3)
    with pytest.raises(ValueError, match="need 400"):
        WindowedTokens([TokenFile(files[0].path, 100)], 16, 1, seed=1)


def test_documents_of_a_token_range(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    with gzip.open(path, "wt") as out:
        out.write("0,10,a,s,1\n10,30,b,s,2\n30,35,c,s,3\n")
    assert [d.id for d in documents_within(path, 9, 11)] == ["a", "b"]
    assert [d.id for d in documents_within(path, 10, 30)] == ["b"]


def test_the_published_core_order_keeps_the_windows_of_a_longer_one_together():
    """Oracle: NumPy's own shuffle of the groups; both ways agree, and what is past the last group stays."""
    order = shuffle("published_core", 14, seed=3, epoch=1, group=4)
    groups = np.arange(3, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(3 + 2)).shuffle(groups)
    expected = [*(np.repeat(groups.astype(int) * 4, 4) + np.tile(np.arange(4), 3)), 12, 13]
    items = order.at(np.arange(14))
    assert items.tolist() == expected
    assert order.place_of(items).tolist() == list(range(14))
