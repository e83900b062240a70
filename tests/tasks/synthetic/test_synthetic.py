"""Oracles: arithmetic itself (every written step is recomputed), the split rule of `tasks.synthetic.problems`, exact shares."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.synthetic import (
    ArithmeticConfig,
    MultiAdditionConfig,
    WordProblemsConfig,
    generate_mixed,
    generate_problems,
    share_out,
    split_of,
)
from tasks.synthetic.arithmetic import add_columns, multiply_parts, subtract_columns
from tasks.synthetic.problems import SPLIT_ENDS, calculate, fact_key
from tasks.synthetic.templates import TEMPLATES

KINDS = [
    ArithmeticConfig(),
    ArithmeticConfig(max_operand=99, max_factor=20, working="digits"),
    MultiAdditionConfig(max_operand=99, max_terms=4),
    WordProblemsConfig(),
]
SPLITS = list(SPLIT_ENDS)
STEP = re.compile(r"(?<![-+] )\b(\d+) ([-+*/]) (\d+) = (\d+)(?! [-+*/])")
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


def evaluate(left: str, operator: str, right: str) -> int:
    return OPERATIONS[operator](int(left), int(right))


@given(seeds=st.lists(st.integers(0, 2**40), min_size=4, max_size=4), kind=st.sampled_from(KINDS))
@settings(max_examples=25)
def test_no_key_is_in_two_splits_whatever_the_seeds(seeds, kind):
    keys = [
        {p.key for p in generate_problems(kind, split, 60, seed)} for split, seed in zip(SPLITS, seeds, strict=True)
    ]
    for place, one in enumerate(keys):
        assert all(split_of(key) == SPLITS[place] for key in one)
        assert not any(one & other for other in keys[place + 1 :])


@given(seed=st.integers(0, 2**40), kind=st.sampled_from(KINDS), split=st.sampled_from(["train", "preference", "rlvr"]))
@settings(max_examples=25)
def test_no_working_writes_out_a_fact_that_is_held_out(seed, kind, split):
    for problem in generate_problems(kind, split, 60, seed):
        for left, operator, right, _ in STEP.findall(problem.working):
            assert split_of(fact_key(int(left), operator, int(right))) != "eval", problem


@given(seed=st.integers(0, 2**40), kind=st.sampled_from(KINDS), split=st.sampled_from(SPLITS))
@settings(max_examples=25)
def test_every_written_step_is_true(seed, kind, split):
    for problem in generate_problems(kind, split, 40, seed):
        for left, operator, right, result in STEP.findall(problem.working):
            assert evaluate(left, operator, right) == int(result), problem
        assert int(problem.answer) >= 0
        assert problem.response.rstrip(".").endswith(problem.answer)


def test_arithmetic_answers_equal_the_question_read_back():
    for problem in generate_problems(ArithmeticConfig(phrasings=1), "eval", 500, 3):
        left, operator, right = re.fullmatch(r"What is (\d+) (.) (\d+)\?", problem.question).groups()
        assert evaluate(left, operator, right) == int(problem.answer)


def test_word_problem_answer_is_its_last_step():
    for problem in generate_problems(WordProblemsConfig(), "train", 2_000, 4):
        assert STEP.findall(problem.working)[-1][3] == problem.answer
        assert "{" not in problem.question + problem.working


def test_numbers_stay_within_the_configured_largest():
    problems = generate_problems(
        WordProblemsConfig(templates=("gain", "boxes"), max_number=9, working="none"), "train", 500, 4
    )
    assert max(int(n) for p in problems for n in re.findall(r"\d+", p.question)) == 9
    assert all(p.response == p.answer for p in problems)


def test_there_are_at_least_25_stories_and_all_of_them_occur():
    assert len(TEMPLATES) >= 25
    assert {p.phrasing for p in generate_problems(WordProblemsConfig(), "train", 3_000, 5)} == {t.id for t in TEMPLATES}


def test_commuted_sums_are_one_problem_and_differences_are_not():
    assert fact_key(12, "+", 47) == fact_key(47, "+", 12)
    assert fact_key(47, "-", 12) != fact_key(12, "-", 47)


def test_one_digit_facts_train_and_are_held_out_by_wording_only():
    for left in range(10):
        for right in range(10):
            assert split_of(fact_key(left, "+", right)) == "train"
            assert split_of(fact_key(left, "*", right)) == "train"
            assert split_of(fact_key(left + right, "-", right)) == "train"
    tables = ArithmeticConfig(operators=("+",), max_operand=9)
    splits = {split: {p.question for p in generate_problems(tables, split, 400, 1)} for split in SPLITS}
    for place, split in enumerate(SPLITS):
        assert not any(splits[split] & splits[other] for other in SPLITS[place + 1 :])
    wider = ArithmeticConfig(operators=("+",), min_operand=10, max_operand=40)
    sums = {split: {fact_of(p.key) for p in generate_problems(wider, split, 400, 1)} for split in SPLITS}
    assert not sums["train"] & sums["eval"], "beyond the tables the fact itself is held out, in every wording"


def fact_of(key):
    assert key.startswith("arithmetic ")
    return key


@given(left=st.integers(0, 99_999), right=st.integers(0, 99_999))
def test_columns_give_the_digits_of_the_result(left, right):
    def digits(working):
        return [int(step.split("= ")[1]) for step in working.rstrip(".").split(", ")]

    columns = digits(add_columns(left, right))
    top = columns.pop()
    assert int(str(top) + "".join(str(c % 10) for c in reversed(columns))) == left + right
    high, low = max(left, right), min(left, right)
    assert int("".join(str(c) for c in reversed(digits(subtract_columns(high, low))))) == high - low


@given(left=st.integers(1, 999), right=st.integers(1, 999))
def test_parts_of_a_product_add_up(left, right):
    assert sum(int(step[3]) for step in STEP.findall(multiply_parts(left, right))) == left * right


def test_a_longer_list_begins_with_the_shorter_one():
    for kind in KINDS:
        assert generate_problems(kind, "rlvr", 100, 7)[:30] == generate_problems(kind, "rlvr", 30, 7)
        assert generate_problems(kind, "rlvr", 30, 7) != generate_problems(kind, "rlvr", 30, 8)


def test_distinct_gives_no_key_twice_and_says_when_it_cannot():
    problems = generate_problems(ArithmeticConfig(max_operand=30, operators=("+",)), "eval", 20, 1, distinct=True)
    assert len({p.key for p in problems}) == 20
    with pytest.raises(ValueError, match="widen its ranges or ask for fewer"):
        generate_problems(ArithmeticConfig(max_operand=12, operators=("+",)), "eval", 5_000, 1, distinct=True)
    with pytest.raises(ValueError, match="gave 0 of 1 problems for split 'eval'"):
        generate_problems(WordProblemsConfig(templates=("legs",), max_number=2), "eval", 1, 1)


def test_kinds_are_mixed_by_weight():
    kinds = [ArithmeticConfig(weight=3), WordProblemsConfig(weight=1)]
    problems = generate_mixed(kinds, "train", 400, 1)
    assert sum(p.kind == "arithmetic" for p in problems) == 300
    assert {p.kind for p in problems[:40]} == {"arithmetic", "word_problems"}


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), count=st.integers(0, 1000))
def test_shares_add_up_and_are_within_one_of_exact(weights, count):
    shares = share_out(weights, count)
    assert sum(shares) == count
    assert all(abs(s - w * count / sum(weights)) < 1 + 1e-6 for s, w in zip(shares, weights, strict=True))


def test_bad_configs_say_what_is_wrong():
    with pytest.raises(ValueError, match="min_operand=5 must be below max_operand=5"):
        ArithmeticConfig(min_operand=5, max_operand=5)
    with pytest.raises(ValueError, match="min_terms=6 exceeds max_terms=4"):
        MultiAdditionConfig(min_terms=6, max_terms=4)
    with pytest.raises(ValueError, match=r"templates \['gian'\] do not exist"):
        WordProblemsConfig(templates=("gian",))
    with pytest.raises(ValueError, match="operator '%'"):
        calculate(1, "%", 2)
