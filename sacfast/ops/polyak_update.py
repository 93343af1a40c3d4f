"""The target networks' step: an exponential moving average in place, in one pass over all tensors."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sacfast import native
from sacfast.errors import SACError
from sacfast.ops.checks import check_disjoint, check_one_device, refusal

Tensors = Tensor | Iterable[Tensor]
_NATIVE_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def _check(target: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    if len(target) != len(source):
        raise SACError(f"polyak_update_: target has {len(target)} tensors but source has {len(source)}")
    if target and not target[0].dtype.is_floating_point:
        raise SACError(f"polyak_update_: target[0] is {target[0].dtype}; expected a floating dtype")
    for i, (to, from_) in enumerate(zip(target, source, strict=True)):
        if to.shape != from_.shape:
            raise SACError(
                f"polyak_update_: target[{i}] has shape {list(to.shape)} but source[{i}] has {list(from_.shape)}"
            )
        for name, tensor in (("target", to), ("source", from_)):
            if tensor.dtype != target[0].dtype or tensor.device != target[0].device:
                raise SACError(
                    f"polyak_update_: {name}[{i}] is {tensor.dtype} on {tensor.device}; "
                    f"expected {target[0].dtype} on {target[0].device} like target[0]"
                )
    check_disjoint(
        "polyak_update_",
        target,
        source,
        "a target's memory interleaves or overlaps with a source's, another target's or its own",
    )


def _as_lists(target: Tensors, source: Tensors, tau: float) -> tuple[list[Tensor], list[Tensor]]:
    if not 0.0 <= tau <= 1.0:
        raise SACError(f"polyak_update_: tau is {tau}; expected a number from 0 to 1")
    if isinstance(target, Tensor) or isinstance(source, Tensor):
        if not (isinstance(target, Tensor) and isinstance(source, Tensor)):
            raise SACError("polyak_update_: pass two tensors or two sequences of tensors, not one of each")
        return [target], [source]
    return list(target), list(source)


def polyak_update_reference_(target: Tensors, source: Tensors, tau: float) -> None:
    """target <- (1 - tau) target + tau source, in place   (SAC, arXiv:1812.05905, algorithm 1)

    Evaluated as target + tau (source - target), which for finite numbers is exact at tau = 0 and, by
    torch.lerp's rule, at tau = 1. Types of fewer than 32 bits are computed in float32 and rounded once.
    """
    targets, sources = _as_lists(target, source, tau)
    _check(targets, sources)
    with torch.no_grad():
        for to, from_ in zip(targets, sources, strict=True):
            if to.itemsize < 4:
                to.copy_(torch.lerp(to.float(), from_.float(), tau))
            else:
                to.lerp_(from_, tau)


def polyak_update_(target: Tensors, source: Tensors, tau: float) -> None:
    """target <- target + tau (source - target), in place and outside autograd, in one pass over all tensors.

    target, source: two tensors, or two sequences of tensors (parameters among them) of equal shapes, one
    dtype and one device. float32, float64 and bfloat16 (in float32 arithmetic, rounded to nearest even) are
    native; other dtypes take the reference. The targets' version counters advance, as in any in-place
    operation.

    Raises SACError for tau outside [0, 1], unequal shapes, mixed dtypes or devices, and a target whose memory,
    first element to last, meets that of a source or another target, even if they only interleave.
    """
    targets, sources = _as_lists(target, source, tau)
    if not targets and not sources:
        return
    first = (targets or sources)[0]
    if first.dtype in _NATIVE_DTYPES and native.available(first.device.type):
        try:
            torch.ops.sacfast.polyak_update_.default(targets, sources, tau)
        except (ValueError, NotImplementedError) as error:
            raise refusal(error) from None
    else:
        polyak_update_reference_(targets, sources, tau)


def _register() -> None:
    @torch.library.register_fake("sacfast::polyak_update_")
    def _(target, source, tau):
        check_one_device("polyak_update_", [*target, *source])


native.on_load(_register)
