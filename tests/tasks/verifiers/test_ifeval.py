"""Oracle: the wording of the official checks (RECIPE I.5), a text that passes and one that fails for each of the 25."""

import itertools
import json
import re
from pathlib import Path

import pytest

from tasks.verifiers.ifeval import (
    CHECKS,
    check_instruction,
    count_bullets,
    has_title,
    judge_instructions,
    loose_variants,
)
from tasks.verifiers.punkt_sentences import count_sentences
from tasks.verifiers.text_units import count_capital_words, count_spans, count_words

ENGLISH = "this is an ordinary english sentence about the weather in the north"
CASES = [
    ("keywords:existence", {"keywords": ["sun", "moon"]}, "Sun and moon", "sun"),
    ("keywords:frequency", {"keyword": "go", "relation": "at least", "frequency": 2}, "go going", "go"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "concatenate", "a Cat"),
    (
        "keywords:letter_frequency",
        {"letter": "A", "let_relation": "less than", "let_frequency": 3},
        "Aa",
        "banana",
    ),
    ("language:response_language", {"language": "en"}, ENGLISH, "das ist ein ganz deutscher Satz über Wetter"),
    (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 2},
        "One. Two!",
        "Dr. Jones came.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb\n***\n", "a *** *** b"),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "a b", "a b c"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        'One\n\n"Then, it',
        "One\n\nNow",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "x\nP. S. y", "x PS y"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "x\np.p.s y", "x\nP.S. y"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "** a\n- b"),
    ("detectable_format:constrained_response", {}, "I say: My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b**", "*a* **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1 a SECTION 2 b",
        "SECTION 1 a SECTION b",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a}"),
    ("detectable_format:title", {}, "<<Ode>>", "<< >>"),
    ("combination:two_responses", {}, "a ****** b", "a ****** a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say Hi"}, "say hi there", "hi"),
    ("startend:end_checker", {"end_phrase": "The End"}, 'x the end"', "the end x"),
    ("startend:quotation", {}, ' "x" ', '"x'),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        "AN OLD car",
        "AN old car",
    ),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH),
    ("change_case:english_lowercase", {}, ENGLISH, ENGLISH.upper()),
    ("punctuation:no_comma", {}, "a b", "a, b"),
]


def test_all_25_are_covered():
    assert len(CHECKS) == 25
    assert {case[0] for case in CASES} == set(CHECKS)


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), CASES)
def test_check(name, kwargs, good, bad):
    assert check_instruction(name, kwargs, good)
    assert not check_instruction(name, kwargs, bad)
    assert not check_instruction(name, kwargs, "  \n")


def test_loose_passes_when_a_variant_does():
    judgement = judge_instructions(
        ["startend:end_checker", "punctuation:no_comma"], [{"end_phrase": "bye"}, {}], "Sure, here:\n*bye*"
    )
    assert judgement.strict == (False, False)
    assert judgement.loose == (True, True)
    assert judgement.prompt_loose
    assert not judgement.prompt_strict


def test_there_are_eight_variants():
    assert loose_variants("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]


def test_unknown_and_incomplete_instructions_are_named():
    with pytest.raises(ValueError, match="instruction 'length:rhyme' is unknown"):
        check_instruction("length:rhyme", {}, "x")
    with pytest.raises(ValueError, match="lacks argument 'num_words'"):
        check_instruction("length_constraints:number_words", {"relation": "at least", "num_words": None}, "x")


def test_sentences_are_those_of_nltk():
    golden = json.loads((Path(__file__).parents[2] / "golden" / "nltk_sentences.json").read_text("utf-8"))
    assert len(golden["counts"]) > 200
    for text, sentences in golden["counts"]:
        assert count_sentences(text) == sentences, text
        assert [count_sentences(text, most) for most in (0, 1, 2)] == [min(sentences, most) for most in (0, 1, 2)]


def test_words():
    assert count_words("It's a well-known fact.") == 6
    assert count_capital_words("The USA and NATO-led x2 A1") == 2


@pytest.mark.parametrize(("relation", "text", "met"), [("less than", "go", False), ("at least", "stay", True)])
def test_a_frequency_of_0_is_judged(relation, text, met):
    assert check_instruction("keywords:frequency", {"keyword": "go", "relation": relation, "frequency": 0}, text) is met
    letters = {"letter": "q", "let_relation": relation, "let_frequency": 0}
    assert check_instruction("keywords:letter_frequency", letters, text) is met


def test_a_keyword_that_is_no_regular_expression_stands_for_itself():
    assert check_instruction("keywords:existence", {"keywords": ["(c"]}, "I like (C")
    assert not check_instruction("keywords:existence", {"keywords": ["(c"]}, "I like C")
    assert check_instruction("keywords:forbidden_words", {"forbidden_words": ["(oops"]}, "fine")


OFFICIAL_BULLETS = (r"^\s*\*[^\*].*$", r"^\s*-.*$")
OFFICIAL_TITLE = r"<<[^\n]+>>"
TEXTS = ["".join(letters) for n in range(6) for letters in itertools.product("*-\n a", repeat=n)]


def test_bullets_are_counted_as_by_the_official_patterns():
    for text in TEXTS:
        official = sum(len(re.findall(pattern, text, re.MULTILINE)) for pattern in OFFICIAL_BULLETS)
        assert count_bullets(text) == official, repr(text)


def test_titles_and_placeholders_are_found_as_by_the_official_patterns():
    for letters in (letters for n in range(8) for letters in itertools.product("<> \n", repeat=n)):
        text = "".join(letters)
        official = any(t.lstrip("<").rstrip(">").strip() for t in re.findall(OFFICIAL_TITLE, text))
        assert has_title(text) is official, repr(text)
    for letters in (letters for n in range(8) for letters in itertools.product("[]\na", repeat=n)):
        text = "".join(letters)
        assert count_spans(text, "[", "]") == len(re.findall(r"\[.*?\]", text)), repr(text)
