"""From a mix to the loader: local token files in the mix's order, as many tokens of each as it takes."""

from infra.workspace import Workspace
from model.batches import TokenFile
from model.tokenizer import Tokenizer
from tasks.artifacts import Mix


def mix_files(ws: Workspace, mix: Mix) -> list[TokenFile]:
    """The token files of a mix; a file taken in several passes stands there several times (RECIPE C.8)."""
    artifacts = {}
    files = []
    for entry in ws.read_json(mix, "mix.json")["entries"]:
        address = entry["address"]
        if address not in artifacts:
            artifacts[address] = ws.at(address)
        path = ws.path(artifacts[address], entry["file"])
        files += [TokenFile(path, entry["tokens"], entry["source"])] * entry.get("passes", 1)
    return files


def check_vocabulary(mix: Mix, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise ValueError unless the mix's tokens are ids of this tokenizer and the model has a row for each."""
    if mix.ranks != tokenizer.ranks:
        raise ValueError(
            f"vocabulary mismatch: the mix was encoded with {mix.ranks:,} ranks, the model's tokenizer has "
            f"{tokenizer.ranks:,}; encode again with the model's vocabulary (encode.ranks) or start from another model"
        )
    if vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"vocabulary mismatch: the model has {vocab_size:,} embedding rows for {tokenizer.vocab_size:,} token ids; "
            f"set model.vocab_size to {tokenizer.padded_vocab_size:,}"
        )
