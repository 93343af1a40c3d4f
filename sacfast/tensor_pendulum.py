"""Gymnasium's Pendulum-v1, any number of them at once, in torch on any device: an example for environments of your own.

What training needs of an environment whose observations are tensors is here and no more: num_envs, the two spaces of
a single environment, metadata["autoreset_mode"], reset and step. Nothing below waits for the device.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

MAX_SPEED, MAX_TORQUE, DT, GRAVITY, MASS, LENGTH = 8.0, 2.0, 0.05, 10.0, 1.0, 1.0


class TensorPendulum(VectorEnv):
    """N pendulums to be swung up: observations [N, 3] (cos angle, sin angle, rad/s), actions [N, 1] in N m.

    The dynamics and rewards are those of gymnasium.envs.classic_control.PendulumEnv. An episode is truncated after
    `time_limit` steps and never terminates; the next one begins in the same step, and the last observation of the
    old one is info["final_obs"] [N, 3], to be read where info["_final_obs"] [N] is true.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # type: ignore[misc]

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", time_limit: int = 200) -> None:
        self.num_envs, self.device, self.time_limit = num_envs, torch.device(device), time_limit
        limit = np.array([1.0, 1.0, MAX_SPEED], np.float32)
        self.single_observation_space = Box(-limit, limit)
        self.single_action_space = Box(-MAX_TORQUE, MAX_TORQUE, (1,))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generator = torch.Generator(self.device)
        self.angle, self.speed = self._start()
        self.elapsed = torch.zeros(num_envs, dtype=torch.int64, device=self.device)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        if seed is not None:
            self._generator.manual_seed(seed)
        self.angle, self.speed = self._start()
        self.elapsed = torch.zeros_like(self.elapsed)
        return self._obs(), {}

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        torque = actions[:, 0].clamp(-MAX_TORQUE, MAX_TORQUE)
        off_upright = torch.remainder(self.angle + math.pi, 2 * math.pi) - math.pi
        reward = -(off_upright.square() + 0.1 * self.speed.square() + 0.001 * torque.square())
        acceleration = 1.5 * GRAVITY / LENGTH * self.angle.sin() + 3.0 / (MASS * LENGTH**2) * torque
        self.speed = (self.speed + acceleration * DT).clamp(-MAX_SPEED, MAX_SPEED)
        self.angle = self.angle + self.speed * DT
        self.elapsed = self.elapsed + 1
        truncated = self.elapsed >= self.time_limit
        info = {"final_obs": self._obs(), "_final_obs": truncated}
        angle, speed = self._start()
        self.angle, self.speed = (
            torch.where(truncated, angle, self.angle),
            torch.where(truncated, speed, self.speed),
        )
        self.elapsed = self.elapsed.masked_fill(truncated, 0)
        return self._obs(), reward, torch.zeros_like(truncated), truncated, info

    def _start(self) -> tuple[Tensor, Tensor]:
        """Angles in [-pi, pi] and speeds in [-1, 1], uniform."""
        unit = torch.empty((2, self.num_envs), dtype=torch.float32, device=self.device)
        unit.uniform_(-1, 1, generator=self._generator)
        return unit[0] * math.pi, unit[1]

    def _obs(self) -> Tensor:
        return torch.stack([self.angle.cos(), self.angle.sin(), self.speed], dim=1)
