"""Building, caching and loading, when nothing goes wrong."""

import functools
import json
import os
import subprocess
import sys
import timeit
from dataclasses import replace

import pytest
import torch

from sacfast import native
from sacfast.native import machine, toolchain
from sacfast.native.builder import LIBRARY, RECORD, USUAL_SECONDS, Builder, Record


@pytest.fixture
def builder(tiny, tmp_path):
    return Builder(root=tiny, cache=tmp_path / "cache", archs=[])


def test_second_build_uses_the_cache(builder, capfd):
    directory, record = builder.obtain()
    first = capfd.readouterr().err.splitlines()
    modified = (directory / LIBRARY).stat().st_mtime_ns
    assert builder.obtain() == (directory, record)
    assert (directory / LIBRARY).stat().st_mtime_ns == modified
    assert capfd.readouterr().err == ""
    before, after = first
    assert machine.cpu_name() in before and USUAL_SECONDS[False] in before
    assert f"{record.seconds:.1f} s" in after and str(directory / LIBRARY) in after
    assert not list(directory.glob("work-*"))


def test_key_depends_on_all_that_the_code_depends_on(builder, monkeypatch):
    keys = {builder.key()}
    compiler = toolchain.find_compiler()
    for suffix in (".h", ".cpp", ".cu", ".cuh"):
        (builder.root / f"new{suffix}").write_text("// nothing")
        keys.add(builder.key())
    with monkeypatch.context() as patch:
        patch.setattr(machine, "cpu_features", lambda: ["another-cpu"])
        keys.add(builder.key())
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "flags", lambda **_: ["-O0"])
        keys.add(builder.key())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.8.0")
        keys.add(builder.key())
    with monkeypatch.context() as patch:
        patch.setattr(sys.implementation, "cache_tag", "cpython-399")
        keys.add(builder.key())
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "version_of", lambda _: "g++ 99")
        keys.add(builder.key())
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "find_compiler", lambda: ["ccache", *compiler])
        keys.add(builder.key())
    keys.add(replace(builder, archs=["9.0"]).key())
    keys.add(replace(builder, archs=["8.0", "9.0"]).key())
    keys.add(replace(builder, paths=["portable"]).key())
    keys.add(replace(builder, paths=[]).key())
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "path_flags", lambda _: ["-O1"])
        keys.add(builder.key())
    assert len(keys) == 16
    assert replace(builder, cache=builder.root).key() in keys


def test_the_compiler_is_asked_for_its_version_once(builder, compiler, tmp_path):
    compiler(f'echo x >> "{tmp_path}/calls"; exec c++ "$@"')
    assert builder.key() == builder.key()
    assert (tmp_path / "calls").read_text() == "x\n"


def test_cached_build_is_used_without_a_compiler(fresh, builder, monkeypatch, capfd):
    """If everything else fits; with a compiler, what another one built is not taken."""
    directory, record = builder.obtain()
    capfd.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "version_of", lambda _: "g++ 99")
        assert builder.cached() is None
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert builder.cached() == (directory, record)
    assert fresh.status().path == directory / LIBRARY
    assert fresh.load() and fresh._process.found == (directory, record)
    assert capfd.readouterr().err == ""
    builder.archs = ["9.0"]  # built without a GPU, run on one
    assert builder.cached() == (directory, record)
    (builder.root / "new.h").write_text("// another version of the sources")
    assert builder.cached() is None


def test_paths_with_spaces_and_dollars(tiny, tmp_path):
    root = tiny.rename(tmp_path / "a $HOME dir: of")
    directory, _ = Builder(root=root, cache=tmp_path / "my $cache: dir", archs=[]).obtain()
    assert (directory / LIBRARY).is_file()


def test_flags_the_compiler_rejects_are_left_out(builder, compiler):
    compiler('for a in "$@"; do case $a in -m*=native|-fopenmp) exit 1;; esac; done; exec c++ "$@"')
    _, record = builder.obtain()
    assert not {"-march=native", "-mcpu=native", "-fopenmp"} & set(record.flags)


def test_flags_never_give_up_ieee_arithmetic(builder):
    _, record = builder.obtain()
    assert "-O3" in record.flags
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations", "-ffinite-math-only"} & set(
        record.flags
    )


def test_load_calls_back_once(fresh):
    calls = []
    fresh.on_load(lambda: calls.append(("early", fresh.available())))
    assert not calls
    assert fresh.load() and fresh.load() and fresh.available()
    fresh.on_load(lambda: calls.append(("late", fresh.available())))
    assert calls == [("early", True), ("late", True)]


def test_availability_by_device(fresh):
    assert fresh.available("cpu")
    assert not fresh.available("cuda") and not fresh.available("mps")


@pytest.mark.parametrize(
    ("built", "gpu", "runs"),
    [
        (["9.0"], "9.0", True),
        (["9.0"], "8.0", False),
        (["8.0"], "9.0", False),
        (["8.0"], "8.6", True),
        (["8.6"], "8.0", False),
        (["8.0+PTX"], "9.0", True),
        (["8.0+PTX"], "7.5", False),
        (["9.0+PTX"], "8.9", False),
        (["9.0+PTX"], "12.0", True),
        (["9.0a"], "9.0", True),
        (["12.0a"], "12.1", False),
        (["9.0a+PTX"], "10.0", False),
        (["8.0", "9.0"], "9.0", True),
        ([], "9.0", False),
    ],
)
def test_gpus_that_code_runs_on(built, gpu, runs):
    assert machine.covers(built, gpu) is runs


@pytest.mark.parametrize(
    ("gpus", "why"),
    [(["9.0"], ""), (["8.0"], "not for a GPU of 8.0"), (["8.0", "9.0"], "of 8.0 "), ([], "shows no GPU")],
)
def test_ahead_of_time_cuda_kernels_on_another_gpu(fresh, builder, tmp_path, monkeypatch, capfd, gpus, why):
    """Where nvcc is missing they are loaded for the sake of the CPU; for the GPU, one line says why not."""
    folder = prebuild(builder, tmp_path / "_native", cuda_archs=["9.0"])
    monkeypatch.setattr(native, "PREBUILT", folder)
    monkeypatch.setattr(native, "Builder", lambda **options: replace(builder, archs=gpus))
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    monkeypatch.setattr(machine, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    capfd.readouterr()
    assert fresh.available("cpu") and fresh._process.found[0] == folder
    assert capfd.readouterr().err == ""
    for _ in range(2):
        assert fresh.available("cuda") is not bool(why)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == bool(why) and all(why in line and "PyTorch reference" in line for line in lines)
    assert why in native._cuda_reason(fresh._process.found[1])


def test_ahead_of_time_cuda_kernels_for_another_gpu_are_passed_over(builder, tmp_path, monkeypatch):
    """With nvcc, better ones can be had."""
    monkeypatch.setattr(native, "PREBUILT", prebuild(builder, tmp_path / "_native", cuda_archs=["8.0"]))
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: "/usr/local/cuda/bin/nvcc")
    taken = [
        arch for arch in ("7.5", "8.0", "8.6", "9.0") if native._prebuilt(replace(builder, archs=[arch]))
    ]
    assert taken == ["8.0", "8.6"]


def test_threads_share_one_build(fresh, compiler, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    compiler(f'compiles "$@" && echo x >> "{tmp_path}/calls"; exec c++ "$@"')
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: fresh.available(), range(8)))
    assert (tmp_path / "calls").read_text() == "x\n"


def prebuild(builder, folder, **changes):
    """An ahead-of-time extension in `folder`, its record altered by `changes`."""
    builder.build_into(folder)
    record = json.loads((folder / RECORD).read_text()) | changes
    (folder / RECORD).write_text(json.dumps(record))
    return folder


def test_prebuilt_extension_is_preferred(fresh, builder, tmp_path, monkeypatch, capfd):
    folder = prebuild(builder, tmp_path / "_native")
    monkeypatch.setattr(native, "PREBUILT", folder)
    capfd.readouterr()
    assert fresh.load()
    assert fresh._process.found[0] == folder
    assert capfd.readouterr().err == "" and not builder.cache.exists()


def test_prebuilt_extension_that_does_not_fit_is_passed_over(fresh, builder, tmp_path, monkeypatch):
    folder = prebuild(builder, tmp_path / "_native")
    monkeypatch.setattr(native, "PREBUILT", folder)
    record = json.loads((folder / RECORD).read_text())
    for changes in ({"torch": "2.7.0"}, {"cpu": ["avx1024"]}, {"sources": "others"}, {"sha256": "x"}):
        (folder / RECORD).write_text(json.dumps(record | changes))
        assert native._prebuilt(builder) is None
    assert fresh.load()
    assert fresh._process.found[0] == builder.cache / builder.key()


def test_prebuilt_extension_without_the_named_path_is_passed_over(builder, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "PREBUILT", prebuild(builder, tmp_path / "_native", paths=["portable"]))
    assert native._prebuilt(builder)
    monkeypatch.setenv("SACFAST_CPU_PATH", "portable")
    assert native._prebuilt(builder)
    monkeypatch.setattr(native, "cpu_path", lambda: "amx-emulated")
    assert native._prebuilt(builder) is None


def test_functions_of_the_engine(fresh):
    """The extension that is loaded, as ctypes sees it; one handle however often it is asked for."""
    assert fresh.engine_library().tiny() == 42
    assert fresh.engine_library() is fresh.engine_library()
    assert native._arithmetic_names() == ""  # these sources have no such function


def test_status_builds_nothing(fresh, builder):
    before = fresh.status()
    assert not before.loaded and before.path is None and not builder.cache.exists()
    assert before.key == builder.key() and before.compiler and before.cuda_reason
    builder.obtain()
    after = fresh.status()
    assert after.path == builder.cache / builder.key() / LIBRARY and not after.loaded


def test_nvcc_that_appears_later_is_used(builder, monkeypatch, capfd):
    builder = replace(builder, archs=["9.0"])
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    directory, record = builder.obtain()
    assert record.cuda_archs == [] and record.cuda_missing == toolchain.NVCC_MISSING
    assert builder.cached() == (directory, record)
    # Nothing is gained by building again without one: others may have mapped the library.
    monkeypatch.setattr(native, "Builder", lambda **options: builder)
    capfd.readouterr()
    assert native.build() == directory / LIBRARY
    assert capfd.readouterr().err == f"sacfast: no CUDA kernels: {toolchain.NVCC_MISSING}\n"
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: "/usr/local/cuda/bin/nvcc")
    assert builder.cached() is None


def test_architecture_list(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;8.0 12.0+PTX,9.0")
    assert machine.gpu_architectures() == ["12.0+PTX", "8.0", "9.0"]
    ptx = [flag for flag in toolchain.cuda_flags(["12.0+PTX"]) if "gencode" in flag]
    assert ptx == ["-gencode=arch=compute_120,code=sm_120", "-gencode=arch=compute_120,code=compute_120"]
    with pytest.raises(native.BuildError, match=r"'Hopper'.*9\.0"):
        toolchain.checked_nvcc(["Hopper"])


def test_what_nvcc_knows_of_the_machines_gpus_is_compiled(monkeypatch, tmp_path, capsys):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        "#!/bin/sh\nprintf 'compute_75\\ncompute_80\\ncompute_86\\ncompute_90\\ncompute_100\\n'\n"
    )
    nvcc.chmod(0o755)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    known = functools.partial(toolchain.known_architectures, str(nvcc))
    assert known(["8.6", "9.0"]) == ["8.6", "9.0"] and not capsys.readouterr().err
    assert known(["10.3", "8.9", "6.1"]) == ["10.0", "8.6"]
    assert "does not compile for GPUs of 6.1" in capsys.readouterr().err
    with pytest.raises(native.BuildError, match="does not compile for this machine's GPUs"):
        known(["7.0"])
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0")  # the compiler's own complaint is to be seen
    assert known(["7.0"]) == ["7.0"]


def test_the_cuda_runtime_is_of_torchs_version(monkeypatch, tmp_path):
    for folder, version in (("cu13/lib", "13"), ("cuda_runtime/lib", "12")):
        (tmp_path / "nvidia" / folder).mkdir(parents=True)
        (tmp_path / "nvidia" / folder / f"libcudart.so.{version}").touch()
    monkeypatch.setattr(toolchain, "TORCH", tmp_path / "torch")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    for version, folder in (("12.8", "cuda_runtime/lib"), ("13.0", "cu13/lib")):
        monkeypatch.setattr(torch.version, "cuda", version)
        library = tmp_path / "nvidia" / folder / f"libcudart.so.{version[:2]}"
        assert toolchain.link_flags(openmp=False, nvcc="nvcc")[-1] == str(library)
    monkeypatch.setattr(torch.version, "cuda", "11.8")
    assert toolchain.link_flags(openmp=False, nvcc="nvcc")[-1] == "-lcudart"


@pytest.mark.native
def test_real_extension_was_built_for_this_machine():
    state = native.status()
    record = Record.read(state.path.parent)
    assert state.loaded and state.compiled_for and record is not None
    assert set(record.cpu) <= set(machine.cpu_features())
    assert record.paths == state.paths == machine.wanted_paths()
    assert state.arithmetic.startswith(f"{record.paths[0]}:float32")


@pytest.mark.native
def test_torch_compile_takes_availability_as_a_constant():
    """Under fullgraph=True, in a process that has not loaded the library before it traces."""
    code = """
import torch
from sacfast import native
from sacfast.ops import squashed_gaussian

def sample(mean, log_std, noise):
    return squashed_gaussian(mean, log_std, noise=noise) if native.available(mean.device.type) else None

assert not native.status().loaded
inputs = [torch.randn(4, 3) for _ in range(3)]
compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")(*inputs)
assert native.status().loaded
torch.testing.assert_close(compiled, sample(*inputs))
"""
    cached = native.status().path.parent.parent
    environment = {**os.environ, "SACFAST_CACHE_DIR": str(cached), "SACFAST_REQUIRE_NATIVE": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_command_line(tmp_path):
    """`status` of a cache without an extension says so; `clean` deletes what is ours, and only that."""
    ours, other = tmp_path / "cache" / f"{'0' * 20}-{'1' * 8}", tmp_path / "cache" / "thesis"
    ours.mkdir(parents=True)
    other.mkdir()

    def command(name):
        return subprocess.run(
            [sys.executable, "-m", "sacfast.native", name], capture_output=True, text=True, check=True
        )

    result = command("status")
    assert "not built yet" in result.stdout and result.stderr == ""
    assert "deleted 1" in command("clean").stdout
    assert other.exists() and not ours.exists()


def test_availability_costs_next_to_nothing(fresh):
    """It is asked on every operator call."""
    fresh.load()
    assert min(timeit.repeat(lambda: fresh.available("cpu"), number=2_000, repeat=5)) / 2_000 < 5e-6


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is one C++ runtime")
def test_a_compiler_with_a_static_cpp_runtime_leaves_it_out(tmp_path):
    """Errors thrown through two copies of the runtime end the process."""
    (tmp_path / "throws.cpp").write_text('#include <stdexcept>\nvoid f() { throw std::runtime_error(""); }\n')
    command = [*toolchain.find_compiler(), "-fPIC", "throws.cpp", "-o", "throws.so", "-static-libstdc++"]
    for flags, own in ((["-shared"], True), (toolchain.link_flags(openmp=False, nvcc=None), False)):
        subprocess.run([*command, *flags], cwd=tmp_path, check=True)
        listing = ["nm", "--dynamic", "--defined-only", "throws.so"]
        symbols = subprocess.run(listing, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        assert ("__cxa_throw" in symbols) is own
