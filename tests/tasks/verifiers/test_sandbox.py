"""Programs that try to do harm end as failures, and leave nothing behind."""

import socket
import threading
import time
from pathlib import Path

import pytest

from tasks.verifiers.sandbox import run_program

FORK_BOMB = "import os\nwhile True:\n    os.fork()\n"
HARMFUL = {
    "fork bomb": FORK_BOMB,
    "spawn": "import subprocess\nsubprocess.run(['true'], check=True)",
    "spawn by vfork": "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    "shell": "import os\nassert os.system('true') == 0",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "10 GB": "x = bytearray(10 << 30)",
    "many small": "x = []\nwhile True:\n    x.append(bytearray(1 << 20))",
    "socket": "import socket\nsocket.socket()",
    "socket pair": "import socket\nsocket.socketpair()",
    "file outside": "open('/tmp/olmo2-sandbox-proof', 'w').write('x')",
    "file here": "open('x', 'w').write('x')",
    "append": "open('/tmp/olmo2-sandbox-proof', 'a')",
    "low level": "import os\nos.open('/tmp/olmo2-sandbox-proof', os.O_RDWR | os.O_CREAT)",
    "folder": "import os\nos.mkdir('/tmp/olmo2-sandbox-proof')",
    "link": "import os\nos.symlink('/tmp', '/tmp/olmo2-sandbox-proof')",
    "kill": "import os\nos.kill(os.getppid(), 9)",
    "limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "leaves early": "import sys\nsys.exit(0)",
    "leaves at once": "import os\nos._exit(0)",
    "raises": "assert 1 + 1 == 3",
    "syntax": "def f(:",
    "deep": "def f():\n    f()\nf()",
}


@pytest.mark.parametrize("name", sorted(HARMFUL))
def test_harm_fails(name):
    # Enough time on a busy machine for the limit of memory to be what ends a program.
    ran = run_program(HARMFUL[name], seconds=30.0)
    assert ran.outcome == "failed", ran
    assert not Path("/tmp/olmo2-sandbox-proof").exists()


def test_a_file_of_others_stays(tmp_path):
    file = tmp_path / "kept"
    file.write_text("kept")
    for code in (f"import os\nos.remove({str(file)!r})", f"import os\nos.truncate({str(file)!r}, 0)",
                 f"import os\nos.rename({str(file)!r}, '/tmp/elsewhere')", f"import os\nos.chmod({str(file)!r}, 0)"):  # fmt: skip
        assert not run_program(code).passed
    assert file.read_text() == "kept"
    assert file.stat().st_mode & 0o600 == 0o600


@pytest.mark.parametrize(
    "code", ["while True:\n    pass", "import time\ntime.sleep(60)", "import signal\nsignal.pause()"]
)
def test_endless_programs_are_ended(code):
    started = time.monotonic()
    assert run_program(code, seconds=1.0).outcome == "timed out"
    assert time.monotonic() - started < 10


def test_no_network_even_on_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not run_program(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)").passed


def test_floods_of_output_are_thrown_away():
    assert run_program("import os\nfor _ in range(2000):\n    os.write(1, b'x' * 65536)\n    print('y' * 1000)").passed


def test_right_programs_pass_with_threads_and_the_standard_library():
    code = """
import math, json, re, collections, itertools, threading
done = []
thread = threading.Thread(target=lambda: done.append(math.gcd(12, 18)))
thread.start(); thread.join()
assert done == [6] and json.loads('[1]') == [1]
"""
    ran = run_program(code)
    assert ran.passed, ran


def test_many_at_once():
    results = []
    threads = [threading.Thread(target=lambda: results.append(run_program(FORK_BOMB).outcome)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["failed"] * 4
