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


def check_log_std_bounds(bound: str, make_ours, make_theirs) -> None:
    """Agents whose policy has log_std at its bounds, or near them by tanh, and between: equal gradients and actions."""
    options = {"log_std_min": -1.0, "log_std_max": 0.5, "log_std_bound": bound}
    ours, theirs = make_ours(**options), make_theirs(**options)
    for agent in (ours, theirs):
        with torch.no_grad():
            agent.actor.log_std.weight.mul_(300)
    low, high = (-1.0, 0.5) if bound == "clamp" else (-0.7, 0.2)
    _, log_std = theirs.actor(theirs.replay_buffer.sample_batch(100, (0, 0, 0)).obs)
    for place in (log_std <= low, log_std >= high, (log_std > low) & (log_std < high)):
        assert place.float().mean() > 0.1
    check_same(ours, theirs)


def check_normalizer(make_ours, make_theirs) -> None:
    """Agents that see observations of mean 5 and deviation 3 normalised: equal gradients and actions."""
    ours, theirs = (make(normalize_obs=True, rows=1000) for make in (make_ours, make_theirs))
    rng = np.random.default_rng(2)
    obs = rng.normal(5, 3, (2000, 5))
    obs[0] = 1e6  # far beyond what is let through
    for agent in (ours, theirs):
        agent.replay_buffer.push_batch(
            obs[:1000], np.zeros((1000, 3)), np.zeros(1000), obs[1000:], np.zeros(1000, bool)
        )
    assert theirs.normalizer.scale.max() < 0.9
    check_same(ours, theirs)
    np.testing.assert_allclose(
        ours.select_action(obs[0], evaluate=True),
        theirs.select_action(obs[0], evaluate=True),
        rtol=1e-4,
        atol=1e-5,
    )


def check_same(ours: SACAgent, theirs: SACAgent) -> None:
    """Equal gradients in an update, and then equal actions, of agents of the same seed."""
    for agent in (ours, theirs):
        agent.train(1, 40)
    for name, expected in gradients(theirs.state).items():
        torch.testing.assert_close(gradients(ours.state)[name], expected, rtol=1e-4, atol=1e-6, msg=name)
    for obs in np.random.default_rng(0).normal(size=(20, 5)):
        np.testing.assert_allclose(ours.select_action(obs), theirs.select_action(obs), rtol=1e-4, atol=1e-5)


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
