"""Question and answer documents of Stack Exchange (RECIPE C.5; paper section 4.3)."""

import re

MIN_QUESTION_VOTES = 3
MIN_ANSWER_VOTES = 5

_NEWLINES = re.compile(r"\n+")


def is_good_pair(question_votes: int, answer_votes: int, accepted: bool) -> bool:
    """Whether a pair stays: its answer is the accepted one, and both have enough votes."""
    return accepted and question_votes >= MIN_QUESTION_VOTES and answer_votes >= MIN_ANSWER_VOTES


def join_pair(question: str, answer: str) -> str:
    """Question and answer, separated by one newline more than the longest run of newlines in either."""
    longest = max((len(run) for text in (question, answer) for run in _NEWLINES.findall(text)), default=0)
    return question + "\n" * (longest + 1) + answer
