"""Question and answer documents of Stack Exchange: which stay, and how they are joined (RECIPE C.5; paper section 4.3)."""

import re

MIN_QUESTION_VOTES = 3
MIN_ANSWER_VOTES = 5

_NEWLINES = re.compile(r"\n+")


def is_good_pair(
    question_votes: int,
    answer_votes: int,
    min_question_votes: int = MIN_QUESTION_VOTES,
    min_answer_votes: int = MIN_ANSWER_VOTES,
) -> bool:
    """Whether a question and its accepted answer stay: both have enough votes."""
    return question_votes >= min_question_votes and answer_votes >= min_answer_votes


def join_pair(question: str, answer: str) -> str:
    """Question and answer, separated by one newline more than the longest run of newlines in either."""
    longest = max((len(run) for text in (question, answer) for run in _NEWLINES.findall(text)), default=0)
    return question + "\n" * (longest + 1) + answer
