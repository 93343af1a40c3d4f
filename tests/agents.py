"""Agents of any shape with a filled replay buffer, and what tests of engines read off their state."""

import numpy as np
import torch

from sacfast import Batch, Noise, SACAgent
from sacfast.ops import Stream
from sacfast.state import BETA1, SACState

SMALL = (5, 3, (32, 24), 40)  # obs, action, hidden widths, batch


def make_agent(shape=SMALL, *, rows=1000, seed=1, **kwargs) -> SACAgent:
    obs_dim, action_dim, hidden, _ = shape
    options = {"engine": "reference", "seed": seed, "buffer_capacity": rows, **kwargs}
    agent = SACAgent(obs_dim, action_dim, hidden, **options)
    rng = np.random.default_rng(seed)
    agent.replay_buffer.push_batch(
        rng.normal(size=(rows, obs_dim)),
        rng.uniform(-1, 1, (rows, action_dim)),
        rng.normal(size=rows),
        rng.normal(size=(rows, obs_dim)),
        rng.random(rows) < 0.2,
    )
    return agent


def small_agent(rows=200, seed=0, hidden_dim=16, **kwargs) -> SACAgent:
    """Of the fastest engine, with room for more transitions."""
    options = {"engine": "auto", "buffer_capacity": 500, **kwargs}
    return make_agent((5, 3, hidden_dim, 32), rows=rows, seed=seed, **options)


def draw(agent: SACAgent, state: SACState, size: int) -> tuple[Batch, Noise]:
    batch = agent.replay_buffer.sample_batch(size, state.key(Stream.BATCH))
    return batch, Noise.draw(state, size)


def gradients(state: SACState) -> dict[str, torch.Tensor]:
    """By name, read off Adam's first moments after a first update."""
    found = {"log_alpha": state.alpha_adam.exp_avg / (1 - BETA1)}
    for network, layers in (("actor", state.actor_layers), ("critic", sum(state.critic_layers, ()))):
        flat = getattr(state, f"{network}_adam").exp_avg / (1 - BETA1)
        for layer in layers:
            end = layer.weight_offset + layer.outputs * layer.inputs
            found[f"{network}.{layer.name}.weight"] = flat[layer.weight_offset : end]
            found[f"{network}.{layer.name}.bias"] = flat[
                layer.bias_offset : layer.bias_offset + layer.outputs
            ]
    return found


def state_bytes(state: SACState) -> dict[str, bytes]:
    return {name: tensor.cpu().numpy().tobytes() for name, tensor in state.named_tensors()}


def same_state(a: SACAgent, b: SACAgent) -> bool:
    return state_bytes(a.state) == state_bytes(b.state) and a.state.counters() == b.state.counters()
