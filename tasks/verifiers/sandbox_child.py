"""The child of `sandbox`: limits, a seccomp filter, then the program. It runs alone, without packages.

Arguments: file descriptor for the last word, bytes of memory, seconds of CPU. The program comes on standard input, after the
word on a line of its own.
"""

import ctypes
import os
import platform
import resource
import struct
import sys

ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
EPERM, ENOSYS = 1, 38
CLONE_THREAD = 0x00010000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
X32 = 0x40000000
"""Numbers of system calls from here on are x86's second table."""

# Number of each refused call. Those that both tables have from 424 on are the same everywhere.
NEWER = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 437, 438, 440, 442, 452, 462)
MACHINES = {
    "x86_64": {
        "audit": 0xC000003E,
        "refused": (
            41, 42, 43, 44, 46, 49, 50, 53, 57, 58, 59, 62, 76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94,
            101, 129, 132, 133, 155, 160, 161, 165, 166, 169, 175, 200, 235, 246, 248, 249, 250, 258, 259, 260, 261, 263, 264,
            265, 266, 268, 272, 280, 285, 288, 297, 298, 302, 304, 308, 310, 311, 313, 316, 320, 321, 322, 188, 189, 190, 197,
            198, 199,
        ),
        "open": (2, 1), "openat": (257, 2), "clone": 56, "clone3": 435,
    },
    "aarch64": {
        "audit": 0xC00000B7,
        "refused": (
            5, 6, 7, 14, 15, 16, 33, 34, 35, 36, 37, 38, 39, 40, 41, 45, 46, 47, 51, 52, 53, 54, 55, 88, 97, 104, 105, 106,
            117, 129, 130, 138, 142, 161, 162, 164, 198, 199, 200, 201, 202, 203, 206, 211, 217, 218, 219, 221, 224, 225, 240,
            241, 242, 261, 264, 265, 268, 270, 271, 273, 276, 280, 281, 294,
        ),
        "open": None, "openat": (56, 2), "clone": 220, "clone3": 435,
    },
}  # fmt: skip


def step(code, value, yes=0, no=0):
    """One instruction of the filter."""
    return struct.pack("HBBI", code, yes, no, value)


def filter_program(machine):
    """The instructions: refuse what the tables name, look at the flags of opens and clones, let the rest through."""
    refuse = step(RETURN, ERRNO | EPERM)
    program = [
        step(LOAD, ARCHITECTURE),
        # The architecture first: numbers of calls mean something else on another.
        step(EQUAL, machine["audit"], 1, 0),
        step(RETURN, KILL),
        step(LOAD, NUMBER),
        step(AT_LEAST, X32, 0, 1),
        refuse,
        step(EQUAL, machine["clone3"], 0, 1),
        # ENOSYS and not EPERM: glibc then falls back to clone, whose flags a filter can read.
        step(RETURN, ERRNO | ENOSYS),
    ]
    for number in (*machine["refused"], *NEWER):
        program += [step(EQUAL, number, 0, 1), refuse]
    for opening in (machine["open"], machine["openat"]):
        # Opening is allowed for reading, so its flags are looked at.
        if opening:
            number, place = opening
            look = [step(LOAD, ARGUMENTS + 8 * place), step(ANY_BIT, _WRITING, 0, 1), refuse, step(RETURN, ALLOW)]
            program += [step(EQUAL, number, 0, len(look)), *look]
    program += [
        # A clone with CLONE_THREAD is a thread; without it a process, which is refused.
        step(EQUAL, machine["clone"], 0, 4),
        step(LOAD, ARGUMENTS),
        step(ANY_BIT, CLONE_THREAD, 1, 0),
        refuse,
        step(RETURN, ALLOW),
        step(RETURN, ALLOW),
    ]
    return program


def close_in(memory, seconds):
    """Set limits and the filter. Raises OSError where the system refuses."""
    machine = MACHINES.get(platform.machine())
    if machine is None or not sys.platform.startswith("linux"):
        raise OSError(f"{sys.platform} on {platform.machine()} has no filter here")
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(limit, (value, value))
    # The filter goes last: setting limits is itself a call that it might refuse.
    code = b"".join(filter_program(machine))
    buffer = ctypes.create_string_buffer(code, len(code))
    holder = struct.pack("HP", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_rights, set_seccomp, with_filter = 38, 22, 2
    # no_new_privs lets a process without rights install a filter, and cannot be undone.
    if libc.prctl(no_new_rights, 1, 0, 0, 0) or libc.prctl(set_seccomp, with_filter, holder, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main():
    last = int(sys.argv[1])
    word, _, code = sys.stdin.buffer.read().partition(b"\n")
    try:
        close_in(int(sys.argv[2]), int(sys.argv[3]))
    except (OSError, ValueError) as error:
        os.write(last, f"sandbox: {error}".encode())
        return
    try:
        exec(compile(code.decode("utf-8", "surrogatepass"), "program", "exec"), {"__name__": "program"})
    except BaseException as error:  # whatever a generated program raises is its failure, SystemExit too
        os.write(last, f"{type(error).__name__}: {error}"[:300].encode(errors="replace"))
        return
    # Only reached at the program's own end.
    os.write(last, word)


main()
