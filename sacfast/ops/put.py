"""Short arrays of the host's into a GPU's memory, several by one launch (csrc/cuda/put.cu).

A copy from the host costs the CPU more than the GPU takes for it, and one step of one environment would need six.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacfast import native
from sacfast.errors import SACError
from sacfast.ops.launch import current_stream, on_device

MOST_PIECES, MOST_WORDS = 4, 1000  # of a kernel's parameter

# A contiguous tensor of 4-byte numbers, the number in it that is written first, and the array that is written.
Piece = tuple[Tensor, int, np.ndarray]


def can_put(device: torch.device, words: int) -> bool:
    """Whether `put` takes this many words of 4 bytes to `device`."""
    return device.type == "cuda" and words <= MOST_WORDS and native.available("cuda")


def put(pieces: Sequence[Piece], library: ctypes.CDLL | None = None) -> None:
    """tensor.view(-1)[first : first + array.size] = array, bit for bit, for each of up to 4 pieces on one GPU.

    It is enqueued on PyTorch's current stream of that GPU; the arrays, contiguous and of numbers of 4 bytes, may be
    changed at once. library: the compiled kernels, for tests.

    Raises SACError for a piece that does not lie in its tensor, for more than 1,000 words in all, and for what CUDA
    says; nothing is written then.
    """
    for tensor, first, array in pieces:
        if array.itemsize != 4 or tensor.itemsize != 4:
            raise SACError(f"put: {array.dtype} for {tensor.dtype}; numbers must have 4 bytes")
        if not 0 <= first <= tensor.numel() - array.size:
            raise SACError(
                f"put: {array.size} numbers from number {first} on do not lie in a tensor of {tensor.numel()}"
            )
    count, device = len(pieces), pieces[0][0].device
    to = (ctypes.c_void_p * count)(*(tensor.data_ptr() + 4 * first for tensor, first, _ in pieces))
    words = (ctypes.c_int64 * count)(*(array.size for _, _, array in pieces))
    data = b"".join(array.tobytes() for _, _, array in pieces)
    launch, error = _functions(library or native.engine_library())
    with on_device(device):
        result = launch(count, to, words, data, current_stream(device))
    if result < 0:
        raise SACError(f"put: {error().decode()}")


@functools.cache
def _functions(library: ctypes.CDLL) -> tuple[Any, Any]:
    """The C functions of csrc/cuda/engine.cu, with their types."""
    launch, error = library.sacfast_cuda_put, library.sacfast_error
    launch.restype, error.restype = ctypes.c_int, ctypes.c_char_p
    launch.argtypes = (ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return launch, error
