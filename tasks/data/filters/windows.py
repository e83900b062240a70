"""Very long texts in windows, so that work on their n-grams takes bounded memory."""

from collections.abc import Iterator, Sequence

from tasks.data.filters.ngrams import word_ngrams

WINDOW_CHARACTERS = 1_000_000
"""Characters of a window, and of the windows that are worked on together: about 100 MB of arrays."""


def windows(text: str, n: int) -> list[str]:
    """The text, or windows of it that have its n-grams, each once unless the text repeats it."""
    if len(text) <= WINDOW_CHARACTERS:
        return [text]
    found, start, tail = [], 0, ""
    while start < len(text):
        end = start + WINDOW_CHARACTERS
        # Cut at a space, so that no word is cut in two.
        cut = text.rfind(" ", start + 1, end) if end < len(text) else -1
        end = cut if cut > 0 else end
        found.append(f"{tail} {text[start:end]}")
        # The last n - 1 words go with the next window, so no n-gram is lost at a cut.
        tail, start = _last_words(found[-1], n - 1), end
    return found


def window_batches(texts: Sequence[str], n: int) -> Iterator[tuple[list[str], list[int]]]:
    """(windows, index of the text of each) in batches of bounded size; the windows of a text follow each other."""
    batch: list[str] = []
    owners: list[int] = []
    size = 0
    for index, text in enumerate(texts):
        for window in windows(text, n):
            # Windows are bounded together, since their arrays are in memory at the same time.
            if batch and size + len(window) > WINDOW_CHARACTERS:
                yield batch, owners
                batch, owners, size = [], [], 0
            batch.append(window)
            owners.append(index)
            size += len(window)
    if batch:
        yield batch, owners


def _last_words(text: str, count: int) -> str:
    grams = word_ngrams([text[-100 * (count + 1) :]], 1)
    if not count or not len(grams.start):
        return ""
    return grams.normalised[grams.start[-count:][0] :].decode("utf-8", errors="replace")
