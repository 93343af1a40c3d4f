"""squashed_gaussian with the noise drawn inside, forward and with its backward; and normal by itself."""

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from baselines import ACTION_DIM, squashed_gaussian_eager, squashed_gaussian_usual
from race import COMPILED, OURS, Case, race

from sacfast.ops import Stream, normal, random_key, squashed_gaussian, squashed_gaussian_reference

BATCHES = [256, 8192]


def keys():
    return itertools.cycle([random_key(0, Stream.ACTION, step) for step in range(64)])


def forms(mean: torch.Tensor, log_std: torch.Tensor) -> dict[str, Callable]:
    """By role: one sample and its log-density, each with its own noise."""
    key, compiled = keys(), torch.compile(squashed_gaussian_eager, fullgraph=True, dynamic=False)
    return {
        OURS: lambda: squashed_gaussian(mean, log_std, key=next(key)),
        "usual": lambda: squashed_gaussian_usual(mean, log_std),
        "eager": lambda: squashed_gaussian_eager(mean, log_std),
        COMPILED: lambda: compiled(mean, log_std),
    }


def check_standard_normal(noise: torch.Tensor) -> None:
    bound = 6 / noise.numel() ** 0.5
    assert abs(noise.mean()) < bound and abs(noise.std() - 1) < bound


def recovered_noise(action: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """The noise behind `action`, float64: every contestant draws its own. Needs |u| of a few at most."""
    return (torch.atanh(action.double()) - mean.double()) / log_std.double().exp()


@pytest.fixture
def head():
    """An actor's output in mid-training: mean and log_std [B, A], |u| below 3 or so."""
    torch.manual_seed(0)

    def make(batch: int, requires_grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = 0.3 * torch.randn(batch, ACTION_DIM), torch.randn(batch, ACTION_DIM) * 0.1 - 1
        return mean.requires_grad_(requires_grad), log_std.requires_grad_(requires_grad)

    return make


@pytest.mark.parametrize("batch", BATCHES)
def test_forward(benchmark, head, batch):
    mean, log_std = head(batch, requires_grad=False)

    def check(call) -> None:
        action, log_prob = call()
        noise = recovered_noise(action, mean, log_std)
        check_standard_normal(noise)
        _, expected = squashed_gaussian_reference(mean.double(), log_std.double(), noise)
        torch.testing.assert_close(log_prob.double(), expected, rtol=1e-4, atol=1e-3)

    race(
        benchmark,
        Case("operators", "squashed_gaussian, forward", f"[{batch}, {ACTION_DIM}]"),
        forms(mean, log_std),
        check,
    )


@pytest.mark.parametrize("batch", BATCHES)
def test_forward_and_backward(benchmark, head, batch):
    mean, log_std = head(batch, requires_grad=True)
    weights = torch.randn(batch, ACTION_DIM), torch.randn(batch)

    def with_gradients(sample):
        action, log_prob = sample()
        return action, torch.autograd.grad((action, log_prob), (mean, log_std), weights)

    def check(call) -> None:
        action, gradients = call()
        noise = recovered_noise(action.detach(), mean.detach(), log_std.detach())
        inputs = [x.detach().double().requires_grad_() for x in (mean, log_std)]
        outputs = squashed_gaussian_reference(*inputs, noise)
        expected = torch.autograd.grad(outputs, inputs, [w.double() for w in weights])
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3)

    race(
        benchmark,
        Case("operators", "squashed_gaussian, forward and backward", f"[{batch}, {ACTION_DIM}]"),
        {role: partial(with_gradients, form) for role, form in forms(mean, log_std).items()},
        check,
    )


@pytest.mark.parametrize("batch", BATCHES)
def test_normal(benchmark, batch):
    shape, key = (batch, ACTION_DIM), keys()
    race(
        benchmark,
        Case("operators", "normal", f"[{batch}, {ACTION_DIM}]"),
        {OURS: lambda: normal(shape, next(key)), "eager": lambda: torch.randn(shape)},
        lambda call: check_standard_normal(call()),
        seconds=0.5,
    )
