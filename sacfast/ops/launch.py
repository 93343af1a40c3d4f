"""Devices, and where native code that is called through ctypes enqueues its kernels; on the CPU, which the tests'
emulator takes for a GPU, nothing of that is needed.
"""

from contextlib import nullcontext
from typing import Any

import torch

from sacfast.errors import SACError, first_line


def find_device(device: torch.device | str) -> torch.device:
    """The torch device, with the number of the GPU that "cuda" is now. Raises SACError where there is none."""
    try:
        return torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise SACError(
            f"device {str(device)!r} is not available here ({first_line(error)}); use device='cpu'"
        ) from None


def on_device(device: torch.device) -> Any:
    """A context in which `device` is CUDA's current one."""
    if device.type != "cuda" or device.index in (None, torch.cuda.current_device()):
        return nullcontext()
    return torch.cuda.device(device)


def current_stream(device: torch.device) -> int | None:
    """PyTorch's current stream of `device`, as CUDA's handle."""
    return None if device.type != "cuda" else torch.cuda.current_stream(device).cuda_stream
