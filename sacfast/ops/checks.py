"""Refusals that the operators share: how a native error is worded, and memory that may not overlap."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sacfast.errors import SACError, first_line


def refusal(error: Exception) -> SACError:
    """A native operator's complaint (or the dispatcher's, about tensors on a mixture of devices) as
    SACError.
    """
    return SACError(first_line(error))


def check_one_device(operator: str, tensors: Iterable[Tensor]) -> None:
    """Raise SACError unless all are on one device. For the operators' fakes, which are asked as soon as one tensor is
    on the meta device.
    """
    devices = sorted({str(tensor.device) for tensor in tensors})
    if len(devices) > 1:
        raise SACError(f"{operator}: tensors on {' and '.join(devices)}; expected one device")


def _without_address(tensor: Tensor) -> bool:
    """Whether a tensor has no memory: on the meta device, or a FakeTensor."""
    return tensor.is_meta or tensor.untyped_storage().device.type == "meta"


def check_disjoint(operator: str, written: Iterable[Tensor], read: Iterable[Tensor], what: str) -> None:
    """Raise SACError if a written tensor's stretch, first element to last, meets another tensor's or itself.

    Stretches that only interleave, as x[:, ::2] and x[:, 1::2] do, are refused too: to tell them apart costs
    more than the update. `what` begins the message: "a target's memory interleaves or overlaps with ...".
    While torch.compile traces, and on the meta device, memory has no address, and nothing is checked.
    """
    written, read = list(written), list(read)
    if torch.compiler.is_compiling() or any(_without_address(tensor) for tensor in written + read):
        return
    extents = []
    for tensors, is_written in ((written, True), (read, False)):
        for tensor in (t for t in tensors if t.numel()):
            steps = list(zip(tensor.shape, tensor.stride(), strict=True))
            if is_written and any(n > 1 and stride == 0 for n, stride in steps):
                raise SACError(f"{operator}: {what}; pass tensors with memory of their own")
            last = sum((n - 1) * stride for n, stride in steps)
            begin = tensor.data_ptr()
            extents.append((begin, begin + (last + 1) * tensor.element_size(), is_written))
    end_of_any = end_of_written = 0
    for begin, end, is_written in sorted(extents):
        if begin < (end_of_any if is_written else end_of_written):
            raise SACError(f"{operator}: {what}; pass tensors with memory of their own")
        end_of_any = max(end_of_any, end)
        end_of_written = max(end_of_written, end) if is_written else end_of_written
