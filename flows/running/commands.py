"""The commands that go on with a run, for its pages and for what the terminal says when stages failed."""

import shlex

from infra.session import matches


def run_command(
    recipe: str, store: str, until: str | None, rerun: list[str], overrides: list[str], *, cascade: bool
) -> str:
    """The command that does what a run does; what is done is reused, what is under way resumes."""
    if cascade and rerun:
        words = ["rerun", recipe, rerun[0]]
    else:
        words = ["run", recipe, *(word for name in rerun for word in ("--rerun", name))]
    return _joined(words, store, until, overrides)


def resume_command(
    recipe: str,
    store: str,
    until: str | None,
    rerun: list[str],
    overrides: list[str],
    failed: list[str],
    *,
    cascade: bool,
) -> str:
    """Return the command that resumes after stages failed: the one that was given, but it makes nothing again that was
    finished."""
    if cascade:
        words = ["rerun", recipe, failed[0] if len(failed) == 1 else rerun[0]]
    else:
        # Only what failed is forced again: a second `--rerun` of what was finished would make it twice.
        again = [label for label in failed if any(matches(name, label.partition(":")[0], label) for name in rerun)]
        words = ["run", recipe, *(word for label in again for word in ("--rerun", label))]
    return _joined(words, store, until, overrides)


def _joined(words: list[str], store: str, until: str | None, overrides: list[str]) -> str:
    words = words + (["--until", until] if until else [])
    return shlex.join(["olmo2", *words, "--store", store, *(word for item in overrides for word in ("--set", item))])
