"""What datatrove and NeMo Curator decide about the texts of tests/parity/rule_texts.py:

    VENV/bin/python benchmarks/peers/rule_decisions.py [FOLDER] > tests/parity/peer_decisions.json

VENV has `datatrove[processing]==0.10.1`, spacy and loguru; FOLDER holds the unpacked wheels of nemo-curator 1.4.0 and dolma
1.2.1, of which the filters are imported alone, since the packages need a GPU stack and more. A tool that VENV or FOLDER lacks is
left out, and its decisions stay as they were. Each value is the reason by which a tool drops a text, or "".
"""

import json
import sys
import types
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.parity.rule_texts import TEXTS

DOLMA_TOP = {2: 0.2, 3: 0.18, 4: 0.16}
DOLMA_AGAIN = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
DECISIONS = Path(__file__).resolve().parents[2] / "tests/parity/peer_decisions.json"


def datatrove() -> dict[str, dict[str, str]]:
    """Its two Gopher filters, with their defaults."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

    filters = {"quality": GopherQualityFilter(), "repetition": GopherRepetitionFilter()}
    found: dict[str, dict[str, str]] = {}
    for name, own in filters.items():
        results = {text: own.filter(Document(text=TEXTS[text], id=text)) for text in TEXTS}
        found[f"datatrove_{name}"] = {text: "" if result is True else result[1] for text, result in results.items()}
    return found


def dolma(folder: str) -> dict[str, dict[str, str]]:
    """The attributes of its Gopher tagger, with Gopher's limits; Dolma's own lie in the configuration of each set."""
    root = Path(folder) / "dolma"
    for name in (
        "dolma",
        "dolma.core",
        "dolma.core.data_types",
        "dolma.core.registry",
        "dolma.core.taggers",
        "dolma.taggers",
    ):
        module: Any = types.ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        # The tagger's frame, of which nothing is used here.
        module.Document = module.DocResult = module.Span = module.BaseTagger = object
        module.TaggerRegistry = types.SimpleNamespace(add=lambda name: lambda cls: cls)
        sys.modules[name] = module
    gopher = import_module("dolma.taggers.gopher")
    found: dict[str, dict[str, str]] = {"dolma_quality": {}, "dolma_repetition": {}}
    for name, text in TEXTS.items():
        own = gopher.get_attributes(text)
        top = {f"top_{n}gram": value > DOLMA_TOP[n] for n, value in own.fraction_of_characters_in_most_common_ngram}
        again = {
            f"duplicate_{n}grams": value > DOLMA_AGAIN[n] for n, value in own.fraction_of_characters_in_duplicate_ngrams
        }
        lines = {
            "duplicate_lines": own.fraction_of_duplicate_lines > 0.3,
            "duplicate_lines_characters": own.fraction_of_characters_in_duplicate_lines > 0.2,
        }
        quality = {
            "words": not 50 <= own.word_count <= 100_000,
            "median_word_length": not 3 <= own.median_word_length <= 10,
            "symbols": own.symbol_to_word_ratio > 0.1,
            "alphabetic_words": own.fraction_of_words_with_alpha_character < 0.8,
            "stop_words": own.required_word_count < 2,
            "bullet_lines": own.fraction_of_lines_starting_with_bullet_point > 0.9,
            "ellipsis_lines": own.fraction_of_lines_ending_with_ellipsis > 0.3,
        }
        for kind, limits in (("dolma_quality", quality), ("dolma_repetition", lines | top | again)):
            found[kind][name] = ",".join(limit for limit, broken in limits.items() if broken)
    return found


def nemo(folder: str) -> dict[str, dict[str, str]]:
    """Its heuristic filters with the limits of Gopher, each alone."""
    root = Path(folder) / "nemo_curator"
    for name in ("nemo_curator", "nemo_curator.stages", "nemo_curator.stages.text", "nemo_curator.stages.text.filters"):
        module = types.ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    base = import_module("nemo_curator.stages.text.filters.doc_filter")
    sys.modules["nemo_curator.stages.text.filters"].DocumentFilter = base.DocumentFilter
    repetition = import_module("nemo_curator.stages.text.filters.heuristic.repetition.repetition")
    filters = {
        "lines": repetition.RepeatedLinesFilter(0.7),
        "paragraphs": repetition.RepeatedParagraphsFilter(0.7),
        "lines_characters": repetition.RepeatedLinesByCharFilter(0.8),
        "paragraphs_characters": repetition.RepeatedParagraphsByCharFilter(0.8),
        **{
            f"top_{n}gram": repetition.RepeatingTopNGramsFilter(n, share)
            for n, share in ((2, 0.2), (3, 0.18), (4, 0.16))
        },
        **{
            f"duplicate_{n}grams": repetition.RepeatingDuplicateNGramsFilter(n, share)
            for n, share in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
        },
    }
    dropped = {
        text: [name for name, own in filters.items() if not own.keep_document(own.score_document(TEXTS[text]))]
        for text in TEXTS
    }
    return {"nemo_repetition": {text: ",".join(names) for text, names in dropped.items()}}


def main() -> None:
    """Print the decisions as JSON."""
    found = json.loads(DECISIONS.read_text())
    folder = sys.argv[1] if len(sys.argv) > 1 else ""
    if find_spec("datatrove"):
        found |= datatrove()
    if (Path(folder) / "nemo_curator").is_dir():
        found |= nemo(folder)
    if (Path(folder) / "dolma").is_dir():
        found |= dolma(folder)
    print(json.dumps(found, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
