"""Web pages: HTML files, and WARC and WET archives as crawls publish them (the web data that the recipe starts from,
RECIPE C.1; paper section 2.4).

Archives are framed by `records.py`; a record's head is read by FastWARC and text is taken out of HTML by Resiliparse, the
extractor of DCLM, both Apache-2.0. Charset (`charset.py`), the language that Resiliparse guesses, address, date and content
type are kept in the metadata. Records that are no pages (requests, images, redirects) are counted and passed over. A page
that cannot be read, whatever it makes a library raise, is one row kept aside, named by its number in the file.
"""

import io
from typing import Any, TypedDict

from fastwarc.warc import ArchiveIterator, WarcRecordType
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree
from resiliparse.parse.lang import detect_fast

from tasks.data.documents.dolma_files import Row, open_lines
from tasks.data.sources.files.listing import SourceFile
from tasks.data.sources.intake import Intake, RowPlace
from tasks.data.sources.reading.bodies import body_of, with_line_ends
from tasks.data.sources.reading.charset import charset_of, decode
from tasks.data.sources.reading.lines import most_bytes
from tasks.data.sources.reading.page_depth import MAX_DEPTH, is_too_deep
from tasks.data.sources.reading.records import MAX_RECORD_BYTES, ArchiveRecord, records_of

MAX_PAGE_BYTES = 16 << 20
"""A longer page is kept aside: its parsed tree takes about twenty times its bytes."""
_LANGUAGE_CHARACTERS = 10_000
_KEPT_RAW_BYTES = 2000
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_OTHER_TYPES = ("warcinfo", "resource", "request", "metadata", "revisit", "continuation")
"""Types of records in the standard that hold no page as a server gave it."""


class PageFacts(TypedDict, total=False):
    """What an archive says of a page; nothing of a file that is one page."""

    record: str
    url: str | None
    date: str | None
    content_type: str


Page = tuple[bytes, str, PageFacts]
"""Bytes, the charset that the server named or "", metadata."""


def read_page(intake: Intake, file: SourceFile, name: str) -> None:
    """An HTML file as one document."""
    place: RowPlace = {"file": file.url, "line_number": 1}
    with file.open() as raw:
        try:
            # One byte more than allowed tells a page that is too long from one that just fits.
            data = open_lines(raw, file.name).read(MAX_PAGE_BYTES + 1)
        except OSError as error:
            data, problem = b"", f"unreadable: {error}"
        else:
            problem = _unfit(data)
    _take(intake, (data, "", {}), problem, name, place)


def read_archive(intake: Intake, file: SourceFile, name: str) -> None:
    """The pages (WARC `response` records with HTML) and extracted texts (WET `conversion` records) of an archive."""
    with file.open() as raw:
        stream = open_lines(raw, file.name)
        for record in records_of(stream, file, most_bytes(file)):
            place: RowPlace = {"file": file.url, "line_number": record.number}
            kind = record.type
            if kind in _OTHER_TYPES:
                intake.pass_over(kind)
            elif kind not in ("response", "conversion"):
                intake.reject("unknown_record", f"WARC-Type {kind!r}", record.head, **place)
            elif len(record.body) < record.length:
                intake.reject("too_long", f"{record.length:,} bytes, over {MAX_RECORD_BYTES:,}", record.head, **place)
            else:
                _take_record(intake, record, f"{name}:{record.number}", place)
            if intake.full:
                return


def _take_record(intake: Intake, record: ArchiveRecord, name: str, place: RowPlace) -> None:
    try:
        page, other, problem = _page_of(record)
    except MemoryError:
        raise  # What this machine has no memory for is a page on another one.
    except Exception as error:  # A record may make a library raise anything; it is one row all the same.
        page, other, problem = (record.body, "", PageFacts()), "", f"unreadable: {type(error).__name__}: {error}"
    if other:
        intake.pass_over(other)
    else:
        _take(intake, page, problem, name, place)


def _take(intake: Intake, page: Page, problem: str, name: str, place: RowPlace) -> None:
    """Hand one page's text to the intake, or the page to those kept aside; a problem is `reason: detail`."""
    row: Row = {}
    if not problem:
        try:
            row, problem = _row_of(page)
        except MemoryError:
            raise  # The memory of this machine must not decide what a page is.
        except Exception as error:  # A page may make a library raise anything; it is one row all the same.
            problem = f"page_error: {type(error).__name__}: {error}"
    if problem:
        intake.reject_problem(problem, page[0][:_KEPT_RAW_BYTES], **place)
    else:
        intake.accept(row, **place, fallback_id=name)


def _row_of(page: Page) -> tuple[Row, str]:
    """(document, problem) of a page."""
    data, named, facts = page
    # WET records are text, not HTML.
    plain = facts.get("content_type") == "text/plain"
    charset = charset_of(data, named)
    text = decode(data, charset)
    if not plain:
        tree = HTMLTree.parse(text)
        if is_too_deep(text, tree):
            return {}, f"too_deep: over {MAX_DEPTH:,} elements inside each other"
        text = extract_plain_text(tree, main_content=True, alt_texts=False)
    if not text.strip():
        return {}, "no_text: the page holds no text"
    language, _ = detect_fast(text[:_LANGUAGE_CHARACTERS])
    # Record id and date become the document's own id and time below.
    kept = {key: value for key, value in facts.items() if key not in ("record", "date")}
    row = {"text": text, "metadata": {**kept, "charset": charset, "language": language}}
    return row | {"id": facts.get("record"), "created": facts.get("date")}, ""


def _unfit(data: bytes) -> str:
    """Why a page cannot be parsed in bounded memory, or ""."""
    return f"too_long: over {MAX_PAGE_BYTES:,} bytes" if len(data) > MAX_PAGE_BYTES else ""


def _page_of(record: ArchiveRecord) -> tuple[Page, str, str]:
    """(page, why it is no page or "", problem with it or "") of a response or a conversion."""
    record = with_line_ends(record)
    archive = ArchiveIterator(io.BytesIO(record.whole()), parse_http=True, auto_decode="none")
    # A record's reader ends when the next record is asked for.
    parsed = next(iter(archive))
    if parsed.http_headers is not None and parsed.http_headers.status_code is None:
        return (record.body, "", {}), "", "bad_http: the answer begins with no status"
    if parsed.record_type == WarcRecordType.response and not _is_page(parsed):
        if parsed.http_headers is None:
            return (b"", "", {}), "not HTTP", ""
        ok = parsed.http_headers.status_code == 200
        return (b"", "", {}), "not HTML" if ok else "status other than 200", ""
    page, problem = _read_record(parsed)
    return page, "", problem


def _is_page(record: Any) -> bool:
    """Whether a record is an HTML page that a server answered with, or one whose HTTP head is broken."""
    if record.record_type != WarcRecordType.response:
        return False
    if record.http_headers is None:
        return bool(record.is_http)
    return record.http_headers.status_code == 200 and _content_type(record) in _HTML_TYPES


def _content_type(record: Any) -> str:
    """What the server says that it is; where it says so twice, the first."""
    return (record.http_content_type or "").partition(",")[0].strip().lower()


def _read_record(record: Any) -> tuple[Page, str]:
    """The page of a record, and the problem with it."""
    length = record.content_length
    facts: PageFacts = {
        "record": (record.record_id or "").strip("<>"),
        "url": record.headers.get("WARC-Target-URI"),
        "date": record.headers.get("WARC-Date"),
        "content_type": record.http_content_type or record.headers.get("Content-Type", "").split(";")[0].strip(),
    }
    data = record.reader.read(length)
    # A head without its blank line leaves no body; both are a crawl that broke off.
    if len(data) < length or (record.record_type == WarcRecordType.response and record.http_headers is None):
        return (data, "", facts), f"cut_off: {len(data):,} of {length:,} bytes, or without an HTTP head"
    try:
        data = body_of(data, record.http_headers, MAX_PAGE_BYTES + 1)
    except OSError as error:
        return (data, "", facts), f"unreadable: {error}"
    return (data, record.http_charset or "", facts), _unfit(data)
