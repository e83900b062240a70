"""The rule-based judge and the binarisation of RECIPE G."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.training.answers.rule_judge import ASPECTS, AnswerFacts, binarise, mean_rating, observe, rate
from tasks.verifiers import verify


def facts(text: str, truth: str = "12", finished: bool = True) -> AnswerFacts:
    verdict = verify("gsm8k", text, truth)
    return observe("gsm8k", text, verdict.extracted, correct=verdict.correct, finished=finished)


@given(st.builds(AnswerFacts, st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans()))
@settings(max_examples=32)
def test_every_rating_is_on_the_scale(observed):
    ratings = rate(observed)
    assert tuple(ratings) == ASPECTS
    assert all(1 <= rating <= 5 for rating in ratings.values())


def test_facts_are_read_from_the_text():
    assert facts("5 plus 7 makes exactly 12") == AnswerFacts(True, True, True, False, True)
    assert facts("12") == AnswerFacts(True, True, True, False, False)
    assert facts("13") == AnswerFacts(False, True, True, False, False)
    assert not facts("no number at all here").answered
    assert facts("I think it is 13").hedged


def test_answers_rank_as_a_reader_would():
    answers = {
        "right with working": facts("5 plus 7 makes exactly 12"),
        "right": facts("12"),
        "right, unsure": facts("maybe 12"),
        "wrong, unsure": facts("perhaps it is 13"),
        "wrong": facts("13"),
        "wrong and cut off": facts("13", finished=False),
    }
    ratings = [mean_rating(rate(observed)) for observed in answers.values()]
    assert ratings == sorted(ratings, reverse=True)
    assert ratings[0] == 5.0
    assert len(set(ratings)) == len(ratings)


def test_constraints_count_as_answered_when_kept():
    assert not observe("ifeval", "some text", "some text", correct=False, finished=True).answered
    assert observe("ifeval", "some text", "some text", correct=True, finished=True).answered


def test_chosen_is_the_first_best_and_rejected_any_other():
    generator = np.random.default_rng(0)
    seen = {binarise([3.0, 5.0, 5.0, 1.0], generator) for _ in range(200)}
    assert seen == {(1, 0), (1, 2), (1, 3)}
    assert binarise([2.0, 2.0], generator) == (0, 1)
    with pytest.raises(ValueError, match="at least 2"):
        binarise([1.0], generator)


def test_rejected_is_uniform():
    generator = np.random.default_rng(0)
    counts = np.bincount([binarise([9, 1, 2, 3], generator)[1] for _ in range(3000)], minlength=4)
    assert counts[0] == 0
    assert np.all(np.abs(counts[1:] - 1000) < 4 * np.sqrt(3000 * (1 / 3) * (2 / 3)))
