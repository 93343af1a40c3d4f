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

MOST_PIECES, MOST_WORDS = 8, 990  # of a kernel's parameter

# A contiguous tensor of 4-byte numbers, the number in it that is written first, and the array that is written.
Piece = tuple[Tensor, int, np.ndarray]


def can_put(device: torch.device, words: int) -> bool:
    """Whether `put` takes this many words of 4 bytes to `device`."""
    return device.type == "cuda" and words <= MOST_WORDS and native.available("cuda")


def put(pieces: Sequence[Piece], library: ctypes.CDLL | None = None) -> None:
    """tensor.view(-1)[first : first + array.size] = array, bit for bit, for each of up to 8 pieces on one GPU.

    It is enqueued on PyTorch's current stream of that GPU; the arrays, contiguous and of numbers of 4 bytes, may be
    changed at once. library: the compiled kernels, for tests.

    Raises SACError for a piece that does not lie in its tensor, for more than 990 words in all, and for what CUDA says.
    """
    for tensor, first, array in pieces:
        if not 0 <= first <= tensor.numel() - array.size:
            raise SACError(
                f"put: {array.size} numbers from number {first} on do not lie in a tensor of {tensor.numel()}"
            )
    count, device = len(pieces), pieces[0][0].device
    to = (ctypes.c_void_p * count)(*(tensor.data_ptr() + 4 * first for tensor, first, _ in pieces))
    words = (ctypes.c_int64 * count)(*(array.size for _, _, array in pieces))
    data = b"".join(array.tobytes() for _, _, array in pieces)
    library = library or native.engine_library()
    with on_device(device):
        result = _function(library)(count, to, words, data, current_stream(device))
    if result < 0:
        library.sacfast_error.restype = ctypes.c_char_p
        raise SACError(f"put: {library.sacfast_error().decode()}")


@functools.cache
def _function(library: ctypes.CDLL) -> Any:
    function = library.sacfast_cuda_put
    function.restype = ctypes.c_int
    function.argtypes = (ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return function
