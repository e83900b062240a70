"""Compiles `kernels.cpp` for this processor once per machine, and loads it.

A decoding step of a small model is hundreds of operations of a few microseconds each, and calling them costs more than they do.
The compiled code computes a whole step in one call. It needs a C++ compiler (`CXX`, else g++) and some seconds, once: what it
makes stays in the user's cache folder, under a name that holds source, compiler and instruction set. Before it is used, a
process of its own multiplies with it and compares, so that code which this processor does not run never ends a stage.

Where there is no compiler, or no AVX2, everything is computed by PyTorch's operations, more slowly and equal up to rounding.
`OLMO2_COMPILED_DECODING=0` asks for that. The instruction set is the one that PyTorch uses (`ATEN_CPU_CAPABILITY`).
"""

import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

KERNEL_SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILED_DECODING = "OLMO2_COMPILED_DECODING"
PANEL_OUTPUTS = 32
"""Outputs whose weights lie together."""
_COMPILE_SECONDS = 300
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512")
_AVX2 = ("-mavx2", "-mfma")
_CHECK = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).olmo2_check())"
_log = logging.getLogger(__name__)


class Kernels:
    """The compiled functions. Tensors are contiguous and on the CPU, fp32 or bf16 throughout."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        if self.library.olmo2_start() != 0:
            raise OSError("the system does not let this process use matrix tiles (AMX)")
        self.library.olmo2_buffer_bytes.restype = ctypes.c_int64

    def pack(self, packed: Tensor, weight: Tensor, first: int) -> None:
        """Lay out the weights [outputs, inputs] of the outputs from `first` on, rounded to the type of `packed`."""
        assert weight.is_contiguous() and weight.dtype in (torch.float32, packed.dtype)
        self.library.olmo2_pack(
            _half(packed), _pointer(packed), _half(weight), _pointer(weight), *map(ctypes.c_int64, weight.shape),
            ctypes.c_int64(first), torch.get_num_threads(),
        )  # fmt: skip

    def linear(self, x: Tensor, packed: Tensor, outputs: int) -> Tensor:
        """x [rows, inputs] times packed weights -> [rows, outputs], in their type."""
        assert x.dtype == packed.dtype and x.is_contiguous()
        rows, inputs = x.shape
        out = torch.empty(rows, outputs, dtype=x.dtype)
        self.library.olmo2_linear(
            _half(x), _pointer(x), ctypes.c_int64(rows), _pointer(packed), ctypes.c_int64(inputs), ctypes.c_int64(outputs),
            _pointer(out), torch.get_num_threads(),
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
            _pointer(logits), *map(ctypes.c_int64, (rows, vocab, ids)), ctypes.c_double(temperature),
            None if noise is None else ctypes.c_void_p(noise.ctypes.data), _pointer(powers),
            _pointer(tokens), _pointer(logprobs), threads,
        )  # fmt: skip
        return tokens, logprobs


def _half(tensor: Tensor) -> int:
    return int(tensor.dtype == torch.bfloat16)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def kernels_for(dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """The compiled functions, where they compute in this type and here."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16) or os.environ.get(COMPILED_DECODING) == "0":
        return None
    return _kernels()


@functools.cache
def _kernels() -> Kernels | None:
    flags, compiler = instruction_flags(), os.environ.get("CXX") or shutil.which("g++")
    if not flags or not compiler or sys.platform != "linux":
        _log.info("decoding is not compiled: it needs Linux, AVX2 and a C++ compiler (CXX, or g++ on the PATH)")
        return None
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "olmo2" / "kernels"
    try:
        return Kernels(compiled(compiler, flags, folder))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or ""
        _log.warning(
            "decoding goes on without compiled code, several times as slowly: %s %s; set CXX to another compiler, XDG_CACHE_HOME "
            "to a folder that can be written, or %s=0 to do without",
            error, said, COMPILED_DECODING,
        )  # fmt: skip
        return None


def instruction_flags() -> tuple[str, ...]:
    """The compiler's flags for the instruction set that PyTorch uses here; none where that has no AVX2."""
    has = torch.cpu.get_capabilities()
    match torch.backends.cpu.get_cpu_capability():
        case "AVX512":
            half = ("-mavx512bf16",) if has.get("avx512_bf16") else ()
            tiles = ("-mamx-tile", "-mamx-bf16") if has.get("amx_bf16") and has.get("amx_tile") else ()
            return _AVX512 + half + tiles
        case "AVX2":
            return _AVX2
        case _:
            return ()


def compiled(compiler: str, flags: tuple[str, ...], folder: Path) -> Path:
    """The library in `folder`, compiled and checked if it is not there yet. Raises OSError or SubprocessError if that fails."""
    command = [compiler, *_FLAGS, *flags, str(KERNEL_SOURCE)]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256("\0".join([version, *command[:-1], KERNEL_SOURCE.read_text()]).encode()).hexdigest()[:24]
    library = folder / f"{key}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    # The workers of a machine start together; the first compiles, the others wait for it.
    with (folder / f"{key}.lock").open("w") as lock, tempfile.TemporaryDirectory(dir=folder) as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            made = Path(scratch) / library.name
            subprocess.run(
                [*command, "-o", str(made)], capture_output=True, text=True, check=True, timeout=_COMPILE_SECONDS
            )
            subprocess.run(
                [sys.executable, "-c", _CHECK, str(made)], capture_output=True, text=True, check=True, timeout=60
            )
            made.replace(library)
    return library
