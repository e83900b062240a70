"""Stage: an Olmo2 Hugging Face folder, from a disk or the hub, as a checkpoint that any later stage can start from.

Source: RECIPE A.6 (folder layout). The files are kept byte for byte; the record's config, which pins them, is the provenance.
Before anything is kept, the folder is loaded as a training stage would load it. Adam's moments are not adopted: no published
folder has them.
"""

from infra.stage import stage
from infra.workspace import Workspace
from model.files.hf_config import read_config
from model.files.weights import load_hf
from tasks.artifacts import Checkpoint
from tasks.training.fitting.model_folder import AdoptConfig, checked_tokenizer, keep_files, open_folder


def adopt_checkpoint(ws: Workspace, config: AdoptConfig) -> Checkpoint:
    """Check the folder by loading it, then keep its files.

    Raises ValueError naming the architecture, vocabulary, tensor or file that does not fit.
    """
    folder = open_folder(config)
    tokenizer = checked_tokenizer(ws, config.source, folder, read_config(folder).vocab_size)
    model, shape = load_hf(folder, ranks=tokenizer.ranks)
    # A NaN in the weights would only be noticed after hours of a training that starts from them.
    broken = [name for name, tensor in model.named_parameters() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{config.source} has values that are not finite in {', '.join(broken)}; fetch it again")
    keep_files(ws, config, folder)
    return ws.artifact(
        # Nothing was trained here, so the counts that a report adds up are 0.
        Checkpoint,
        steps=0,
        tokens=0,
        parameters=shape.parameters,
        loss=0.0,
        **tokenizer.facts,
        parent="",
    )


adopt = stage(adopt_checkpoint, name="adopt", version=3)
