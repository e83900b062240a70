"""URL lists: documents of listed domains, addresses, or with listed words in their address (RefinedWeb, Penedo et al. 2023,
appendix G.1, whose URL filter DCLM uses).

Lists are files of one entry per line, given in the recipe and pinned by their hash. An entry of a domain list is a domain, which
stands for everything below it, or an address without its scheme.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from model.config import Config
from tasks.data.filters.attributes import Limit, Scores
from tasks.data.filters.pinned import PinnedFile, read_lines

_WORDS = re.compile(r"[a-z0-9]+")


class URLScorer(Config):
    """Looks a document's address up in lists."""

    kind: Literal["url_list"] = "url_list"
    domains: tuple[PinnedFile, ...] = ()
    """Lists of domains and addresses."""
    words: tuple[PinnedFile, ...] = ()
    """Lists of words; whole words of an address are compared, in lower case."""
    field: str = "url"
    """Metadata field with the address; a document without one is on no list."""

    @model_validator(mode="after")
    def _has_lists(self) -> Self:
        if not self.domains and not self.words:
            raise ValueError("url_list has no lists; name files under scorer.domains or scorer.words")
        return self


class URLRule(Config):
    """Drops documents by their address."""

    kind: Literal["url_list"] = "url_list"
    scorer: URLScorer
    """The lists."""
    max_words: int = Field(default=0, ge=0)
    """Most listed words in an address (RefinedWeb: none of its strict words, one of its soft ones)."""

    def limits(self) -> tuple[Limit, ...]:
        """No listed domain, few listed words."""
        return (Limit("listed", 0, 0, "count"), Limit("words", 0, self.max_words, "count"))


class URLLists(NamedTuple):
    """The entries of the lists."""

    domains: frozenset[str]
    words: frozenset[str]


def load_url_lists(scorer: URLScorer) -> URLLists:
    """The lists' entries in lower case. Raises ValueError for a file that changed."""
    domains = frozenset(_address(entry) for entry in read_lines(scorer.domains))
    return URLLists(domains, frozenset(entry.lower() for entry in read_lines(scorer.words)))


def _address(url: str) -> str:
    """Host and path in lower case, without scheme, `www.`, query and closing slash."""
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
    except ValueError:
        # A malformed address, such as half a bracketed IPv6 host, is compared as it is written.
        return url.lower()
    host = parts.netloc.lower().rsplit("@", 1)[-1].removeprefix("www.")
    return (host + parts.path.lower()).rstrip("/")


def listed_parts(url: str, domains: frozenset[str]) -> int:
    """How many of the address, its host and the host's parent domains are on the list."""
    address = _address(url)
    host, _, path = address.partition("/")
    labels = host.split(":")[0].split(".")
    names = {".".join(labels[start:]) for start in range(len(labels))}
    folders = path.split("/") if path else []
    names |= {"/".join([host, *folders[: end + 1]]) for end in range(len(folders))}
    return len(names & domains)


def score_urls(documents: Sequence[Mapping[str, Any]], scorer: URLScorer, lists: URLLists) -> Scores:
    """`listed`: list entries that the address falls under; `words`: listed words in it."""
    urls = [str((document.get("metadata") or {}).get(scorer.field) or "") for document in documents]
    listed = [listed_parts(url, lists.domains) if url else 0 for url in urls]
    words = [sum(word in lists.words for word in _WORDS.findall(url.lower())) if lists.words else 0 for url in urls]
    return Scores({"listed": listed, "words": words})
