"""The CUDA sources compiled for the CPU with the emulator of cuda_emulator/, for tests on machines without a GPU."""

import ctypes
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sacfast.native import toolchain

EMULATOR = Path(__file__).parent / "cuda_emulator"
# Orders of blocks and threads; every number from 2 on is another shuffle.
FORWARD, BACKWARD, SHUFFLED = 0, 1, 2


def load(directory: Path) -> ctypes.CDLL:
    """The library: csrc/cuda with the C interface of its engine, the operators' launchers, and the emulator."""
    root = toolchain.source_root()
    compiler = toolchain.find_compiler()
    options = [
        "-O2",
        "-std=c++20",
        "-fPIC",
        "-fvisibility=hidden",
        "-DSACFAST_EMULATE_CUDA",
        "-Wno-unknown-pragmas",
    ]
    options += ["-I", str(EMULATOR), "-I", str(root)]

    def compile_unit(unit: Path) -> Path:
        target = directory / f"{unit.stem}{unit.suffix}.o"
        command = [*compiler, *options, "-x", "c++", "-c", str(unit), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target

    units = sorted(root.glob("cuda/*.cu"), key=lambda unit: -unit.name.count("_")) + sorted(
        EMULATOR.glob("*.cpp")
    )
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_unit, units))
    library = directory / "emulated.so"
    linking = [*compiler, "-shared", *map(str, objects), "-o", str(library)]
    subprocess.run(linking, check=True, capture_output=True)
    return ctypes.CDLL(str(library))
