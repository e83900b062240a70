"""The server's garbage does not stop its event loop. Oracle: SQLite's lock, which the loop can give back only while it runs."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import gc, sqlite3, sys, threading, time
from flows.server import garbage

def connect():
    made = sqlite3.connect(sys.argv[1], check_same_thread=False, isolation_level=None)
    made.execute("pragma journal_mode = wal")
    made.execute("pragma busy_timeout = 3000")
    return made

first, second = connect(), connect()
first.execute("create table numbers (number)")
if sys.argv[2] == "thread":
    garbage.EVERY_SECONDS = 0.2
    garbage.collect_in_thread()
else:
    gc.disable()
second.execute("begin immediate")

class Cycle:
    pass

# A cursor that was not read to its end, in garbage that only a collection finds.
cycle = Cycle()
cycle.own, cycle.cursor = cycle, first.execute("select 1 union all select 2")
cycle.cursor.fetchone()
del cycle
said = []

def write():
    try:
        first.execute("insert into numbers values (1)")
        said.append("written")
    except sqlite3.OperationalError as error:
        said.append(str(error))

writer = threading.Thread(target=write)
writer.start()
# The writer waits for the lock before anything is collected.
time.sleep(0.5)
gc.collect() if sys.argv[2] == "loop" else time.sleep(0.5)
second.execute("commit")
writer.join()
print(said[0])
"""


@pytest.mark.parametrize(("who", "said"), [("loop", ("database is locked", "not an error")), ("thread", ("written",))])
def test_a_cursor_in_the_garbage_stops_who_collects_it_and_nobody_else(who: str, said: tuple[str, ...], tmp_path: Path):
    """In the loop's own thread the collection holds the lock's owner up until the writer has given up.

    Both threads use one connection, so the cursor's end may replace the message before the writer has read it.
    """
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "numbers.db"), who]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() in said
