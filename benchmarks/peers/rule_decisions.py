"""What datatrove and NeMo Curator decide about the texts of tests/parity/rule_texts.py:

    VENV/bin/python benchmarks/peers/rule_decisions.py [FOLDER] > tests/parity/peer_decisions.json

VENV has `datatrove[processing]==0.10.1`, spacy and loguru; FOLDER holds the unpacked wheel of nemo-curator 1.4.0, of which the
filters are imported alone, since the package needs a GPU stack. Each value is the reason by which a tool drops a text, or "".
"""

import json
import sys
import types
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.parity.rule_texts import TEXTS


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
    found = datatrove() | (nemo(sys.argv[1]) if len(sys.argv) > 1 else {})
    print(json.dumps(found, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
