"""What is compiled, with which tools and which flags; nothing here runs a build."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parent.parent
TORCH = Path(torch.__file__).resolve().parent


class BuildError(Exception):
    """The extension cannot be built: one sentence, and in `tail` the compiler's last lines, if any."""

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail


def say(message: str) -> None:
    """One line for the user, on stderr."""
    print(f"sacfast: {message}", file=sys.stderr, flush=True)


def cache_directory() -> Path | None:
    """SACFAST_CACHE_DIR, else sacfast/ in the user's cache directory; None where no home directory is known."""
    try:
        if chosen := os.environ.get("SACFAST_CACHE_DIR"):
            return Path(chosen).expanduser().absolute()
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "sacfast"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "sacfast"
    except RuntimeError:  # no HOME, and a user, or ~user, without an entry in the password file
        return None


def source_root() -> Path:
    """csrc/ inside the package, where the wheel has it, or beside the package, as in a source tree."""
    for root in (PACKAGE / "csrc", PACKAGE.parent / "csrc"):
        if (root / "bindings.cpp").is_file():
            return root
    raise BuildError(f"the C++ sources are missing from {PACKAGE / 'csrc'}; reinstall sacfast")


def sources(root: Path | None = None, *, cuda: bool = False) -> list[Path]:
    """The translation units, slowest to compile first: *.cpp, cpu/*.cpp, and with `cuda` also cuda/*.cu."""
    root = root or source_root()
    units = [*sorted(root.glob("*.cpp")), *sorted(root.glob("cpu/*.cpp"))]
    return units + sorted(root.glob("cuda/*.cu")) if cuda else units


# --- tools ---


def find_compiler() -> list[str]:
    """The C++ compiler's command: CXX if set (with arguments, if any), else one of c++, g++, clang++."""
    if sys.platform == "win32":
        raise BuildError("native kernels are not built on Windows")
    if wanted := shlex.split(os.environ.get("CXX", "")):
        if path := shutil.which(wanted[0]):
            return [path, *wanted[1:]]
        raise BuildError(f"the compiler named by CXX={os.environ['CXX']} was not found")
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise BuildError("no C++ compiler was found (c++, g++, clang++, or CXX to name another)")


def find_ninja() -> str:
    """The executable of the `ninja` package, else the one on PATH."""
    with suppress(ImportError):
        import ninja

        bundled = Path(ninja.BIN_DIR) / "ninja"
        if bundled.is_file():
            return str(bundled)
    if found := shutil.which("ninja"):
        return found
    raise BuildError("ninja was not found (pip install ninja)")


def find_nvcc() -> str | None:
    """nvcc from NVCC, CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda; None where there is none."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    names = [os.environ.get("NVCC"), *(f"{home}/bin/nvcc" for home in homes if home), "nvcc"]
    names.append("/usr/local/cuda/bin/nvcc")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def version_of(command: Sequence[str]) -> str:
    """What `command --version` prints, or "" where it cannot be run."""
    return _output(*command, "--version")


@functools.cache
def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


# --- machine ---


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
        features.add(_output("sysctl", "-n", "machdep.cpu.brand_string").replace(" ", "-"))
    return sorted(features)


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


# --- flags ---


def flags(*, cuda: bool = False) -> list[str]:
    """Flags of the C++ compiler on every machine. Never -ffast-math: it changes what infinities and NaN mean.

    -fno-math-errno and -fno-trapping-math change no result; they let sqrt, floor and selects vectorise.
    """
    abi = int(torch.compiled_with_cxx11_abi())
    chosen = ["-O3", "-std=c++20", "-fPIC", "-fno-math-errno", "-fno-trapping-math"]
    chosen += ["-DNDEBUG", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
    return [*chosen, "-DSACFAST_WITH_CUDA"] if cuda else chosen


def machine_flags(compiler: Sequence[str]) -> list[str]:
    """-march=native (-mcpu=native on arm64) where the compiler accepts it, and -fopenmp for GCC on Linux.

    at::parallel_for runs in one thread unless OpenMP is on, and GCC's OpenMP is what torch has loaded.
    """
    names = ["-march=native", "-mcpu=native"]
    if platform.machine() in ("arm64", "aarch64"):
        names.reverse()
    chosen = next(([name] for name in names if _accepts(compiler, name)), [])
    gcc = sys.platform == "linux" and "clang" not in version_of(compiler).lower()
    return [*chosen, "-fopenmp"] if gcc and _accepts(compiler, "-fopenmp") else chosen


def _accepts(compiler: Sequence[str], option: str) -> bool:
    probe = [*compiler, option, "-x", "c++", "-E", os.devnull, "-o", os.devnull]
    try:
        return (
            subprocess.run(probe, capture_output=True, check=False, stdin=subprocess.DEVNULL).returncode == 0
        )
    except OSError:
        return False


def include_flags(root: Path) -> list[str]:
    """The sources' own headers, and torch's (without cpp_extension, which takes a second to import)."""
    return ["-I", str(root), "-isystem", str(TORCH / "include")]


def cuda_flags(archs: Sequence[str]) -> list[str]:
    """Flags of nvcc: machine code for each architecture, such as "9.0"; "9.0+PTX" embeds PTX as well."""
    chosen = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC", "-DSACFAST_WITH_CUDA"]
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        chosen.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            chosen.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return chosen


def checked_nvcc(archs: Sequence[str]) -> str:
    """nvcc, if it is there, of torch's major version, and `archs` are numbers. Raises BuildError."""
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d[a-z]?(\+PTX)?", arch):
            raise BuildError(f"TORCH_CUDA_ARCH_LIST names {arch!r}; write numbers such as 9.0 or 9.0+PTX")
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError(NVCC_MISSING)
    release = re.search(r"release (\d+)", version_of([nvcc]))
    if torch.version.cuda and release and release[1] != torch.version.cuda.split(".")[0]:
        raise BuildError(f"{nvcc} is of CUDA {release[1]} but torch of {torch.version.cuda}; set CUDA_HOME")
    return nvcc


NVCC_MISSING = "nvcc was not found (CUDA_HOME or NVCC names it)"


def link_flags(*, openmp: bool, nvcc: str | None) -> list[str]:
    """torch's libraries, without an rpath because torch is in memory before the extension is.

    Its own libgomp too: another copy would be a second OpenMP runtime, with a second pool of threads.
    """
    if sys.platform == "darwin":
        return ["-shared", "-undefined", "dynamic_lookup"]
    chosen = ["-shared", f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    if openmp:
        bundled = [*(TORCH / "lib").glob("libgomp*.so*"), *(TORCH.parent / "torch.libs").glob("libgomp*.so*")]
        chosen.append(str(bundled[0]) if bundled else "-lgomp")
    return [*chosen, "-ltorch_cuda", "-lc10_cuda", *_cudart_flags(nvcc)] if nvcc else chosen


def _cudart_flags(nvcc: str) -> list[str]:
    """The CUDA runtime by file name, preferably the one that came with torch."""
    home = Path(os.environ.get("CUDA_HOME") or Path(nvcc).resolve().parent.parent)
    wheels = TORCH.parent / "nvidia"
    folders = [*sorted(wheels.glob("cu[0-9]*/lib")), wheels / "cuda_runtime" / "lib"]
    found = [
        path for f in [*folders, home / "lib64", home / "lib"] for path in sorted(f.glob("libcudart.so*"))
    ]
    return [str(found[0])] if found else ["-lcudart"]
