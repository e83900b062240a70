"""URL lists: documents of listed domains, addresses, or with listed words in their address (RefinedWeb, Penedo et al. 2023,
appendix G.1, whose URL filter DCLM uses).

Lists are files of one entry per line in any common format (`url_entries`), given in the recipe and pinned by their hash. An entry
of a domain list is a domain, which stands for everything below it, or an address without its scheme.
"""

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from model.config import Config
from tasks.data.filters.attributes import DocumentScores, Limit
from tasks.data.filters.fields import document_field
from tasks.data.filters.lists.url_entries import Entries, normalised_address, read_entries
from tasks.data.filters.pinned import PinnedFile, list_entries

_WORDS = re.compile(r"[a-z0-9]+")


class URLScorer(Config):
    """Looks a document's address up in lists."""

    kind: Literal["url_list"] = "url_list"
    domains: tuple[PinnedFile, ...] = ()
    """Lists of domains and addresses."""
    words: tuple[PinnedFile, ...] = ()
    """Lists of words, compared in lower case."""
    match: Literal["words", "substrings"] = "words"
    """Whether a listed word is a whole word of an address, or any part of it (DCLM's strict list)."""
    field: str = "url"
    """Field with the address, in the metadata or next to the text; a document without one is on no list."""

    @model_validator(mode="after")
    def _has_lists(self) -> Self:
        if not self.domains and not self.words:
            raise ValueError("url_list has no lists; name files under scorer.domains or scorer.words")
        return self

    def pinned(self) -> Self:
        """The scorer with its lists pinned by their hashes."""
        lists = {
            "domains": tuple(file.pinned() for file in self.domains),
            "words": tuple(file.pinned() for file in self.words),
        }
        return self.model_copy(update=lists)


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

    domains: Container[str]
    words: frozenset[str]


def load_url_lists(scorer: URLScorer) -> URLLists:
    """The lists' entries in lower case. Raises ValueError for a file that changed."""
    return URLLists(
        Entries(read_entries(scorer.domains)), frozenset(entry.lower() for entry in list_entries(scorer.words))
    )


def listed_parts(url: str, domains: Container[str]) -> int:
    """How many of the address, its host and the host's parent domains are on the list."""
    host, _, path = normalised_address(url).partition("/")
    labels = host.split(".")
    # A listed domain stands for all below it: a.b.example is asked as b.example and example too.
    names = {".".join(labels[start:]) for start in range(len(labels))}
    folders = path.split("/") if path else []
    # A listed path stands for all below it, so each of its folders is asked.
    names |= {"/".join([host, *folders[: end + 1]]) for end in range(len(folders))}
    return sum(name in domains for name in names)


def score_urls(documents: Sequence[Mapping[str, Any]], scorer: URLScorer, lists: URLLists) -> DocumentScores:
    """`listed`: list entries that the address falls under; `words`: listed words in it."""
    urls = [str(document_field(document, scorer.field) or "") for document in documents]
    listed = [listed_parts(url, lists.domains) if url else 0 for url in urls]
    words = [_listed_words(url.lower(), scorer, lists.words) if lists.words else 0 for url in urls]
    return DocumentScores({"listed": listed, "words": words})


def _listed_words(url: str, scorer: URLScorer, words: frozenset[str]) -> int:
    if scorer.match == "substrings":
        # Substrings are DCLM's strict way: a listed word counts inside another word too.
        return sum(word in url for word in words)
    return sum(word in words for word in _WORDS.findall(url))
