"""Oracles: the annotated calculations, evaluated again from the written text of every variant."""

import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.synthetic.programs import Refused
from tasks.synthetic.substitution import NUMBER, equations, redrawn, still_right, substitute, trace, without_annotations

SHOES = (
    "Ann buys 3 pairs of shoes for $1,250 in all and 8 belts for $35 each. What does she pay?",
    "The belts cost 8*35 = $<<8*35=280>>280.\nIn all she pays $1,250 + $280 = $<<1250+280=1530>>1,530.\n#### 1,530",
)
HALF = (
    "Tom has 36 cards and gives half of them to Ben, who had 17. How many has Ben?",
    "Tom gives 36/2 = <<36/2=18>>18 cards.\nBen has 17+18 = <<17+18=35>>35 cards.\n#### 35",
)


@given(seed=st.integers(0, 2**40), problem=st.sampled_from([SHOES, HALF]))
@settings(max_examples=60)
def test_every_calculation_of_a_variant_is_true_and_uses_its_own_numbers(seed, problem):
    variant = substitute(trace(*problem), Random(seed))
    assert variant.question != problem[0]
    given_numbers = {int(text.replace(",", "")) for text in NUMBER.findall(variant.question)}
    text = variant.solution.replace(",", "").replace("$", "")
    results = []
    for left, operator, right, result in re.findall(r"(\d+) ?([-+*/]) ?(\d+) = (\d+)", text):
        assert eval(f"{left} {operator} {right}") == int(result)  # digits and one operator, by the expression above
        assert {int(left), int(right)} <= {*given_numbers, *results, 2}
        results.append(int(result))
    assert len(results) == 2
    assert variant.answer == str(results[-1])
    assert NUMBER.sub("#", variant.question) == NUMBER.sub("#", problem[0])


def test_numbers_keep_their_way_of_writing():
    variants = [substitute(trace(*SHOES), Random(seed)) for seed in range(30)]
    for variant in variants:
        assert "<<" not in variant.solution and "####" not in variant.solution
        assert "3 pairs" in variant.question, "a number that no calculation uses stays"
        price = re.search(r"for \$([\d,]+) in all", variant.question)[1]
        assert int(price.replace(",", "")) % 10 == 0, "as round as 1,250 was"
        assert price == f"{int(price.replace(',', '')):,}"
        assert f"pays ${price} + $" in variant.solution
    assert len({variant.question for variant in variants}) > 20


def test_words_of_the_question_allow_numbers_and_hidden_steps_do_not():
    def worked(question, answer):
        return trace(question, answer).steps[0].pattern

    assert worked("Has 35 eggs. How many in a week?", "35*7=<<35*7=245>>245\n#### 245") == "{q:35}*7"
    assert worked("Saves 20% of $80.", "80*.01*20=<<80*.01*20=16>>16\n#### 16") == "{q:80}*.01*{q:20}"
    assert worked("Eats 3/4 of 80.", "80*3/4=<<80*3/4=60>>60\n#### 60") == "{q:80}*3/4"
    assert worked("Saves 20% of $80.", "80*.2=<<80*.2=16>>16\n#### 16") == "{q:80}*.2", "the 20 is then not changed"
    with pytest.raises(Refused, match="also used as a fraction"):
        worked("Saves 20% of $80.", "80*.2=<<80*.2=16>>16, 16+20=<<16+20=36>>36\n#### 36")
    with pytest.raises(Refused, match="comes from nowhere"):
        worked("Has 200, spends 16 and 143.", "200-16=184, 184-143=<<184-143=41>>41\n#### 41")
    with pytest.raises(Refused, match="given and computed"):
        worked("Has 5, loses 3, and doubles it.", "5-3=<<5-3=2>>2, 2*2=<<2*2=4>>4\n#### 4")


def test_halves_stay_whole():
    for seed in range(40):
        variant = substitute(trace(*HALF), Random(seed))
        assert "/2 = " in variant.solution
        assert int(NUMBER.findall(variant.question)[0]) % 2 == 0


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        (
            "Has 5, 6, 8 and 3.",
            "5+6=<<5+6=11>>11, 8+3=<<8+3=11>>11, 11+5=<<11+5=16>>16\n#### 16",
            "a number that is computed twice",
        ),
        ("Has 5 and 6.", "5+6=<<5+6=12>>12\n#### 12", "does not compute"),
        ("Has 5 and 6.", "5+6=<<5+6=11>>11\n#### 12", "not the last result"),
        ("Has 5 and 6.", "5+6=<<5+6=11>>11", "no final answer"),
        ("Has 5 and 6.", "It is 11.\n#### 11", "not the last result"),
        ("Has 5 and 6.", "5+6=<<5+6=11>>11, and 99 more\n#### 11", "comes from nowhere"),
        ("Has two and 2.", "2+2=<<2+2=4>>4\n#### 4", "no number to change"),
        ("Has 5, 6 and 11.", "5+6=<<5+6=11>>11, 11*5=<<11*5=55>>55\n#### 55", "given and computed"),
        ("Has 5 and 6.", "<<__import__('os')=11>>11\n#### 11", "no arithmetic"),
        ("Has 5 and 5.0.", "5+6=<<5+6=11>>11\n#### 11", "written in two ways"),
        ("Has 5 and 6.", "5/6=<<5/0=11>>11\n#### 11", "division by zero"),
        ("Has 5 and 6.", "5+6=<<5+6=eleven>>11\n#### 11", "no number"),
    ],
)
def test_doubtful_problems_are_refused(question, answer, reason):
    with pytest.raises(Refused, match=reason):
        substitute(trace(question, answer), Random(1))


def test_parts_of_dates_times_fractions_and_words_are_no_numbers():
    text = "On the 2nd, at 9:30, 12 boys ate 3/4 of 1,250.50 g and 3.5 kg for $6, on 1/2/2003."
    assert NUMBER.findall(text) == ["12", "1,250.50", "3.5", "6"]


def test_a_solution_reads_without_its_annotations():
    assert without_annotations(HALF[1]) == ("Tom gives 36/2 = 18 cards.\nBen has 17+18 = 35 cards.", "35")


@given(value=st.integers(2, 10_000), seed=st.integers(0, 2**32))
@settings(max_examples=100)
def test_new_numbers_are_of_the_same_size_and_roundness(value, seed):
    new = redrawn(value, Random(seed))
    assert 2 <= new <= max(2 * value, 2) and 2 * new >= value
    for step in (5, 10, 100, 1000):
        assert new % step == 0 or value % step != 0 or value == step


@pytest.mark.parametrize(
    ("solution", "right"),
    [
        ("He has 3 x 4 = 12 apples.", [True]),
        ("It costs $3.50 * 2 = $7 and 7+1 = 9.", [True, False]),
        ("20% x 50 = 10", [True]),
        ("10 / 3 = 3.33", [True]),
        ("10 / 3 = 3", [False]),
        ("(2 + 3) * 4 = 20", [True]),
        ("1,000 - 1 = 999", [True]),
        ("no equation on 3-4 days", []),
    ],
)
def test_equations_of_a_text_are_evaluated(solution, right):
    assert equations(solution) == right


def test_no_variant_has_an_equation_that_no_longer_holds():
    """The calculation is annotated with 14; the check after it means another 14, which would change with it."""
    question = "Ann has 14 pens and Ben has 18 pens. How many do they both have after a week?"
    answer = "14 + 18 = <<14+18=32>>32 pens. Check: 7 x 2 = 14.\n#### 32"
    made = [substitute(trace(question, answer), Random(seed)).solution for seed in range(20)]
    assert all("7 x 2 = 14." in solution and equations(solution) == [True, True] for solution in made)
    unchecked = [substitute(trace(question, answer.replace("7 x 2 =", "2 weeks:")), Random(seed)) for seed in range(20)]
    assert any("2 weeks: 14." not in variant.solution for variant in unchecked), "without the equation 14 would change"


def test_only_what_held_must_hold():
    assert not still_right("7 x 2 = 14 days", "7 x 2 = 16 days")
    assert still_right("1 + 1 = 3", "1 + 1 = 4")
