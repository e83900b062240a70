"""Entries of URL lists, in every common format, as a set of hashes: 5 million take 40 MB.

Formats, also mixed in one file: plain domains and addresses, hosts files (`0.0.0.0 domain`), adblock (`||domain^`), wildcards
(`*.domain`, `.domain`, `*://*.domain/*`), dnsmasq (`address=/domain/`), unbound (`local-zone: "domain"`), BIND (`zone "domain"`),
RPZ (`domain CNAME .`), proxies (`DOMAIN-SUFFIX,domain`, `domain:domain`), and tables whose first column is a domain. Comments
begin with # or !. Adblock's exceptions, element rules and patterns are not about a domain and are left out.
"""

import io
import re
from collections.abc import Iterator
from hashlib import blake2b
from urllib.parse import urlsplit

import idna
import numpy as np

from tasks.data.filters.pinned import PinnedFile, read_pinned

_COMMENT = re.compile(r"(?:^|\s)#(?!#).*")
_ELEMENT_RULE = re.compile(r"#@?[?$%]?#")
_FIRST_IS_IP = re.compile(r"(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F:]*:[0-9a-fA-F:.]*(?:%\w+)?)\s+(?=\S)")
_DNSMASQ = re.compile(r"(?:address|server|local)=/(.+)/")
_UNBOUND = re.compile(r'(?:local-(?:zone|data):|zone)\s*"([^"\s]+)')
_PROXY = re.compile(r"(?:-\s*)?(?:(?:domain|host)(?:-suffix)?\s*,|(?:domain|full):)\s*([^,\s]+)", re.IGNORECASE)
_COLUMN = re.compile(r"([^\s,;/]+\.[^\s,;/]+)[\s,;]")
_ANY_SCHEME = re.compile(r"(?:\*|https?|http\*)://(?=.*\*)")
"""Of a pattern with a star, as browser extensions write it."""
_RPZ = re.compile(r"(\S+)\s+(?:\d+\s+)?(?:IN\s+)?CNAME\s", re.IGNORECASE)
_LOCAL = frozenset({"localhost", "localhost.localdomain", "local", "broadcasthost", "0.0.0.0"})
_CHUNK = 1 << 18


class Entries:
    """A set of addresses by 64-bit hashes; two different ones are taken for one with a chance of 1 in 10^12."""

    def __init__(self, entries: Iterator[str]):
        chunks: list[np.ndarray] = []
        pending: list[int] = []
        for entry in entries:
            pending.append(_hash(entry))
            if len(pending) == _CHUNK:
                chunks.append(np.array(pending, dtype=np.uint64))
                pending = []
        # Duplicates between lists are common, and each takes 8 bytes.
        self._sorted = np.unique(np.concatenate([*chunks, np.array(pending, dtype=np.uint64)]))

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, address: str) -> bool:
        hash = np.uint64(_hash(address))
        place = int(np.searchsorted(self._sorted, hash))
        return place < len(self._sorted) and self._sorted[place] == hash


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", errors="replace"), digest_size=8).digest(), "little")


def read_entries(files: tuple[PinnedFile, ...]) -> Iterator[str]:
    """Every entry of the lists, as `normalised_address` writes it. Raises ValueError for a file that changed."""
    for file in files:
        for line in io.BytesIO(read_pinned(file)):
            # utf-8-sig: lists edited on Windows begin with a byte order mark.
            yield from entries_of(line.decode("utf-8-sig", errors="replace"))


def entries_of(line: str) -> list[str]:
    """The addresses that one line lists."""
    line = line.strip()
    # Exceptions, element rules and regular expressions say nothing about a whole domain.
    if line.startswith(("!", "[Adblock", "@@", "/")) or _ELEMENT_RULE.search(line):
        return []
    line = _ANY_SCHEME.sub("", _COMMENT.sub("", line).strip(" \t\r\n\x00\"',;"))
    if not line:
        return []
    found = [line]
    if hosts := _FIRST_IS_IP.match(line):
        # A hosts file maps names to 127.0.0.1 or 0.0.0.0; its own local names are no entries.
        found = [name for name in line[hosts.end() :].split() if name.lower() not in _LOCAL and name[:4] != "ip6-"]
    elif dnsmasq := _DNSMASQ.match(line):
        found = dnsmasq[1].split("/")
    elif named := _first_match(line, _UNBOUND, _RPZ, _PROXY, _COLUMN):
        found = [named]
    addresses = (normalised_address(_plain(name)) for name in found)
    # A star that is left is a pattern.
    return [name for name in addresses if name and "*" not in name and " " not in name]


def _first_match(line: str, *patterns: re.Pattern[str]) -> str:
    """What the first pattern that fits finds; "" where none does."""
    return next((found[1] for pattern in patterns if (found := pattern.match(line))), "")


def _plain(entry: str) -> str:
    """An entry without the marks of wildcards and of adblock."""
    if entry.startswith("|") or "^" in entry:
        # Adblock's options follow a dollar sign: `||ads.example^$third-party`.
        entry = entry.lstrip("|").split("$", 1)[0].rstrip("|")
        entry = entry.split("^", 1)[0]
    entry = entry.split("$", 1)[0].removesuffix("/*")
    return entry.lstrip("*+").removeprefix(".") if entry.startswith(("*.", "+.", ".")) else entry


def normalised_address(url: str) -> str:
    """Host and path in one spelling: lower case, IDN in ASCII, no scheme, user, `www.`, port, closing dot, query or slash."""
    try:
        # urlsplit takes a bare host for a path, unless two slashes precede it.
        parts = urlsplit(url if "://" in url else f"//{url.removeprefix('//')}")
        host = parts.hostname or ""
    except ValueError:
        # A malformed address, such as half a bracketed IPv6 host, is compared as it is written.
        return url.lower()
    # The same site is listed with and without www and with either full stop of its script.
    host = _ascii(host.rstrip(".。")).removeprefix("www.")
    return (host + parts.path.lower()).rstrip("/")


def _ascii(host: str) -> str:
    """An internationalised host in its ASCII form; as it is where it has none."""
    if host.isascii():
        return host
    try:
        return idna.encode(host, uts46=True, std3_rules=False).decode("ascii")
    except idna.IDNAError:
        return host
