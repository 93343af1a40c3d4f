"""squashed_gaussian: values, gradients, registration, and bad input."""

import math

import pytest
import torch
from operator_checks import on_each_thread_count, values_and_gradients
from tolerances import FLOAT64_RELATIVE, assert_as_accurate

from sacfast.errors import SACError
from sacfast.ops import normal, normal_reference, random_key, squashed_gaussian, squashed_gaussian_reference

SHAPES = [(0, 7), (1, 7), (1, 1), (5, 1), (3, 17), (256, 7), (37, 7), (2, 300)]


# Word for word the same natively and in the reference.
NO_ACTION = r"^squashed_gaussian: mean has shape \[3, 0\]; expected \[B, A\] with A at least 1$"


def _inputs(shape, dtype=torch.float32, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    log_std = torch.empty(shape, dtype=torch.float64).uniform_(-5, 1, generator=generator)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return [x.to(torch.float32).to(dtype) for x in (mean, log_std, noise)]


def test_reference_by_hand():
    """mean 0.5, std 2, noise -1: u = -1.5; the density of tanh(u) by the change of variables."""
    mean, log_std, noise = (torch.tensor([[x]], dtype=torch.float64) for x in (0.5, math.log(2), -1.0))
    action, log_prob = squashed_gaussian_reference(mean, log_std, noise)
    expected = -0.5 - math.log(2 * math.sqrt(2 * math.pi)) - math.log(1 - math.tanh(1.5) ** 2)
    assert action.item() == pytest.approx(-math.tanh(1.5), abs=1e-15)
    assert log_prob.item() == pytest.approx(expected, abs=1e-14)


def test_density_integrates_to_one():
    u = torch.linspace(-12, 12, 200001, dtype=torch.float64).unsqueeze(1)
    mean, log_std = torch.full_like(u, 0.3), torch.full_like(u, -0.2)
    action, log_prob = squashed_gaussian_reference(mean, log_std, (u - mean) / log_std.exp())
    assert torch.trapezoid(log_prob.exp(), action.squeeze(1)).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.native
@pytest.mark.parametrize("scale", [1.0, 5.0, 40.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_is_as_accurate_as_the_reference(shape, scale):
    inputs = _inputs(shape, scale=scale)
    exact = values_and_gradients(squashed_gaussian_reference, *(x.double() for x in inputs))
    reference = values_and_gradients(squashed_gaussian_reference, *inputs)
    native = values_and_gradients(squashed_gaussian, *inputs)
    names = ("action", "log_prob", "grad_mean", "grad_log_std")
    for name, ours, theirs, truth in zip(names, native, reference, exact, strict=True):
        assert_as_accurate(ours, theirs, truth, name)


@pytest.mark.native
@pytest.mark.parametrize("shape", SHAPES)
def test_native_float64_matches_the_reference(shape):
    inputs = _inputs(shape, torch.float64, scale=3.0)
    native = values_and_gradients(squashed_gaussian, *inputs)
    reference = values_and_gradients(squashed_gaussian_reference, *inputs)
    for ours, theirs in zip(native, reference, strict=True):
        assert torch.allclose(ours, theirs, rtol=FLOAT64_RELATIVE, atol=FLOAT64_RELATIVE)


@pytest.mark.native
@pytest.mark.parametrize("u", [0.0, 1e-6, 0.3, 7.0, 9.0, 12.0, 30.0, 100.0])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_saturated_actions_keep_a_finite_exact_density(u, sign):
    """log(1 - tanh(u)^2) to relative 1e-6, where the literal form is -inf or off by nats beyond |u| = 7."""
    mean = torch.tensor([[sign * u]])
    zero = torch.zeros_like(mean)
    _, log_prob = squashed_gaussian(mean, zero, noise=zero)
    exact = -2 * (abs(mean.item()) + math.log1p(math.exp(-2 * abs(mean.item()))) - math.log(2))
    assert log_prob.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - exact, rel=1e-6)


@pytest.mark.native
def test_special_values_propagate():
    nan, inf = float("nan"), float("inf")
    mean = torch.tensor([[nan], [inf], [-inf], [0.0], [0.0]])
    log_std = torch.tensor([[0.0], [0.0], [0.0], [nan], [-200.0]])
    action, log_prob = squashed_gaussian(mean, log_std, noise=torch.ones(5, 1))
    assert action[[0, 3]].isnan().all() and log_prob[[0, 3]].isnan().all()
    assert action[1:3].flatten().tolist() == [1.0, -1.0] and (log_prob[1:3] == inf).all()
    assert action[4].item() == 0.0


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_key_draws_the_noise_of_normal(dtype):
    mean, log_std, _ = _inputs((37, 7), dtype)
    key = random_key(5, 2, 9)
    with_key = squashed_gaussian(mean, log_std, key=key)
    with_noise = squashed_gaussian(mean, log_std, noise=normal((37, 7), key, dtype))
    assert all(torch.equal(a, b) for a, b in zip(with_key, with_noise, strict=True))
    assert torch.equal(squashed_gaussian(mean, log_std, key=(5, 2, 9))[0], with_key[0])


def test_a_key_matches_the_reference_on_any_path():
    mean, log_std, _ = _inputs((64, 3))
    action, log_prob = squashed_gaussian(mean, log_std, key=(1, 2, 3))
    expected = squashed_gaussian_reference(mean, log_std, normal_reference((64, 3), (1, 2, 3)))
    assert torch.allclose(action, expected[0], atol=1e-5) and torch.allclose(log_prob, expected[1], atol=1e-4)


@pytest.mark.native
def test_the_number_of_threads_changes_no_byte():
    mean, log_std, noise = _inputs((30001, 7))
    key = random_key(1, 1, 1)

    def run():
        drawn = torch.ops.sacfast.squashed_gaussian_key(mean, log_std, key)
        back = torch.ops.sacfast.squashed_gaussian_backward(mean, mean[:, 0], mean, log_std, noise)
        return *drawn, *back, torch.ops.sacfast.normal([30001, 7], key, torch.float32)

    results = on_each_thread_count(run)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    alone = torch.ops.sacfast.squashed_gaussian(mean[12345:12346], log_std[12345:12346], noise[12345:12346])
    together = torch.ops.sacfast.squashed_gaussian(mean, log_std, noise)
    assert torch.equal(alone[0][0], together[0][12345]) and torch.equal(alone[1][0], together[1][12345])


@pytest.mark.native
def test_inputs_need_not_be_contiguous():
    both = _inputs((33, 14))
    mean, log_std, noise = both[0][:, ::2], both[1].T[:14:2].T, both[2][:, 7:]
    expected = squashed_gaussian(mean.contiguous(), log_std.contiguous(), noise=noise.contiguous())
    actual = squashed_gaussian(mean, log_std, noise=noise)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.native
@pytest.mark.parametrize("shape", [(3, 7), (1, 1), (2, 17)])
def test_gradcheck(shape):
    mean, log_std, noise = _inputs(shape, torch.float64)
    mean.requires_grad_(), log_std.requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: squashed_gaussian(m, s, noise=noise), (mean, log_std))
    assert torch.autograd.gradcheck(lambda m, s: squashed_gaussian(m, s, key=(1, 2, 3)), (mean, log_std))


@pytest.mark.native
@pytest.mark.parametrize("part", [0, 1])
def test_one_output_alone_has_gradients(part):
    mean, log_std, noise = _inputs((9, 4))
    gradients = []
    for function in (squashed_gaussian, squashed_gaussian_reference):
        m, s = mean.clone().requires_grad_(), log_std.clone().requires_grad_()
        gradients.append(
            torch.autograd.grad(function(m, s, noise=noise)[part].sum(), (m, s), allow_unused=True)
        )
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.native
def test_noise_gets_no_gradient_and_double_backward_says_so():
    mean, log_std, noise = _inputs((4, 2))
    mean.requires_grad_(), log_std.requires_grad_(), noise.requires_grad_()
    action, log_prob = squashed_gaussian(mean, log_std, noise=noise)
    first = torch.autograd.grad(
        action.sum() + log_prob.sum(), (mean, noise), create_graph=True, allow_unused=True
    )
    assert first[1] is None
    with pytest.raises(NotImplementedError, match="squashed_gaussian_reference"):
        first[0].sum().backward()


@pytest.mark.native
def test_forward_mode_is_refused_not_dropped():
    mean, log_std, noise = _inputs((4, 2))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp is not implemented"):
        squashed_gaussian(torch.autograd.forward_ad.make_dual(mean, noise), log_std, noise=noise)


def test_reference_path_gives_noise_no_gradient(monkeypatch):
    monkeypatch.setattr("sacfast.native.available", lambda device_type="cpu": False)
    mean, log_std, noise = (x.requires_grad_() for x in _inputs((4, 2)))
    action, log_prob = squashed_gaussian(mean, log_std, noise=noise)
    (action.sum() + log_prob.sum()).backward()
    assert mean.grad is not None and log_std.grad is not None and noise.grad is None


@pytest.mark.native
@pytest.mark.parametrize("B", [0, 1, 6])
def test_opcheck(B):
    mean, log_std, noise = _inputs((B, 3))
    key = random_key(1, 2, 3)
    ops = torch.ops.sacfast
    torch.library.opcheck(ops.normal.default, ([B, 3], key, torch.float32))
    torch.library.opcheck(ops.squashed_gaussian_backward.default, (mean, noise[:, 0], mean, log_std, noise))
    mean.requires_grad_(), log_std.requires_grad_()
    torch.library.opcheck(ops.squashed_gaussian.default, (mean, log_std, noise))
    torch.library.opcheck(ops.squashed_gaussian_key.default, (mean, log_std, key))


@pytest.mark.native
@pytest.mark.parametrize("given", ["noise", "key"])
def test_compiles_without_a_graph_break(given):
    mean, log_std, noise = _inputs((16, 5))
    extra = {"noise": noise} if given == "noise" else {"key": random_key(1, 2, 3)}

    def loss(mean, log_std):
        action, log_prob = squashed_gaussian(mean, log_std, **extra)
        return (action.square().sum(1) + 0.2 * log_prob).mean()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        m, s = mean.clone().requires_grad_(), log_std.clone().requires_grad_()
        value = function(m, s)
        results.append((value.detach(), *torch.autograd.grad(value, (m, s))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.native
def test_inductor_gives_the_same():
    """The whole chain of operators in one compiled function, as an update would use them."""
    from sacfast.ops import polyak_update_, replay_sample

    storage, target = [torch.randn(50, 5), torch.randn(50, 5)], torch.zeros(16, 5)
    key = random_key(1, 2, 3)

    def step(storage, target, key):
        (mean, log_std), _ = replay_sample(storage, 50, 16, key)
        action, log_prob = squashed_gaussian(mean, log_std.clamp(-5, 2), key=key)
        polyak_update_(target, action + 0.0, 0.25)
        return 2.0 * action, log_prob.mean()

    expected_target = target.clone()
    expected = step(storage, expected_target, key)
    actual = torch.compile(step, fullgraph=True)(storage, target, key)
    assert torch.equal(target, expected_target) and torch.equal(actual[0], expected[0])
    assert torch.allclose(actual[1], expected[1], rtol=1e-6)


@pytest.mark.native
def test_the_step_of_a_key_may_be_a_number_that_changes_under_inductor():
    mean = torch.randn(4, 3)

    def act(step):
        return squashed_gaussian(mean, mean, key=(1, 2, step))[0]

    compiled = torch.compile(act, fullgraph=True)
    assert all(torch.equal(compiled(step), act(step)) for step in (0, 5, 6, -1, 2**62))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mean": torch.zeros(3)}, "expected \\[B, A\\]"),
        (dict.fromkeys(("mean", "log_std", "noise"), torch.zeros(3, 0)), NO_ACTION),
        (
            dict.fromkeys(("mean", "log_std"), torch.zeros(3, 0)) | {"noise": None, "key": (1, 2, 3)},
            NO_ACTION,
        ),
        (dict.fromkeys(("mean", "log_std", "noise"), torch.zeros(3, 2).long()), "expected a floating dtype"),
        ({"log_std": torch.zeros(3, 2)}, "log_std .*expected .*3, 7"),
        ({"noise": torch.zeros(4, 7)}, "noise .*expected .*3, 7"),
        ({"noise": torch.zeros(3, 7, dtype=torch.float64)}, "noise is .*(float64|Double)"),
        ({"noise": torch.zeros(3, 7, device="meta")}, "noise is .*meta"),
        ({"noise": None}, "exactly one of key and noise"),
        ({"key": (1, 2, 3)}, "exactly one of key and noise"),
        ({"noise": None, "key": torch.zeros(3)}, "key is"),
        ({"noise": None, "key": (1, 2)}, "key is"),
    ],
)
def test_bad_input(either_path, change, message):
    arguments = (
        dict(zip(("mean", "log_std", "noise"), (torch.zeros(3, 7) for _ in range(3)), strict=True)) | change
    )
    with pytest.raises(SACError, match=message):
        squashed_gaussian(**arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_take_the_reference(dtype):
    mean, log_std, noise = (x.to(dtype) for x in _inputs((8, 3)))
    actual, expected = (
        squashed_gaussian(mean, log_std, noise=noise),
        squashed_gaussian_reference(mean, log_std, noise),
    )
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
