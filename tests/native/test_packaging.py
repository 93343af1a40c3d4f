"""What pip installs: the sources and nothing compiled, unless asked; it works outside the repository."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from sacfast.native import machine
from sacfast.native.builder import LIBRARY, RECORD

REPOSITORY = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy to build in, because setuptools leaves folders behind and would pick up old ones."""
    target = tmp_path / "checkout"
    target.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, target)
    for name in ("csrc", "sacfast"):
        unwanted = shutil.ignore_patterns("__pycache__", "_native")
        shutil.copytree(REPOSITORY / name, target / name, ignore=unwanted)
    return target


def build_wheel(checkout: Path, **environment: str) -> Path:
    output = checkout.parent / "dist"
    command = [
        *PIP,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(output),
        str(checkout),
    ]
    subprocess.run(command, env=os.environ | environment, check=True)
    (wheel,) = output.glob("*.whl")
    return wheel


def files_below(root: Path) -> set[str]:
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.suffix in {".cpp", ".h", ".cu", ".cuh"}
    }


def test_wheel_and_sdist_carry_all_sources_and_nothing_compiled(checkout, tmp_path):
    left_over = checkout / "build" / "lib" / "sacfast" / "csrc" / "deleted.cpp"
    left_over.parent.mkdir(parents=True)
    left_over.touch()
    wheel = build_wheel(checkout)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "sacfast/csrc/deleted.cpp" not in names
    sources = files_below(checkout / "csrc")
    assert {"bindings.cpp", "sac_math.h", "philox.h"} <= sources
    assert {f"sacfast/csrc/{name}" for name in sources} <= names
    modules = {str(path.relative_to(checkout)) for path in (checkout / "sacfast").rglob("*.py")}
    assert modules | {"sacfast/py.typed"} <= names
    assert not [name for name in names if name.endswith((".so", ".o"))]
    assert not [name for name in names if name.startswith(("csrc/", "tests/", "benchmarks/"))]
    assert wheel.name.endswith("-py3-none-any.whl")

    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    assert {f"csrc/{name}" for name in sources} | modules | {"setup.py", "README.md", "LICENSE"} <= packed


def test_editable_installation_uses_the_checkout(checkout, tmp_path, monkeypatch):
    """Package and sources alike are the checkout's; nothing is compiled."""
    site = tmp_path / "site"
    install = [
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        str(site),
        "--editable",
    ]
    subprocess.run([*PIP, *install, str(checkout)], check=True)
    monkeypatch.delenv("PYTHONPATH")
    # What setuptools appends to meta_path goes to the front, in case that another sacfast is installed as well.
    code = f"""
import site, sys
site.addsitedir({str(site)!r})
sys.meta_path.insert(0, sys.meta_path.pop())
import sacfast
from sacfast.native import toolchain
print(sacfast.__file__, toolchain.source_root(), sep="\\n")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [str(checkout / "sacfast" / "__init__.py"), str(checkout / "csrc")]
    assert not list(checkout.rglob("*.so"))


@pytest.mark.parametrize(("value", "ahead"), [("0", False), ("False", False), ("", False), ("true", True)])
def test_the_switch_for_ahead_of_time_is_read_without_torch(checkout, value, ahead):
    """Like every other SACFAST_ variable; an isolated build has setuptools alone."""
    code = """
import runpy, setuptools, sys
sys.modules["torch"] = None
setuptools.setup = lambda **options: print(bool(options["ext_modules"]))
runpy.run_path("setup.py")
"""
    environment = {**os.environ, "SACFAST_AOT": value}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == str(ahead)


@pytest.mark.native
def test_installed_wheel_builds_at_the_first_call_and_once(checkout, tmp_path, monkeypatch):
    """The real sources, from an unpacked wheel outside the repository, in a cache of its own."""
    site = tmp_path / "site"
    zipfile.ZipFile(build_wheel(checkout)).extractall(site)
    shutil.rmtree(checkout)
    monkeypatch.setenv("PYTHONPATH", str(site))
    importing = (
        "import sacfast, os; assert not os.path.exists(os.environ['SACFAST_CACHE_DIR']), 'built something'"
    )
    calling = "from sacfast import native; native.require(); print(native.status().path)"

    def run(code):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    first = run(f"{importing}; {calling}")
    assert first.returncode == 0, first.stderr
    assert Path(first.stdout.strip()).is_relative_to(tmp_path / "cache")
    assert [line.split()[1] for line in first.stderr.splitlines()] == ["building", "built"]
    second = run(calling)
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")


def test_ahead_of_time_wheel_needs_no_compiler(checkout, tiny, tmp_path, monkeypatch):
    """With small sources in place of the real ones: what is tested is the way, not the kernels."""
    shutil.rmtree(checkout / "csrc")
    shutil.copytree(tiny, checkout / "csrc")
    (checkout / "csrc" / "cpu").mkdir()
    for path in machine.every_path():
        (checkout / "csrc" / "cpu" / f"arithmetic_{path}.cpp").write_text(f"int {path}() {{ return 1; }}\n")
    wheel = build_wheel(checkout, SACFAST_AOT="1")
    assert not wheel.name.endswith("-none-any.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert {path.name for path in (site / "sacfast" / "_native").iterdir()} == {LIBRARY, RECORD}
    # The package by itself, since the operators' registrations need the real library.
    folder = site / "sacfast" / "native"
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "alone", {str(folder / "__init__.py")!r}, submodule_search_locations=[{str(folder)!r}]
)
native = importlib.util.module_from_spec(spec)
sys.modules["alone"] = native
spec.loader.exec_module(native)
assert native.load()
print(native._process.found[0], *native._process.found[1].paths, sep="\\n")
"""
    monkeypatch.setenv("CXX", "/nowhere/c++")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    folder, *paths = result.stdout.split()
    assert Path(folder) == site / "sacfast" / "_native" and "portable" in paths
    assert set(machine.cpu_paths()) <= set(paths)
    assert result.stderr == ""
