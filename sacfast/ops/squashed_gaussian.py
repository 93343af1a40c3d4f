"""Sampling from SAC's policy: a squashed Gaussian, with its log-density and gradients, each in one pass."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sacfast import native
from sacfast.errors import SACError
from sacfast.ops.checks import check_one_device, refusal
from sacfast.ops.philox import Key, as_key, check_draw, normal_reference


def _check(mean: Tensor, log_std: Tensor, noise: Tensor) -> None:
    if mean.dim() != 2 or mean.shape[1] < 1:
        raise SACError(
            f"squashed_gaussian: mean has shape {list(mean.shape)}; expected [B, A] with A at least 1"
        )
    if not mean.dtype.is_floating_point:
        raise SACError(f"squashed_gaussian: mean is {mean.dtype}; expected a floating dtype")
    for name, tensor in (("log_std", log_std), ("noise", noise)):
        if tensor.shape != mean.shape or tensor.dtype != mean.dtype or tensor.device != mean.device:
            raise SACError(
                f"squashed_gaussian: {name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; "
                f"expected {mean.dtype} {list(mean.shape)} on {mean.device} like mean"
            )


def squashed_gaussian_reference(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Sample a = tanh(u), u = mean + exp(log_std) * noise, with its log-density.

    log pi = sum_i [log N(u_i) - log(1 - a_i^2)]   (SAC, arXiv:1801.01290, eq. 21) The last term is evaluated
    as 2 (log 2 - u - softplus(-2u)): in float32 the literal form loses every digit, then reaches log(0),
    beyond about |u| = 9. Because u - mean = std * noise, log N(u) needs no subtraction.

    mean, log_std, noise: [B, A], any one floating dtype. Returns action [B, A], log_prob [B] in nats.
    """
    _check(mean, log_std, noise)
    u = mean + torch.exp(log_std) * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    # softplus(x) = x beyond `threshold`; its default, 20, would cost float64 two thirds of its digits.
    log_slope = 2.0 * (math.log(2) - u - F.softplus(-2.0 * u, threshold=40.0))
    return torch.tanh(u), (log_normal - log_slope).sum(dim=1)


def squashed_gaussian(
    mean: Tensor, log_std: Tensor, *, key: Key | None = None, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sample a = tanh(mean + exp(log_std) * noise) and its log-density in one pass
    (squashed_gaussian_reference).

    mean, log_std [B, A]; exactly one of `noise` [B, A], standard normal, and `key`, from which it is drawn:
    an int64 tensor [3] as random_key makes it, or three integers (seed, stream, step). Returns action [B, A],
    log_prob [B]. Gradients flow to mean and log_std, not to noise, and natively not twice: double backward raises.

    float32 and float64 are native; other dtypes take the reference. Under autocast all are taken as float32. Raises
    SACError for shapes, dtypes or devices that do not fit together.
    """
    if (key is None) == (noise is None):
        raise SACError("squashed_gaussian: pass exactly one of key and noise")
    if key is not None and not isinstance(key, Tensor):
        key = as_key(key, mean.device)
    if mean.device.type != "meta" and torch.is_autocast_enabled(mean.device.type):
        mean, log_std, noise = mean.float(), log_std.float(), noise if noise is None else noise.float()
    dtype = mean.dtype
    if (dtype is torch.float32 or dtype is torch.float64) and native.available(mean.device.type):
        try:
            if noise is not None:
                return torch.ops.sacfast.squashed_gaussian.default(mean, log_std, noise)
            action, log_prob, _ = torch.ops.sacfast.squashed_gaussian_key.default(mean, log_std, key)
            return action, log_prob
        except (ValueError, NotImplementedError) as error:
            raise refusal(error) from None
    if noise is None:
        assert key is not None
        check_draw(key, mean.numel(), mean.device)
        noise = normal_reference(mean.shape, key, dtype)
    return squashed_gaussian_reference(mean, log_std, noise.detach())


def _register() -> None:
    @torch.library.register_fake("sacfast::squashed_gaussian")
    def _(mean, log_std, noise):
        _check(mean, log_std, noise)
        return mean.new_empty(mean.shape), mean.new_empty(mean.shape[:1])

    @torch.library.register_fake("sacfast::squashed_gaussian_key")
    def _(mean, log_std, key):
        check_one_device("squashed_gaussian", [mean, log_std, key])
        return mean.new_empty(mean.shape), mean.new_empty(mean.shape[:1]), mean.new_empty(mean.shape)

    @torch.library.register_fake("sacfast::squashed_gaussian_backward")
    def _(grad_action, grad_log_prob, mean, log_std, noise):
        check_one_device("squashed_gaussian", [grad_action, grad_log_prob, mean, log_std, noise])
        return mean.new_empty(mean.shape), mean.new_empty(mean.shape)


native.on_load(_register)
