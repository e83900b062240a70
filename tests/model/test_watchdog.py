"""A step that hangs ends its process. Oracles: the exit status of a real process and the stack that it prints, RECIPE J."""

import subprocess
import sys
import textwrap

from model.training.watchdog import STALLED_EXIT_CODE

PROGRAM = """
import time
from model.training.watchdog import Watchdog

def wait_for_a_peer():
    time.sleep({sleep})

with Watchdog({seconds}) as watchdog:
    for _ in range({steps}):
        time.sleep(0.05)
        watchdog.beat()
    wait_for_a_peer()
print("trained")
"""


def run(*, seconds: float, steps: int, sleep: float) -> "subprocess.CompletedProcess[str]":
    program = textwrap.dedent(PROGRAM.format(seconds=seconds, steps=steps, sleep=sleep))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_a_step_that_hangs_ends_the_process_with_its_stack() -> None:
    done = run(seconds=0.3, steps=2, sleep=50)
    assert (done.returncode, done.stdout) == (STALLED_EXIT_CODE, "")
    assert STALLED_EXIT_CODE == 75
    assert "no training step finished in 0.3 s" in done.stderr
    assert "in wait_for_a_peer" in done.stderr


def test_a_loop_that_beats_may_take_longer_than_a_step() -> None:
    done = run(seconds=1.0, steps=24, sleep=0)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
