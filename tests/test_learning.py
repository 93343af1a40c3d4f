"""The agent learns: a short run on a task whose best return is known, which a wrong sign would fail.

The task is a point on a line, obs = position, action = velocity, reward = -position^2 - 0.01 action^2, cut by a time
limit after 20 steps. The best policy walks to zero; standing still keeps the start's distance for ever. The bootstrap's
terms are held by tests/test_engines.py: this task is solved by looking one step ahead.
"""

import numpy as np
import pytest

from sacfast import SACAgent


class Line:
    """x' = x + 0.5 a, x(0) uniform in [-2, 2]."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def reset(self) -> np.ndarray:
        self.x = self.rng.uniform(-2, 2)
        return np.array([self.x])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float]:
        self.x = float(np.clip(self.x + 0.5 * action[0], -3, 3))
        return np.array([self.x]), -(self.x**2) - 0.01 * float(action[0] ** 2)


def mean_return(policy, episodes: int = 20) -> float:
    env, total = Line(seed=123), 0.0
    for _ in range(episodes):
        obs = env.reset()
        for _ in range(20):
            obs, reward = env.step(policy(obs))
            total += reward
    return total / episodes


@pytest.mark.parametrize("engine", ["reference", "auto"])
def test_learns_to_walk_to_zero(engine):
    agent = SACAgent(1, 1, 32, lr=3e-3, seed=0, engine=engine, buffer_capacity=5000)
    env, rng = Line(seed=0), np.random.default_rng(0)
    for episode in range(60):
        obs = env.reset()
        for _ in range(20):
            action = rng.uniform(-1, 1, 1) if episode < 10 else agent.select_action(obs)
            next_obs, reward = env.step(action)
            agent.replay_buffer.push(obs, action, reward, next_obs, False)
            obs = next_obs
            if episode >= 10:
                agent.train(1, 64)
    best = mean_return(lambda obs: np.clip(-2 * obs, -1, 1))
    still = mean_return(lambda obs: np.zeros(1))
    learned = mean_return(lambda obs: agent.select_action(obs, evaluate=True))
    assert best > 0.25 * still, "the task must tell the two apart"
    assert learned > best + 0.1 * (still - best)
