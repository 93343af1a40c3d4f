"""polyak_update_: values, version counters, registration, and bad input."""

import pytest
import torch
from operator_checks import on_each_thread_count
from tolerances import EPSILON, assert_as_accurate
from torch import nn

from sacfast.errors import SACError
from sacfast.ops import polyak_update_, polyak_update_reference_

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SHAPES = [(), (0,), (1,), (7,), (16,), (17, 3), (256, 30), (3, 5, 2), (100003,)]


def _pairs(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(s, generator=generator).to(dtype) for s in SHAPES] for _ in range(2)]


def test_reference_by_hand():
    target, source = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 2.0])
    polyak_update_reference_(target, source, 0.25)
    assert target.tolist() == [1.5, -1.0]


@pytest.mark.native
@pytest.mark.parametrize("tau", [0.0, 0.005, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_native_is_as_accurate_as_the_reference(dtype, tau):
    targets, sources = _pairs(dtype)
    ours, theirs = [[t.clone() for t in targets] for _ in range(2)]
    polyak_update_(ours, sources, tau)
    polyak_update_reference_(theirs, sources, tau)
    for native, reference, target, source in zip(ours, theirs, targets, sources, strict=True):
        assert_as_accurate(native, reference, target.double() + tau * (source.double() - target.double()))
        if tau in (0.0, 1.0):
            assert torch.equal(native, source if tau else target)


@pytest.mark.native
def test_bfloat16_rounds_once_to_nearest_even():
    """Ties: 1 + (1/256 of a difference) lies half-way between bfloat16 numbers, and goes to the even one."""
    target = torch.tensor([1.0, 1.0078125, float("nan"), -3e38], dtype=torch.bfloat16)
    source = torch.tensor([1.015625, 1.0234375, 1.0, 3e38], dtype=torch.bfloat16)
    expected = target.clone()
    polyak_update_(target, source, 0.25)
    polyak_update_reference_(expected, source, 0.25)
    assert torch.equal(target.view(torch.int16)[[0, 1]], expected.view(torch.int16)[[0, 1]])
    assert target[:2].tolist() == [1.0, 1.015625] and target[2].isnan() and target[3].isinf()


@pytest.mark.native
def test_many_small_steps_converge():
    target, source = torch.zeros(1000), torch.ones(1000)
    for _ in range(1000):
        polyak_update_(target, source, 0.01)
    assert torch.allclose(target, torch.full((1000,), 1 - 0.99**1000), atol=1000 * EPSILON[torch.float32])


@pytest.mark.native
def test_strided_and_transposed_tensors():
    base = torch.randn(6, 10)
    columns, transposed = base[:, ::2], torch.randn(5, 6).T
    source = torch.randn(6, 5)
    untouched = base[:, 1::2].clone()
    expected = [torch.lerp(columns, source, 0.3), torch.lerp(transposed, source, 0.3)]
    polyak_update_([columns, transposed], [source, source], 0.3)
    assert torch.allclose(columns, expected[0]) and torch.allclose(transposed, expected[1])
    assert torch.equal(base[:, 1::2], untouched)
    weight = torch.randn(6, 5).T.contiguous().T
    expected_weight = torch.lerp(weight, transposed, 0.3)
    polyak_update_(weight, transposed, 0.3)
    assert torch.allclose(weight, expected_weight)


@pytest.mark.native
def test_the_number_of_threads_changes_no_byte():
    source = torch.randn(1_000_003)

    def run():
        targets = [torch.linspace(-1, 1, 1_000_003), torch.ones(777)]
        polyak_update_(targets, [source, source[:777]], 0.005)
        return torch.cat(targets)

    results = on_each_thread_count(run)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_parameters_outside_autograd_with_their_version_counted(either_path):
    target, source = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = [
        torch.lerp(t.detach(), s.detach(), 0.1)
        for t, s in zip(target.parameters(), source.parameters(), strict=True)
    ]
    before = [p._version for p in target.parameters()]
    polyak_update_(target.parameters(), source.parameters(), 0.1)
    assert all(p._version > v for p, v in zip(target.parameters(), before, strict=True))
    assert all(p.requires_grad and p.is_leaf and p.grad_fn is None for p in target.parameters())
    assert all(torch.allclose(p, e) for p, e in zip(target.parameters(), expected, strict=True))
    flat = torch.zeros(8)
    view, version = flat[2:5], flat._version
    polyak_update_(view, torch.ones(3), 0.5)
    assert flat._version > version


@pytest.mark.native
def test_a_stale_saved_tensor_is_noticed():
    target = torch.ones(3, requires_grad=True)
    loss = target.square().sum()
    polyak_update_(target, torch.zeros(3), 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.native
def test_opcheck():
    targets, sources = _pairs(torch.float32)
    torch.library.opcheck(torch.ops.sacfast.polyak_update_.default, (targets, sources, 0.1))
    torch.library.opcheck(torch.ops.sacfast.polyak_update_.default, (targets[4:5], sources[4:5], 0.1))


@pytest.mark.native
def test_compiles_without_a_graph_break():
    targets, sources = _pairs(torch.float32)
    compiled, expected = [[t.clone() for t in targets] for _ in range(2)]

    def step(target, source):
        polyak_update_(target, source, 0.1)
        return target[-1].sum()

    value = torch.compile(step, fullgraph=True, backend="aot_eager")(compiled, sources)
    assert torch.equal(value, step(expected, sources))
    assert all(torch.equal(a, b) for a, b in zip(compiled, expected, strict=True))


def test_empty_lists_and_other_dtypes():
    polyak_update_([], [], 0.1)
    target = torch.tensor([1.0, 2.0], dtype=torch.float16)
    polyak_update_(target, torch.tensor([3.0, 2.0], dtype=torch.float16), 0.25)
    assert target.tolist() == [1.5, 2.0]


_FLAT = torch.zeros(10)


@pytest.mark.parametrize(
    "target, source, tau, message",
    [
        (torch.zeros(3), torch.zeros(4), 0.1, "target\\[0\\] has shape .*3.* but source\\[0\\] has .*4"),
        ([torch.zeros(3)], [], 0.1, "1 tensors but source has 0"),
        ([], [torch.zeros(3)], 0.1, "0 tensors but source has 1"),
        (torch.zeros(3), [torch.zeros(3)], 0.1, "two sequences of tensors"),
        (torch.zeros(3).long(), torch.zeros(3).long(), 0.1, "expected a floating dtype"),
        (torch.zeros(3), torch.zeros(3), 1.5, "tau is 1.5"),
        (torch.zeros(3), torch.zeros(3), float("nan"), "tau is nan"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64), 0.1, "source\\[0\\] is .*(float64|Double)"),
        (
            [torch.zeros(1), torch.zeros(1).double()],
            [torch.zeros(1)] * 2,
            0.1,
            "target\\[1\\] is .*(float64|Double)",
        ),
        (_FLAT[:6], _FLAT[4:], 0.1, "overlaps"),
        (_FLAT, _FLAT, 0.1, "overlaps"),
        ([_FLAT[:6], _FLAT[5:]], [torch.zeros(6), torch.zeros(5)], 0.1, "overlaps"),
        (_FLAT[::2], _FLAT[1::2], 0.1, "interleaves or overlaps with a source's"),
        (torch.zeros(1).expand(3), torch.zeros(3), 0.1, "overlaps itself|or its own"),
    ],
)
def test_bad_input(either_path, target, source, tau, message):
    with pytest.raises(SACError, match=message):
        polyak_update_(target, source, tau)
    assert _FLAT.count_nonzero() == 0
