"""OLMo-core's side of the comparison of data: a script for an environment of its own, `core_data_peer.py FOLDER...`.

Each folder's request.json names token files, the windows' length, the later longer length or null, instances of a batch,
seed and epochs. Written is answer.safetensors: `instances` (all of `NumpyFSLDataset`, in order), `kept` (its repetition
filter's word on each), and `batches/<epoch>`: the ids of every batch of its data loader, epochs from 1 as it counts them.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from olmo_core.data import NumpyFSLDataset
from olmo_core.data.collator import DataCollator
from olmo_core.data.data_loader import NumpyDataLoaderBase
from olmo_core.data.numpy_dataset import InstanceFilterConfig
from safetensors.torch import save_file

VERSION = "3.0.0"


def answer(folder: Path) -> None:
    """Compute one folder's request."""
    request = json.loads((folder / "request.json").read_text())
    dataset = NumpyFSLDataset(
        *request["files"], sequence_length=request["length"], pad_token_id=request["pad"], eos_token_id=request["eos"],
        vocab_size=request["vocab"], dtype=np.uint32, max_target_sequence_length=request["target"],
        instance_filter_config=InstanceFilterConfig(),
    )  # fmt: skip
    dataset.work_dir = folder / "work"
    dataset.prepare()
    items = [dataset[index] for index in range(len(dataset))]
    found = {
        "instances": torch.stack([item["input_ids"] for item in items]).long(),
        "kept": torch.tensor([bool(item["instance_mask"]) for item in items]),
    }
    loader = NumpyDataLoaderBase.wrap_numpy_dataset(
        dataset, global_batch_size=request["batch"] * request["length"], collator=DataCollator(request["pad"]),
        work_dir=folder / "work", seed=request["seed"],
    )  # fmt: skip
    for epoch in range(1, request["epochs"] + 1):
        loader.reshuffle(epoch=epoch)
        found[f"batches/{epoch}"] = torch.stack([batch["input_ids"] for batch in loader]).long()
        loader.reset()
    save_file(found, folder / "answer.safetensors")


if __name__ == "__main__":
    assert version("ai2-olmo-core") == VERSION, f"ai2-olmo-core {version('ai2-olmo-core')} is not {VERSION}"
    for argument in sys.argv[1:]:
        answer(Path(argument))
