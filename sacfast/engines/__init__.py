"""Engines: interchangeable ways to compute the same SAC update."""

from sacfast.config import SACConfig
from sacfast.engines.base import Engine, Metrics, Noise
from sacfast.engines.reference import ReferenceEngine
from sacfast.errors import NativeUnavailable, SACError

__all__ = ["Engine", "Metrics", "Noise", "ReferenceEngine", "make_engine"]


def make_engine(name: str, config: SACConfig) -> Engine:
    """The engine called `name`.

    "reference": PyTorch autograd, every formula spelled out.
    "auto": the fastest one here; at present autograd over the native operators, which fall back to PyTorch.
    "native": the whole update in one native call, or NativeUnavailable; it never falls back.
    """
    if name == "auto":
        return ReferenceEngine(config, native_operators=True)
    if name == "reference":
        return ReferenceEngine(config)
    if name == "native":
        raise NativeUnavailable(
            "engine='native' (the whole update in one native call) is not part of this version; "
            "use engine='auto', which runs the native operators"
        )
    raise SACError(f"unknown engine {name!r}: choose 'auto', 'reference' or 'native'")
