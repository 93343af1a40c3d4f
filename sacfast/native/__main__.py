"""`python -m sacfast.native [status|build|clean|check-cuda]`."""

from __future__ import annotations

import argparse
import re
import shutil
import sys

import torch

from sacfast import native
from sacfast.errors import SACError

from . import toolchain
from .builder import CHECKED_ARCHITECTURES, Builder, check_cuda


def print_status() -> None:
    """Load the extension if it is already built, and print what there is, or why there is nothing."""
    before = native.status()
    if before.path and not before.loaded:
        native.load()
    now = native.status()
    if now.loaded:
        state = "loaded"
    elif now.compiler.startswith("none"):
        state = f"unavailable ({now.compiler.removeprefix('none: ')})"
    elif now.reason == native.NOT_LOADED:
        state = "not built yet; the first native call builds it, or `python -m sacfast.native build`"
    else:
        state = f"unavailable ({now.reason})"
    rows = {
        "native kernels": state,
        "path": now.path or "none",
        "compiled for": now.compiled_for or "nothing yet",
        "engine": ": ".join(filter(None, [" ".join(now.paths) or "none", now.arithmetic])),
        "CUDA": ": ".join(filter(None, [" ".join(now.cuda_archs) or "none", now.cuda_reason])),
        "compiler": now.compiler,
        "nvcc": now.nvcc,
        "torch": torch.__version__,
        "cache": now.cache or "none: there is no home directory (SACFAST_CACHE_DIR names a place)",
        "key": now.key,
    }
    for name, value in rows.items():
        print(f"{name:>15}: {value}")


def clean() -> None:
    """Delete what sacfast put into the cache, and nothing else that may lie there."""
    cache = native.cache_directory()
    if cache is None:
        print("there is no cache, because there is no home directory (SACFAST_CACHE_DIR names a place)")
        return
    ours = [path for path in cache.glob("*") if re.fullmatch(r"[0-9a-f]{20}-[0-9a-f]{8}(\.lock)?", path.name)]
    for path in ours:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    print(f"deleted {sum(path.suffix == '' for path in ours)} built extension(s) from {cache}")


def compile_cuda() -> None:
    """Compile the CUDA sources to object code if there is an nvcc; nothing is run, so no GPU is needed."""
    nvcc = toolchain.find_nvcc()
    if nvcc is None:
        print("CUDA check skipped: nvcc not found")
        return
    units = check_cuda(Builder())
    print(f"CUDA check OK: {', '.join(units)} compiled by {nvcc} for {', '.join(CHECKED_ARCHITECTURES)}")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 unless it failed."""
    parser = argparse.ArgumentParser(prog="python -m sacfast.native", description="sacfast's native kernels.")
    commands = {
        "status": (print_status, "what is loaded, from where, or why not (the default); builds nothing"),
        "build": (lambda: print(native.build()), "build ahead of the first use"),
        "clean": (clean, "delete the cache"),
        "check-cuda": (compile_cuda, "compile the CUDA sources to object code, without a GPU"),
    }
    described = "; ".join(f"{name}: {text}" for name, (_, text) in commands.items())
    parser.add_argument("command", nargs="?", default="status", choices=commands, help=described)
    try:
        commands[parser.parse_args(arguments).command][0]()
    except (SACError, native.BuildError, OSError) as error:
        cause = error.__cause__ or error
        print(f"error: {error}\n{getattr(cause, 'tail', '')}".rstrip(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
