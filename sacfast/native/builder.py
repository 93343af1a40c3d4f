"""Compiles the extension under an operating-system lock, apart from the cache, then moves it there."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from . import locks, machine, toolchain
from .reports import BuildError, say

LIBRARY = "_sacfast.so"
RECORD = "build.json"
FAILURE = "failure.json"  # what the last build raised, for those that waited for it
NO_COMPILER = "none"
CHECKED_ARCHITECTURES = ("8.0", "9.0", "12.0")
LOCK_TIMEOUT_S = 900
SOURCE_SUFFIXES = {".cpp", ".h", ".cu", ".cuh"}
USUAL_SECONDS = {False: "20 s", True: "a minute or two"}  # without and with CUDA, on two cores


class CacheUnusable(BuildError):
    """Nothing can be put into the cache."""


@dataclass(frozen=True)
class Record:
    """What stands beside a compiled extension: what it depends on, and what it turned out to contain."""

    key: str
    sources: str
    torch: str
    cpu: list[str]
    cuda_archs: list[str]
    cuda_missing: str
    compiler: str
    flags: list[str]
    paths: list[str]  # of the engine's arithmetic
    seconds: float
    sha256: str
    nvcc: str = ""  # toolchain.nvcc_version() of the build

    @classmethod
    def read(cls, directory: Path) -> Record | None:
        """The record in `directory`, or None unless it is sound and describes the library beside it.

        The digest is compared first because loading a truncated library kills the process instead of raising.
        """
        try:
            record = cls(**json.loads((directory / RECORD).read_text()))
            intact = hashlib.sha256((directory / LIBRARY).read_bytes()).hexdigest() == record.sha256
        except (OSError, ValueError, TypeError):
            return None
        return record if intact else None


@dataclass
class Builder:
    """Builds the sources under `root` for the CPU and the CUDA architectures `archs` into `cache`/key.

    paths: the engine's arithmetic paths to compile, as far as the compiler can.
    cache: None where there is no place for one; each process then builds for itself.
    progress: show ninja's steps. verbose: show the full commands and everything that the compiler prints.
    """

    root: Path = field(default_factory=toolchain.source_root)
    cache: Path | None = field(default_factory=toolchain.cache_directory)
    archs: list[str] = field(default_factory=machine.gpu_architectures)
    paths: list[str] = field(default_factory=machine.wanted_paths)
    progress: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        self.root = self.root.absolute()  # ninja runs in another directory
        self.cache = self.cache and self.cache.absolute()

    def source_hash(self) -> str:
        """Digest of every source and header, names included."""
        digest = hashlib.sha256()
        for path in sorted(path for path in self.root.rglob("*") if path.suffix in SOURCE_SUFFIXES):
            digest.update(f"{path.relative_to(self.root)}\0".encode() + path.read_bytes() + b"\0")
        return digest.hexdigest()

    def key(self) -> str:
        """Digest of all that the compiled code depends on but the compiler, "-", and one of the compiler.

        The latter is NO_COMPILER where there is none.
        """
        cuda = [torch.version.cuda, *toolchain.cuda_flags(self.archs)] if self.archs else []
        python = [sys.implementation.cache_tag, sys.platform]
        versions = [torch.__version__, torch.version.git_version]
        paths = {path: toolchain.path_flags(path) for path in self.paths}
        parts = [
            self.source_hash(),
            toolchain.flags(),
            paths,
            machine.cpu_features(),
            cuda,
            python,
            versions,
        ]
        try:
            command = toolchain.find_compiler()
            compiler = _digest([*command, toolchain.version_of(command)])[:8]
        except BuildError:
            compiler = NO_COMPILER
        return f"{_digest(parts)[:20]}-{compiler}"

    def cached(self) -> tuple[Path, Record] | None:
        """The built extension; None if there is none, it is damaged, or it lacks CUDA and today's nvcc was not tried.

        Where there is no compiler, whatever any compiler built is taken, with CUDA if possible, without it if not.
        """
        if self.cache is None:
            return None
        key = self.key()
        if key.endswith(NO_COMPILER):
            keys = {key, replace(self, archs=[]).key()}  # the latter is of an image built without a GPU
            names = sorted(
                name for each in keys for name in self.cache.glob(each.removesuffix(NO_COMPILER) + "?" * 8)
            )
            built = [(path, record) for path in names if (record := Record.read(path))]
            return max(built, key=lambda pair: len(pair[1].cuda_archs), default=None)
        record = Record.read(directory := self.cache / key)
        if record is None or (record.cuda_missing and toolchain.nvcc_version() not in ("", record.nvcc)):
            return None
        return directory, record

    def obtain(self, *, force: bool = False) -> tuple[Path, Record]:
        """The cached extension, built first if need be (or with `force`, anyway); where nothing can be put into the
        cache, one for this process only. Raises BuildError.
        """
        try:
            return self.obtain_in_cache(force=force)
        except CacheUnusable as error:
            why = str(error)
        return self._build_privately(why)

    def obtain_in_cache(self, *, force: bool = False) -> tuple[Path, Record]:
        """As `obtain`, but raises CacheUnusable, a BuildError, rather than build for this process only."""
        if not force and (found := self.cached()):
            return found
        toolchain.find_compiler()  # their absence is reported before anything is announced or created
        toolchain.find_ninja()
        if self.cache is None:
            raise CacheUnusable("there is no home directory for a cache (SACFAST_CACHE_DIR names a place)")
        target = self.cache / self.key()
        with ExitStack() as stack:
            try:  # only this: an error of the build itself must not start another
                target.mkdir(parents=True, exist_ok=True)
                waited = stack.enter_context(_exclusively(self.cache / f"{target.name}.lock"))
                tempfile.TemporaryFile(dir=target).close()
                if os.statvfs(target).f_flag & getattr(os, "ST_NOEXEC", 0):
                    raise OSError("its file system is mounted noexec")
            except OSError as error:
                raise CacheUnusable(
                    f"cannot use the cache {self.cache} ({error}; SACFAST_CACHE_DIR names another place)"
                ) from error
            if (waited or not force) and (found := self.cached()):
                return found
            if waited is not None:  # the lock is ours, so these are of builds that were killed
                for leftover in target.glob("work-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            failure = target / FAILURE
            if waited and (reported := _read_failure(failure)):
                raise reported
            failure.unlink(missing_ok=True)  # who did not wait for it tries: the compiler may be mended
            try:
                return self.build_into(target)
            except BuildError as error:
                with suppress(OSError):
                    failure.write_text(json.dumps([str(error), error.tail]))
                raise

    def _build_privately(self, why: str) -> tuple[Path, Record]:
        private = Path(tempfile.mkdtemp(prefix="sacfast-"))
        say(f"{why}; building for this process only, in {private}")
        built = self.build_into(private / self.key())
        atexit.register(shutil.rmtree, private, ignore_errors=True)  # a failed build's log stays
        return built

    def build_into(self, target: Path) -> tuple[Path, Record]:
        """Compile in a directory within `target`, then put library and record there. Raises BuildError."""
        target.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="work-", dir=target))
        start = time.perf_counter()
        where = machine.cpu_name() + (f" and CUDA {', '.join(self.archs)}" if self.archs else "")
        usual = USUAL_SECONDS[bool(self.archs)]
        say(f"building native kernels for {where}: about {usual}, once for this torch and machine ...")
        try:
            missing, archs, (flags, paths) = self._compile_what_can_be(work, target)
            record = Record(
                key=target.name,
                sources=self.source_hash(),
                torch=torch.__version__,
                cpu=machine.cpu_features(),
                cuda_archs=archs,
                cuda_missing=missing,
                compiler=(toolchain.version_of(toolchain.find_compiler()).splitlines() or [""])[0],
                flags=flags,
                paths=paths,
                seconds=round(time.perf_counter() - start, 1),
                sha256=hashlib.sha256((work / LIBRARY).read_bytes()).hexdigest(),
                nvcc=toolchain.nvcc_version() if self.archs else "",
            )
            (work / RECORD).write_text(json.dumps(asdict(record), indent=1))
            for name in (RECORD, LIBRARY):
                os.replace(work / name, target / name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        say(f"built native kernels in {record.seconds:.1f} s: {target / LIBRARY}")
        return target, record

    def _compile_what_can_be(
        self, work: Path, target: Path
    ) -> tuple[str, list[str], tuple[list[str], list[str]]]:
        """Compile with CUDA if wanted and possible. Returns why CUDA is missing, its architectures, and what `compile`
        does.
        """
        missing = ""
        if self.archs:
            try:
                archs = toolchain.known_architectures(toolchain.checked_nvcc(self.archs), self.archs)
                return "", archs, self.compile(work, target / "build-cuda.log", archs)
            except BuildError as error:
                missing = str(error)
                say(f"no CUDA kernels: {missing}; building those for the CPU alone")
        return missing, [], self.compile(work, target / "build.log", [])

    def compile(
        self, work: Path, log: Path, archs: Sequence[str], goal: str = LIBRARY, *, torch: bool = True
    ) -> tuple[list[str], list[str]]:
        """Make `goal` (the library, or "objects") in `work`. Returns flags and paths. Raises BuildError.

        torch: with the units that include its headers, and linked with its libraries.
        """
        compiler = toolchain.find_compiler()
        nvcc = toolchain.checked_nvcc(archs) if archs else None
        tuning = toolchain.machine_flags(compiler)
        openmp = ["-fopenmp"] if "-fopenmp" in tuning else []
        flags = toolchain.flags(cuda=bool(archs))
        paths = self._present_paths(compiler)
        include = toolchain.include_flags(self.root, torch=torch)
        commands = {"cxx": [*compiler, *flags, *include], "link": compiler}
        if nvcc:
            host = next(word for word in compiler if Path(word).name not in ("ccache", "sccache"))
            commands["nvcc"] = [nvcc, *toolchain.cuda_flags(archs), f"-ccbin={host}", "-I", str(self.root)]
        linked = toolchain.link_flags(openmp=bool(openmp), nvcc=nvcc) if torch else ["-shared", *openmp]
        units = toolchain.sources(self.root, cuda=bool(archs), paths=paths, torch=torch)
        own_flags = {unit: unit_flags(unit, paths, tuning) for unit in units if unit.suffix != ".cu"}
        (work / "build.ninja").write_text(_ninja_file(self.root, units, commands, own_flags, linked))
        self._run([toolchain.find_ninja(), "-C", str(work), "-k", "0", *["-v"] * self.verbose, goal], log)
        return [*flags, *tuning], paths

    def compile_engine(self, directory: Path, paths: Sequence[str] | None = None) -> Path:
        """The engine without torch's operators, as a library of its own in `directory`: for tests.

        paths: every one that this CPU runs, AMX emulated where it is absent, unless they are given.
        """
        chosen = replace(self, paths=list(machine.testable_paths() if paths is None else paths))
        chosen.compile(directory, directory / "build.log", [], torch=False)
        return directory / LIBRARY

    def _present_paths(self, compiler: Sequence[str]) -> list[str]:
        """Those of `paths` that the sources have and the compiler can compile."""
        there = {toolchain.unit_path(unit) for unit in toolchain.sources(self.root)}
        return toolchain.compilable_paths(
            compiler, [path for path in self.paths if machine.unit_stem(path) in there]
        )

    def _run(self, command: list[str], log: Path) -> None:
        shown = self.progress or self.verbose
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, **pipes, text=True, errors="replace")  # type: ignore[call-overload]
        with log.open("w") as out, process:
            for line in process.stdout:
                out.write(line)
                if shown:
                    sys.stderr.write(line)
        if process.returncode:
            tail = log.read_text().splitlines()[-20:]
            raise BuildError(f"the compiler failed (full log: {log})", "" if shown else "\n".join(tail))


def unit_flags(unit: Path, paths: Sequence[str], tuning: list[str]) -> list[str]:
    """A unit's flags beyond everybody's: those of its arithmetic path, or else those for this machine."""
    if own := next((path for path in paths if machine.unit_stem(path) == toolchain.unit_path(unit)), None):
        return toolchain.path_flags(own)
    return [*tuning, *toolchain.path_definitions(paths)] if unit.stem == "arithmetic" else tuning


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read_failure(path: Path) -> BuildError | None:
    try:
        return BuildError(*json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # none, or one that was killed while it was written
        return None


@contextmanager
def _exclusively(path: Path) -> Iterator[bool | None]:
    """Hold a lock. Yields whether we waited for it; None, and holds nothing, where the file system has no locks: then
    processes that start at once build the same side by side.
    """
    from filelock import Timeout

    waited = False
    try:
        lock = locks.take(path, 0)
    except Timeout:
        waited = True
        say("another process is building the native kernels; waiting for it")
        try:
            lock = locks.take(path, LOCK_TIMEOUT_S)
        except Timeout:
            raise BuildError(f"another process has held {path} for {LOCK_TIMEOUT_S} s; end it") from None
    if lock is None:
        yield None
        return
    try:
        yield waited
    finally:
        lock.release()


def _ninja_file(
    root: Path,
    units: list[Path],
    commands: dict[str, list[str]],
    own_flags: dict[Path, list[str]],
    linked: list[str],
) -> str:
    def command(words: Sequence[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    def path(name: Path | str) -> str:
        return re.sub(r"([$ :])", r"$\1", str(name))

    text = []
    for rule, words in commands.items():
        tail = f"$in {command(linked)} -o $out" if rule == "link" else "$flags -c $in -o $out"
        text.append(f"rule {rule}\n command = {command(words)} {tail}\n description = {rule} $out")
    objects = []
    for unit in units:
        name = path("_".join(unit.relative_to(root).parts) + ".o")
        text.append(f"build {name}: {'nvcc' if unit.suffix == '.cu' else 'cxx'} {path(unit)}")
        text.append(f" flags = {command(own_flags.get(unit, []))}")
        objects.append(name)
    text.append(f"build objects: phony {' '.join(objects)}")
    text.append(f"build {LIBRARY}: link {' '.join(objects)}")
    return "\n".join([*text, ""])


def check_cuda(builder: Builder) -> list[str]:
    """Compile the CUDA half to object code for CHECKED_ARCHITECTURES, running and linking nothing.

    Returns the names of the units. Raises BuildError with the compiler's last lines; its log then stays.
    """
    work = Path(tempfile.mkdtemp(prefix="sacfast-check-"))
    log = work / "build.log"
    try:
        builder.compile(work, log, CHECKED_ARCHITECTURES, "objects")
    except BuildError:
        if not log.exists():  # nothing was started
            shutil.rmtree(work)
        raise
    shutil.rmtree(work)
    units = toolchain.sources(builder.root, cuda=True)
    return [str(unit.relative_to(builder.root)) for unit in units]
