"""Personal data: e-mail addresses, telephone numbers and IP addresses give way to OLMo 2's marker tokens
(RECIPE B).

What a pattern finds is validated. A domain must look like one. An address must be a routable IPv4 or IPv6 address that is
not called a version. A telephone number must be valid in its country's plan (libphonenumber), or have the North American
form with valid area and exchange codes. It must not be called an id. Documents with few spans are masked, with many removed;
the limit of five is that of Dolma (Soldaini et al. 2024, section 4). Recall is traded for precision: version numbers, dates,
prices, code and plain digit runs stay.

Patterns are tried only near the characters that every match has (an @, a digit after a plus, digits around dots or colons),
which a few passes over the whole batch find.
"""

import ipaddress
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal

import numpy as np
from jaxtyping import Int
from phonenumbers import PhoneNumberMatcher
from pydantic import Field

from model.config import Config
from tasks.data.filters.attributes import DocumentScores, Limit, Span
from tasks.data.filters.batch import TextBatch

Kind = Literal["phone", "email", "ip"]

MARKERS: dict[Kind, str] = {
    "phone": "|||PHONE_NUMBER|||",
    "email": "|||EMAIL_ADDRESS|||",
    "ip": "|||IP_ADDRESS|||",
}
_LETTER = r"0-9A-Za-z_\u00aa-\u02af\u0370-\u1fff"
"""What joins onto a number or an address in a script with spaces between words; Chinese, Japanese and Korean text does not."""
_EMAIL = re.compile(
    rf"(?<![{_LETTER}.+%-])[A-Za-z0-9][A-Za-z0-9_.+%-]{{0,63}}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{{0,61}}[A-Za-z0-9])?\.)+[A-Za-z]{{2,24}}"
    rf"(?![{_LETTER}-])"
)
_COUNTRY_PHONE = re.compile(rf"(?<![{_LETTER}.+/-])\+[1-9][0-9 ().\u00a0/-]{{5,22}}[0-9](?![{_LETTER}])")
_PHONE = re.compile(
    rf"(?<![{_LETTER}.+/-])(?:1[ .-])?(?:\((?P<area>[0-9]{{3}})\) ?|(?P<area2>[0-9]{{3}})[ .-])"
    rf"(?P<exchange>[0-9]{{3}})[ .-][0-9]{{4}}(?![{_LETTER}/]|[.-][0-9])"
)
_IPV4 = re.compile(rf"(?<![{_LETTER}.+/-])(?:[0-9]{{1,3}}\.){{3}}[0-9]{{1,3}}(?![{_LETTER}-]|\.[0-9])")
_IPV6 = re.compile(
    rf"(?<![{_LETTER}:.])(?:[0-9A-Fa-f]{{1,4}}:){{2,7}}(?::?[0-9A-Fa-f]{{1,4}}){{0,6}}(?:::)?(?![{_LETTER}:])"
)
_VERSION = re.compile(
    r"(?:\b(?:versions?|ver|v|release|build|revision|rev|firmware|driver|kernel|patch|section|sec|chapter|clause|figure|table|"
    r"upgraded? to|updated? to|api|sdk|dll)\b\.?|§|[<>=~^]=?)\s*[:=#(]?\s*$",
    re.IGNORECASE,
)
_NUMBER_OF_A_THING = re.compile(
    r"\b(?:ids?|uuid|guid|isbn|issn|doi|pmid|pmc|arxiv|sku|serial|order|invoice|case|ticket|ref|reference|part|item|model|patent|"
    r"tracking|account|policy|docket|version|checksum|hash|build)(?:\s?(?:number|num|no|nr|id|code))?\.?\s*[:=#]*\s*$",
    re.IGNORECASE,
)
_EXPRESSION = re.compile(r"(?:[=*/<>+,(\[]\s*[\w.\[\]]+\s*|[)\]=*<>]\s*|\breturn\s+\w+\s*)$")
"""Code before a plus: the number is added to something."""
_BEFORE = 40
"""Characters before a match that may say what it is."""
_EXAMPLE_DOMAINS = ("example.com", "example.org", "example.net", "invalid", "test", "example")

_KINDS: tuple[Kind, ...] = ("email", "ip", "phone")
"""Which of two spans at one place goes first."""
_AT_ONCE = 10_000
"""Places or spans that are Python's objects at a time."""
MOST_ASKED = 2000
"""Numbers of a text that libphonenumber is asked about: it knows some 5,000 a second. Further ones are what they look like."""
_LONGEST_MATCH = 400
"""Characters after which no pattern goes on: a domain name has at most 253."""


class PIIScorer(Config):
    """Finds personal data and masks it for what follows."""

    kind: Literal["pii"] = "pii"


class PIIRule(Config):
    """Masks personal data; drops documents with much of it."""

    kind: Literal["pii"] = "pii"
    scorer: PIIScorer = PIIScorer()
    """What is found."""
    max_spans: int = Field(default=5, ge=0)
    """A document with more spans is dropped (Dolma)."""

    def limits(self) -> tuple[Limit, ...]:
        """The most spans."""
        return (Limit("spans", 0, self.max_spans, "count"),)


def score_pii(batch: TextBatch) -> DocumentScores:
    """`spans`: how many of any kind; `phone`, `email`, `ip`: where they are. What goes on are the masked texts."""
    found = find_pii(batch)
    counts = [len(row) for row in found]
    # Scorers after this one see the masked texts, as training will.
    texts = [mask(text, row) if row else text for text, row in zip(batch.texts, found, strict=True)]
    spans: dict[str, list[list[Span]]] = {kind: [[] for _ in found] for kind in MARKERS}
    for index, row in enumerate(found):
        for start, end, kind in row:
            spans[kind][index].append((start, end, 1.0))
    return DocumentScores({"spans": counts}, spans, texts)


class Spans:
    """Spans of one text, as (first character, end, kind). A text may have a million: nine bytes each."""

    def __init__(self) -> None:
        self._starts, self._ends, self._kinds = array("I"), array("I"), array("B")

    def add(self, start: int, end: int, kind: Kind) -> None:
        """Take one span."""
        self._starts.append(start)
        self._ends.append(end)
        self._kinds.append(_KINDS.index(kind))

    def __len__(self) -> int:
        return len(self._kinds)

    def __iter__(self) -> Iterator[tuple[int, int, Kind]]:
        return (
            (start, end, _KINDS[kind]) for start, end, kind in zip(self._starts, self._ends, self._kinds, strict=True)
        )

    def settled(self) -> "Spans":
        """The spans in order, without those that overlap one before."""
        starts, ends, kinds = (
            np.frombuffer(part, f"u{part.itemsize}") for part in (self._starts, self._ends, self._kinds)
        )
        # lexsort takes its last key first: by start, then end, then kind.
        order = np.lexsort([kinds, ends, starts])
        kept, end = Spans(), 0
        for first in range(0, len(order), _AT_ONCE):
            for place in order[first : first + _AT_ONCE].tolist():
                # A span that begins within the one before is left out: text can be masked once.
                if self._starts[place] >= end:
                    end = self._ends[place]
                    kept.add(self._starts[place], end, _KINDS[self._kinds[place]])
        return kept


def find_pii(batch: TextBatch) -> list[Spans]:
    """Every validated span of each text, in order, without overlap."""
    found = [Spans() for _ in batch.texts]
    ats, pluses, numbers, dots, colons = _places(batch.codes)
    for index, match in _matches(batch, _EMAIL, ats, 66):
        if _is_email(match.group()):
            found[index].add(*match.span(), "email")
    for pattern, places, before in ((_IPV4, dots, 4), (_IPV6, colons, 5)):
        for index, match in _matches(batch, pattern, places, before):
            # 1.2.3.4 after "version" is a version, however valid an address it is.
            if _is_public(match.group()) and not _VERSION.search(_said_before(match)):
                found[index].add(*match.span(), "ip")
    asked: Counter[int] = Counter()
    for index, match in _matches(batch, _COUNTRY_PHONE, pluses, 0):
        asked[index] += 1
        # Beyond the bound a number is what it looks like; asking about a million would take minutes.
        end = match.end() if asked[index] > MOST_ASKED else _international(match)
        if end:
            found[index].add(match.start(), end, "phone")
    # The North American form begins up to eleven characters before its last separator.
    for index, match in _matches(batch, _PHONE, numbers, 12):
        if _is_phone(match):
            found[index].add(*match.span(), "phone")
    return [row.settled() for row in found]


def _places(codes: np.ndarray) -> tuple[Int[np.ndarray, " places"], ...]:
    """Where e-mail addresses, numbers with a country code, North American numbers, IPv4 and IPv6 addresses may be: their @, +,
    last separator, first dot and first colon."""
    # Framed by zeros, so that neighbours can be looked at everywhere.
    framed = np.zeros(len(codes) + 8, dtype=codes.dtype)
    framed[4:-4] = codes
    digit = (framed >= ord("0")) & (framed <= ord("9"))
    ats = np.flatnonzero(codes == ord("@"))
    # [5:-3] is the neighbour to the right in the framed array.
    pluses = np.flatnonzero((framed[4:-4] == ord("+")) & digit[5:-3])
    before, after = digit[3:-5], digit[5:-3]
    joints = np.flatnonzero(before & after & ~digit[4:-4])
    marks = codes[joints]
    numbers = joints[(marks == ord(" ")) | (marks == ord(".")) | (marks == ord("-"))]
    # One neighbour at a time: a text may have millions of places, and most go at the first.
    for offset in (-3, -2, 2, 3, 4):
        numbers = numbers[digit[numbers + 4 + offset]]
    dots = _chains(joints[marks == ord(".")], 3, 4)
    colon = np.flatnonzero(codes == ord(":"))
    # | 0x20 makes a letter small, so that A to F and a to f are one range.
    last = framed[colon + 3] | 0x20
    hexadecimal = digit[colon + 3] | ((last >= ord("a")) & (last <= ord("f")))
    return ats, pluses, numbers, dots, _chains(colon[hexadecimal], 2, 5)


def _chains(places: Int[np.ndarray, " places"], count: int, gap: int) -> Int[np.ndarray, " chains"]:
    """Places that are followed by `count` - 1 others, each at most `gap` after the one before."""
    # Only places with enough others behind them can begin a chain.
    first = places[: max(0, len(places) - count + 1)]
    near = np.ones(len(first), dtype=bool)
    for step in range(1, count):
        near &= places[step : step + len(first)] - places[step - 1 : step - 1 + len(first)] <= gap
    return first[near]


def _matches(
    batch: TextBatch, pattern: re.Pattern[str], places: Int[np.ndarray, " places"], before: int
) -> Iterator[tuple[int, re.Match[str]]]:
    """(text, match) of every match that begins at a place or up to `before` characters earlier."""
    done: tuple[int, int] = (-1, 0)
    for first in range(0, len(places), _AT_ONCE):
        some = places[first : first + _AT_ONCE]
        # The text of each place, found by bisection over the texts' starts.
        owners = np.searchsorted(batch.starts, some, side="right") - 1
        for index, place in zip(owners.tolist(), (some - batch.starts[owners]).tolist(), strict=True):
            text = batch.texts[index]
            # Never before the end of the last match, or one address would be found twice.
            start = max(0, place - before, done[1] if done[0] == index else 0)
            while start <= place and (match := pattern.search(text, start, place + _LONGEST_MATCH)):
                if match.start() > place:
                    break
                yield index, match
                start = match.end()
            done = (index, start)


def _is_email(address: str) -> bool:
    local, domain = address.rsplit("@", 1)
    # Addresses of example domains belong to nobody (RFC 2606).
    example = any(f".{domain.lower()}".endswith(f".{name}") for name in _EXAMPLE_DOMAINS)
    return ".." not in local and not local.endswith(".") and not example


def _is_public(address: str) -> bool:
    """Whether it is an address of somebody's machine: not private, reserved, or a mere version number."""
    try:
        # is_global refuses private, reserved and loopback addresses in both versions.
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _said_before(match: re.Match[str]) -> str:
    return match.string[max(0, match.start() - _BEFORE) : match.start()]


def _international(match: re.Match[str]) -> int:
    """Where a valid number with a country code ends; 0 where none begins here."""
    # What stands before tells an id or a sum apart from a telephone number.
    if _NUMBER_OF_A_THING.search(before := _said_before(match)) or _EXPRESSION.search(before):
        return 0
    number = next(iter(PhoneNumberMatcher(match.group(), None)), None)
    return match.start() + number.end if number is not None and number.start == 0 else 0


def _is_phone(match: re.Match[str]) -> bool:
    if _NUMBER_OF_A_THING.search(_said_before(match)):
        return False
    area = match["area"] or match["area2"]
    # North American plan: neither code begins with 0 or 1, and no area code ends in 11.
    return area[0] in "23456789" and match["exchange"][0] in "23456789" and not area.endswith("11")


def mask(text: str, spans: Iterable[tuple[int, int, Kind]]) -> str:
    """The text with each span replaced by its marker."""
    joined: list[str] = []
    position, rest = 0, iter(spans)
    # Parts are joined in pieces, since a list of millions of strings takes more memory than the text.
    while some := list(islice(rest, _AT_ONCE)):
        parts = []
        for start, end, kind in some:
            parts += [text[position:start], MARKERS[kind]]
            position = end
        joined.append("".join(parts))
    return "".join([*joined, text[position:]])
