"""Old names of recipe fields, so that a recipe written for an earlier version is told what to write instead."""

RENAMED = {
    "peak_lr": "learning_rate",
    "start_lr": "learning_rate",
    "lr": "learning_rate",
    "epoch": "epochs",
    "batch": "batch_size",
    "batch_instances": "batch_size",
}
"""Old name -> new name in the same place."""
MOVED = {
    ("pretrain", "micro_instances"): "execution.micro_instances.pretrain",
    ("anneal", "micro_instances"): "execution.micro_instances.anneal",
    ("sft", "pass_tokens"): "execution.pass_tokens.sft",
    ("dpo", "pass_tokens"): "execution.pass_tokens.dpo",
    ("reward", "pass_tokens"): "execution.pass_tokens.reward",
    ("rlvr", "pass_tokens"): "execution.pass_tokens.rlvr",
    ("grpo", "pass_tokens"): "execution.pass_tokens.rlvr",
    ("ppo", "pass_tokens"): "execution.pass_tokens.ppo",
    ("evaluation", "batch_size"): "execution.answers_at_once.evaluate",
}
"""(Section or algorithm, field) -> the setting that it has become: it changes speed, memory and rounding, and no identity."""
GONE = {"batch_tokens": "it is the batch of the training that reads the mix, so leave it out"}
"""Old name -> why there is nothing to write in its place."""


def new_name(section: str, field: str, known: list[str]) -> str:
    """The end of a sentence about an unknown field that names what it is called now; empty where it never had that name.

    `section` is the name above it, `known` are the fields that exist at its place.
    """
    if setting := MOVED.get((section, field)):
        return f"; it is now the setting {setting}"
    if reason := GONE.get(field):
        return f"; {reason}"
    name = RENAMED.get(field)
    return f"; it is now called {name!r}" if name in known else ""
