"""What a run shows while a stage works: how much is done, at what rate, and the time left. Oracle: arithmetic done by hand."""

import io

import pytest
from rich.console import Console

from flows.cli import display
from flows.cli.display import Display
from infra.events import Failed, LogKept, Progress
from infra.stopping import Interrupted


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_in_bytes_has_a_rate_and_the_time_left(monkeypatch, terminal):
    """A quarter of 800 MB in 10 seconds: 20 MB/s, and half a minute left."""
    now, out = [100.0], io.StringIO()
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    console = Console(file=out, force_terminal=terminal, width=160, get_time=lambda: now[0])
    monkeypatch.setattr(display, "PLAIN_SECONDS", 5.0)
    shown = Display(console)
    shown._progress.get_time = lambda: now[0]
    with shown:
        for seconds, done in ((100.0, 0.0), (105.0, 100.0), (110.0, 200.0)):
            now[0] = seconds
            shown("collect web", Progress("collect web", done, 800.0, "MB"))
        shown._progress.refresh()
    text = out.getvalue()
    assert ("200/800 MB" if terminal else "200 of 800 MB") in text
    assert "20.0 MB/s" in text
    assert "0:00:30" in text


def test_a_stage_that_a_stop_ended_has_not_failed():
    """Programs read this: a stage that was stopped has no cause to be mended, and no traceback."""
    shown = Display(Console(file=io.StringIO()))
    shown("dpo", LogKept("_progress/dpo/error.txt"))
    shown("dpo", Failed(ValueError("beta is 0")))
    shown("pretrain", Failed(Interrupted("the run was asked to stop")))
    failed, stopped = shown.stages
    assert failed == {
        "label": "dpo",
        "action": "failed",
        "error": "ValueError: beta is 0",
        "traceback": "_progress/dpo/error.txt",
    }
    assert stopped == {"label": "pretrain", "action": "stopped", "error": "Interrupted: the run was asked to stop"}
