"""Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011).

A draw is named by a key (seed, stream, step), and each number in it by its position, so the reference, the
CPU and CUDA draw the same numbers whatever the number of threads. One block of the generator gives four
32-bit words:

    words = philox4x32(counter = (block, stream, step lo, step hi), key = (seed lo, seed hi))

`stream` counts modulo 2^32; seed and step are 64-bit patterns.
"""

import enum
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sacfast import native
from sacfast.errors import SACError
from sacfast.ops.checks import refusal

_MASK = 0xFFFFFFFF
_MOST = 2**33
Key = Tensor | tuple[int, int, int]


class Stream(enum.IntEnum):
    """What a draw is for: two draws of one step differ in their stream."""

    BATCH = 0
    NEXT_ACTION = 1
    ACTION = 2
    EXPLORE = 3


def random_key(seed: int, stream: int, step: int, device: torch.device | str = "cpu") -> Tensor:
    """The key int64 [3] = (seed, stream, step). Integers beyond int64 wrap around, so unsigned ones are
    welcome.
    """
    values = [_as_int64(int(value)) for value in (seed, stream, step)]
    # Nothing waits for a GPU: so few bytes have been read when this returns.
    return torch.tensor(values, dtype=torch.int64, device="cpu").to(device, non_blocking=True)


def _as_int64(value: int) -> int:
    # torch.compile, which may see a symbol here, cannot compute beyond int64.
    return value if -(2**63) <= value < 2**63 else (value + 2**63) % 2**64 - 2**63


def as_key(key: Key, device: torch.device) -> Tensor:
    """`key` as a tensor: a tuple (seed, stream, step) of integers becomes one on `device`."""
    if isinstance(key, Tensor):
        return key
    if len(key) != 3:
        raise SACError(
            f"key is {key!r}; pass a tensor from random_key or three integers (seed, stream, step)"
        )
    return random_key(*key, device=device)


def check_draw(key: Tensor, numel: int, device: torch.device | None = None) -> None:
    """Raise SACError unless `key` can draw `numel` numbers on `device`."""
    if key.dtype != torch.int64 or key.shape != (3,):
        raise SACError(
            f"key is {key.dtype} of shape {list(key.shape)}; expected int64 [3] = (seed, stream, step), see random_key"
        )
    if device is not None and key.device != device:
        raise SACError(
            f'key is on {key.device} but the data is on {device}; make it with random_key(..., device="{device}")'
        )
    if not 0 <= numel <= _MOST:
        raise SACError(f"cannot draw {numel} numbers from one key; expected 0 to 2^33")


def _multiply_32(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32-bit product. int64 holds all 64 bits; only its sign is meaningless."""
    product = a * b
    return (product >> 32) & _MASK, product & _MASK


def philox4x32_reference(key: Key, blocks: Tensor) -> Tensor:
    """The words of `blocks` (int64 [n], the counter's first word): int64 [n, 4], each in [0, 2^32).

    Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", section 3 and table 2.
    """
    seed, stream, step = as_key(key, blocks.device).unbind()
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    c0, c1 = blocks & _MASK, (stream & _MASK).expand_as(blocks)
    c2, c3 = (step & _MASK).expand_as(blocks), ((step >> 32) & _MASK).expand_as(blocks)
    for _ in range(10):
        hi0, lo0 = _multiply_32(0xD2511F53, c0)
        hi1, lo1 = _multiply_32(0xCD9E8D57, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return torch.stack([c0, c1, c2, c3], dim=1)


def normal_reference(shape: Sequence[int], key: Key, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normals of `shape` on the key's device, computed in float64 and rounded to `dtype`.

    Element i in row-major order is lane i % 4 of block i // 4. Two words (a, b) make two normals (Box and
    Muller):
        u = (a // 2^9 + 1/2) / 2^23,  angle = 2 pi (b // 2^8) / 2^24,  sqrt(-2 ln u) * (cos angle, sin angle)
    The nearest quarter turn is taken off in integers, so that cos and sin are exact at multiples of it.
    """
    if not dtype.is_floating_point:
        raise SACError(f"cannot draw standard normals as {dtype}; expected a floating dtype")
    key = as_key(key, torch.device("cpu"))
    if key.device.type == "mps":  # which has no float64
        return normal_reference(shape, key.cpu(), dtype).to(key.device)
    numel = math.prod(shape)
    check_draw(key, numel)
    blocks = torch.arange((numel + 3) // 4, device=key.device)
    words = philox4x32_reference(key, blocks).reshape(-1, 2)
    u = ((words[:, 0] >> 9).double() + 0.5) * 2.0**-23
    radius = torch.sqrt(-2.0 * torch.log(u))
    turn = words[:, 1] >> 8
    quarter = (turn + 2**21) >> 22
    angle = (turn - (quarter << 22)).double() * (2.0 * math.pi * 2.0**-24)
    quarter = quarter & 3
    cosine, sine = torch.cos(angle), torch.sin(angle)
    c = torch.where(quarter % 2 == 0, cosine, sine)
    s = torch.where(quarter % 2 == 0, sine, cosine)
    c = torch.where((quarter == 1) | (quarter == 2), -c, c)
    s = torch.where(quarter >= 2, -s, s)
    return torch.stack([radius * c, radius * s], dim=1).flatten()[:numel].reshape(tuple(shape)).to(dtype)


def normal(shape: Sequence[int], key: Key, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normals of `shape` on the key's device (see normal_reference, from which float32 differs by a
    few ulp).

    float32 and float64 are native; other floating dtypes take the reference. Raises SACError for an integer
    dtype and for a malformed key.
    """
    key = as_key(key, torch.device("cpu"))
    if (dtype is torch.float32 or dtype is torch.float64) and native.available(key.device.type):
        try:
            return torch.ops.sacfast.normal.default(shape, key, dtype)
        except (ValueError, NotImplementedError) as error:
            raise refusal(error) from None
    return normal_reference(shape, key, dtype)


def indices_reference(key: Key, n: int, size: int | Tensor) -> Tensor:
    """n uniform indices in [0, size), with replacement: int64 [n] on the key's device.

    Index i is floor(r * size / 2^64), where r's high and low words are words 2 (i % 2) and 2 (i % 2) + 1 of
    block i // 2. Lemire's multiplication (arXiv:1805.10941) without his rejection: the bias is below size /
    2^64.
    """
    key = as_key(key, torch.device("cpu"))
    check_draw(key, n)
    size = torch.as_tensor(size, dtype=torch.int64, device=key.device)
    words = philox4x32_reference(key, torch.arange((n + 1) // 2, device=key.device)).reshape(-1, 2)[:n]
    hi, lo = words.unbind(1)
    size_hi, size_lo = (size >> 32) & _MASK, size & _MASK
    middle = hi * size_lo + (((lo * size_lo) >> 32) & _MASK)
    cross = lo * size_hi + (middle & _MASK)
    return hi * size_hi + ((middle >> 32) & _MASK) + ((cross >> 32) & _MASK)


def _register() -> None:
    @torch.library.register_fake("sacfast::normal")
    def _(shape, key, dtype):
        return key.new_empty(shape, dtype=dtype)


native.on_load(_register)
