"""Engines: interchangeable ways to compute the same SAC update."""

import torch

from sacfast.config import SACConfig
from sacfast.engines.base import Engine, Metrics, Noise
from sacfast.engines.cuda import CudaEngine
from sacfast.engines.native import NativeEngine
from sacfast.engines.reference import ReferenceEngine
from sacfast.errors import SACError
from sacfast.native import available as native_available

__all__ = [
    "CudaEngine",
    "Engine",
    "Metrics",
    "NativeEngine",
    "Noise",
    "ReferenceEngine",
    "make_engine",
]


def make_engine(
    name: str,
    config: SACConfig,
    *,
    threads: int | None = None,
    device: torch.device | str = "cpu",
) -> Engine:
    """The engine called `name`, for states on `device`.

    "reference": PyTorch autograd, every formula spelled out; float32 alone.
    "native": the whole update in one native call, on the CPU or on CUDA. Raises NativeUnavailable where native code
    cannot run and SACError where it does not serve `device` or `config.precision`; it never falls back.
    "auto": native where it runs, else "reference". It falls back in float32 only; for another precision it raises as
    "native" does.

    config: with a target_entropy. threads: of the native engine on the CPU; None or 0 for one per physical core.
    """
    device = torch.device(device)
    if name == "native" or (name == "auto" and _serves(device, config)):
        if device.type == "cpu":
            return NativeEngine(config, threads=threads)
        if device.type == "cuda":
            return CudaEngine(config, threads=threads, device=device)
        remedy = "use device='cpu'" + (" or engine='auto'" if name == "native" else "")
        raise SACError(f"the native engine runs on CPUs and CUDA, not on {device}; {remedy}")
    if name in ("auto", "reference"):
        return ReferenceEngine(config, threads=threads)
    raise SACError(f"unknown engine {name!r}: choose 'auto', 'reference' or 'native'")


def _serves(device: torch.device, config: SACConfig) -> bool:
    if config.precision != "float32":
        return True
    return device.type in ("cpu", "cuda") and native_available(device.type)
