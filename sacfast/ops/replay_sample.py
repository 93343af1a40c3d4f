"""The circular replay storage: uniform sampling with the gather of all fields in one pass, and insertion."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sacfast import native
from sacfast.errors import SACError
from sacfast.ops.checks import check_disjoint, check_one_device, refusal
from sacfast.ops.philox import Key, as_key, check_draw, indices_reference


def _check_storage(operator: str, storage: Sequence[Tensor], written: bool) -> int:
    """Raise SACError unless the fields are [N, ...] tensors on one device, contiguous (where only read, in each
    row); returns N.
    """
    if not storage:
        raise SACError(f"{operator}: storage has no fields; expected at least 1")
    for i, field in enumerate(storage):
        dense = field.dim() > 0 and field.shape[0] > 0 and (field if written else field[0]).is_contiguous()
        if not dense:
            raise SACError(
                f"{operator}: storage[{i}] has shape {list(field.shape)} and strides {list(field.stride())}; "
                f"expected {'a contiguous tensor' if written else 'contiguous rows'} [N, ...] with N at least 1"
            )
        if field.shape[0] != storage[0].shape[0] or field.device != storage[0].device:
            raise SACError(
                f"{operator}: storage[{i}] holds {field.shape[0]} rows on {field.device} "
                f"but storage[0] holds {storage[0].shape[0]} on {storage[0].device}"
            )
    return storage[0].shape[0]


def _check_size(size: int, N: int) -> None:
    if not 1 <= size <= N:
        raise SACError(f"replay_sample: size is {size}; expected 1 to {N}, the rows that the storage holds")


def replay_sample_reference(
    storage: Sequence[Tensor], size: int | Tensor, batch_size: int, key: Key
) -> tuple[tuple[Tensor, ...], Tensor]:
    """indices = indices_reference(key, batch_size, size), and each field's rows there. See replay_sample."""
    N = _check_storage("replay_sample", storage, written=False)
    key = as_key(key, storage[0].device)
    check_draw(key, batch_size, storage[0].device)
    _check_size(int(size), N)
    indices = indices_reference(key, batch_size, size)
    return tuple(field.detach()[indices] for field in storage), indices


def replay_sample(
    storage: Sequence[Tensor], size: int | Tensor, batch_size: int, key: Key
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Draw `batch_size` rows uniformly, with replacement, from the first `size` rows of every field.

    storage: tensors [N, ...] of any dtypes on one device, each row contiguous (so they may be columns of one
    record per transition, which costs the fewest cache lines); size: an int, or an int64 tensor of one
    element on that device, which a CUDA graph can advance in place; key: as in squashed_gaussian. Returns the
    fields' rows, each [B, ...], and the indices int64 [B]. The same key gives the same indices on every
    device and in the reference. No gradients flow to the storage.

    Raises SACError for a malformed storage or key, more than 32 fields in the CUDA kernel, and a size outside
    [1, N]; the value of a size on a GPU cannot be seen from the host, and is limited to [1, N] by the kernel.
    """
    device_type = storage[0].device.type if storage else "none"
    if not native.available(device_type):
        return replay_sample_reference(storage, size, batch_size, key)
    if not isinstance(key, Tensor):
        key = as_key(key, storage[0].device)
    if device_type != "cpu" and not isinstance(size, Tensor):
        _check_size(size, len(storage[0]))
        size = torch.full((), size, dtype=torch.int64, device=storage[0].device)  # a copy would be waited for
    try:
        if isinstance(size, Tensor):
            out = torch.ops.sacfast.replay_sample.default(storage, size, batch_size, key)
        else:
            out = torch.ops.sacfast.replay_sample.int(storage, size, batch_size, key)
    except (ValueError, NotImplementedError) as error:
        raise refusal(error) from None
    return tuple(out[:-1]), out[-1]


def _check_rows(storage: Sequence[Tensor], rows: Sequence[Tensor]) -> int:
    if len(rows) != len(storage):
        raise SACError(f"replay_insert_: rows has {len(rows)} fields but storage has {len(storage)}")
    for i, (row, field) in enumerate(zip(rows, storage, strict=True)):
        fits = (
            row.dim() == field.dim() and row.shape[1:] == field.shape[1:] and row.shape[0] == rows[0].shape[0]
        )
        if not fits or row.dtype != field.dtype or row.device != field.device:
            raise SACError(
                f"replay_insert_: rows[{i}] is {row.dtype} {list(row.shape)} on {row.device}; expected "
                f"{field.dtype} [n, ...] on {field.device} like storage[{i}] {list(field.shape)}, n as in rows[0]"
            )
    return rows[0].shape[0]


def replay_insert_reference_(storage: Sequence[Tensor], rows: Sequence[Tensor], position: int) -> None:
    """storage[f][(position + j) mod N] = rows[f][j] for j = 0, ..., n - 1. See replay_insert_."""
    N = _check_storage("replay_insert_", storage, written=True)
    n = _check_rows(storage, rows)
    if not 0 <= position < N:
        raise SACError(f"replay_insert_: position is {position}; expected 0 to {N - 1}")
    check_disjoint(
        "replay_insert_",
        storage,
        rows,
        "a storage tensor's memory interleaves or overlaps with the rows', another field's or its own",
    )
    skipped = max(0, n - N)
    start = (position + skipped) % N
    before_end = min(n - skipped, N - start)
    with torch.no_grad():
        for field, row in zip(storage, rows, strict=True):
            kept = row[skipped:]
            field[start : start + before_end].copy_(kept[:before_end])
            field[: n - skipped - before_end].copy_(kept[before_end:])


def replay_insert_(storage: Sequence[Tensor], rows: Sequence[Tensor], position: int) -> None:
    """Write n rows to storage rows position, position + 1, ..., going round at the end.

    storage: contiguous tensors [N, ...], written in place; rows: tensors [n, ...] like them. Of more rows
    than N only the last N are kept, where writing them all in turn would have left them.

    Raises SACError for rows whose shape, dtype or device does not fit or that lie in the storage's memory, for
    a position outside [0, N), and for more than 32 fields in the CUDA kernel.
    """
    device_type = storage[0].device.type if storage else "none"
    if not native.available(device_type):
        return replay_insert_reference_(storage, rows, position)
    try:
        torch.ops.sacfast.replay_insert_.default(storage, rows, position)
    except (ValueError, NotImplementedError) as error:
        raise refusal(error) from None


def _register() -> None:
    def sample(storage, size, batch_size, key):
        check_one_device("replay_sample", [*storage, key])
        return [*(f.new_empty((batch_size, *f.shape[1:])) for f in storage), key.new_empty((batch_size,))]

    torch.library.register_fake("sacfast::replay_sample", sample)
    torch.library.register_fake("sacfast::replay_sample.int", sample)

    @torch.library.register_fake("sacfast::replay_insert_")
    def _(storage, rows, position):
        check_one_device("replay_insert_", [*storage, *rows])


native.on_load(_register)
