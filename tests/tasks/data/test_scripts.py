"""Scripts of texts and languages. Oracle: Unicode's names of characters."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.filters.batch import TextBatch
from tasks.data.filters.classifiers.language import LanguageScorer, score_language
from tasks.data.filters.classifiers.scripts import is_in_script, script_of

NAMES = {
    "Latin": "LATIN",
    "Cyrillic": "CYRILLIC",
    "Greek": "GREEK",
    "Hebrew": "HEBREW",
    "Thai": "THAI",
    "Hangul": "HANGUL",
}


@pytest.mark.parametrize("script", list(NAMES))
@given(st.text(alphabet="ab Zé1.漢ыЯαΩשกまй가힣ᄀ…'\n", max_size=60), st.sampled_from([0.25, 0.5, 0.9, 1.0]))
def test_letters_are_of_the_script_that_unicode_names(script: str, text: str, share: float):
    letters = [char for char in text if char.isalpha()]
    own = sum(unicodedata.name(char).startswith(NAMES[script]) for char in letters)
    assert is_in_script(text, script, share) == (own >= share * len(letters))


@pytest.mark.parametrize(
    ("language", "script"), [("en", "Latin"), ("ru", "Cyrillic"), ("zh-cn", "Han"), ("ja", "Japanese"), ("vi", "Latin")]
)
def test_languages_have_scripts(language: str, script: str):
    assert script_of(language) == script


def test_a_text_in_another_script_is_not_english():
    """The identifier takes Japanese below an English menu for English; curly quotes and names cost nothing."""
    japanese = "Home News Contact 日本語のページです。今日は天気がいいですね。" * 3
    quoted = "“The café” of the naïve painter was in the old part of the town. " * 5
    texts = [japanese, quoted]
    assert score_language(TextBatch(texts), LanguageScorer(min_script=0)).values["en"] == [1.0, 1.0]
    assert score_language(TextBatch(texts), LanguageScorer()).values["en"] == [0.0, 1.0]
