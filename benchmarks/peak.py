"""The machine's own peak, measured: the rate of multiply-adds that never leave the registers (peak.cpp)."""

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

from sacfast.native import toolchain

SOURCE = Path(__file__).with_name("peak.cpp")
SECONDS = 0.05


@functools.cache
def _library() -> ctypes.CDLL:
    """Compiled with the extension's compiler, for this machine."""
    compiler = toolchain.find_compiler()
    machine = [flag for flag in toolchain.machine_flags(compiler) if flag != "-fopenmp"]
    flags = ["-O3", "-std=c++20", "-fPIC", "-shared", "-pthread", "-ffp-contract=fast", *machine]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peak.so"
        include = ["-I", str(toolchain.source_root())]
        subprocess.run([*compiler, *flags, *include, str(SOURCE), "-o", str(path)], check=True)
        library = ctypes.CDLL(str(path))
    library.peak_gflops.restype = ctypes.c_double
    library.peak_gflops.argtypes = [ctypes.c_int, ctypes.c_double, ctypes.c_int]
    return library


def peak_gflops(threads: int) -> dict[str, float]:
    """GFLOP/s of `threads` threads together, "float32" and, with matrix tiles, "bf16": the best of several."""
    best = {
        name: max(_library().peak_gflops(threads, SECONDS, bf16) for _ in range(5))
        for bf16, name in enumerate(("float32", "bf16"))
    }
    return {name: rate for name, rate in best.items() if rate > 0}
