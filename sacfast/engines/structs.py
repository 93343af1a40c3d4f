"""A state, its layers and what it learns from, as the structs of abi.py that native code is called with."""

import torch
from torch import Tensor

from sacfast.engines import abi
from sacfast.errors import SACError
from sacfast.ops import Stream
from sacfast.state import Layer, SACState


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
    if shift.device != state.device or len(shift) != state.obs_dim:
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
    """For n observations at the address `obs`; where the state stands is filled in at every call."""
    return abi.PolicyCall(n=n, obs=obs, action=action, stream=Stream.EXPLORE)


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
    """Raise SACError unless each network's parameters, and log_alpha, are the float32 numbers that are trained."""
    if state.log_alpha.dtype != torch.float32 or state.log_alpha.device != state.actor_params.device:
        raise SACError(
            f"state.log_alpha is {state.log_alpha.dtype} on {state.log_alpha.device}; write into it, "
            "state.log_alpha.fill_(x), instead of replacing it"
        )
    first, second = state.critic_layers
    for name, network, flat, layers in (
        ("actor", state.actor, state.actor_params, state.actor_layers),
        ("critic", state.critic, state.critic_params, first + second),
        ("critic_target", state.critic_target, state.critic_target_params, first + second),
    ):
        # What network.fc1.weight finds, in a fraction of its time.
        modules, begin, there = network._modules, flat.data_ptr(), flat.dtype == torch.float32
        for layer in layers:
            parameters = modules[layer.name]._parameters  # type: ignore[union-attr]
            weight, bias = parameters["weight"], parameters["bias"]
            there = there and weight is not None and weight.data_ptr() == begin + 4 * layer.weight_offset
            there = there and bias is not None and bias.data_ptr() == begin + 4 * layer.bias_offset
        if not there:
            raise SACError(
                f"the parameters of {name} are no longer the float32 numbers of state.{name}_params: .to(), .double() "
                "or a new layer took their place; make a new agent and load the weights into it"
            )
