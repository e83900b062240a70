"""Stage: a reward model from outside, as one that PPO's value model can begin as.

Source: RECIPE G, H.2. Read are both layouts: `Olmo2ForSequenceClassification` with one label, as transformers writes it and
allenai/OLMo-2-1124-7B-RM is released, and the folder that `olmo2 export` writes of a reward model made here. The files are kept
byte for byte. No accuracy is known of it, so its record says that of no pairs.
"""

from infra.stage import stage
from infra.workspace import Workspace
from tasks.artifacts import RewardModel
from tasks.training.fitting.model_folder import AdoptConfig, checked_tokenizer, keep_files, open_folder
from tasks.training.fitting.reward_head import HEAD_NAME, open_scoring_folder


def adopt_reward_model(ws: Workspace, config: AdoptConfig) -> RewardModel:
    """Check the folder by reading all its weights, then keep its files.

    Raises ValueError naming the architecture, vocabulary, tensor or file that does not fit.
    """
    folder = open_folder(config)
    model, weights = open_scoring_folder(folder, None)
    tokenizer = checked_tokenizer(ws, config.source, folder, model.config.vocab_size)
    broken = [
        name
        # Tensor by tensor, without a model in memory: a reward model of 32B would not fit a laptop.
        for name, parameter in model.named_parameters()
        if not weights(name, parameter.shape, 0, len(parameter)).isfinite().all()
    ]
    if broken:
        raise ValueError(f"{config.source} has values that are not finite in {', '.join(broken)}; fetch it again")
    keep_files(ws, config, folder)
    assert model.head.weight.shape == (1, model.config.d_model), HEAD_NAME
    return ws.artifact(
        RewardModel,
        steps=0,
        tokens=0,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        loss=0.0,
        accuracy=0.0,
        accuracy_stderr=0.0,
        # No accuracy is known of a model from outside, so it is stated of no pairs.
        pairs_held_out=0,
        **tokenizer.facts,
        parent="",
    )


adopt_reward = stage(adopt_reward_model, name="adopt_reward", version=1)
