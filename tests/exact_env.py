"""An environment of which every transition is known, a torch front of a vector of them, and what they yield."""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorWrapper

from sacfast.collector import episode_seed


def length(index, episode):
    """Of each episode, so that ends fall together in some steps and apart in others."""
    return 2 + (2 * index + episode) % 4


def terminates(index, episode):
    return (index + episode) % 2 == 0


class Exact(gymnasium.Env):
    """Observation (index, episode, t, last action), reward 100 index + 10 episode + t.

    `fault` (a function of the results) strikes in step `fault_at` of environment `fault_in`.
    """

    observation_space = Box(-np.inf, np.inf, (4,), np.float64)
    action_space = Box(-5.0, 5.0, (1,))

    def __init__(self, index=0, fault=None, fault_at=7, fault_in=1):
        self.index, self.episode, self.steps, self.seeds = index, -1, 0, []
        self.fault, self.fault_at = fault if index == fault_in else None, fault_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode, self.t = self.episode + 1, 0
        return self.obs(0.0), {"noise": self.np_random.random()}

    def step(self, action):
        assert 0 <= self.t < length(self.index, self.episode), "stepped past the end of an episode"
        self.t, self.steps = self.t + 1, self.steps + 1
        ended = self.t == length(self.index, self.episode)
        stop = terminates(self.index, self.episode)
        results = self.obs(action[0]), self.reward(), ended and stop, ended and not stop, {"t": self.t}
        action[:] = 99  # what was passed in is ours to spoil
        return self.fault(*results) if self.fault and self.steps == self.fault_at else results

    def obs(self, action):
        return np.array([self.index, self.episode, self.t, action], np.float64)

    def reward(self):
        return 100.0 * self.index + 10.0 * self.episode + self.t


def expected_rows(index, count):
    """The first `count` transitions of environment `index` as (episode, t, reward, terminated)."""
    rows, episode = [], 0
    while len(rows) < count:
        last = length(index, episode)
        for t in range(1, last + 1):
            rows.append(
                (episode, t, 100 * index + 10 * episode + t, t == last and terminates(index, episode))
            )
        episode += 1
    return rows[:count]


def makers(count, **faults):
    return [lambda i=i: Exact(i, **faults) for i in range(count)]


class Torch(VectorWrapper):
    """A vector of arrays as one of tensors that writes into the same memory at every step, as simulators do."""

    def reset(self, *, seed=None, options=None):
        if options is not None:
            options = {"reset_mask": options["reset_mask"].numpy()}
        obs, _ = self.env.reset(seed=seed, options=options)
        self.obs = torch.as_tensor(obs, dtype=torch.float32).clone()
        return self.obs, {}

    def step(self, actions):
        obs, reward, terminated, truncated, info = self.env.step(actions.numpy())
        result = {}
        if "final_obs" in info:
            final = torch.zeros_like(self.obs)
            for i in np.flatnonzero(info["_final_obs"]):
                final[i] = torch.as_tensor(info["final_obs"][i])
            result = {"final_obs": final, "_final_obs": torch.as_tensor(info["_final_obs"])}
        self.obs.copy_(torch.as_tensor(obs))
        return self.obs, *(torch.as_tensor(x) for x in (reward, terminated, truncated)), result


MODES = list(AutoresetMode)

STEPS, COUNT = 40, 3  # what `collect` takes, of so many environments


def seeds(env, episode):
    return episode_seed(0, episode, env)


def collect(collector, steps=STEPS):
    """Everything that `steps` steps yield, with actions that tell the steps and environments apart."""
    rows, ended = [], []
    for step in range(steps):
        action = np.array([[step / 10 + 0.01 * i] for i in range(collector.num_envs)], np.float32)
        if isinstance(collector.obs, torch.Tensor):
            action = torch.from_numpy(action)
        new, episodes = collector.step(action, len(rows))
        columns = (new.obs[:, 0], new.obs, new.action, new.reward, new.next_obs, new.terminated)
        rows += list(zip(*(np.asarray(column).tolist() for column in columns), strict=True))
        ended += episodes
    return rows, ended
