"""The arithmetic paths that a build has: which of them, with which flags, and in which order."""

import ctypes
import platform
from pathlib import Path

import pytest

from sacfast import native
from sacfast.native import machine, toolchain
from sacfast.native.builder import Builder

AMX_MACHINE = sorted({"x86_64", "avx2"}.union(*machine.PATH_FEATURES.values()))


@pytest.fixture
def cpu(monkeypatch):
    """cpu(features, wanted): pretend to be this CPU, with SACFAST_CPU_PATH set to `wanted`."""

    def pretend(features: list[str], wanted: str = "") -> None:
        monkeypatch.setattr(machine, "cpu_features", lambda: features)
        monkeypatch.setenv("SACFAST_CPU_PATH", wanted)

    return pretend


@pytest.mark.parametrize(
    ("without", "wanted", "built", "used"),
    [
        ((), "", ["amx", "avx512"], ""),
        ((), "amx", ["amx"], "amx"),
        (("amx_bf16",), "", ["avx512"], ""),
        (("amx_bf16",), "amx", ["amx-emulated"], "amx-emulated"),
        (("amx_bf16",), "AVX2", ["avx2"], "avx2"),
        (("amx_bf16", "avx512bw"), "", ["avx2"], ""),
        (("amx_bf16", "avx512bw", "fma"), "", ["portable"], ""),
        (("amx_bf16", "avx512bw", "fma"), "portable", ["portable"], "portable"),
    ],
)
def test_paths_that_are_built(cpu, tiny, without, wanted, built, used):
    cpu([feature for feature in AMX_MACHINE if feature not in without], wanted)
    assert Builder(root=tiny, archs=[]).paths == built and native.cpu_path() == used


@pytest.mark.parametrize("wanted", ["sse", "avx512", "amx"])
def test_path_that_this_cpu_lacks(cpu, fresh, wanted, capfd):
    """Said once, with the choices; nothing else is taken in its place."""
    cpu(["x86_64", "avx2", "fma"], wanted)
    assert not fresh.load()
    (line,) = capfd.readouterr().err.splitlines()
    assert f"SACFAST_CPU_PATH is '{wanted}'; the choices on this CPU are avx2, portable" in line


@pytest.fixture
def engine_sources(tiny):
    """Units for every path that say how they were compiled."""
    (tiny / "cpu").mkdir()
    for path in machine.PATH_FEATURES:
        (tiny / "cpu" / f"arithmetic_{path}.cpp").write_text(f'extern "C" int {path}() {{ return 1; }}\n')
    (tiny / "cpu" / "arithmetic.cpp").write_text('extern "C" int arithmetic() { return 1; }\n')
    (tiny / "engine.cpp").write_text('extern "C" int engine() { return 1; }\n')
    return tiny


def commands_of(compiler, root, **options) -> dict[str, set[str]]:
    """Every unit's stem, and the arguments that it was compiled with."""
    log = root.parent / "commands"
    compiler(f'compiles "$@" && echo "$@" >> "{log}"; exec c++ "$@"')
    _, record = Builder(root=root, archs=[], **options).obtain()
    lines = [line.split() for line in log.read_text().splitlines() if "-o /dev/null" not in line]
    log.unlink()
    units = {Path(word).stem: set(line) for line in lines for word in line if word.endswith(".cpp")}
    assert {stem.removeprefix("arithmetic_") for stem in units if "arithmetic_" in stem} == {
        machine.unit_stem(path) for path in record.paths
    }
    return units


def test_units_of_a_path_get_its_flags(engine_sources, compiler, cpu):
    """In place of those for this machine, which all others get; arithmetic.cpp is told of the paths."""
    cpu(["x86_64"])
    units = commands_of(compiler, engine_sources, paths=["avx2", "amx-emulated"])
    assert {"-mavx2", "-mfma", "-ffp-contract=fast"} <= units["arithmetic_avx2"]
    assert {"-mavx512bw", "-DSACFAST_EMULATE_AMX"} <= units["arithmetic_amx"]
    assert not {"-mamx-tile"} & units["arithmetic_amx"]
    told = {"-DSACFAST_PATH_AVX2", "-DSACFAST_PATH_AMX", "-DSACFAST_EMULATE_AMX"}
    assert {word for word in units["arithmetic"] if "SACFAST_" in word} == told
    native_flags = {"-march=native", "-mcpu=native"}
    for stem, words in units.items():
        assert bool(native_flags & words) is ("arithmetic_" not in stem)
        assert ("-ffp-contract=fast" in words) is ("arithmetic_" in stem)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the paths are those of x86-64")
def test_every_path_of_the_architecture(engine_sources, compiler):
    """As an ahead-of-time build has them; a compiler too old for AMX does without."""
    assert machine.every_path() == ["amx", "avx512", "avx2", "portable"]
    script = 'for a in "$@"; do case $a in -mamx*) exit 1;; esac; done; exec c++ "$@"'
    compiler(script)
    _, record = Builder(root=engine_sources, archs=[], paths=machine.every_path()).obtain()
    assert record.paths == ["avx512", "avx2", "portable"]


def test_path_that_the_compiler_does_not_know(engine_sources, compiler, capfd):
    compiler('for a in "$@"; do case $a in -mamx*) exit 1;; esac; done; exec c++ "$@"')
    with pytest.raises(native.BuildError, match="does not know the instructions of amx"):
        Builder(root=engine_sources, archs=[], paths=["amx"]).obtain()
    assert "does not know the instructions of amx" in capfd.readouterr().err


def test_engine_alone_needs_no_torch(engine_sources, compiler, tmp_path):
    (engine_sources / "bindings.cpp").write_text("not compiled")
    folder = tmp_path / "engine"
    folder.mkdir()
    library = ctypes.CDLL(str(Builder(root=engine_sources).compile_engine(folder, ["portable"])))
    assert library.engine() == library.portable() == library.arithmetic() == 1
    assert not hasattr(library, "avx2")
    assert str(toolchain.TORCH) not in (folder / "build.ninja").read_text()


def test_slowest_units_come_first(engine_sources):
    (engine_sources / "autograd.cpp").touch()
    units = toolchain.sources(engine_sources, paths=["avx512", "amx-emulated"])
    names = [unit.stem for unit in units]
    assert names[:4] == ["autograd", "bindings", "arithmetic_amx", "arithmetic_avx512"]
    assert "arithmetic_avx2" not in names and {"arithmetic", "engine"} < set(names)
