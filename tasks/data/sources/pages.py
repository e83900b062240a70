"""Web pages: HTML files, and WARC and WET archives as crawls publish them (the web data that the recipe starts from,
RECIPE C.1; paper section 2.4).

Archives are read by FastWARC and text is taken out of HTML by Resiliparse, the extractor of DCLM, both Apache-2.0. The
charset is the server's, else UTF-8 where the bytes are valid UTF-8, else what the page declares, else what its bytes
look like; it, the language that Resiliparse guesses, address, date and content type are kept in the metadata. Bytes that
the charset cannot read become U+FFFD, as in a browser. Records that are no pages (requests, images, redirects) are passed
over; broken ones are kept aside, named by their number in the file.
"""

import codecs
import io
import re
import zlib
from collections.abc import Iterator
from typing import Any

from fastwarc.stream_io import BrotliReader, ChunkedReader
from fastwarc.warc import ArchiveIterator, WarcRecordType
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding
from resiliparse.parse.lang import detect_fast

from tasks.data.documents.dolma_files import open_lines
from tasks.data.sources.intake import Intake
from tasks.data.sources.lines import most_bytes
from tasks.data.sources.listing import SourceFile

MAX_PAGE_BYTES = 16 << 20
"""A longer page is kept aside: its parsed tree takes about twenty times its bytes."""
MAX_DEPTH = 1000
"""Elements inside each other beyond which a page is kept aside: extraction time grows with the square of the depth."""
_LANGUAGE_CHARACTERS = 10_000
_KEPT_RAW_BYTES = 2000
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_NESTING = re.compile(rb"<(/?)(?!(?:p|li|br|img|t[dhr]|option|input|meta|link|hr|d[dt])\b)[a-zA-Z]")
_NO_PAGE = (b"", "", {})


Facts = dict[str, Any]
Page = tuple[bytes, str, Facts]
"""Bytes, the charset that the server named or "", metadata."""


def read_page(intake: Intake, file: SourceFile, name: str) -> None:
    """An HTML file as one document."""
    place = {"file": file.url, "line_number": 1}
    with file.open() as raw:
        try:
            data = open_lines(raw, file.name.lower()).read(MAX_PAGE_BYTES + 1)
        except OSError as error:
            data, problem = b"", f"unreadable: {error}"
        else:
            problem = _unfit(data)
    _take(intake, (data, "", {}), problem, name, place)


def read_archive(intake: Intake, file: SourceFile, name: str) -> None:
    """The pages (WARC `response` records with HTML) and extracted texts (WET `conversion` records) of an archive."""
    for number, page, problem in _pages(file):
        _take(intake, page, problem, f"{name}:{number}", {"file": file.url, "line_number": number})


def _take(intake: Intake, page: Page, problem: str, name: str, place: dict[str, Any]) -> None:
    """Hand one page's text to the intake, or the page to those kept aside; a problem is `reason: detail`."""
    data, charset, facts = page
    if problem:
        intake.reject_problem(problem, data[:_KEPT_RAW_BYTES], **place)
        return
    # WET records are text, not HTML.
    plain = facts.get("content_type") == "text/plain"
    charset = charset if _known(charset) else _charset(data)
    decoded = data.decode(charset, errors="replace")
    text = decoded if plain else extract_plain_text(decoded, main_content=True, alt_texts=False)
    if not text.strip():
        intake.reject("no_text", "the page holds no text", data[:_KEPT_RAW_BYTES], **place)
        return
    language, _ = detect_fast(text[:_LANGUAGE_CHARACTERS])
    kept = {key: value for key, value in facts.items() if key not in ("record", "date")}
    row = {"text": text, "metadata": {**kept, "charset": codecs.lookup(charset).name, "language": language}}
    row |= {"id": facts.get("record"), "created": facts.get("date")}
    intake.accept(row, **place, fallback_id=name)


def _charset(data: bytes) -> str:
    """The charset of a page whose server named none that is known."""
    # Text that is valid UTF-8 by chance is rare, except in charsets of 7 bits, which shift by escapes.
    if b"\x1b" not in data:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            pass
        else:
            return "utf-8"
    found = detect_encoding(data, from_html_meta=True) or "utf-8"
    return found if _known(found) else "utf-8"


def _known(charset: str) -> bool:
    try:
        codecs.lookup(charset)
    except LookupError:
        return False
    return bool(charset)


def _unfit(data: bytes) -> str:
    """Why a page cannot be parsed in bounded time and memory, or ""."""
    if len(data) > MAX_PAGE_BYTES:
        return f"too_long: over {MAX_PAGE_BYTES:,} bytes"
    if data.count(b"<") <= MAX_DEPTH:
        return ""
    depth = 0
    for match in _NESTING.finditer(data):
        depth += -1 if match[1] else 1
        if depth > MAX_DEPTH:
            return f"too_deep: over {MAX_DEPTH:,} elements inside each other"
    return ""


def _pages(file: SourceFile) -> Iterator[tuple[int, Page, str]]:
    """(number of the record, page, problem) of the records that hold text; the last problem ends the file."""
    number, size, most = 0, 0, most_bytes(file)
    with file.open() as raw:
        try:
            for record in ArchiveIterator(raw, parse_http=True, auto_decode="none"):
                number, size = number + 1, size + record.content_length
                if size > most:
                    yield number, _NO_PAGE, f"archive_bomb: more than {most:,} bytes"
                    return
                if record.record_type == WarcRecordType.conversion or _is_page(record):
                    yield (number, *_read_record(record))
        except OSError as error:
            yield number + 1, _NO_PAGE, f"unreadable: {error}"
            return
    if number == 0 and file.size:
        yield 1, _NO_PAGE, "unreadable: no record in it"


def _is_page(record: Any) -> bool:
    """Whether a record is an HTML page that a server answered with, or one whose HTTP head is broken."""
    if record.record_type != WarcRecordType.response:
        return False
    if record.http_headers is None:
        return bool(record.is_http)
    return record.http_headers.status_code == 200 and (record.http_content_type or "").lower() in _HTML_TYPES


def _read_record(record: Any) -> tuple[Page, str]:
    """The page of a record, and the problem with it."""
    length = record.content_length
    facts = {
        "record": (record.record_id or "").strip("<>"),
        "url": record.headers.get("WARC-Target-URI"),
        "date": record.headers.get("WARC-Date"),
        "content_type": record.http_content_type or record.headers.get("Content-Type", "").split(";")[0].strip(),
    }
    if length > MAX_PAGE_BYTES:
        return (b"", "", facts), f"too_long: {length:,} bytes, over {MAX_PAGE_BYTES:,}"
    data = record.reader.read(length)
    if len(data) < length or (record.record_type == WarcRecordType.response and record.http_headers is None):
        return (data, "", facts), f"cut_off: {len(data):,} of {length:,} bytes, or without an HTTP head"
    try:
        data = _decoded(data, record.http_headers)
    except (OSError, zlib.error) as error:
        return (data, "", facts), f"unreadable: {error}"
    return (data, record.http_charset or "", facts), _unfit(data)


def _decoded(data: bytes, headers: Any) -> bytes:
    """The body without its transfer and content encodings, cut a little above the limit. OSError or zlib.error when broken."""
    if headers is None:
        return data
    if headers.get("Transfer-Encoding", "").lower() == "chunked":
        data = ChunkedReader(io.BytesIO(data)).read(len(data))
    encoding = headers.get("Content-Encoding", "").lower()
    if encoding in ("gzip", "x-gzip", "deflate"):
        # 32 + 15: a gzip or a zlib head, whichever is there.
        inflater = zlib.decompressobj(47)
        inflated = inflater.decompress(data, MAX_PAGE_BYTES + 1)
        if not inflater.eof and len(inflated) <= MAX_PAGE_BYTES:
            raise OSError("the compressed body is cut off")
        return inflated
    if encoding == "br":
        return BrotliReader(io.BytesIO(data)).read(MAX_PAGE_BYTES + 1)
    return data
