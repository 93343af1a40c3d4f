"""A one-line extension, so that the failures of a build can be had in a fraction of a second."""

import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from sacfast import native
from sacfast.native.builder import Builder

PREAMBLE = """
import importlib.util, sys
from functools import partial
from pathlib import Path
spec = importlib.util.spec_from_file_location("alone", {init!r}, submodule_search_locations=[{folder!r}])
native = importlib.util.module_from_spec(spec)
sys.modules["alone"] = native
spec.loader.exec_module(native)
native.Builder = partial(native.Builder, root=Path({root!r}), archs=[])
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """No variable of the caller's, a cache of the test's own; new processes import this sacfast."""
    for name in ("DISABLE_NATIVE", "REQUIRE_NATIVE", "VERBOSE", "AOT"):
        monkeypatch.delenv(f"SACFAST_{name}", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(native.__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SACFAST_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Sources of an extension that registers nothing."""
    root = tmp_path / "csrc"
    root.mkdir()
    (root / "bindings.cpp").write_text('extern "C" int tiny() { return 42; }\n')
    return root


@pytest.fixture
def fresh(monkeypatch, tiny):
    """sacfast.native as a process finds it that has loaded nothing, about to build the tiny extension."""
    monkeypatch.setattr(native, "_process", native._Process())
    monkeypatch.setattr(native, "Builder", lambda **options: Builder(root=tiny, archs=[], **options))
    return native


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """compiler(script): make CXX this shell script, where `compiles "$@"` tells compiling from the rest."""

    def install(script: str) -> Path:
        path = tmp_path / "wrapped-c++"
        compiles = 'compiles() { case " $* " in *" -c "*) ;; *) false ;; esac; }'
        path.write_text(f"#!/bin/sh\n{compiles}\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(path))
        return path

    return install


@pytest.fixture
def start(tiny, tmp_path):
    """start(code, name): run code in a process of its own, `native` being sacfast.native without its package.

    Returns the process and the file that its stderr goes to. What still runs at the end is killed.
    """
    folder = Path(native.__file__).parent
    preamble = PREAMBLE.format(init=str(folder / "__init__.py"), folder=str(folder), root=str(tiny))
    running = []

    def run(code: str, name: str = "process") -> tuple[subprocess.Popen, Path]:
        log = tmp_path / f"{name}.stderr"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", preamble + code], stderr=stderr, start_new_session=True
            )
        running.append(process)
        return process, log

    yield run
    for process in running:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
