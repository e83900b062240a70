"""Our quality and repetition rules against the decisions of datatrove 0.10.1, NeMo Curator 1.4.0 and Dolma 1.2.1 on the same
texts.

benchmarks/peers/rule_decisions.py, which runs the peers' own filters, wrote `peer_decisions.json`. Where a decision differs, the
reason is named here and in docs/filters.md; a new difference, or one that is gone, fails.
"""

import json
from pathlib import Path

import pytest

from tasks.data.filters.rules import Rule
from tasks.data.filters.statistics.gopher_quality import GopherQualityRule, GopherQualityScorer
from tasks.data.filters.statistics.gopher_repetition import GopherRepetitionRule, GopherRepetitionScorer
from tests.parity.rule_texts import TEXTS
from tests.tasks.data.conftest import refusals

DECISIONS: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "peer_decisions.json").read_text())
RULES: dict[str, Rule] = {
    "datatrove_quality": GopherQualityRule(),
    "datatrove_repetition": GopherRepetitionRule(),
    "nemo_repetition": GopherRepetitionRule(),
    "dolma_quality": GopherQualityRule(scorer=GopherQualityScorer(bullets="dolma")),
    "dolma_repetition": GopherRepetitionRule(scorer=GopherRepetitionScorer(counted="copies")),
}
DIFFERENCES = {
    "datatrove_quality": {"no_lines_again", "hashes"},
    "datatrove_repetition": {"short"},
    "nemo_repetition": {"short"},
    "dolma_quality": {"ellipsis_lines"},
    "dolma_repetition": {"short"},
}
"""Dolma knows the one character … at the end of a line and not three dots.
datatrove's words are spaCy's tokens, so punctuation makes words without letters and a text of more words; an n-gram that
stands once is the most frequent one for both peers, so a text of a few words is dropped by its only two."""


@pytest.mark.parametrize("peer", list(RULES))
def test_a_rule_drops_what_the_peers_filter_drops(peer: str):
    assert set(DECISIONS[peer]) == set(TEXTS)
    ours = dict(zip(TEXTS, refusals(RULES[peer], list(TEXTS.values())), strict=True))
    differ = {name for name in TEXTS if bool(ours[name]) != bool(DECISIONS[peer][name])}
    assert differ == DIFFERENCES[peer]


def test_every_limit_of_the_rules_decides_some_text():
    """The texts would show little if one limit dropped them all."""
    reasons = {
        reason.split(" is ")[0] for rule in RULES.values() for reason in refusals(rule, list(TEXTS.values())) if reason
    }
    quality = {
        "words",
        "mean_word_length",
        "hash_ratio",
        "bullet_lines",
        "ellipsis_lines",
        "alphabetic_words",
        "stop_words",
    }
    repetition = {"duplicate_lines", "duplicate_lines_characters", "top_2gram", "top_3gram", "duplicate_5grams"}
    assert reasons >= quality | repetition
