"""Where native code that is called through ctypes enqueues its kernels; on the CPU, which the tests' emulator takes for
a GPU, nothing of that is needed.
"""

from contextlib import nullcontext
from typing import Any

import torch


def on_device(device: torch.device) -> Any:
    """A context in which `device` is CUDA's current one."""
    if device.type != "cuda" or device.index in (None, torch.cuda.current_device()):
        return nullcontext()
    return torch.cuda.device(device)


def current_stream(device: torch.device) -> int | None:
    """PyTorch's current stream of `device`, as CUDA's handle."""
    return None if device.type != "cuda" else torch.cuda.current_stream(device).cuda_stream
