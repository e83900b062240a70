"""Environments of the peers: packages that this project does not need, and that often need others than it has."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def peer_python(name: str, packages: Sequence[str], given: str | None) -> str:
    """Python of a peer's environment: the one given, or that of `.venv-<name>`, made unless it was installed to its end."""
    if given:
        return given
    folder = ROOT / f".venv-{name}"
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin/pip"), "install", "--quiet", *packages], check=True, stdout=sys.stderr)
        (folder / "installed").touch()
    return str(folder / "bin/python")
