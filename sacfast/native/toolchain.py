"""What is compiled, with which tools and which flags; nothing here runs a build."""

from __future__ import annotations

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

from .machine import AVX512, EMULATED_AMX, PATH_FEATURES, covers, output_of, unit_stem
from .reports import BuildError, say

PACKAGE = Path(__file__).resolve().parent.parent
TORCH = Path(torch.__file__).resolve().parent


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


def sources(
    root: Path, *, cuda: bool = False, paths: Sequence[str] | None = None, torch: bool = True
) -> list[Path]:
    """The translation units, slowest to compile first, so that no core is idle while the last one compiles.

    cuda: cuda/*.cu too. paths: of cpu/arithmetic_*.cpp only those of these paths. torch: those that include
    torch's headers too, which are *.cpp but engine.cpp.
    """
    units = [unit for unit in root.glob("*.cpp") if torch or unit.name == "engine.cpp"]
    for unit in root.glob("cpu/*.cpp"):
        path = unit_path(unit)
        if path is None or paths is None or path in map(unit_stem, paths):
            units.append(unit)
    slowest = {name: order for order, name in enumerate(SLOWEST)}
    units.sort(key=lambda unit: (slowest.get(unit.stem, len(SLOWEST)), str(unit)))
    return units + sorted(root.glob("cuda/*.cu")) if cuda else units


SLOWEST = ("autograd", "bindings", "arithmetic_amx", "arithmetic_avx512", "arithmetic_avx2", "sac_update")


def unit_path(unit: Path) -> str | None:
    """The arithmetic path that a unit cpu/arithmetic_<path>.cpp is of; None for every other unit."""
    return unit.stem.removeprefix("arithmetic_") if unit.stem.startswith("arithmetic_") else None


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
    with suppress(ImportError, AttributeError):  # a folder of that name passes for a package
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


def nvcc_version() -> str:
    """Path and version of nvcc, "" where there is none."""
    nvcc = find_nvcc()
    return f"{nvcc}: {version_of([nvcc])}" if nvcc else ""


def version_of(command: Sequence[str]) -> str:
    """What `command --version` prints, or "" where it cannot be run."""
    return output_of(*command, "--version")


# --- flags ---


def flags(*, cuda: bool = False) -> list[str]:
    """Flags of the C++ compiler on every machine. Never -ffast-math, which is the default of some: it changes what
    infinities and NaN mean.

    -fno-math-errno and -fno-trapping-math change no result; they let sqrt, floor and selects vectorise.
    """
    abi = int(torch.compiled_with_cxx11_abi())
    chosen = ["-O3", "-std=c++20", "-fPIC", "-fno-fast-math", "-fno-math-errno", "-fno-trapping-math"]
    chosen += ["-DNDEBUG", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
    chosen.append("-DAT_PER_OPERATOR_HEADERS")  # else autograd's headers include those of all 1300 operators
    return [*chosen, "-DSACFAST_WITH_CUDA"] if cuda else chosen


def path_flags(path: str) -> list[str]:
    """Flags of the unit cpu/arithmetic_<path>.cpp, in place of machine_flags.

    Contraction of a * b + c changes what is rounded, never how well: it is what the path is for.
    """
    features = AVX512 if path == EMULATED_AMX else PATH_FEATURES[path]
    chosen = ["-ffp-contract=fast", *(f"-m{feature.replace('_', '-')}" for feature in features)]
    if "avx512f" in features:
        chosen.append("-mprefer-vector-width=512")
    return [*chosen, "-DSACFAST_EMULATE_AMX"] if path == EMULATED_AMX else chosen


def path_definitions(paths: Sequence[str]) -> list[str]:
    """What tells cpu/arithmetic.cpp which paths are compiled in."""
    chosen = [f"-DSACFAST_PATH_{unit_stem(path).upper()}" for path in paths]
    return [*chosen, "-DSACFAST_EMULATE_AMX"] if EMULATED_AMX in paths else chosen


def compilable_paths(compiler: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Those of `paths` whose flags, and instructions, the compiler knows. Says which it does not know.

    Raises BuildError if that leaves none.
    """
    tiles = 'int main() { asm volatile("tilerelease"); }'
    chosen = []
    for path in paths:
        if _accepts(compiler, *path_flags(path), assembling=tiles if path == "amx" else ""):
            chosen.append(path)
        else:
            say(f"the compiler does not know the instructions of {path}; building without them")
    if paths and not chosen:
        raise BuildError(f"the compiler does not know the instructions of {' or '.join(paths)}")
    return chosen


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


def _accepts(compiler: Sequence[str], *options: str, assembling: str = "") -> bool:
    """Whether the compiler takes the options, and with them compiles `assembling`."""
    probe = [*compiler, *options, "-x", "c++", "-c" if assembling else "-E", "-", "-o", os.devnull]
    try:
        return (
            subprocess.run(probe, capture_output=True, check=False, input=assembling.encode()).returncode == 0
        )
    except OSError:
        return False


def include_flags(root: Path, *, torch: bool = True) -> list[str]:
    """The sources' own headers, and torch's (without cpp_extension, which takes a second to import)."""
    return ["-I", str(root), *(["-isystem", str(TORCH / "include")] if torch else [])]


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


def known_architectures(nvcc: str, archs: Sequence[str]) -> list[str]:
    """What `nvcc` is to compile for where the machine's GPUs are `archs`: for each, the newest architecture that it
    knows and whose machine code runs there. Raises BuildError if there is none.

    What TORCH_CUDA_ARCH_LIST names stays as it is.
    """
    listed = re.findall(r"compute_(\d+)(\d)\b", output_of(nvcc, "--list-gpu-arch"))
    if not listed or os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return list(archs)
    known = [f"{major}.{minor}" for major, minor in listed]
    fitting = {arch: max((each for each in known if covers([each], arch)), default=None) for arch in archs}
    if unknown := [arch for arch, each in fitting.items() if each is None]:
        say(f"{nvcc} does not compile for GPUs of {', '.join(unknown)}: PyTorch fall-backs there")
    chosen = sorted({each for each in fitting.values() if each is not None})
    if not chosen:
        raise BuildError(f"{nvcc} does not compile for this machine's GPUs; another CUDA version may")
    return chosen


NVCC_MISSING = "nvcc was not found (CUDA_HOME or NVCC names it)"


def link_flags(*, openmp: bool, nvcc: str | None) -> list[str]:
    """torch's libraries, without an rpath because torch is in memory before the extension is.

    Its own libgomp too: another copy would be a second OpenMP runtime, with a second pool of threads.
    """
    if sys.platform == "darwin":
        return ["-shared", "-undefined", "dynamic_lookup"]
    chosen = ["-shared", f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", *_cpp_runtime()]
    if openmp:
        bundled = [*(TORCH / "lib").glob("libgomp*.so*"), *(TORCH.parent / "torch.libs").glob("libgomp*.so*")]
        chosen.append(str(bundled[0]) if bundled else "-lgomp")
    return [*chosen, "-ltorch_cuda", "-lc10_cuda", *_cudart_flags(nvcc)] if nvcc else chosen


def _cpp_runtime() -> list[str]:
    """The C++ runtime that torch uses, before the compiler's own, which some compilers link statically: an exception
    that two copies of the runtime have a part in ends the process.
    """
    with suppress(OSError):
        loaded = Path("/proc/self/maps").read_text(errors="replace")
        return re.findall(r"\s(/.*libstdc\+\+\.so[.\d]*)$", loaded, re.MULTILINE)[:1]
    return []


def _cudart_flags(nvcc: str) -> list[str]:
    """The CUDA runtime by file name, preferably the one that came with torch."""
    home = Path(os.environ.get("CUDA_HOME") or Path(nvcc).resolve().parent.parent)
    wheels = TORCH.parent / "nvidia"
    folders = [
        *sorted(wheels.glob("cu[0-9]*/lib")),
        wheels / "cuda_runtime" / "lib",
        home / "lib64",
        home / "lib",
    ]
    # Of torch's major version: other packages may have brought another one's beside it.
    name = f"libcudart.so.{(torch.version.cuda or '').partition('.')[0]}*"
    found = [path for folder in folders for path in sorted(folder.glob(name))]
    return [str(found[0])] if found else ["-lcudart"]
