"""Oracles: formulas by hand (paired, clustered, Holm), and planted gains whose truth is known."""

import random
from math import sqrt

import pytest

from tasks.evaluation.benchmarks.items import estimate_mean
from tasks.evaluation.comparing.comparison import Z_95, clustered_error, compare, holm, two_sided


def planted(items: int, gained: int, lost: int) -> tuple[dict[str, float], dict[str, float]]:
    """A model at about a half, and a copy that answers some items better and some worse."""
    draw = random.Random(5)
    first = {str(item): float(draw.random() < 0.5) for item in range(items)}
    wrong = [item for item, value in first.items() if value == 0]
    right = [item for item, value in first.items() if value == 1]
    second = first | dict.fromkeys(wrong[:gained], 1.0) | dict.fromkeys(right[:lost], 0.0)
    return first, second


def test_a_planted_gain_of_two_points_is_found_by_the_paired_test_and_missed_by_the_unpaired_one():
    first, second = planted(1_000, gained=30, lost=10)
    found = compare(first, second)
    assert found.difference == pytest.approx(0.02)
    assert (found.n, found.discordant) == (1_000, 40)
    assert found.p_value < 0.01
    assert found.words == "gain"
    independent = sqrt(sum(estimate_mean(list(scores.values())).stderr ** 2 for scores in (first, second)))
    assert two_sided(found.difference, independent) > 0.3
    assert independent > 3 * found.stderr


def test_no_effect_is_said_in_words_with_what_could_be_seen():
    first, second = planted(400, gained=9, lost=8)
    found = compare(first, second)
    low, high = found.interval
    assert low < 0 < high
    assert high - low == pytest.approx(2 * Z_95 * found.stderr)
    assert found.words.startswith("no effect shown (these 400 items would show 0.0")
    swapped = compare(*planted(400, gained=0, lost=40))
    assert swapped.words == "loss"


def test_only_common_items_count():
    found = compare({"a": 1.0, "b": 0.0, "c": 1.0}, {"b": 1.0, "c": 1.0, "d": 0.0})
    assert (found.n, found.difference, found.discordant) == (2, 0.5, 1)
    with pytest.raises(ValueError, match="1 and 1 items and none in common"):
        compare({"a": 1.0}, {"b": 1.0})


def test_equal_differences_do_not_make_certain():
    same = {str(item): 1.0 for item in range(50)}
    found = compare(same, same)
    assert (found.difference, found.discordant) == (0.0, 0)
    assert 0 < found.stderr < 0.05
    assert compare({"a": 0.0}, {"a": 1.0}).stderr > 0.4


def test_items_of_one_passage_are_one_draw():
    values = [1.0] * 10 + [0.0] * 10 + [1.0] * 10 + [0.0] * 10
    passages = [str(place // 10) for place in range(40)]
    alone = clustered_error(values, [str(place) for place in range(40)])
    # Four passages whose sums of residuals are 5, -5, 5, -5.
    assert clustered_error(values, passages) == pytest.approx(sqrt(4 * 25 * 4 / 3) / 40)
    assert clustered_error(values, passages) > 3 * alone
    assert alone == pytest.approx(sqrt(40 * 0.25 / 39) / sqrt(40))
    with pytest.raises(ValueError, match="4 items lie in one cluster, 'x'"):
        clustered_error([1.0, 0.0, 1.0, 0.0], ["x"] * 4)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_false_alarms_at_five_percent():
    draw = random.Random(0)
    alarms = sum(min(holm([draw.random() for _ in range(20)])) < 0.05 for _ in range(2_000))
    assert alarms < 0.07 * 2_000
