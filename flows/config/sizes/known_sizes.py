"""Sizes that are known before anything is read: rows and tokens of released data sets, so that a plan needs no network.

Tokens: paper Tables 4, 5 and 13 (RECIPE C.2, C.7, C.8). Rows: paper section 5 and the data sets' cards.
"""

from collections.abc import Iterable

from tasks.data.collect import AnySource
from tasks.data.post_training.prompts import PromptsConfig, SyntheticPrompts
from tasks.data.sources.hub import HubSource
from tasks.data.sources.rows import RowSource

DATASET_ROWS = {
    "allenai/tulu-3-sft-olmo-2-mixture": 939_104,
    "allenai/tulu-3-sft-olmo-2-mixture-0225": 866_138,
    "allenai/RLVR-GSM-MATH-IF-Mixed-Constraints": 29_946,
    "allenai/olmo-2-1124-7b-preference-mix": 366_949,
    "allenai/olmo-2-1124-13b-preference-mix": 377_743,
    # Not told of these two: made like the 13B's, so taken to be as long.
    "allenai/olmo-2-0425-1b-preference-mix": 377_743,
    "allenai/olmo-2-0325-32b-preference-mix": 377_743,
}
"""Rows of released data sets."""

SOURCE_TOKENS = {
    ("allenai/olmo-mix-1124", "dclm"): 3_710_000_000_000,
    ("allenai/olmo-mix-1124", "starcoder"): 83_000_000_000,
    ("allenai/olmo-mix-1124", "pes2o"): 58_600_000_000,
    ("allenai/olmo-mix-1124", "arxiv"): 20_800_000_000,
    ("allenai/olmo-mix-1124", "open-web-math"): 12_200_000_000,
    ("allenai/olmo-mix-1124", "algebraic-stack"): 11_800_000_000,
    ("allenai/olmo-mix-1124", "wiki"): 3_700_000_000,
    ("allenai/dolmino-mix-1124", "dclm"): 752_000_000_000,
    ("allenai/dolmino-mix-1124", "flan"): 17_000_000_000,
    ("allenai/dolmino-mix-1124", "stackexchange"): 1_260_000_000,
    ("allenai/dolmino-mix-1124", "math"): 10_700_000_000,
}
"""Tokens of released subsets in the published vocabulary."""

BYTES_PER_TOKEN = 4.5
"""Text bytes of a token of the published vocabulary, for sizes that only tokens are known of (an assumption: English pages)."""


def source_tokens(source: AnySource) -> int | None:
    """Tokens of a source, where its data set is a released one that is read whole."""
    # Part of a subset has no published size.
    if not isinstance(source, HubSource) or source.data_files or source.max_documents:
        return None
    return SOURCE_TOKENS.get((source.path, source.subset))


def rows_of(source: RowSource) -> int | None:
    """Rows of a source where they are known beforehand."""
    known = DATASET_ROWS.get(source.dataset)
    return min((count for count in (known, source.limit) if count is not None), default=None)


def prompts_of(config: PromptsConfig) -> int | None:
    """Prompts of a mix where they are known beforehand."""
    return total_of(
        source.count if isinstance(source, SyntheticPrompts) else rows_of(source.rows) for source in config.sources
    )


def total_of(counts: Iterable[int | None]) -> int | None:
    """The sum, None where a part of it is not known."""
    found = list(counts)
    # One unknown part makes the sum unknown: a sum of the rest would read as the whole.
    return None if None in found else sum(count for count in found if count is not None)
