"""Finds or builds the C++ and CUDA operators and loads them: the only package that knows of compilers.

Importing it compiles nothing. The first `available()` or `load()` of a process takes the extension

1. from beside the package, where an ahead-of-time installation put it (SACFAST_AOT=1), if it fits;
2. else from the cache, under a key that hashes the sources, flags, torch, Python, CUDA, CPU features and
   compiler (where there is no compiler any more, what any compiler built will do);
3. else from the compiler, under an operating-system lock, and puts it into the cache.

A process tries once. Without a compiler, or when the build fails, it says so once and `available()` stays
False, which makes every public function take its PyTorch reference.

Environment variables, all of them read in this package:
    SACFAST_DISABLE_NATIVE=1  use the references, quietly
    SACFAST_REQUIRE_NATIVE=1  raise NativeUnavailable where the extension is missing (on a GPU without CUDA kernels,
                              engine="native" does)
    SACFAST_CACHE_DIR=DIR     where compiled extensions are kept (default: sacfast in the user's cache directory,
                              such as ~/.cache/sacfast)
    SACFAST_AOT=1             setup.py compiles the extension into the wheel
    SACFAST_VERBOSE=1         show the compiler's commands and output
    SACFAST_CPU_PATH=PATH     compile and use this arithmetic path of the engine instead of the best one: amx,
                              avx512, avx2 or portable; amx is emulated where the CPU has none (tests)
    SACFAST_PROFILE=1         the engine measures its phases from the start
CXX, NVCC, CUDA_HOME and TORCH_CUDA_ARCH_LIST mean what they mean to PyTorch's own extensions.

`python -m sacfast.native` prints the status; `build`, `clean` and `check-cuda` are its other commands.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import machine, toolchain
from .builder import LIBRARY, Builder, Record
from .environment import environment_flag
from .machine import cpu_path
from .reports import BuildError, say
from .toolchain import cache_directory

__all__ = [
    "BuildError",
    "Status",
    "available",
    "build",
    "cache_directory",
    "cpu_path",
    "engine_library",
    "load",
    "on_load",
    "profiling",
    "require",
    "status",
]

PREBUILT = toolchain.PACKAGE / "_native"
NOT_LOADED = "not loaded yet"  # the reason until there is another


class _Process:
    """What this process has loaded: one attempt, under a lock that a forked child gets anew."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.attempted = False
        self.found: tuple[Path, Record] | None = None
        self.reason = NOT_LOADED
        self.cuda_runs: bool | None = None  # None until somebody asks
        self.engine: ctypes.CDLL | None = None
        self.callbacks: list[Callable[[], None]] = []

    def renew_lock(self) -> None:
        self.lock = threading.RLock()


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.renew_lock)


def on_load(callback: Callable[[], None]) -> None:
    """Call `callback` once the library is loaded, or now if it is.

    Fake and autograd registrations belong in it, because they need the operators' schemas.
    """
    with _process.lock:
        _process.callbacks.append(callback)
        if _process.found:
            callback()


def load() -> bool:
    """Load the extension, building it first if need be. One attempt in a process; True once it is loaded.

    Raises NativeUnavailable instead of returning False where SACFAST_REQUIRE_NATIVE=1.
    """
    if not _process.attempted:
        with _process.lock:
            # A callback that asks again finds `found` set, though the attempt is not over.
            if not _process.attempted and _process.found is None:
                again = False
                try:
                    _attempt()
                except KeyboardInterrupt:
                    again = True
                    raise
                finally:
                    _process.attempted = not again
    if _process.found is None and environment_flag("REQUIRE_NATIVE"):
        raise _unavailable("are required (SACFAST_REQUIRE_NATIVE) but unavailable", _process.reason)
    return _process.found is not None


def available(device_type: str = "cpu") -> bool:
    """Whether native kernels run on tensors of this device type. The first call loads, and builds (some
    20 s). Raises NativeUnavailable under SACFAST_REQUIRE_NATIVE where they do not run on the CPU.

    For "cuda" they must have been compiled for every GPU that torch shows; if not, one line says so.
    torch.compile takes the answer as a constant: a graph contains either the operator or the reference.
    """
    if not load():
        return False
    if device_type == "cuda":
        return _cuda_runs() if _process.cuda_runs is None else _process.cuda_runs
    return device_type == "cpu"


def _cuda_runs() -> bool:
    with _process.lock:
        if _process.cuda_runs is None and _process.found:
            why = _cuda_reason(_process.found[1])
            if why:
                say(f"warning: no native CUDA kernels: {why}; the slower PyTorch references take their place")
            _process.cuda_runs = not why
    return bool(_process.cuda_runs)


# What torch.compiler.assume_constant_result does, without its import of torch._dynamo, which takes seconds.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def require() -> None:
    """Raise NativeUnavailable, with the reason, unless the extension is or can be loaded."""
    if not load():
        raise _unavailable("are unavailable", _process.reason)


def engine_library() -> ctypes.CDLL:
    """The extension as a library of C functions, those of csrc/engine.cpp: sacfast_*. Raises NativeUnavailable.

    ctypes.CDLL releases the interpreter's lock during a call.
    """
    require()
    if _process.engine is None and _process.found:
        _process.engine = ctypes.CDLL(str(_process.found[0] / LIBRARY))
    assert _process.engine is not None
    return _process.engine


def profiling() -> bool:
    """Whether SACFAST_PROFILE asks for the time that an update's phases take."""
    return environment_flag("PROFILE")


def build() -> Path:
    """Build the extension ahead of its first use, unless the cache has it, and return its path.

    One that lacks CUDA kernels is built again where there is an nvcc: what kept them away may be mended. Raises
    NativeUnavailable with the reason, also where nothing can be put into the cache.
    """
    try:
        builder = Builder(progress=True, verbose=environment_flag("VERBOSE"))
        missing = cached[1].cuda_missing if (cached := builder.cached()) else ""
        again = bool(missing and toolchain.find_nvcc())
        if missing and not again:
            say(f"no CUDA kernels: {missing}")
        directory, _ = builder.obtain_in_cache(force=again)
    except (BuildError, OSError) as error:
        raise _unavailable("cannot be built", str(error)) from error
    return directory / LIBRARY


def _unavailable(how: str, why: str) -> Exception:
    from sacfast.errors import NativeUnavailable  # here, so that setup.py can use this package by itself

    return NativeUnavailable(f"the native kernels {how}: {why}")


def _attempt() -> None:
    if environment_flag("DISABLE_NATIVE"):
        _process.reason = "SACFAST_DISABLE_NATIVE is set"
        return
    try:
        builder = Builder(verbose=environment_flag("VERBOSE"))
        found = _prebuilt(builder) or builder.obtain()
        try:
            torch.ops.load_library(found[0] / LIBRARY)
        except OSError as error:
            say(f"{found[0] / LIBRARY} cannot be loaded ({error}); building it again")
            found = builder.obtain(force=True)
            torch.ops.load_library(found[0] / LIBRARY)
    except (BuildError, OSError) as error:
        _process.reason = str(error)
        if tail := getattr(error, "tail", ""):
            say(f"the compiler's last lines:\n{tail}")
        if not environment_flag("REQUIRE_NATIVE"):
            say(f"warning: no native kernels: {error}; the slower PyTorch references take their place")
        return
    _process.found, _process.reason = found, ""
    for callback in list(_process.callbacks):
        callback()


def _prebuilt(builder: Builder) -> tuple[Path, Record] | None:
    """The extension that setup.py built, if it is for this torch, these sources, this CPU and GPU.

    Without nvcc nothing better than its CPU kernels could be had, so then the GPU does not count.
    """
    record = Record.read(PREBUILT)
    if cpu_path() and record and cpu_path() not in record.paths:
        return None
    if record is None or record.torch != torch.__version__ or record.sources != builder.source_hash():
        return None
    covered = all(_covers(record, arch) for arch in builder.archs)
    if not covered and toolchain.find_nvcc():
        return None
    return (PREBUILT, record) if set(record.cpu) <= set(machine.cpu_features()) else None


def _covers(record: Record, wanted: str) -> bool:
    """`wanted` may be an entry of TORCH_CUDA_ARCH_LIST, which with a suffix must be there literally."""
    plain = wanted.replace(".", "").isdigit()
    return wanted in record.cuda_archs or (plain and machine.covers(record.cuda_archs, wanted))


@dataclass(frozen=True)
class Status:
    """What a person asks when something is slow. Asking builds nothing and loads nothing."""

    loaded: bool
    path: Path | None  # of the extension that is loaded, or would be
    reason: str  # why nothing is loaded
    key: str
    compiled_for: str
    paths: list[str]  # of the engine's arithmetic: compiled in
    arithmetic: str  # path:precision of what runs here, fastest first; "" until loaded
    cuda_archs: list[str]
    cuda_reason: str  # why there are no CUDA kernels, or why they do not run on this machine's GPU
    compiler: str
    nvcc: str
    cache: Path | None


def status() -> Status:
    """The state of this process, and what it would find."""
    builder, key, reason = None, "", _process.reason
    try:
        builder = Builder()
        key = builder.key()
    except BuildError as error:
        reason = str(error)
    found = _process.found or (builder and (_prebuilt(builder) or builder.cached()))
    record = found[1] if found else None
    try:
        command = toolchain.find_compiler()
        compiler = f"{' '.join(command)}: {(toolchain.version_of(command).splitlines() or ['?'])[0]}"
        toolchain.find_ninja()
    except BuildError as error:
        compiler = f"none: {error}"
    return Status(
        loaded=_process.found is not None,
        path=found[0] / LIBRARY if found else None,
        reason=reason,
        key=key,
        compiled_for=_compiled_for(record),
        paths=record.paths if record else (builder.paths if builder else []),
        arithmetic=_arithmetic_names(),
        cuda_archs=record.cuda_archs if record else (builder.archs if builder else []),
        cuda_reason=_cuda_reason(record),
        compiler=compiler,
        nvcc=toolchain.find_nvcc() or "none",
        cache=cache_directory(),
    )


def _compiled_for(record: Record | None) -> str:
    if record is None:
        return ""
    level = torch.ops.sacfast.cpu_features() if _process.found else "not loaded"
    target = " ".join(flag for flag in record.flags if flag.startswith(("-march", "-mcpu", "-fopenmp")))
    return f"{level} ({target or 'no flags for this machine'})"


def _arithmetic_names() -> str:
    if not _process.found:
        return ""
    try:
        function = engine_library().sacfast_arithmetic_names
    except AttributeError:  # a library of other sources
        return ""
    function.restype = ctypes.c_char_p
    return function().decode()


def _cuda_reason(record: Record | None) -> str:
    """Why CUDA kernels do not run here, as far as is known before there is a record; "" if they do."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if record is None:
        return "" if machine.gpu_architectures() else NO_GPU
    if record.cuda_missing:
        return record.cuda_missing
    if not record.cuda_archs:
        return "the extension was built without" if machine.gpu_architectures() else NO_GPU
    gpus = machine.visible_gpus()
    if not gpus:
        return "torch shows no GPU to this process"
    missing = ", ".join(gpu for gpu in gpus if not machine.covers(record.cuda_archs, gpu))
    built = ", ".join(record.cuda_archs)
    return (
        missing and f"the extension was built for {built}, not for a GPU of {missing} (TORCH_CUDA_ARCH_LIST)"
    )


NO_GPU = "this machine has no NVIDIA GPU (TORCH_CUDA_ARCH_LIST names one to build for)"
