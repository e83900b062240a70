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

with Watchdog({seconds}, {rank}, {world}) as watchdog:
    for _ in range({steps}):
        time.sleep(0.05)
        watchdog.beat()
    wait_for_a_peer()
print("trained")
"""


def program(*, seconds: float, steps: int, sleep: float, rank: int = 0, world: int = 1) -> str:
    return textwrap.dedent(PROGRAM.format(seconds=seconds, steps=steps, sleep=sleep, rank=rank, world=world))


def run(*, seconds: float, steps: int, sleep: float) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program(seconds=seconds, steps=steps, sleep=sleep)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_step_that_hangs_ends_the_process_with_its_stack() -> None:
    done = run(seconds=0.3, steps=2, sleep=50)
    assert (done.returncode, done.stdout) == (STALLED_EXIT_CODE, "")
    assert STALLED_EXIT_CODE == 75
    assert "no training step finished in 0.3 s" in done.stderr
    assert "in wait_for_a_peer" in done.stderr


def test_a_loop_that_beats_may_take_longer_than_a_step() -> None:
    done = run(seconds=1.0, steps=24, sleep=0)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr


def test_in_a_group_all_print_their_stacks_before_the_first_ends() -> None:
    """The second process began its step later, by less than the time that the first waits."""
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", program(seconds=2.0, steps=steps, sleep=50, rank=rank, world=2)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, steps in enumerate((2, 12))
    )
    assert first.stderr is not None and second.stderr is not None
    told = second.stderr.readline()
    assert told == "rank 1 of 2: no training step finished in 2 s; ending the process\n"
    assert first.poll() is None, "the first has ended before the second said where it was"
    said = first.communicate(timeout=60)[1]
    second.communicate(timeout=60)
    assert said.startswith("rank 0 of 2: ") and "in wait_for_a_peer" in said
    assert first.returncode == second.returncode == STALLED_EXIT_CODE
