"""What this machine can run: its CPU's instruction sets, the arithmetic paths that need them, and its GPUs."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from .reports import BuildError

AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")
PATH_FEATURES: dict[str, tuple[str, ...]] = {  # as cpu_features names them; fastest first
    "amx": (*AVX512, "amx_tile", "amx_bf16"),
    "avx512": AVX512,
    "avx2": ("avx2", "fma"),
    "portable": (),
}
EMULATED_AMX = "amx-emulated"  # the same unit; its tile instructions are computed in plain C++


def unit_stem(path: str) -> str:
    """The <path> of the unit cpu/arithmetic_<path>.cpp that a path is compiled from."""
    return path.removesuffix("-emulated")


@functools.cache
def output_of(*command: str) -> str:
    """What the command prints, in every locale the same: it is part of the cache's key. "" where it cannot be run."""
    try:
        environment = os.environ | {"LC_ALL": "C"}
        done = subprocess.run(command, capture_output=True, check=False, env=environment)
        return done.stdout.decode(errors="replace").strip()
    except OSError:
        return ""


def cpu_name() -> str:
    """The CPU's name, for messages."""
    with suppress(OSError, IndexError):
        return re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0]
    return platform.processor() or platform.machine()


X86_SETS = (
    r"s*sse|avx|amx|fma|f16c|bmi|abm|popcnt|movbe|v?aes|sha_|sha\d|gfni|v?pclmul|adx|rd(rand|seed)|cx16"
)


def cpu_features() -> list[str]:
    """The CPU's instruction sets, which bound what -march=native emits."""
    features = {platform.machine()}
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        if x86 := re.search(r"^flags\s*:(.*)$", text, re.MULTILINE):
            features |= {word for word in x86[1].split() if re.match(X86_SETS, word)}
        elif arm := re.search(r"^Features\s*:(.*)$", text, re.MULTILINE):
            features |= set(arm[1].split())
    if sys.platform == "darwin":
        features.add(output_of("sysctl", "-n", "machdep.cpu.brand_string").replace(" ", "-"))
    return sorted(features)


def cpu_path() -> str:
    """The arithmetic path that SACFAST_CPU_PATH asks for, under the name that it then has; "" for the best.

    "amx" is "amx-emulated" on a CPU without. Raises BuildError where there is no such path on this CPU.
    """
    wanted = os.environ.get("SACFAST_CPU_PATH", "").strip().lower()
    choices = {unit_stem(path): path for path in testable_paths()}
    if wanted and wanted not in choices:
        raise BuildError(f"SACFAST_CPU_PATH is {wanted!r}; the choices on this CPU are {', '.join(choices)}")
    return choices.get(wanted, "")


def cpu_paths() -> list[str]:
    """The arithmetic paths that this CPU has the instructions of, fastest first."""
    features = set(cpu_features())
    return [path for path, needed in PATH_FEATURES.items() if features.issuperset(needed)]


def wanted_paths() -> list[str]:
    """What a build for this machine compiles: what SACFAST_CPU_PATH names, else the best; beside AMX, AVX-512
    too, because the kernel may refuse a process the tiles."""
    if named := cpu_path():
        return [named]
    best = cpu_paths()
    return best[:2] if best[0] == "amx" else best[:1]


def testable_paths() -> list[str]:
    """Every path that can be executed on this CPU, AMX emulated where it is absent."""
    runnable = cpu_paths()
    emulated = "amx" not in runnable and "avx512" in runnable
    return [*runnable, EMULATED_AMX] if emulated else runnable


def every_path() -> list[str]:
    """What a build for other machines of this architecture compiles, to choose from at run time."""
    return list(PATH_FEATURES) if platform.machine() in ("x86_64", "AMD64") else ["portable"]


def gpu_architectures() -> list[str]:
    """What CUDA code is wanted for: TORCH_CUDA_ARCH_LIST, else every GPU of this machine; [] means none.

    The GPUs are asked through NVML, which, unlike torch.cuda, leaves the process free to fork afterwards.
    """
    if torch.version.cuda is None:
        return []
    if listed := re.findall(r"[^;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "")):
        return sorted(set(listed))
    try:
        return _nvml_architectures(ctypes.CDLL("libnvidia-ml.so.1"))
    except (OSError, AttributeError):
        return visible_gpus()


def _nvml_architectures(nvml: ctypes.CDLL) -> list[str]:
    found: set[str] = set()
    count, major, minor, handle = ctypes.c_uint(), ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
    if nvml.nvmlInit_v2() == 0:
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0:
            for index in range(count.value):
                known = nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0
                ask = nvml.nvmlDeviceGetCudaComputeCapability
                if known and ask(handle, ctypes.byref(major), ctypes.byref(minor)) == 0:
                    found.add(f"{major.value}.{minor.value}")
        nvml.nvmlShutdown()
    return sorted(found)


def visible_gpus() -> list[str]:
    """The architectures of the GPUs that torch shows to this process. Initialises CUDA."""
    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return sorted({"{}.{}".format(*torch.cuda.get_device_capability(index)) for index in devices})


def covers(built: Sequence[str], gpu: str) -> bool:
    """Whether code compiled for the architectures `built` runs on a GPU of architecture `gpu`, such as "8.6".

    Machine code runs on its own major version from its own minor version on, and PTX on all that is newer;
    what is compiled for a name with a letter, such as 9.0a, on that architecture alone.
    """
    major, minor = map(int, gpu.split("."))
    for arch in built:
        number = arch.removesuffix("+PTX")
        if number.rstrip("af") == gpu:
            return True
        if number[-1].isdigit():
            built_major, built_minor = map(int, number.split("."))
            later = (built_major, built_minor) < (major, minor)
            if later and (built_major == major or arch.endswith("+PTX")):
                return True
    return False
