"""Dolma's side of benchmarks/data.py, run by the Python of an environment with dolma: tag, mix, tokens, as its manual has it.

`python dolma_pipeline.py DOCUMENTS TOKENIZER OUT WORKERS`: DOCUMENTS is a folder `.../documents`, TOKENIZER a
tokenizer.json. The taggers are dolma's own: the length of the stripped text, and `tokenizer_repetitions_v2r2`, which here
gets the tokenizer from a file instead of from the hub.
"""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from dolma import add_tagger
from dolma.taggers.repetitions.repetitions_taggers import TokenizerRepetitionsSkipEmptyTagger
from tokenizers import Tokenizer

EXPERIMENT = "bench"
EOS, PAD = 100_257, 100_277
LENGTH = f"{EXPERIMENT}__char_length_strip_ws_v1__length_no_ws"
REPETITION = f"{EXPERIMENT}__repetitions_from_file__doc_max_score_repetition"


@add_tagger("repetitions_from_file")
class RepetitionsFromFile(TokenizerRepetitionsSkipEmptyTagger):
    """Dolma's tagger with a tokenizer that is already on the machine."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_file(os.environ["BENCH_TOKENIZER"])


def main(documents: str, tokenizer: str, out: str, workers: str) -> None:
    os.environ |= {"BENCH_TOKENIZER": tokenizer, "PYTHONPATH": str(Path(__file__).parent)}
    files = f"{documents}/*.jsonl.gz"
    dolma("tag", "--documents", files, "--experiment", EXPERIMENT, "--taggers", "char_length_strip_ws_v1",
          "repetitions_from_file", "--tagger_modules", __file__, "--processes", workers)  # fmt: skip
    config = Path(out, "mix.yaml")
    config.write_text(yaml.safe_dump(mix_config(files, out, int(workers))))
    dolma("-c", str(config), "mix")
    dolma("tokens", "--documents", f"{out}/mixed/documents/*.gz", "--destination", f"{out}/tokens", "--dtype", "uint32",
          "--tokenizer.name_or_path", tokenizer, "--tokenizer.eos_token_id", str(EOS),
          "--tokenizer.pad_token_id", str(PAD), "--processes", workers)  # fmt: skip


def mix_config(files: str, out: str, workers: int) -> dict:
    """Drop what is shorter than 100 characters or repeats a span 32 times."""
    exclude = [
        f"$@.attributes[?(@.{LENGTH}[0][2] < 100)]",
        f"$@.attributes[?(@.{REPETITION} && @.{REPETITION}[0] && @.{REPETITION}[0][2] >= 32.0)]",
    ]
    # Files of about the size of the input's, so that every worker has some.
    stream = {
        "name": "kept", "documents": [files], "attributes": [EXPERIMENT],
        "output": {"path": f"{out}/mixed", "max_size_in_bytes": 5_000_000}, "filter": {"exclude": exclude},
    }  # fmt: skip
    return {"streams": [stream], "processes": workers, "shuffle": False}


def dolma(*arguments: str) -> None:
    subprocess.run([str(Path(sys.executable).parent / "dolma"), *arguments], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
