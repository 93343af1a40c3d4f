"""The CUDA sources compile to machine code, and the bindings with them, on machines without a GPU. Nothing
runs.
"""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sacfast.native import toolchain

ARCHITECTURES = ("8.0", "9.0", "12.0")

pytestmark = pytest.mark.skipif(toolchain.find_nvcc() is None, reason="nvcc was not found")


def _compile(command, *arguments):
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    return done.stderr + done.stdout if done.returncode else ""


def test_kernels_become_object_code(tmp_path):
    root = toolchain.source_root()
    kernels = sorted(root.glob("cuda/*.cu"))
    assert [kernel.stem for kernel in kernels] == [kernel.stem for kernel in sorted(root.glob("cpu/*.cpp"))]
    command = [toolchain.find_nvcc(), *toolchain.cuda_flags(ARCHITECTURES), "-I", str(root), "-c"]

    def compile_one(kernel: Path) -> str:
        return _compile(command, str(kernel), "-o", str(tmp_path / f"{kernel.stem}.o"))

    with ThreadPoolExecutor(2) as pool:
        errors = dict(zip(kernels, pool.map(compile_one, kernels), strict=True))
    assert not any(errors.values()), "\n".join(errors.values())
    for kernel in kernels:
        code = (tmp_path / f"{kernel.stem}.o").read_bytes()
        assert all(f"sm_{arch.replace('.', '')}".encode() in code for arch in ARCHITECTURES)


def test_kernels_include_no_torch_header():
    root = toolchain.source_root()
    for kernel in [
        *root.glob("cuda/*"),
        *root.glob("cpu/*"),
        root / "kernels.h",
        root / "sac_math.h",
        root / "philox.h",
    ]:
        text = kernel.read_text()
        assert not any(f"#include <{name}" in text for name in ("torch", "ATen", "c10")), kernel


def test_bindings_compile_with_cuda():
    root = toolchain.source_root()
    command = [*toolchain.find_compiler(), *toolchain.flags(cuda=True), *toolchain.include_flags(root)]
    assert _compile(command, "-fsyntax-only", str(root / "bindings.cpp")) == ""
