"""A state, its layers and what it learns from, as the structs of abi.py that native code is called with."""

import torch
from torch import Tensor

from sacfast.engines import abi
from sacfast.errors import SACError
from sacfast.ops import Stream
from sacfast.state import Layer, SACState, parameters_of


def layer_specs(layers: tuple[Layer, ...]) -> tuple[abi.LayerSpec, ...]:
    return tuple(abi.LayerSpec(x.weight_offset, x.bias_offset, x.outputs, x.inputs) for x in layers)


def log_std_bounds(state: SACState) -> tuple[float, float, bool]:
    """Of abi.LogStdBounds."""
    actor = state.actor
    return actor.log_std_min, actor.log_std_max, actor.log_std_bound == "tanh"


def state_pointers(state: SACState) -> abi.StatePointers:
    tensors = (
        state.actor_params,
        state.critic_params,
        state.critic_target_params,
        state.log_alpha,
        state.actor_adam.exp_avg,
        state.actor_adam.exp_avg_sq,
        state.critic_adam.exp_avg,
        state.critic_adam.exp_avg_sq,
        state.alpha_adam.exp_avg,
        state.alpha_adam.exp_avg_sq,
    )
    return abi.StatePointers(
        *(tensor.data_ptr() for tensor in tensors),
        state.seed,
        state.step,
        state.actor_adam.step,
        state.critic_adam.step,
        state.alpha_adam.step,
    )


def obs_statistics(state: SACState) -> abi.ObsStatistics:
    """Raises SACError for a normalizer that is not for this state."""
    normalizer = state.normalizer
    if normalizer is None:
        return abi.ObsStatistics()
    shift, scale = normalizer.shift, normalizer.scale
    if shift.get_device() != state.actor_params.get_device() or shift.numel() != state.obs_dim:
        raise SACError(
            f"state.normalizer is for {len(shift)} numbers on {shift.device}; this agent needs "
            f"ObservationNormalizer({state.obs_dim}, device={str(state.device)!r})"
        )
    return abi.ObsStatistics(shift.data_ptr(), scale.data_ptr())


def policy_spec(state: SACState, low: int, high: int) -> abi.PolicySpec:
    """Of the actor, with the addresses of the bounds of actions."""
    return abi.PolicySpec(
        state.obs_dim,
        state.action_dim,
        len(state.actor_layers) - 2,
        layer_specs(state.actor_layers),
        log_std_bounds(state),
        low,
        high,
    )


def policy_call(n: int, obs: int, action: int) -> abi.PolicyCall:
    """For n observations at the address `obs`; aim_policy_call fills in the rest at every call."""
    return abi.PolicyCall(n=n, obs=obs, action=action, stream=Stream.EXPLORE)


def aim_policy_call(call: abi.PolicyCall, state: SACState, evaluate: bool) -> None:
    """Fill in where the state stands. Raises SACError where the actor as a whole, its first layer or a
    head was moved or replaced (what else was, the next update finds), and for a normalizer that is not for this state.
    """
    call.params, call.statistics = state.actor_params.data_ptr(), obs_statistics(state)
    call.seed, call.step, call.deterministic = state.seed, state.action_step, evaluate
    # Three of check_network's comparisons: all of them would make an action a third slower.
    for layer in (state.actor_layers[0], *state.actor_layers[-2:]):
        weight = parameters_of(state.actor, layer).get("weight")
        if weight is None or weight.data_ptr() != call.params + 4 * layer.weight_offset:
            check_network(state, "actor")


def transitions_of(
    obs: Tensor,
    action: Tensor,
    reward: Tensor,
    next_obs: Tensor,
    terminated: Tensor | None = None,
    link: Tensor | None = None,
    **sizes: int,
) -> abi.Transitions:
    fields = (obs, action, reward, next_obs, terminated, link)
    pointers = (field if field is None else field.data_ptr() for field in fields)
    return abi.Transitions(*pointers, *(0 if field is None else field.stride(0) for field in fields), **sizes)


def take_counters(state: SACState, done: abi.StatePointers) -> None:
    state.step = done.step
    state.actor_adam.step, state.critic_adam.step = done.actor_adam_step, done.critic_adam_step
    state.alpha_adam.step = done.alpha_adam_step


def check_memory(state: SACState) -> None:
    """Raise SACError unless what is trained, and Adam's moments of it, are the float32 numbers that are expected."""
    for name in ("actor", "critic", "critic_target"):
        check_network(state, name)
    device = state.actor_params.get_device()
    _check_numbers("log_alpha", state.log_alpha, 1, device)
    for name, adam, count in (
        ("actor_adam", state.actor_adam, state.actor_params.numel()),
        ("critic_adam", state.critic_adam, state.critic_params.numel()),
        ("alpha_adam", state.alpha_adam, 1),
    ):
        _check_numbers(name, adam.exp_avg, count, device)
        _check_numbers(name, adam.exp_avg_sq, count, device)


def _check_numbers(name: str, tensor: Tensor, count: int, device: int) -> None:
    there = tensor.dtype is torch.float32 and tensor.numel() == count and tensor.is_contiguous()
    if not there or tensor.get_device() != device:
        raise SACError(
            f"state.{name} has been given {tensor.dtype} {list(tensor.shape)} on {tensor.device}; write into the "
            "tensor that was there, with copy_ or fill_, instead of replacing it"
        )


def check_network(state: SACState, name: str) -> None:
    """Raise SACError unless the parameters of this network lie where native code looks for them."""
    state.check_network(name)
    flat: Tensor = getattr(state, f"{name}_params")
    # Of which the type is left to be seen.
    _check_numbers(f"{name}_params", flat, flat.numel(), flat.get_device())
