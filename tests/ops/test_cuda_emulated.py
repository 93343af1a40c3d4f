"""The operators' CUDA kernels under the emulator, against the references; tests/ops/test_cuda.py is for a GPU."""

import ctypes
from ctypes import c_double, c_int, c_int64, c_void_p

import pytest
import torch
from cuda_emulation import BACKWARD, FORWARD, SHUFFLED
from tolerances import EPSILON, FLOAT64_RELATIVE, NORMAL_ULPS, assert_as_accurate

from sacfast.ops import (
    indices_reference,
    normal_reference,
    polyak_update_reference_,
    random_key,
    replay_insert_reference_,
    squashed_gaussian_reference,
)

pytestmark = pytest.mark.native

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
FLOATS = [torch.float32, torch.float64]


class Pair(ctypes.Structure):
    _fields_ = [("target", c_void_p), ("source", c_void_p), ("numel", c_int64)]


class Field(ctypes.Structure):
    _fields_ = [("storage", c_void_p), ("rows", c_void_p), ("row_bytes", c_int64), ("stride_bytes", c_int64)]


@pytest.fixture(params=[FORWARD, BACKWARD, SHUFFLED], ids=["forward", "backward", "shuffled"])
def run(request, cuda_emulation):
    """run(name, dtype or None, *arguments): tensors go as their addresses."""
    cuda_emulation.emulator_set_schedule(request.param)

    def call(name, dtype, *arguments):
        values = [c_int(DTYPES[dtype])] if dtype is not None else []
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                assert argument.is_contiguous()
                values.append(c_void_p(argument.data_ptr()))
            else:
                values.append(
                    argument if isinstance(argument, (ctypes.Array, c_double)) else c_int64(argument)
                )
        assert getattr(cuda_emulation, f"emulated_{name}")(*values) == 0

    return call


def poisoned(*shape, dtype=torch.float32) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def draw(*shape, dtype, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("numel", [0, 1, 6, 128, 1037])
def test_normal(run, dtype, numel):
    key, out = random_key(3, 2, 2**40), poisoned(numel, dtype=dtype)
    run("normal", dtype, key, out, numel)
    exact = normal_reference((numel,), key, torch.float64)
    bar = NORMAL_ULPS * EPSILON[torch.float32] if dtype == torch.float32 else FLOAT64_RELATIVE
    assert ((out.double() - exact).abs() <= bar * exact.abs().clamp(min=1)).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("B", "A"), [(1, 1), (0, 3), (5, 7), (130, 17)])
def test_squashed_gaussian(run, dtype, B, A):
    """Values, and gradients by autograd through the reference; |u| far into saturation among them."""
    mean, log_std, noise = (draw(B, A, dtype=dtype, seed=seed) for seed in range(3))
    mean *= 6
    action, log_prob = poisoned(B, A, dtype=dtype), poisoned(B, dtype=dtype)
    run("squashed_gaussian", dtype, mean, log_std, noise, action, log_prob, B, A)
    assert_against_reference((action, log_prob), (mean, log_std, noise))

    key = random_key(1, 2, 3)
    by_key, density, drawn = (
        poisoned(B, A, dtype=dtype),
        poisoned(B, dtype=dtype),
        poisoned(B, A, dtype=dtype),
    )
    run("squashed_gaussian_key", dtype, mean, log_std, key, by_key, density, drawn, B, A)
    torch.testing.assert_close(drawn, normal_reference((B, A), key, dtype), rtol=1e-5, atol=1e-6)
    assert_against_reference((by_key, density), (mean, log_std, drawn))

    grads = draw(B, A, dtype=dtype, seed=7), draw(B, dtype=dtype, seed=8)
    grad_mean, grad_log_std = poisoned(B, A, dtype=dtype), poisoned(B, A, dtype=dtype)
    arguments = (*grads, mean, log_std, noise, grad_mean, grad_log_std, B, A)
    run("squashed_gaussian_backward", dtype, *arguments)
    references = []
    for wanted in (dtype, torch.float64):
        inputs = [tensor.to(wanted).requires_grad_() for tensor in (mean, log_std)]
        outputs = squashed_gaussian_reference(*inputs, noise.to(wanted))
        references.append(torch.autograd.grad(outputs, inputs, [grad.to(wanted) for grad in grads]))
    for ours, own, exact in zip((grad_mean, grad_log_std), *references, strict=True):
        assert_as_accurate(ours, own, exact)


def assert_against_reference(ours, inputs) -> None:
    own = squashed_gaussian_reference(*inputs)
    exact = squashed_gaussian_reference(*(tensor.double() for tensor in inputs))
    for native, reference, truth in zip(ours, own, exact, strict=True):
        assert_as_accurate(native, reference, truth)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("tau", [0.0, 0.005, 0.7, 1.0])
def test_polyak_update(run, dtype, tau):
    """More tensors than one launch takes; addresses that allow 16 bytes at once, and others."""
    sizes = [0, 1, 3, 8, 1000, 257] + [5] * 70
    flat = [draw(sum(sizes) + 1, dtype=dtype, seed=seed) for seed in (1, 2)]
    for offset in (0, 1):
        target, source = (list(tensor[offset : offset + sum(sizes)].clone().split(sizes)) for tensor in flat)
        expected = [tensor.clone() for tensor in target]
        pairs = (Pair * len(sizes))(
            *((to.data_ptr(), of.data_ptr(), to.numel()) for to, of in zip(target, source, strict=True))
        )
        run("polyak_update", dtype, pairs, len(sizes), c_double(tau))
        polyak_update_reference_(expected, source, tau)
        for ours, theirs in zip(target, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2 * EPSILON[dtype], atol=EPSILON[dtype])


def replay_fields(storage, rows) -> ctypes.Array:
    return (Field * len(storage))(
        *(
            (field.data_ptr(), row.data_ptr(), row[0].numel() * row.element_size() if len(row) else 0)
            + (field.stride(0) * field.element_size(),)
            for field, row in zip(storage, rows, strict=True)
        )
    )


def make_storage(N: int) -> list[torch.Tensor]:
    record = draw(N, 48, dtype=torch.float32)
    return [
        record[:, :23],
        record[:, 24:32],
        draw(N, 3, dtype=torch.float64),
        torch.arange(N).to(torch.uint8),
    ]


@pytest.mark.parametrize("B", [1, 33, 256])
def test_replay_sample(run, B):
    N, size, key = 100, 70, random_key(5, 0, 9)
    storage = make_storage(N)
    out = [torch.zeros(B, *field.shape[1:], dtype=field.dtype) for field in storage]
    indices = torch.full((B,), -1)
    run("replay_sample", None, replay_fields(storage, out), len(out), N, torch.tensor(size), key, indices, B)
    assert torch.equal(indices, indices_reference(key, B, size))
    for field, rows in zip(storage, out, strict=True):
        assert torch.equal(rows, field[indices])


@pytest.mark.parametrize(("n", "position"), [(1, 9), (4, 8), (10, 3)])
def test_replay_insert(run, n, position):
    storage = [field.contiguous() for field in make_storage(10)]
    expected = [field.clone() for field in storage]
    rows = [field[13 : 13 + n].contiguous() for field in make_storage(50)]
    run("replay_insert", None, replay_fields(storage, rows), len(rows), 10, n, position)
    replay_insert_reference_(expected, rows, position)
    for ours, theirs in zip(storage, expected, strict=True):
        assert torch.equal(ours, theirs)
