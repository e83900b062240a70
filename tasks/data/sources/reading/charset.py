"""The charset of a page: byte order mark, then what the server says, then what the page says, then what its bytes look like.

Names are labels of the WHATWG Encoding standard, as browsers read them (`iso-8859-1` means windows-1252, `shift_jis`
windows-31j). A label that is none there, though Python may know a codec of that name (`base64`, `idna`, `rot13`), is passed over.
"""

import codecs
import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    # Browsers read no UTF-32, whose mark begins like that of UTF-16; files have it.
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PRESCAN_BYTES = 4096
"""Browsers look for the page's own word in its first 1,024 bytes; pages put it later too."""
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
_META = re.compile(rb"<meta\b[^>]*?\bcharset\s*=\s*[\"']?\s*([^\s\"'/>;]+)", re.IGNORECASE)
_XML = re.compile(rb"<\?xml\b[^>]*?\bencoding\s*=\s*[\"']([^\"']+)")
_PYTHON = {"shift_jis": "cp932", "euc_kr": "cp949", "iso8859-11": "cp874"}
"""Python's codec that holds all of the standard's encoding, where the one of the same name holds less."""
_MISSING = {"x-mac-cyrillic": "mac-cyrillic", "x-mac-ukrainian": "mac-cyrillic"}
"""Labels of the standard that Resiliparse lacks."""
_DECODERS = {"gbk": "gb18030", "big5": "big5hkscs"}
"""As the standard decodes: the larger encoding of the family."""


def charset_of(data: bytes, named: str) -> str:
    """Python's name of a page's charset; `named` is what the server said, or ""."""
    # A byte order mark goes before what anyone says, as in browsers.
    for mark, charset in _MARKS:
        if data.startswith(mark):
            return charset
    charset = from_label(named)
    # The tags of a page in UTF-16 have zero bytes. Browsers would believe the server and show another script.
    if charset.startswith("utf-16") and b"\x00" not in data[:_PRESCAN_BYTES]:
        charset = ""
    return charset or _declared(data) or _looks_like(data)


def decode(data: bytes, charset: str) -> str:
    """The text without a byte order mark; bytes that the charset cannot read become U+FFFD, as in a browser."""
    return data.decode(_DECODERS.get(charset, charset), errors="replace").removeprefix("\ufeff")


def from_label(label: str) -> str:
    """Python's codec for a label of the standard; "" for anything else."""
    label = label.strip("\t\n\f\r \"'")
    if not label or not label.isascii() or not label.isprintable():
        return ""
    charset = _MISSING.get(label.lower()) or map_encoding_to_html5(label.lower(), fallback_utf8=False)
    return _PYTHON.get(charset, charset) if charset else ""


def _declared(data: bytes) -> str:
    """What a page says of itself. One that can say it in ASCII is not UTF-16, whatever it says."""
    head = _COMMENT.sub(b"", data[:_PRESCAN_BYTES])
    for found in (*_META.finditer(head), *_XML.finditer(head)):
        charset = from_label(found[1].decode("ascii", errors="replace"))
        if charset:
            # A declaration that can be read in ASCII proves that the page is not UTF-16.
            return "utf-8" if charset.startswith("utf-16") else charset
    return ""


def _looks_like(data: bytes) -> str:
    # Text that is valid UTF-8 by chance is rare, except in charsets of 7 bits, which shift by escapes.
    if b"\x1b" not in data:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            pass
        else:
            return "utf-8"
    return from_label(detect_encoding(data, from_html_meta=False) or "") or "utf-8"
