"""Compiles the C++ code of this folder for this processor once per machine, and loads it.

A decoding step of a small model is hundreds of operations of a few microseconds each, and calling them costs more than they do.
The compiled code (`decode.cpp`) computes a whole step in one call. In training, a norm or a rotary embedding is up to a dozen
operations that each read and write all activations; the other files make one of them. All need a C++ compiler (`CXX`, else g++)
and some seconds, once: what it makes stays in the user's cache folder, under a name that holds source, compiler and instruction
set. Before it is used, a process of its own multiplies with it and compares, so that code which this processor does not run never
ends a stage. What fails so, or does not compile, is not tried again for a day, and the next smaller instruction set is taken.

The cache folder `olmo2/kernels` (in `XDG_CACHE_HOME`, else `~/.cache`) is the user's own: code from a folder that others can
write to is not loaded.

Where there is no compiler, or no AVX2, everything is computed by PyTorch's operations, more slowly and equal up to rounding.
`OLMO2_COMPILED_KERNELS=0` asks for that. The instruction set is the one that PyTorch uses, so `ATEN_CPU_CAPABILITY` and
`ONEDNN_MAX_CPU_ISA` set it, too.
"""

import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SOURCES = tuple(
    Path(__file__).with_name(name)
    for name in ("decode.cpp", "train.cpp", "attention.cpp", "softmax.cpp", "gradients.cpp", "head.cpp")
)
HEADERS = tuple(Path(__file__).with_name(name) for name in ("vectors.h", "matrices.h", "half_products.h"))
COMPILED_KERNELS = "OLMO2_COMPILED_KERNELS"
PANEL_OUTPUTS = 32
"""Outputs whose weights lie together."""
_COMPILE_SECONDS = 300
_FAILED_SECONDS = 24 * 3600
"""For so long what failed is not tried again: every stage has a process of its own, and all would compile again."""
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512")
_AVX2 = ("-mavx2", "-mfma")
BELOW_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of `ONEDNN_MAX_CPU_ISA` that leave out the instructions for bf16."""
_BELOW_TILES = (*BELOW_BF16, "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512")
"""Those that leave out matrix tiles."""
_CHECK = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).olmo2_check())"
_log = logging.getLogger(__name__)


class Kernels:
    """The compiled functions. Tensors are contiguous and on the CPU, fp32 or bf16 throughout."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        if self.library.olmo2_start() != 0:
            raise RuntimeError("the system does not let this process use matrix tiles (AMX)")
        self.library.olmo2_buffer_bytes.restype = ctypes.c_int64
        self.tiles = bool(self.library.olmo2_has_tiles())

    def pack(self, packed: Tensor, weight: Tensor, first: int) -> None:
        """Lay out the weights [outputs, inputs] of the outputs from `first` on, rounded to the type of `packed`."""
        assert weight.is_contiguous() and weight.dtype in (torch.float32, packed.dtype)
        self.library.olmo2_pack(
            half(packed), pointer(packed), half(weight), pointer(weight), *map(ctypes.c_int64, weight.shape),
            ctypes.c_int64(first), torch.get_num_threads(),
        )  # fmt: skip

    def linear(self, x: Tensor, packed: Tensor, outputs: int) -> Tensor:
        """x [rows, inputs] times packed weights -> [rows, outputs], in their type."""
        assert x.dtype == packed.dtype and x.is_contiguous()
        rows, inputs = x.shape
        out = torch.empty(rows, outputs, dtype=x.dtype)
        self.library.olmo2_linear(
            half(x), pointer(x), ctypes.c_int64(rows), pointer(packed), ctypes.c_int64(inputs), ctypes.c_int64(outputs),
            pointer(out), torch.get_num_threads(),
        )  # fmt: skip
        return out

    def choose(self, logits: Tensor, temperature: float, noise: np.ndarray | None, ids: int) -> tuple[Tensor, Tensor]:
        """The next token of each row of logits [rows, vocab] among the first `ids`, and its log-probability.

        `noise` is float64 in (0, 1), one number a row; None: greedy.
        """
        assert logits.is_contiguous() and logits.dtype == torch.float32
        rows, vocab = logits.shape
        tokens, logprobs, threads = torch.empty(rows, dtype=torch.long), torch.empty(rows), torch.get_num_threads()
        powers = torch.empty(min(rows, threads), vocab)
        noise = None if noise is None else np.ascontiguousarray(noise, dtype=np.float64)
        self.library.olmo2_choose(
            pointer(logits), *map(ctypes.c_int64, (rows, vocab, ids)), ctypes.c_double(temperature),
            None if noise is None else ctypes.c_void_p(noise.ctypes.data), pointer(powers),
            pointer(tokens), pointer(logprobs), threads,
        )  # fmt: skip
        return tokens, logprobs


def half(tensor: Tensor) -> int:
    return int(tensor.dtype == torch.bfloat16)


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def kernels_for(dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """The compiled functions, where they compute in this type and here."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16) or os.environ.get(COMPILED_KERNELS) == "0":
        return None
    return _kernels()


@functools.cache
def _kernels() -> Kernels | None:
    sets, compiler = instruction_sets(), shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or ""]
    if not sets or not compiler[0] or sys.platform != "linux":
        _log.info("kernels are not compiled: that needs Linux, AVX2 and a C++ compiler (CXX, or g++ on the PATH)")
        return None
    failed: list[str] = []
    for flags in sets:
        try:
            return _loaded(compiler, flags, _own_folder())
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            failed.append(f"{error} {getattr(error, 'stderr', None) or ''}".strip())
    _log.warning(
        "decoding and training go on without compiled kernels, more slowly: %s; set CXX to another compiler, XDG_CACHE_HOME "
        "to a folder of your own that can be written, or %s=0 to do without",
        "; ".join(dict.fromkeys(failed)), COMPILED_KERNELS,
    )  # fmt: skip
    return None


def instruction_sets() -> list[tuple[str, ...]]:
    """The compiler's flags for the instruction sets that PyTorch and oneDNN may use here, the best first; none without AVX2.

    An older compiler knows no AMX, and a system may deny it to a process, so smaller sets follow.
    """
    has, most = torch.cpu.get_capabilities(), os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    match torch.backends.cpu.get_cpu_capability():
        case "AVX512":
            sets = [_AVX512, _AVX2]
            if has.get("avx512_bf16") and most not in BELOW_BF16:
                sets.insert(0, (*_AVX512, "-mavx512bf16"))
                if has.get("amx_bf16") and has.get("amx_tile") and most not in _BELOW_TILES:
                    sets.insert(0, (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"))
            return sets
        case "AVX2":
            return [_AVX2]
        case _:
            return []


def _own_folder() -> Path:
    """The folder of compiled code. Raises OSError where it is not this user's alone, or there is no home folder."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # The standard says to ignore one that is empty or relative.
        cache = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(f"{error} Set XDG_CACHE_HOME") from error
    folder = cache / "olmo2" / "kernels"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to another user or others can write to it; remove it, or chmod 700")
    return folder


def _loaded(compiler: list[str], flags: tuple[str, ...], folder: Path) -> Kernels:
    library = compiled(compiler, flags, folder)
    try:
        return Kernels(library)
    except OSError:
        # Cut off by a power failure, or made on a machine with another C library: it is made once more.
        library.unlink(missing_ok=True)
        return Kernels(compiled(compiler, flags, folder))


def compiled(compiler: list[str], flags: tuple[str, ...], folder: Path) -> Path:
    """The library in `folder`, compiled and checked if it is not there yet. Raises OSError or SubprocessError if that fails, or
    failed not long ago.
    """
    command = [*compiler, *_FLAGS, *flags]
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    told = [version, *platform.libc_ver(), *command, *(path.read_text() for path in (*HEADERS, *SOURCES))]
    key = hashlib.sha256("\0".join(told).encode()).hexdigest()[:24]
    library, failed = folder / f"{key}.so", folder / f"{key}.failed"
    if library.exists():
        return library
    _refuse_failed(failed)
    folder.mkdir(parents=True, exist_ok=True)
    # The workers of a machine start together; the first compiles, the others wait for it.
    with _locked(folder / f"{key}.lock"), tempfile.TemporaryDirectory(dir=folder) as scratch:
        if library.exists():
            return library
        _refuse_failed(failed)
        made = Path(scratch) / library.name
        try:
            _run([*command, *map(str, SOURCES), "-o", str(made)], _COMPILE_SECONDS)
            # Isolated: a file `ctypes.py` in the working directory is not Python's.
            _run([sys.executable, "-I", "-c", _CHECK, str(made)], 60)
        except subprocess.SubprocessError as error:
            failed.write_text(f"{error} {getattr(error, 'stderr', None) or ''}".strip())
            raise
        _write_through(made)
        made.replace(library)
        failed.unlink(missing_ok=True)
    return library


def _run(command: list[str], seconds: float) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds)


def _refuse_failed(failed: Path) -> None:
    """Raises OSError where compiling ended so not long ago."""
    if failed.exists() and time.time() - failed.stat().st_mtime < _FAILED_SECONDS:
        raise OSError(
            f"compiling failed before ({failed.read_text()}); it is tried again a day later, or once {failed} is removed"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the file's lock. Raises OSError where another process holds it for longer than compiling may take."""
    deadline = time.monotonic() + _COMPILE_SECONDS
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(f"another process holds {path} and does not end") from None
                time.sleep(0.1)
        yield


def _write_through(path: Path) -> None:
    """Bytes are on the disk before the name is: a library cut off by a power failure could end a stage."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
