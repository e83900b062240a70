"""Stack Exchange's data dump to question-and-answer documents (RECIPE C.5; paper section 4.3).

Input are the sites' `Posts.xml` (one `row` element per line), unpacked from the archives of a dump, compressed again or not. A
question stays if it has an accepted answer and both have enough votes; the document is title and question, then the separator,
then the answer, as text without HTML. Only questions that wait for their answer are in memory: an answer always follows its
question. The paper names no HTML extractor; this is Resiliparse's, as for web pages. De-duplication is the dedup stage's work.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field
from resiliparse.extract.html2text import extract_plain_text

from infra.workspace import ShardItem, Workspace
from tasks.data.documents.dolma_files import Row, open_lines
from tasks.data.sources.files.listing import BrokenFileError, SourceFile, find_files
from tasks.data.sources.intake import Intake, IntakeCounts, Reading, RowPlace, SourceConfig
from tasks.data.sources.reading.formats import COMPRESSIONS
from tasks.data.sources.reading.lines import ENDS, cut_lines, most_bytes

MIN_QUESTION_VOTES = 3
MIN_ANSWER_VOTES = 5
_NEWLINES = re.compile(r"\n+")
_SUFFIXES = tuple(f"Posts.xml{compression}" for compression in ("", *COMPRESSIONS))
QUESTION, ANSWER = "1", "2"
"""Values of PostTypeId."""


class StackExchangeSource(SourceConfig):
    """Posts of Stack Exchange sites."""

    kind: Literal["stackexchange"] = "stackexchange"
    paths: tuple[str, ...] = Field(min_length=1)
    """`Posts.xml` files, folders that hold them (one folder per site, named after it), globs or URLs of them."""
    min_question_votes: int = MIN_QUESTION_VOTES
    """Fewest votes of a question (paper section 4.3)."""
    min_answer_votes: int = MIN_ANSWER_VOTES
    """Fewest votes of its accepted answer (paper section 4.3)."""
    files: tuple[SourceFile, ...] = ()
    """The files that `paths` stand for, pinned by content; `pinned` fills them in."""

    def pinned(self) -> Self:
        """The config with its files listed and fingerprinted. Raises ValueError if one is missing or none is found."""
        return self.model_copy(update={"files": find_files(self.paths, _SUFFIXES)})

    def reading(self) -> Reading:
        """The function that reads a part of the source, and the parts."""
        return collect_stackexchange, stackexchange_items(self)


class Question(NamedTuple):
    """A question that waits for its accepted answer."""

    id: str
    text: str
    votes: int
    created: str
    tags: str


def stackexchange_items(config: StackExchangeSource) -> list[ShardItem]:
    """One item per site. Raises ValueError if the config is not pinned."""
    if not config.files:
        raise ValueError(
            f"source {config.name!r} has no `files`; call its method `pinned`, so that the "
            "artifact's identity covers what is read"
        )
    return [{"item": number, "file": file.model_dump(mode="json")} for number, file in enumerate(config.files)]


def collect_stackexchange(ws: Workspace, item: ShardItem) -> IntakeCounts:
    """Shard function: one site. `selection/<item>.json` says how many posts were left out, and why."""
    config = StackExchangeSource.model_validate(item["config"])
    file = SourceFile.model_validate(item["file"])
    intake = Intake(ws, item["item"], config)
    intake.reading(file)
    counts: Counter[str] = Counter()
    waiting: dict[str, Question] = {}
    for number, post in _posts(intake, file):
        if post.get("PostTypeId") == QUESTION:
            _ask(post, waiting, counts, config)
        # pop: an answer comes once, and its question need not wait any longer.
        elif post.get("PostTypeId") == ANSWER and (question := waiting.pop(post.get("Id", ""), None)):
            if is_good_pair(question.votes, _votes(post), config.min_question_votes, config.min_answer_votes):
                row = _document(question, post, site_of(file.url))
                intake.accept(row, file=file.url, line_number=number, fallback_id=row["id"])
                counts["pairs"] += 1
            else:
                counts["few answer votes"] += 1
    counts["accepted answer is missing"] += len(waiting)
    ws.write_json(f"selection/{item['item']:05d}.json", {"site": site_of(file.url), **counts})
    return intake.finish()


def _posts(intake: Intake, file: SourceFile) -> Any:
    """(line number, attributes) of every row; lines that cannot be read are kept aside."""
    with file.open() as raw:
        stream = open_lines(raw, file.name)
        # Lines are cut with the bound of a document, since one post is one line.
        lines = cut_lines(stream, 0, None, intake.config.max_document_bytes, most_bytes(file))
        for number, (_, line, problem) in enumerate(lines, start=1):
            place: RowPlace = {"file": file.url, "line_number": number}
            if problem.startswith(ENDS):
                raise BrokenFileError(file.url, problem, number)
            if problem:
                intake.reject_problem(problem, line, **place)
            elif line.lstrip().startswith(b"<row"):
                try:
                    yield number, dict(ElementTree.fromstring(line).attrib)
                except ElementTree.ParseError as error:
                    intake.reject("not_xml", str(error), line, **place)


def _ask(post: dict[str, str], waiting: dict[str, Question], counts: Counter[str], config: StackExchangeSource) -> None:
    """Let a question wait for its answer, if it may come to be a document."""
    counts["questions"] += 1
    accepted = post.get("AcceptedAnswerId")
    if not accepted:
        counts["no accepted answer"] += 1
    elif _votes(post) < config.min_question_votes:
        counts["few question votes"] += 1
    else:
        text = f"{post.get('Title', '').strip()}\n\n{plain_text(post.get('Body', ''))}".strip()
        waiting[accepted] = Question(
            post.get("Id", ""), text, _votes(post), post.get("CreationDate", ""), post.get("Tags", "")
        )


def _votes(post: dict[str, str]) -> int:
    score = post.get("Score", "0")
    # A score that is no number is none.
    return int(score) if score.lstrip("-").isdecimal() else 0


def _document(question: Question, answer: dict[str, str], site: str) -> Row:
    metadata = {
        "site": site,
        "question_id": question.id,
        "answer_id": answer.get("Id", ""),
        "question_votes": question.votes,
        "answer_votes": _votes(answer),
        "tags": question.tags,
        "url": f"https://{site}/questions/{question.id}",
    }
    text = join_pair(question.text, plain_text(answer.get("Body", "")))
    return {"id": f"{site}/{question.id}", "text": text, "created": question.created, "metadata": metadata}


def plain_text(html: str) -> str:
    """A post's text: paragraphs, lists and code as lines."""
    return extract_plain_text(html, main_content=False, alt_texts=False).strip()


def site_of(url: str) -> str:
    """A site's name: that of the folder its posts are in."""
    return PurePosixPath(url).parent.name


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
    # One newline more than in either text, so that the separator is found without doubt.
    longest = max((len(run) for text in (question, answer) for run in _NEWLINES.findall(text)), default=0)
    return question + "\n" * (longest + 1) + answer
