"""Oracle: the constraints' wording (RECIPE H.4), two texts for each: one that meets it and one that just does not."""

import json

import pytest

from tasks.verifiers import verify
from tasks.verifiers.constraints import CONSTRAINTS, verify_constraint

CASES = [
    ("verify_keywords", {"keyword_list": ["Sun", "moon"]}, "sunny and Moonlit", "only the sun"),
    ("verify_keyword_frequency", {"word": "go", "N": 2}, "Go, go! going", "go"),
    ("validate_forbidden_words", {"forbidden_words": ["cat"]}, "a dog", "to concatenate"),
    ("verify_letter_frequency", {"letter": "a", "N": 2}, "A banal", "banana"),
    (
        "validate_response_language",
        {"language": "de"},
        "Das ist ein deutscher Satz über das Wetter.",
        "This is an English sentence about the weather.",
    ),
    ("verify_paragraph_count", {"N": 2}, "one\n* * *\ntwo", "one\n* * *\n"),
    ("validate_word_constraint", {"N": 3, "quantifier": "at least"}, "one two three", "one two"),
    ("validate_word_constraint", {"N": 20, "quantifier": "around"}, "w " * 22, "w " * 23),
    ("validate_word_constraint", {"N": 3, "quantifier": "at most"}, "one two three", "one two three four"),
    ("verify_sentence_constraint", {"N": 2, "quantifier": "at least"}, "One. Two.", "Only one."),
    ("verify_sentence_constraint", {"N": 3, "quantifier": "around"}, "A b. C d.", "One."),
    ("validate_paragraphs", {"N": 2, "first_word": "Then", "i": 2}, "First\n\nThen this", "First\n\nNext"),
    ("verify_postscript", {"postscript_marker": "P.S."}, "Hello\nP.S. bye", "Hello\nP.S."),
    ("validate_placeholders", {"N": 2}, "[name] at [place]", "[name] only"),
    ("verify_bullet_points", {"N": 2}, "* a\n- b", "* a"),
    ("validate_title", {}, "<<Ode>> text", "Ode text"),
    ("validate_choice", {"options": ["yes it is", "no"]}, "yes", "maybe"),
    ("validate_highlighted_sections", {"N": 2}, "*a* and *b*", "*a*"),
    ("validate_sections", {"N": 2, "section_splitter": "Part"}, "Part 1 a Part 2 b", "Part 1 a"),
    ("validate_json_format", {}, '{"a": [1]}', "{a: 1}"),
    ("validate_repeat_prompt", {"original_prompt": "Say hi"}, "Say hi\nHi", "say hi\nHi"),
    ("validate_two_responses", {}, "a ****** b", "a ****** a"),
    ("validate_uppercase", {}, "ALL 4", "aLL"),
    ("validate_lowercase", {}, "all 4", "All"),
    ("validate_frequency_capital_words", {"N": 2, "quantifier": "at least"}, "AN old CAR", "a CAR"),
    ("validate_frequency_capital_words", {"N": 1, "quantifier": "around"}, "one CAR", "TWO CARS"),
    ("validate_end", {"end_phrase": "the end"}, "this is the end", "the end."),
    ("validate_quotation", {}, '"quoted"', '"quoted'),
    ("validate_no_commas", {}, "no comma", "a, comma"),
]


def test_all_25_are_covered():
    assert len(CONSTRAINTS) == 25
    assert {case[0] for case in CASES} == set(CONSTRAINTS)


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_constraint(name, arguments, good, bad):
    truth = json.dumps({"func_name": name, **arguments, "unused": None})
    assert verify("ifeval", good, truth).correct
    assert not verify("ifeval", bad, truth).correct


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match="func_name='validate_rhyme' is not a constraint"):
        verify_constraint("x", {"func_name": "validate_rhyme"})
    with pytest.raises(ValueError, match="constraint verify_keyword_frequency lacks N"):
        verify_constraint("x", {"func_name": "verify_keyword_frequency", "word": "x", "N": None})


def test_language_is_the_same_every_time():
    truth = {"func_name": "validate_response_language", "language": "en"}
    text = "ok no la"
    assert len({verify_constraint(text, truth).correct for _ in range(20)}) == 1
    assert not verify_constraint("123", truth).correct


@pytest.mark.parametrize("name", sorted(CONSTRAINTS))
@pytest.mark.parametrize("text", ["", "  \n\t", "\u200b\ufeff"])
def test_an_empty_answer_is_never_right(name, text):
    truth = EMPTY_MEETS | {"func_name": name}
    assert not verify("ifeval", text, truth).correct


EMPTY_MEETS = {
    "keyword_list": [], "word": "x", "N": 0, "forbidden_words": ["x"], "letter": "x", "language": "en", "quantifier": "at most",
    "first_word": "", "i": 1, "postscript_marker": "P.S.", "options": ["yes"], "section_splitter": "Part",
    "original_prompt": "", "end_phrase": "",
}  # fmt: skip


def test_the_published_rule_accepts_empty_answers_by_its_name():
    accepted = [n for n in CONSTRAINTS if verify("ifeval", "", EMPTY_MEETS | {"func_name": n}, "published").correct]
    assert {"validate_no_commas", "validate_uppercase", "validate_lowercase", "validate_choice"} <= set(accepted)
