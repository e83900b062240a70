"""Oracles: Jaccard similarities by brute force, values worked out by hand, Python's ipaddress, published
thresholds."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import Tokenizer
from tasks.data.filter import FilterConfig, filter, judge_batch
from tasks.data.filters.gopher import (
    GopherQualityRule,
    GopherRepetitionRule,
    judge_gopher_quality,
    judge_gopher_repetition,
    quality_values,
    repetition_values,
)
from tasks.data.filters.language import LanguageRule, judge_language
from tasks.data.filters.minhash import MinHashConfig, band_keys, cluster, signatures
from tasks.data.filters.pii import MARKERS, PIIRule, find_pii, judge_pii, mask
from tasks.data.filters.stackexchange import is_good_pair, join_pair
from tasks.data.filters.stars import StarsRule, judge_stars

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
    (judgement,) = judge_gopher_quality([text], GopherQualityRule())
    assert judgement.detail.split(" is ")[0] == broken


def test_gopher_values_by_hand():
    values = quality_values("# one ... the\n- two three…")
    assert values["words"] == 7
    assert values["hash_ratio"] == pytest.approx(1 / 7)
    assert values["ellipsis_ratio"] == pytest.approx(2 / 7)
    assert values["bullet_lines"] == values["ellipsis_lines"] == 0.5
    assert values["alphabetic_words"] == pytest.approx(4 / 7)
    repeated = repetition_values("aa bb\naa bb\ncc", GopherRepetitionRule(max_duplicate_ngrams={2: 1.0}))
    assert repeated["duplicate_lines"] == pytest.approx(1 / 3)
    assert repeated["duplicate_lines_characters"] == pytest.approx(5 / 12)
    assert repeated["top_2gram"] == pytest.approx(8 / 10)
    assert repeated["duplicate_2grams"] == pytest.approx(4 / 10)


def test_gopher_repetition_drops_boilerplate_and_keeps_prose():
    judged = judge_gopher_repetition(["\n".join(["menu home about"] * 9 + [PROSE]), PROSE], GopherRepetitionRule())
    assert [bool(judgement.detail) for judgement in judged] == [True, False]


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
    assert [kind for _, _, kind in find_pii(text)] == kinds


def test_pii_is_masked_by_atomic_tokens_and_much_of_it_drops():
    text = "Mail bob@mail.net or phone 415-555-2671."
    many = " ".join(f"user{i}@mail.net" for i in range(6))
    one, two, three = judge_pii([text, many, "none"], PIIRule())
    assert one.text == f"Mail {MARKERS['email']} or phone {MARKERS['phone']}."
    ids = Tokenizer().encode(one.text)
    assert 100_261 in ids
    assert 100_262 in ids
    assert two.detail == "6 spans, at most 5 wanted"
    assert two.text is None is three.text
    assert [text[start:end] for start, end, _ in one.attributes["email"]] == ["bob@mail.net"]


@given(st.text(alphabet="ab@.:0123456789 +-()", max_size=80))
def test_masking_leaves_the_rest_untouched(text):
    spans = find_pii(text)
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
    assert [bool(judgement.detail) for judgement in judge_stars(rows, StarsRule())] == [False, True]
    with pytest.raises(ValueError, match="max_stars_count='many' is not a number"):
        judge_stars([{"id": "a", "text": "x", "metadata": {"max_stars_count": "many"}}], StarsRule())


def test_language():
    texts = [PROSE, "Das Haus stand am Ende der Straße, und wer vorbeiging, sah gern hinauf.", "12345 !!"]
    judged = judge_language(texts, LanguageRule())
    assert [bool(judgement.detail) for judgement in judged] == [False, True, True]
    assert judged == judge_language(texts, LanguageRule())


def test_stack_exchange_pairs():
    assert join_pair("q\n\nq", "a\na") == "q\n\nq\n\n\na\na"
    assert join_pair("q", "a") == "q\na"
    assert is_good_pair(3, 5, True)
    assert not any([is_good_pair(2, 5, True), is_good_pair(3, 4, True), is_good_pair(9, 9, False)])


def test_masked_text_is_what_goes_on(bench):
    documents = bench.documents(["Mail bob@mail.net " + PROSE])
    made = bench.run(filter, documents, FilterConfig(rules=(PIIRule(), GopherQualityRule(min_words=5))))
    assert bench.rows(made, "documents/")[0]["text"].startswith("Mail |||EMAIL_ADDRESS||| The")
    (row,) = judge_batch([{"id": "1", "text": "a", "source": "s"}], (GopherQualityRule(),))
    assert row[2] == "gopher_quality"


def jaccard(one: str, two: str, n: int) -> float:
    a, b = ({tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in (one.split(), two.split()))
    return len(a & b) / len(a | b)


def test_minhash_estimates_jaccard_and_finds_what_theory_says():
    rng = random.Random(0)
    config = MinHashConfig()
    pairs = []
    for _ in range(150):
        words = [f"w{rng.randrange(5000)}" for _ in range(120)]
        changed = [f"z{rng.randrange(5000)}" if rng.random() < rng.choice([0.01, 0.04, 0.1]) else w for w in words]
        pairs.append((" ".join(words), " ".join(changed)))
    texts = [text for pair in pairs for text in pair]
    places = signatures(texts, config)
    exact = np.array([jaccard(*pair, config.ngram) for pair in pairs])
    estimate = (places[0::2] == places[1::2]).mean(axis=1)
    # Standard error of one estimate is at most 0.5 / sqrt(112) = 0.047.
    assert np.abs(estimate - exact).max() < 5 * 0.047
    assert abs((estimate - exact).mean()) < 0.02
    kept = cluster(band_keys(places, config)).kept
    found = kept[0::2] == kept[1::2]
    expected = 1 - (1 - exact**config.rows) ** config.bands
    assert abs(found.mean() - expected.mean()) < 4 * np.sqrt((expected * (1 - expected)).sum()) / len(pairs)
    # No two unrelated texts share a component.
    assert len(set(kept.tolist())) == 300 - found.sum()


def test_minhash_of_a_text_does_not_depend_on_its_company(monkeypatch):
    texts = [PROSE, "short", "", PROSE + "more", PROSE * 3]
    together = signatures(texts, MinHashConfig())
    monkeypatch.setattr("tasks.data.filters.minhash._CHUNK", 7)
    apart = np.concatenate([signatures([text], MinHashConfig()) for text in texts])
    assert (together == apart).all()


def test_components_are_transitive():
    keys = np.array([[1, 9], [1, 8], [2, 8], [3, 7]], dtype=np.uint64)
    clusters = cluster(keys)
    assert clusters.kept.tolist() == [0, 0, 0, 3]
    assert clusters.sizes == {0: 3}
