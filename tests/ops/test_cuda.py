"""The CUDA kernels: the CPU's and the references' results, registration, graphs, devices, and bad input.

What the operators mean is tested with the CPU's kernels, in the other files of this folder.
"""

import pytest
import torch
from operator_checks import replay_storage, values_and_gradients
from tolerances import EPSILON, FLOAT64_RELATIVE, NORMAL_ULPS, assert_as_accurate

from sacfast import native
from sacfast.errors import SACError
from sacfast.ops import (
    Stream,
    indices_reference,
    normal,
    normal_reference,
    polyak_update_,
    polyak_update_reference_,
    random_key,
    replay_insert_,
    replay_insert_reference_,
    replay_sample,
    replay_sample_reference,
    squashed_gaussian,
    squashed_gaussian_reference,
)

pytestmark = [pytest.mark.cuda, pytest.mark.native]

DEVICE = "cuda"
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@pytest.fixture(autouse=True)
def _kernels():
    """A GPU without its kernels, for want of nvcc, is no failure; the reason is shown."""
    if not native.available(DEVICE):
        pytest.skip(f"no CUDA kernels: {native.status().cuda_reason}")


def _aligned(tensor):
    return tensor.to(DEVICE, copy=True)


def _shifted(tensor):
    """A copy whose memory begins one element after an aligned address, where wide loads are illegal."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=DEVICE)
    return memory[1:].view(tensor.shape).copy_(tensor)


PLACES = pytest.mark.parametrize("place", [_aligned, _shifted])


def _inputs(shape, dtype):
    """mean, log_std, noise on the CPU, exact in float32; |u| exceeds 9 here and there."""
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    return [x.to(dtype) for x in (5.0 * mean, log_std - 2.0, noise)]


def _same(ours, theirs):
    """Equal to the bit, wherever they lie."""
    return all(
        a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu()) for a, b in zip(ours, theirs, strict=True)
    )


# --- against the CPU and the references ---


@DTYPES
@pytest.mark.parametrize("shape", [(0,), (1,), (5, 1), (3, 17), (257, 7), (2**18,)])
def test_normals_match_the_reference_as_the_cpus_do(dtype, shape):
    key = random_key(-3, Stream.ACTION, 2**40 + 1)
    drawn, exact = normal(shape, _aligned(key), dtype).cpu(), normal_reference(shape, key, torch.float64)
    assert drawn.dtype == dtype and drawn.shape == shape
    relative = NORMAL_ULPS * EPSILON[dtype] if dtype == torch.float32 else FLOAT64_RELATIVE
    for expected, bars in ((exact, 1.0), (normal(shape, key, dtype).double(), 2.0)):
        assert ((drawn.double() - expected).abs() <= bars * relative * exact.abs().clamp_min(1.0)).all()


@DTYPES
@pytest.mark.parametrize("shape", [(0, 7), (1, 1), (1, 7), (5, 1), (3, 17), (37, 7), (256, 7), (2, 300)])
@pytest.mark.parametrize("given", ["noise", "key"])
def test_squashed_gaussian_and_its_gradients(dtype, shape, given):
    mean, log_std, noise = _inputs(shape, dtype)
    drawn = {"noise": _aligned(noise)}
    if given == "key":
        drawn = {"key": random_key(5, 2, 9, DEVICE)}
        noise = normal(shape, drawn["key"], dtype).cpu()
    ours = values_and_gradients(squashed_gaussian, _aligned(mean), _shifted(log_std), **drawn)
    theirs = values_and_gradients(squashed_gaussian_reference, mean, log_std, noise=noise)
    exact = values_and_gradients(
        squashed_gaussian_reference, mean.double(), log_std.double(), noise=noise.double()
    )
    names = ("action", "log_prob", "grad_mean", "grad_log_std")
    for name, native_, reference, truth in zip(names, ours, theirs, exact, strict=True):
        if dtype == torch.float64:
            assert torch.allclose(native_, truth, rtol=FLOAT64_RELATIVE, atol=FLOAT64_RELATIVE), name
        else:
            assert_as_accurate(native_, reference, truth, name)


def test_bfloat16_policies_take_the_reference():
    mean, log_std, noise = (_aligned(x) for x in _inputs((9, 4), torch.bfloat16))
    assert _same(
        squashed_gaussian(mean, log_std, noise=noise), squashed_gaussian_reference(mean, log_std, noise)
    )


@PLACES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tau", [0.0, 0.005, 0.7, 1.0])
@pytest.mark.parametrize(
    "sizes", [[0, 0], [100003, 1], [0] * 64 + [5], list(range(130))], ids=["empty", "few", "gap", "many"]
)
def test_polyak_update(place, dtype, tau, sizes):
    """More than 64 tensors take several launches, of which "gap" has nothing to do in the first."""
    generator = torch.Generator().manual_seed(0)
    targets, sources = ([torch.randn(n, generator=generator).to(dtype) for n in sizes] for _ in range(2))
    ours, theirs = [place(t) for t in targets], [t.clone() for t in targets]
    polyak_update_(ours, [_aligned(s) for s in sources], tau)
    polyak_update_reference_(theirs, sources, tau)
    for to, reference, target, source in zip(ours, theirs, targets, sources, strict=True):
        exact = target.double() + tau * (source.double() - target.double())
        assert_as_accurate(to.cpu(), reference, exact)
        if tau in (0.0, 1.0):
            assert torch.equal(to.cpu(), source if tau else target)


def test_strided_targets_are_updated_in_place():
    base, source = torch.randn(6, 10, device=DEVICE), torch.randn(6, 5, device=DEVICE)
    columns, others, version = base[:, ::2], base[:, 1::2].clone(), base._version
    expected = torch.lerp(columns, source, 0.3)
    polyak_update_(columns, source, 0.3)
    assert torch.allclose(columns, expected) and torch.equal(base[:, 1::2], others)
    assert base._version > version


@PLACES
@pytest.mark.parametrize("B", [0, 1, 2, 63, 257, 1000])
def test_samples_equal_the_references(place, B):
    storage, key = replay_storage(1000), random_key(-5, 0, 2**50 + B)
    expected, indices = replay_sample_reference(storage, 900, B, key)
    placed = [place(field) for field in storage]
    for size in (900, torch.tensor(900, device=DEVICE)):
        rows, drawn = replay_sample(placed, size, B, _aligned(key))
        assert _same([*rows, drawn], [*expected, indices])


def test_indices_of_huge_storages_and_sizes_out_of_range():
    """A row without bytes is never read; the kernel limits a size that the host cannot see to [1, N]."""
    key = random_key(3, 0, 1)
    for N, size, effective in ((2**62, 2**62, 2**62), (10, 0, 1), (10, 11, 10)):
        storage, size = [torch.empty(N, 0, device=DEVICE)], torch.tensor(size, device=DEVICE)
        _, drawn = replay_sample(storage, size, 601, _aligned(key))
        assert _same([drawn], [indices_reference(key, 601, effective)])


@PLACES
@pytest.mark.parametrize("n, position", [(0, 3), (1, 9), (4, 8), (10, 0), (10, 3), (13, 7), (37, 9)])
def test_insertion_goes_round_and_keeps_the_last(place, n, position):
    storage, rows = replay_storage(10), [field[13 : 13 + n] for field in replay_storage(50)]
    ours = [place(field) for field in storage]
    replay_insert_(ours, [_aligned(row) for row in rows], position)
    replay_insert_reference_(storage, rows, position)
    assert _same(ours, storage)


def test_rows_need_not_be_contiguous():
    storage, rows = torch.zeros(8, 3, device=DEVICE), torch.randn(3, 5, device=DEVICE)
    replay_insert_([storage], [rows.T], 6)
    assert torch.equal(storage[[6, 7, 0, 1, 2]], rows.T)


# --- registration, compilation, graphs, devices: each operator on tensors like an update's ---


def _state(device=DEVICE):
    generator = torch.Generator().manual_seed(1)
    mean, log_std, noise, a, b = (torch.randn(70, 7, generator=generator).to(device) for _ in range(5))
    return {
        "mean": mean,
        "log_std": log_std,
        "noise": noise,
        "key": random_key(4, 2, 8, device),
        "size": torch.tensor(70, device=device),
        "storage": [a, b],
        "target": [torch.zeros(7, device=device) for _ in range(70)],
        "source": list(noise.unbind()),
    }


def _normal(s):
    return [normal((33, 7), s["key"])]


def _squashed_gaussian(s):
    return squashed_gaussian(s["mean"], s["log_std"], noise=s["noise"])


def _squashed_gaussian_key(s):
    return squashed_gaussian(s["mean"], s["log_std"], key=s["key"])


def _squashed_gaussian_backward(s):
    backward = torch.ops.sacfast.squashed_gaussian_backward.default
    return backward(s["noise"], s["noise"][:, 0], s["mean"], s["log_std"], s["noise"])


def _polyak_update(s):
    polyak_update_(s["target"], s["source"], 0.25)
    return s["target"]


def _replay_sample(s):
    rows, indices = replay_sample(s["storage"], s["size"], 33, s["key"])
    return [*rows, indices]


def _replay_insert(s):
    replay_insert_(s["storage"], [s["mean"][:4], s["noise"][:4]], 68)
    return s["storage"]


OPERATIONS = pytest.mark.parametrize(
    "operation",
    [
        _normal,
        _squashed_gaussian,
        _squashed_gaussian_key,
        _squashed_gaussian_backward,
        _polyak_update,
        _replay_sample,
        _replay_insert,
    ],
)


def test_opcheck():
    s, ops, opcheck = _state(), torch.ops.sacfast, torch.library.opcheck
    mean, log_std, noise, key = s["mean"], s["log_std"], s["noise"], s["key"]
    opcheck(ops.normal.default, ([5, 3], key, torch.float32))
    opcheck(ops.squashed_gaussian_backward.default, (mean, noise[:, 0], mean, log_std, noise))
    opcheck(ops.polyak_update_.default, (s["target"], [t.clone() for t in s["source"]], 0.1))
    opcheck(ops.replay_sample.default, (s["storage"], s["size"], 6, key))
    opcheck(ops.replay_insert_.default, (s["storage"], [mean[:4], noise[:4]], 68))
    mean.requires_grad_(), log_std.requires_grad_()
    opcheck(ops.squashed_gaussian.default, (mean, log_std, noise))
    opcheck(ops.squashed_gaussian_key.default, (mean, log_std, key))


@OPERATIONS
def test_compiles_without_a_graph_break(operation):
    compiled = torch.compile(operation, fullgraph=True, backend="aot_eager")
    assert _same(compiled(_state()), operation(_state()))


@OPERATIONS
def test_a_captured_graph_sees_what_is_advanced_in_place(operation):
    """key, size and noise (which is also source and rows) change between replays. Capture itself runs
    nothing.
    """
    captured, expected = _state(), _state()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        operation(_state())
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = operation(captured)
    for _ in range(3):
        for state in (captured, expected):
            state["key"][2] += 1
            state["size"].sub_(9)
            state["noise"].mul_(0.5)
        graph.replay()
        assert _same(out, operation(expected))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two NVIDIA GPUs")
@OPERATIONS
def test_tensors_on_another_device_than_the_current(operation):
    with torch.cuda.device(0):
        here, there = operation(_state("cuda:0")), operation(_state("cuda:1"))
    assert all(tensor.device == torch.device("cuda:1") for tensor in there)
    assert _same(here, there)


# --- bad input ---


def test_two_empty_lists_are_nothing_to_do():
    polyak_update_([], [], 0.1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda ops, t: ops.polyak_update_([], [t], 0.1), "target has 0 tensors but source has 1"),
        (lambda ops, t: ops.polyak_update_([t], [], 0.1), "target has 1 tensors but source has 0"),
        (lambda ops, t: ops.replay_insert_([], [t], 0), "storage has no fields"),
        (lambda ops, t: ops.replay_insert_([t], [], 0), "rows has 0 fields but storage has 1"),
        (lambda ops, t: ops.replay_sample([], t, 1, random_key(1, 2, 3, DEVICE)), "storage has no fields"),
    ],
)
def test_operators_themselves_refuse_missing_lists(call, message):
    """The public functions take their references here: the dispatcher, too, would find no device in []."""
    with pytest.raises(ValueError, match=message):
        call(torch.ops.sacfast, torch.zeros(3, device=DEVICE))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: polyak_update_([], [t], 0.1), "target has 0 tensors but source has 1"),
        (lambda t: polyak_update_(t, t.cpu(), 0.1), "source\\[0\\] is .* on cpu"),
        (lambda t: polyak_update_(t[:, ::2], t[:, 1::2], 0.1), "interleaves or overlaps"),
        (lambda t: replay_insert_([], [t], 0), "storage has no fields"),
        (lambda t: replay_insert_([t], [t.cpu()], 0), "rows\\[0\\] is .* on cpu"),
        (lambda t: replay_insert_([t] * 33, [t] * 33, 0), "33 fields; expected at most 32"),
        (lambda t: replay_sample([t] * 33, 4, 2, (1, 2, 3)), "33 fields; expected at most 32"),
        (lambda t: replay_sample([t], 5, 2, (1, 2, 3)), "size is 5; expected 1 to 4"),
        (lambda t: replay_sample([t], 4, 2, random_key(1, 2, 3)), "key is on cpu"),
        (lambda t: replay_sample([t], torch.tensor(4), 2, (1, 2, 3)), "size is on cpu"),
        (lambda t: squashed_gaussian(t, t, noise=t.cpu()), "noise is on cpu"),
        (lambda t: squashed_gaussian(t, t, key=random_key(1, 2, 3)), "key is on cpu"),
        (lambda t: squashed_gaussian(t[:, :0], t[:, :0], key=(1, 2, 3)), "with A at least 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(SACError, match=message):
        call(torch.zeros(4, 6, device=DEVICE))
