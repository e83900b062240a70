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


def new_name(field: str, known: list[str]) -> str:
    """The end of a sentence about an unknown field that names what it is called now; empty where it never had that name.

    `known` are the fields that exist at its place.
    """
    name = RENAMED.get(field)
    return f"; it is now called {name!r}" if name in known else ""
