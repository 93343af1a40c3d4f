"""The CUDA sources compile to machine code, and the bindings with them, on machines without a GPU. Nothing
runs.
"""

import subprocess

import pytest

from sacfast.native import toolchain
from sacfast.native.builder import Builder, check_cuda

NVCC = toolchain.find_nvcc()


def test_operators_and_the_update_are_there_for_each_device():
    root = toolchain.source_root()
    operators = {"polyak_update", "replay_sample", "squashed_gaussian"}
    for folder in ("cuda/*.cu", "cpu/*.cpp"):
        assert operators | {"policy", "sac_update"} <= {path.stem for path in root.glob(folder)}


def test_kernels_include_no_torch_header():
    root = toolchain.source_root()
    headers = [root / name for name in ("kernels.h", "sac_math.h", "philox.h")]
    for source in [*root.glob("cuda/*"), *root.glob("cpu/*"), *headers]:
        text = source.read_text()
        assert not any(f"#include <{name}" in text for name in ("torch", "ATen", "c10")), source


@pytest.mark.skipif(NVCC is None, reason="nvcc was not found")
def test_kernels_and_bindings_become_object_code():
    builder = Builder(
        archs=[]
    )  # asks no GPU; `python -m sacfast.native check-cuda` compiles for more than one
    units = check_cuda(builder, ["9.0"])
    assert "bindings.cpp" in units
    assert {str(kernel.relative_to(builder.root)) for kernel in builder.root.glob("cuda/*.cu")} <= set(units)


@pytest.mark.skipif(NVCC is not None, reason="nvcc is here: the bindings are compiled with the kernels")
def test_bindings_compile_with_cuda():
    """They include no header of the CUDA toolkit, so that a machine without it can check them."""
    root = toolchain.source_root()
    command = [*toolchain.find_compiler(), *toolchain.flags(cuda=True), *toolchain.include_flags(root)]
    done = subprocess.run(
        [*command, "-fsyntax-only", str(root / "bindings.cpp")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
