"""The body of an answer without its transfer and content encodings (RFC 9110 and 9112), as crawlers wrote it.

A body that is not what its head says, that breaks, or whose encoding is not known is an OSError: its bytes would be taken for
text.
"""

import io
import re
import zlib
from collections.abc import Callable
from typing import Any

from backports import zstd
from fastwarc.stream_io import BrotliReader

from tasks.data.sources.reading.records import ArchiveRecord

_CHUNK = re.compile(rb"\s*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_GZIP = b"\x1f\x8b"
_HEAD = re.compile(rb"[^\r\n]*\n(?:[^\r\n]+\n)*\n")
"""The head of an answer whose lines end in a line feed alone."""


def body_of(data: bytes, headers: Any, limit: int) -> bytes:
    """The decoded body, cut at `limit` bytes. OSError where it cannot be decoded; `headers` is None where there are none."""
    if headers is None:
        return data
    # Transfer encoding is the outer layer, so it is undone first.
    for name in _encodings(headers, "Transfer-Encoding") + _encodings(headers, "Content-Encoding"):
        if name not in _DECODERS:
            raise OSError(f"the body has an encoding that is not known: {name[:40]!r}")
        data = _DECODERS[name](data, limit)
    return data


def _encodings(headers: Any, header: str) -> list[str]:
    """Names of the encodings, the outermost first. A header that is repeated says the same again."""
    names = [name.strip().lower() for name in (headers.get(header) or "").split(",")]
    return [
        name for name in reversed(names) if name and name not in _NONE and "/" not in name and not _is_charset(name)
    ]


_NONE = ("identity", "none", "binary", "8bit", "7bit", "aws-chunked", "null", "*")
"""Words that servers write where there is no encoding."""


def _is_charset(name: str) -> bool:
    """Whether a server wrote a charset where an encoding belongs."""
    return name.startswith(("utf", "iso-", "windows-")) or name == "ascii"


def _from_chunks(data: bytes, limit: int) -> bytes:
    """The parts of a chunked body; one whose end is missing is cut off."""
    at, body = 0, bytearray()
    while (found := _CHUNK.match(data, at)) is not None:
        size = int(found[1], 16)
        if not size:
            return bytes(body)
        part = data[found.end() : found.end() + size]
        # A cut chunk would be text that ends in the middle of a sentence.
        if len(part) < size:
            raise OSError(f"a chunk is cut off: {len(part):,} of {size:,} bytes")
        body += part
        at = found.end() + size
    if not at or data[at:].strip():
        raise OSError("a chunk should begin here, and something else stands here")
    return bytes(body)


def _from_gzip(data: bytes, limit: int) -> bytes:
    """Members one after another; what follows the last and is none is passed over, as in browsers."""
    body, data = _inflated(data, 31, limit)
    # gzip data may have several members, one after another.
    while data.startswith(_GZIP) and len(body) < limit:
        part, data = _inflated(data, 31, limit - len(body))
        body += part
    return body


def _from_deflate(data: bytes, limit: int) -> bytes:
    """A zlib stream, or one without its head, as some servers send it."""
    # The first two bytes of a zlib stream are a multiple of 31 and name the method 8.
    headed = len(data) > 1 and data[0] & 15 == 8 and not int.from_bytes(data[:2]) % 31
    return _inflated(data, 15 if headed else -15, limit)[0]


def _inflated(data: bytes, bits: int, limit: int) -> tuple[bytes, bytes]:
    """(decoded, what follows) of one stream."""
    inflater = zlib.decompressobj(bits)
    try:
        # The limit is for the decoded bytes: a small body may unpack to gigabytes.
        body = inflater.decompress(data, limit)
    except zlib.error as error:
        raise OSError(f"the compressed body is broken: {error}") from error
    if not inflater.eof and len(body) < limit:
        raise OSError("the compressed body is cut off")
    return body, inflater.unused_data


def _from_zstd(data: bytes, limit: int) -> bytes:
    try:
        with zstd.ZstdFile(io.BytesIO(data)) as stream:
            return stream.read(limit)
    except (zstd.ZstdError, EOFError) as error:
        raise OSError(f"the compressed body is broken: {error}") from error


def _from_brotli(data: bytes, limit: int) -> bytes:
    return BrotliReader(io.BytesIO(data)).read(limit)


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "chunked": _from_chunks,
    "gzip": _from_gzip,
    "x-gzip": _from_gzip,
    "deflate": _from_deflate,
    "zstd": _from_zstd,
    "br": _from_brotli,
}


def with_line_ends(record: ArchiveRecord) -> ArchiveRecord:
    """A record whose answer's head has the line ends of HTTP, where a crawler wrote line feeds alone."""
    found = _HEAD.match(record.body) if record.body.startswith(b"HTTP/") else None
    if found is None:
        return record
    body = found[0].replace(b"\n", b"\r\n") + record.body[found.end() :]
    # The length changed with the line ends, and readers go by it.
    head = re.sub(rb"(?im)^(Content-Length:[ \t]*)\d+", rb"\g<1>%d" % len(body), record.head, count=1)
    return record._replace(head=head, body=body, length=len(body))
