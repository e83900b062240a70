"""Oracles: values worked out by hand and word by word, Python's ipaddress, published thresholds."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokens.tokenizer import Tokenizer
from tasks.data.duplicates.minhash import MinHashConfig, signatures
from tasks.data.filters.batch import TextBatch
from tasks.data.filters.classifiers.language import LangDetect, LanguageRule, LanguageScorer, Resiliparse
from tasks.data.filters.pii import MARKERS, PIIRule, find_pii, mask, score_pii
from tasks.data.filters.stars import StarsRule
from tasks.data.filters.statistics.gopher_quality import (
    BULLETS,
    GopherQualityRule,
    GopherQualityScorer,
    score_gopher_quality,
)
from tasks.data.filters.statistics.gopher_repetition import (
    GopherRepetitionRule,
    GopherRepetitionScorer,
    score_gopher_repetition,
)
from tests.tasks.data.conftest import refusals

PROSE = "The house stood at the end of the road, and people who passed by it would have looked up with some interest. "


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        (PROSE * 3, ""),
        ("The of and. " * 2, "words"),
        ("a b c of the " * 20, "mean_word_length"),
        ((PROSE + "#### " * 3) * 3, "hash_ratio"),
        ("\n".join(["- the thing of " + PROSE] * 4), "bullet_lines"),
        ("\n".join([PROSE + " the of..."] * 4), "ellipsis_lines"),
        ("1234 5678 the of " * 20, "alphabetic_words"),
        ("house stood road " * 20, "stop_words"),
    ],
)
def test_gopher_quality_names_the_limit_that_is_broken(text, broken):
    assert refusals(GopherQualityRule(), [text])[0].split(" is ")[0] == broken


def test_gopher_values_by_hand():
    quality = score_gopher_quality(TextBatch(["# one ... the\n- two three…"]), GopherQualityScorer()).values
    values = {name: own[0] for name, own in quality.items()}
    assert values["words"] == 7
    assert values["hash_ratio"] == pytest.approx(1 / 7)
    assert values["ellipsis_ratio"] == pytest.approx(2 / 7)
    assert values["bullet_lines"] == values["ellipsis_lines"] == 0.5
    assert values["alphabetic_words"] == pytest.approx(4 / 7)
    assert values["stop_words"] == 1
    scorer = GopherRepetitionScorer(duplicate_ngrams=(2,))
    repeated = {
        name: own[0] for name, own in score_gopher_repetition(TextBatch(["aa bb\naa bb\ncc"]), scorer).values.items()
    }
    assert repeated["duplicate_lines"] == pytest.approx(1 / 3)
    assert repeated["duplicate_lines_characters"] == pytest.approx(5 / 12)
    assert repeated["top_2gram"] == pytest.approx(8 / 10)
    assert repeated["duplicate_2grams"] == pytest.approx(4 / 10)


def slow_repetition(text: str, scorer: GopherRepetitionScorer) -> dict[str, float]:
    """The repetition values word by word."""
    first_too = scorer.counted == "copies"

    def counts(part: object, place: int, parts: list) -> bool:
        return part in parts[:place] or (first_too and part in parts[place + 1 :])

    values = {}
    for name, parts in (("lines", text.splitlines()), ("paragraphs", re.split(r"\n\s*\n", text))):
        kept = [part.strip() for part in parts if part.strip()]
        again = [part for place, part in enumerate(kept) if counts(part, place, kept)]
        values[f"duplicate_{name}"] = len(again) / max(1, len(kept))
        values[f"duplicate_{name}_characters"] = sum(map(len, again)) / max(1, sum(map(len, kept)))
    words = text.split()
    total = max(1, sum(map(len, words)))
    for n in (*scorer.top_ngrams, *scorer.duplicate_ngrams):
        grams = [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]
        top = Counter(grams).most_common(1)
        if n in scorer.top_ngrams:
            values[f"top_{n}gram"] = sum(map(len, top[0][0])) * top[0][1] / total if top and top[0][1] > 1 else 0.0
        covered = {place + k for place, gram in enumerate(grams) if counts(gram, place, grams) for k in range(n)}
        if n in scorer.duplicate_ngrams:
            values[f"duplicate_{n}grams"] = sum(len(words[place]) for place in covered) / total
    return values


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.sampled_from(["a", "bb", "ccc", "é", "a bb", "\n", "\n \n", "\n\n"]), max_size=40).map(" ".join),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([((2, 3), (3, 5)), ((1,), (2, 4)), ((), (4,)), ((3,), ())]),
    st.sampled_from(["repeats", "copies"]),
)
def test_gopher_repetition_is_that_of_a_word_by_word_walk(texts, lengths, counted):
    scorer = GopherRepetitionScorer(top_ngrams=lengths[0], duplicate_ngrams=lengths[1], counted=counted)
    found = score_gopher_repetition(TextBatch(texts), scorer).values
    for place, text in enumerate(texts):
        assert {name: own[place] for name, own in found.items()} == pytest.approx(slow_repetition(text, scorer))


def test_gopher_repetition_drops_boilerplate_and_keeps_prose():
    details = refusals(GopherRepetitionRule(), ["\n".join(["menu home about"] * 9 + [PROSE]), PROSE])
    assert [bool(detail) for detail in details] == [True, False]
    with pytest.raises(ValueError, match="n-grams of 12 words, which are not measured"):
        GopherRepetitionRule(max_top_ngram={12: 0.1})


@pytest.mark.parametrize("name", BULLETS)
def test_bullets_are_those_of_the_tool_that_is_named(name):
    signs = sorted(frozenset[str]().union(*BULLETS.values()))
    texts = ["\n".join(f"{sign} the garden of number {n} and that bridge" for n in range(20)) for sign in signs]
    rule = GopherQualityRule(scorer=GopherQualityScorer(bullets=name))
    dropped = {sign for sign, why in zip(signs, refusals(rule, texts), strict=True) if "bullet_lines" in why}
    assert dropped == BULLETS[name]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to jane.doe+x@mail.uni-bonn.de today", ["email"]),
        ("call (415) 555-2671 or +49 30 1234567", ["phone", "phone"]),
        ("from 8.8.8.8 and 2001:4860:4860::8888", ["ip", "ip"]),
        ("version 1.2.3.4.5, 10.0.0.1, 127.0.0.1, 999.1.1.1, 192.168.1.10", []),
        ("2024-01-15 10:30:45, 3.14159, $1,234.56, ISBN 978-3-16-148410-0, 12345678901234", []),
        ("@decorator, a@b, user@example.com, x = y @ z.T", []),
        ("(111) 555-2671 (411) 234-5678 (212) 111-2222", []),
        ("std::vector::iterator 12:30:45", []),
    ],
)
def test_pii_is_validated(text, kinds):
    found = list(find_pii(TextBatch([text]))[0])
    assert [kind for _, _, kind in found] == kinds


def test_pii_is_masked_by_atomic_tokens_and_much_of_it_drops():
    text = "Mail bob@mail.net or phone 415-555-2671."
    many = " ".join(f"user{i}@mail.net" for i in range(6))
    scores = score_pii(TextBatch([text, many, "none"]))
    assert scores.texts is not None
    assert scores.texts[0] == f"Mail {MARKERS['email']} or phone {MARKERS['phone']}."
    assert scores.texts[2] == "none"
    ids = Tokenizer().encode(scores.texts[0])
    assert 100_261 in ids
    assert 100_262 in ids
    assert [text[start:end] for start, end, _ in scores.spans["email"][0]] == ["bob@mail.net"]
    assert refusals(PIIRule(), [text, many, "none"]) == ["", "spans is 6, at most 5 wanted", ""]


@given(st.text(alphabet="ab@.:0123456789 +-()", max_size=80))
def test_masking_leaves_the_rest_untouched(text):
    spans = list(find_pii(TextBatch([text]))[0])
    rest = mask(text, spans)
    for marker in MARKERS.values():
        rest = rest.replace(marker, "")
    kept = "".join(
        text[end:start]
        for end, start in zip([0, *(s[1] for s in spans)], [*(s[0] for s in spans), len(text)], strict=True)
    )
    assert rest == kept


def test_stars_missing_is_none():
    rows = [{"id": "a", "text": "x", "metadata": {"max_stars_count": 2}}, {"id": "b", "text": "x"}]
    assert refusals(StarsRule(), [{"source": "", **row} for row in rows]) == ["", "count is 0, at least 2 wanted"]
    with pytest.raises(ValueError, match="max_stars_count='many' is not a number"):
        refusals(StarsRule(), [{"id": "a", "text": "x", "source": "", "metadata": {"max_stars_count": "many"}}])


def test_language():
    texts = [PROSE, "Das Haus stand am Ende der Straße, und wer vorbeiging, sah gern hinauf.", "12345 !!"]
    for identifier in (Resiliparse(), LangDetect()):
        rule = LanguageRule(scorer=LanguageScorer(identifier=identifier))
        details = refusals(rule, texts)
        assert [bool(detail) for detail in details] == [False, True, True]
        assert details == refusals(rule, texts)


def test_minhash_of_a_text_does_not_depend_on_its_company(monkeypatch):
    texts = [PROSE, "short", "", PROSE + "more", PROSE * 3]
    together = signatures(texts, MinHashConfig())
    monkeypatch.setattr("tasks.data.duplicates.minhash._CHUNK", 7)
    apart = np.concatenate([signatures([text], MinHashConfig()) for text in texts])
    assert (together == apart).all()
