"""Personal data: e-mail addresses, telephone numbers and IP addresses give way to OLMo 2's marker tokens
(RECIPE B).

What a pattern finds is validated: a domain must look like one, an address must be a routable IPv4 or IPv6
address, a telephone number must have a country code or the North American form with valid area and exchange
codes. Documents with few spans are masked, with many removed; the limit of five is that of Dolma (Soldaini et
al. 2024, section 4). Recall is traded for precision: version numbers, dates, prices and plain digit runs
stay.
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from model.config import Config
from tasks.data.filters.judgement import Judgement, Span

MARKERS = {
    "phone": "|||PHONE_NUMBER|||",
    "email": "|||EMAIL_ADDRESS|||",
    "ip": "|||IP_ADDRESS|||",
}
_EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9][\w.+%-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w-])"
)
_PHONE = re.compile(
    r"(?<![\w.+/-])(?:\+(?P<country>[1-9]\d{0,2})[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){1,4}"
    r"|(?:1[ .-])?(?:\((?P<area>\d{3})\) ?|(?P<area2>\d{3})[ .-])(?P<exchange>\d{3})[ .-]\d{4})(?![\w/]|[.-]\d)"
)
_IPV4 = re.compile(r"(?<![\w.+/-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){0,6}(?:::)?(?![\w:])")
_EXAMPLE_DOMAINS = ("example.com", "example.org", "example.net", ".invalid", ".test", ".example")


class PIIRule(Config):
    """Masks personal data; drops documents with much of it."""

    kind: Literal["pii"] = "pii"
    max_spans: int = Field(default=5, ge=0)
    """A document with more spans is dropped (Dolma)."""


def find_pii(text: str) -> list[tuple[int, int, str]]:
    """(first character, end, email | phone | ip) of every validated span, in order, without overlap."""
    found: list[tuple[int, int, str]] = []
    if "@" in text:
        found += [(*match.span(), "email") for match in _EMAIL.finditer(text) if _is_email(match.group())]
    found += [(*match.span(), "ip") for match in _IPV4.finditer(text) if _is_public(match.group())]
    if text.count(":") >= 2:
        found += [(*match.span(), "ip") for match in _IPV6.finditer(text) if _is_public(match.group())]
    found += [(*match.span(), "phone") for match in _PHONE.finditer(text) if _is_phone(match)]
    kept: list[tuple[int, int, str]] = []
    for span in sorted(found):
        if not kept or span[0] >= kept[-1][1]:
            kept.append(span)
    return kept


def _is_email(address: str) -> bool:
    local, domain = address.rsplit("@", 1)
    return ".." not in local and not local.endswith(".") and not domain.lower().endswith(_EXAMPLE_DOMAINS)


def _is_public(address: str) -> bool:
    """Whether it is an address of somebody's machine: not private, reserved, or a mere version number."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_phone(match: re.Match[str]) -> bool:
    digits = sum(character.isdigit() for character in match.group())
    if match["country"]:
        return 8 <= digits <= 15
    area = match["area"] or match["area2"]
    # North American plan: neither code begins with 0 or 1, and no area code ends in 11.
    return area[0] in "23456789" and match["exchange"][0] in "23456789" and not area.endswith("11")


def mask(text: str, spans: Sequence[tuple[int, int, str]]) -> str:
    """The text with each span replaced by its marker."""
    parts, position = [], 0
    for start, end, kind in spans:
        parts += [text[position:start], MARKERS[kind]]
        position = end
    return "".join([*parts, text[position:]])


def judge_pii(texts: Sequence[str], rule: PIIRule) -> list[Judgement]:
    """A judgement of each text. Spans are those of the text before masking."""
    judgements = []
    for text in texts:
        spans = find_pii(text)
        attributes: dict[str, list[Span]] = {kind: [] for kind in MARKERS}
        for start, end, kind in spans:
            attributes[kind].append((start, end, 1.0))
        detail = f"{len(spans)} spans, at most {rule.max_spans} wanted" if len(spans) > rule.max_spans else ""
        judgements.append(Judgement(attributes, detail, mask(text, spans) if spans and not detail else None))
    return judgements
