"""The implementations that pip can install (`pip install '.[peers]'`, `'.[sbx]'`): one update, one action.

Both are given networks, settings and a buffer of the same size as ours; weights and batches are their own.
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

PACKAGES = {"sb3": "stable_baselines3", "sbx": "sbx"}
missing: set[str] = set()  # asked for, and not installed


def installed(role: str) -> bool:
    found = importlib.util.find_spec(PACKAGES[role]) is not None
    if not found:
        missing.add(role)
    return found


class Spaces(gymnasium.Env):
    """What a model asks of an environment that it never steps."""

    def __init__(self, obs_dim: int, action_dim: int):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        return np.zeros(self.observation_space.shape, np.float32), {}


def algorithm(role: str) -> tuple[type, dict[str, Any]]:
    """The class of this package's SAC, and what it takes to stay on the CPU."""
    if role == "sb3":
        from stable_baselines3 import SAC

        return SAC, {"device": "cpu"}
    from sbx import SAC

    return SAC, {}


def make(role: str, transitions: Sequence[np.ndarray], hidden: int):
    """Stable-Baselines3's or SBX's SAC with `transitions` (obs, action, reward, next_obs, terminated) in its buffer."""
    obs, action, reward, next_obs, terminated = transitions
    algorithm_class, settings = algorithm(role)
    model = algorithm_class(
        "MlpPolicy",
        Spaces(obs.shape[1], action.shape[1]),
        learning_rate=3e-4,
        buffer_size=len(obs),
        policy_kwargs={"net_arch": [hidden, hidden]},
        **settings,
    )
    from stable_baselines3.common.logger import configure

    model.set_logger(configure(None, []))
    buffer = model.replay_buffer
    buffer.observations[:, 0], buffer.actions[:, 0] = obs, action
    buffer.next_observations[:, 0] = next_obs
    buffer.rewards[:, 0], buffer.dones[:, 0] = reward, terminated
    buffer.full = True
    return model


def updater(model, batch_size: int) -> Callable[[], list[float]]:
    """One update; its losses, which waits for them to be there."""

    def update() -> list[float]:
        model.train(gradient_steps=1, batch_size=batch_size)
        values = model.logger.name_to_value
        return [float(values[f"train/{name}_loss"]) for name in ("critic", "actor")]

    return update
