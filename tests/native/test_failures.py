"""What a person sees when the extension cannot be built, and that nothing hangs or half-exists afterwards."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sacfast.errors import NativeUnavailable
from sacfast.native import builder as builder_module
from sacfast.native import machine, toolchain
from sacfast.native.__main__ import main
from sacfast.native.builder import FAILURE, LIBRARY, RECORD, Builder, check_cuda
from sacfast.native.reports import BuildError

BROKEN = (
    'compiles "$@" && { for i in $(seq 50); do echo "error number $i" >&2; done; exit 1; }; exec c++ "$@"'
)


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_no_compiler_falls_back_with_one_line(tmp_path):
    """In a process of its own, with the real package: an operator works, and says so once."""
    code = """
import torch
from sacfast import native, ops
target, source = torch.zeros(3), torch.ones(3)
for _ in range(2):
    ops.polyak_update_(target, source, 0.5)
assert not native.available() and target.tolist() == [0.75] * 3
"""
    empty = tmp_path / "bin"
    empty.mkdir()
    environment = {**os.environ, "PATH": str(empty), "CXX": ""}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    (line,) = result.stderr.splitlines()
    assert "no C++ compiler" in line and "PyTorch reference" in line and "full log" not in line


def test_compiler_that_is_named_but_missing(fresh, monkeypatch, capfd):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert not fresh.load()
    assert "CXX=/nowhere/g++" in capfd.readouterr().err


def test_an_interrupted_build_is_tried_again(fresh, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(fresh, "_attempt", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fresh.load()
    assert fresh.load()


def test_broken_compiler_is_reported_once(fresh, compiler, tmp_path, capfd):
    compiler(f'compiles "$@" && echo x >> "{tmp_path}/calls"\n{BROKEN}')
    assert not fresh.available()
    text = capfd.readouterr().err
    assert "error number 50" in text and "error number 33" in text and "error number 29" not in text
    assert text.count("warning:") == 1 and "PyTorch reference" in text
    log = Path(text.split("full log: ")[1].split(")")[0])
    assert "error number 1\n" in log.read_text()
    assert not fresh.available() and not fresh.load()
    assert capfd.readouterr().err == "" and (tmp_path / "calls").read_text() == "x\n"
    assert {path.name for path in log.parent.iterdir()} == {log.name, FAILURE}


def test_required_extension_is_an_error(fresh, compiler, monkeypatch):
    compiler(BROKEN)
    monkeypatch.setenv("SACFAST_REQUIRE_NATIVE", "1")
    for _ in range(2):
        with pytest.raises(NativeUnavailable, match="the compiler failed"):
            fresh.available()


def test_require_raises_without_the_variable_too(fresh, compiler):
    compiler(BROKEN)
    with pytest.raises(NativeUnavailable, match="full log"):
        fresh.require()


def test_disabled_extension_is_quiet(fresh, monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("SACFAST_DISABLE_NATIVE", "1")
    assert not fresh.available()
    assert fresh.status().reason == "SACFAST_DISABLE_NATIVE is set"
    assert capfd.readouterr().err == "" and not (tmp_path / "cache").exists()


def test_disabled_and_required_is_an_error(fresh, monkeypatch):
    monkeypatch.setenv("SACFAST_DISABLE_NATIVE", "1")
    monkeypatch.setenv("SACFAST_REQUIRE_NATIVE", "1")
    with pytest.raises(NativeUnavailable, match="SACFAST_DISABLE_NATIVE"):
        fresh.load()


def test_missing_ninja(fresh, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "ninja", None)
    monkeypatch.setenv("CXX", toolchain.find_compiler()[0])
    monkeypatch.setenv("PATH", "")
    assert not fresh.load()
    assert "pip install ninja" in capfd.readouterr().err


def test_unwritable_cache_builds_for_this_process(fresh, monkeypatch, tmp_path, capfd):
    (tmp_path / "file").write_text("a file where the cache should be")
    monkeypatch.setenv("SACFAST_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert fresh.load()
    private = fresh._process.found[0]
    first = capfd.readouterr().err.splitlines()[0]
    assert "for this process only" in first and "SACFAST_CACHE_DIR names another place" in first
    assert tmp_path not in private.parents and (private / LIBRARY).is_file()


def test_a_build_ahead_of_time_that_would_vanish_is_an_error(fresh, compiler, monkeypatch, tmp_path, capfd):
    compiler(f'compiles "$@" && echo x >> "{tmp_path}/calls"\nexec c++ "$@"')
    (tmp_path / "file").write_text("a file where the cache should be")
    monkeypatch.setenv("SACFAST_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert main(["build"]) == 1
    out, err = capfd.readouterr()
    assert out == "" and re.fullmatch(r"error: .*cannot use the cache .*SACFAST_CACHE_DIR names .*\n", err)
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize(
    ("code", "kept"),
    [(errno.ENOLCK, True), (errno.EIO, False)],  # the others are in test_run_folder.py
)
def test_a_cache_without_locks_is_used_without_them(tiny, monkeypatch, capfd, code, kept):
    def refuse(*_):
        raise OSError(code, "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)
    builder = Builder(root=tiny, archs=[])
    others = builder.cache / builder.key() / "work-of-another-process"
    others.mkdir(parents=True)
    directory, _ = builder.obtain()
    assert (directory == others.parent) is kept is (builder.cached() is not None)
    assert ("this process only" in capfd.readouterr().err) is not kept
    assert others.exists()


def test_unwritable_entry_in_a_writable_cache(fresh, tiny, capfd):
    builder = Builder(root=tiny, archs=[])
    builder.cache.mkdir()
    (builder.cache / builder.key()).write_text("in the way")
    assert fresh.load()
    assert "for this process only" in capfd.readouterr().err


@pytest.mark.skipif(not hasattr(os, "ST_NOEXEC"), reason="the system does not tell")
def test_a_cache_from_which_no_code_may_be_run_is_not_used(fresh, tiny, monkeypatch, capfd):
    builder = Builder(root=tiny, archs=[])
    flags = os.statvfs(builder.cache.parent).f_flag
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flags | os.ST_NOEXEC))
    assert fresh.load()
    said = capfd.readouterr().err
    assert "its file system is mounted noexec; SACFAST_CACHE_DIR names another place" in said
    assert "for this process only" in said and builder.cached() is None


def test_what_a_tool_says_is_text_in_any_locale():
    says = "import os, sys; sys.stdout.buffer.write(os.environ['LC_ALL'].encode() + bytes([255]))"
    assert machine.output_of(sys.executable, "-c", says) == "C\ufffd"


def test_full_disk_is_not_taken_for_an_unusable_cache(fresh, monkeypatch, capfd):
    calls = []

    def no_space(*_):
        calls.append("build")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Builder, "_run", no_space)
    assert not fresh.load() and not fresh.load()
    text = capfd.readouterr().err
    assert calls == ["build"] and text.count("No space left") == 1 and "this process only" not in text


@pytest.fixture
def homeless(monkeypatch):
    """A user without a home directory, as in a container that runs under an arbitrary user id."""
    for name in ("HOME", "XDG_CACHE_HOME", "SACFAST_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)


def test_without_a_home_directory_the_build_is_private(homeless, fresh, capfd):
    assert fresh.cache_directory() is None and fresh.status().cache is None
    with pytest.raises(NativeUnavailable, match="no home directory .*SACFAST_CACHE_DIR"):
        fresh.build()
    assert fresh.load()
    first, *rest = capfd.readouterr().err.splitlines()
    assert "no home directory" in first and "SACFAST_CACHE_DIR" in first and "this process only" in first
    assert len(rest) == 2 and Path(tempfile.gettempdir()) in fresh._process.found[0].parents


def test_cache_in_the_home_of_nobody_is_unusable(monkeypatch):
    monkeypatch.setenv("SACFAST_CACHE_DIR", "~nobody-of-this-name/cache")
    assert toolchain.cache_directory() is None


@pytest.mark.parametrize("command", ["status", "clean"])
def test_command_line_without_a_home_directory(homeless, command):
    """Imports included, in a process of its own."""
    code = f"""
from pathlib import Path
def home():
    raise RuntimeError("Could not determine home directory.")
Path.home = home
from sacfast.native.__main__ import main
raise SystemExit(main([{command!r}]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "no home directory" in result.stdout


def test_truncated_library_is_built_again(tiny, capfd):
    """Such a file must not even be tried: to load it can kill the process."""
    builder = Builder(root=tiny, archs=[])
    directory, _ = builder.obtain()
    for length in (5000, 100, 0):
        os.truncate(directory / LIBRARY, length)
        assert builder.cached() is None
    assert builder.obtain()[0] == directory
    assert builder.cached() is not None
    assert capfd.readouterr().err.count("built native kernels in") == 2


def test_library_that_cannot_be_loaded_is_built_again_once(fresh, tiny, capfd):
    """Intact, but for another machine."""
    directory, _ = Builder(root=tiny, archs=[]).obtain()
    foreign = b"\x7fELF another architecture"
    (directory / LIBRARY).write_bytes(foreign)
    record = json.loads((directory / RECORD).read_text()) | {"sha256": hashlib.sha256(foreign).hexdigest()}
    (directory / RECORD).write_text(json.dumps(record))
    capfd.readouterr()
    assert fresh.load()
    lines = capfd.readouterr().err.splitlines()
    assert "cannot be loaded" in lines[0] and "built native kernels in" in lines[-1] and len(lines) == 3


def test_damaged_record_is_built_again(tiny):
    builder = Builder(root=tiny, archs=[])
    directory, _ = builder.obtain()
    for text in ("", "{", "[]", '{"key": 1}'):
        (directory / RECORD).write_text(text)
        assert builder.cached() is None
    builder.obtain()
    assert builder.cached() is not None


def test_two_processes_at_once_compile_once(start, compiler, tmp_path):
    """The first is held inside the compiler until the second has said that it waits."""
    compiler(f"""
        compiles "$@" && {{
            echo x >> "{tmp_path}/calls"
            while [ ! -e "{tmp_path}/go" ]; do sleep 0.05; done
        }}
        exec c++ "$@"
    """)
    first, first_log = start("assert native.load()", "first")
    wait_until((tmp_path / "calls").exists)
    second, second_log = start("assert native.load()", "second")
    wait_until(lambda: "waiting" in second_log.read_text())
    (tmp_path / "go").touch()
    assert first.wait(60) == 0 and second.wait(60) == 0
    assert (tmp_path / "calls").read_text() == "x\n"
    assert "built native kernels" in first_log.read_text()
    assert len(second_log.read_text().splitlines()) == 1


def test_those_that_waited_for_a_failed_build_do_not_try_it_again(tiny, compiler, tmp_path, monkeypatch):
    """Threads stand for processes: each opens the lock anew. Whoever comes later tries: with a mended compiler."""
    wrapped = compiler(f"""
        compiles "$@" && {{
            echo x >> "{tmp_path}/calls"
            while [ ! -e "{tmp_path}/go" ]; do sleep 0.05; done
            echo "an error" >&2
            exit 1
        }}
        exec c++ "$@"
    """)
    said = []
    monkeypatch.setattr(builder_module, "say", said.append)
    builder = Builder(root=tiny, archs=[])
    with ThreadPoolExecutor(4) as pool:
        builds = [pool.submit(builder.obtain)]
        try:
            wait_until((tmp_path / "calls").exists)
            builds += [pool.submit(builder.obtain) for _ in range(3)]
            wait_until(lambda: sum("waiting" in line for line in said) == 3)
        finally:
            (tmp_path / "go").touch()
        errors = [build.exception() for build in builds]
    assert {(type(error), str(error), error.tail) for error in errors} == {
        (BuildError, str(errors[0]), errors[0].tail)
    }
    assert f"full log: {builder.cache / builder.key()}" in str(errors[0]) and "an error" in errors[0].tail
    assert (tmp_path / "calls").read_text() == "x\n"
    wrapped.write_text('#!/bin/sh\nexec c++ "$@"\n')
    directory, _ = builder.obtain()
    assert directory.name == builder.key() and not (directory / FAILURE).exists()


@pytest.mark.parametrize("victim", ["process group", "process alone"])
def test_killed_build_neither_hangs_nor_spoils_the_next(start, compiler, tiny, tmp_path, monkeypatch, victim):
    compiler(f'compiles "$@" && {{ touch "{tmp_path}/started"; sleep 600; }}; exec c++ "$@"')
    process, _ = start("native.load()")
    wait_until((tmp_path / "started").exists)
    (os.killpg if victim == "process group" else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    monkeypatch.delenv("CXX")
    builder = Builder(root=tiny, archs=[])
    assert builder.cached() is None
    begin = time.monotonic()
    directory, _ = builder.obtain()
    assert time.monotonic() - begin < 10
    assert (directory / LIBRARY).is_file() and not list(directory.glob("work-*"))


def test_broken_cuda_leaves_the_cpu_kernels(tiny, tmp_path, monkeypatch, capfd):
    """One line says why there are no CUDA kernels; the reason is kept, and not tried again but with another nvcc."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text('#!/bin/sh\necho "nvcc is unhappy"; exit 1\n')
    nvcc.chmod(0o755)
    monkeypatch.setenv("NVCC", str(nvcc))
    (tiny / "cuda").mkdir()
    (tiny / "cuda" / "kernel.cu").write_text("not CUDA")
    builder = Builder(root=tiny, archs=["9.0"])
    directory, record = builder.obtain()
    text = capfd.readouterr().err
    assert text.count("no CUDA kernels") == 1 and record.cuda_archs == [] and record.cuda_missing
    assert "nvcc is unhappy" in (directory / "build-cuda.log").read_text()
    assert builder.obtain() == (directory, record) and capfd.readouterr().err == ""
    monkeypatch.setenv("NVCC", str(shutil.copy(nvcc, tmp_path / "another")))
    assert builder.cached() is None
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    assert builder.cached() == (directory, record)


def test_cuda_check_leaves_a_log_only_where_it_failed(tiny, tmp_path, monkeypatch):
    """In a folder of its own: a name in the shared temporary folder that can be guessed can be a trap."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(torch.version, "cuda", None)
    nvcc = tmp_path / "nvcc"
    nvcc.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; : > "$2"\n')
    nvcc.chmod(0o755)
    monkeypatch.setenv("NVCC", str(nvcc))
    (tiny / "cuda").mkdir()
    (tiny / "cuda" / "kernel.cu").write_text("not CUDA")
    assert check_cuda(Builder(root=tiny, archs=[])) == ["bindings.cpp", "cuda/kernel.cu"]
    assert not list(temporary.iterdir())
    nvcc.write_text('#!/bin/sh\necho "nvcc is unhappy"; exit 1\n')
    with pytest.raises(BuildError, match="full log") as failure:
        check_cuda(Builder(root=tiny, archs=[]))
    log = Path(str(failure.value).split("full log: ")[1].rstrip(")"))
    assert "nvcc is unhappy" in log.read_text() and log.parent.parent == temporary
    shutil.rmtree(log.parent)
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    with pytest.raises(BuildError, match="nvcc was not found"):
        check_cuda(Builder(root=tiny, archs=[]))
    assert not list(temporary.iterdir())
