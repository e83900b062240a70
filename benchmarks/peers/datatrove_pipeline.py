"""datatrove's side of benchmarks/data.py, run by the Python of an environment with datatrove.

`python datatrove_pipeline.py DOCUMENTS TOKENIZER OUT WORKERS RULES`: one pass of reader, filters and `DocumentTokenizer`.
RULES is `length`, or `length+repetition`. datatrove has no filter for repeated tokens, so this one is a `LambdaFilter` of
its own kind around the detector of this project (model/data/repetition.py, equal to the published one).
"""

import sys
from functools import cache
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from tokenizers import Tokenizer

from model.data.repetition import is_repetitive


@cache
def tokenizer(path: str) -> Tokenizer:
    return Tokenizer.from_file(path)


def long_enough(document: Document) -> bool:
    return len(document.text.strip()) >= 100


class NotRepetitive:
    """Whether no span is repeated 32 times."""

    def __init__(self, path: str):
        self.path = path

    def __call__(self, document: Document) -> bool:
        return not is_repetitive(np.array(tokenizer(self.path).encode(document.text, add_special_tokens=False).ids))


def main(documents: str, path: str, out: str, workers: str, rules: str) -> None:
    filters = [LambdaFilter(long_enough)]
    if rules == "length+repetition":
        filters.append(LambdaFilter(NotRepetitive(path)))
    files = sum(1 for _ in Path(documents).glob("*.jsonl.gz"))
    steps = [
        JsonlReader(documents, glob_pattern="*.jsonl.gz"),
        *filters,
        DocumentTokenizer(f"{out}/tokens", path, eos_token="<|endoftext|>", shuffle_documents=False),
    ]
    LocalPipelineExecutor(steps, tasks=files, workers=int(workers), logging_dir=f"{out}/logs").run()


if __name__ == "__main__":
    main(*sys.argv[1:])
