"""The CUDA half, as far as a machine without nvcc can tell; `python -m sacfast.native check-cuda` compiles it."""

import subprocess

from sacfast.native import toolchain


def test_kernels_include_no_torch_header():
    root = toolchain.source_root()
    headers = [root / name for name in ("kernels.h", "sac_math.h", "philox.h")]
    for source in [*root.glob("cuda/*"), *root.glob("cpu/*"), *headers]:
        text = source.read_text()
        assert not any(f"#include <{name}" in text for name in ("torch", "ATen", "c10")), source


def test_bindings_compile_with_cuda():
    """They include no header of the CUDA toolkit, so that a machine without it can check them."""
    root = toolchain.source_root()
    command = [*toolchain.find_compiler(), *toolchain.flags(cuda=True), *toolchain.include_flags(root)]
    done = subprocess.run(
        [*command, "-fsyntax-only", str(root / "bindings.cpp")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
