"""Running mean and variance of the observations, by which networks see them on a scale of about one.

The replay buffer holds raw observations; engines normalise a batch when they draw it, an observation when they act
on it, always with the statistics of that moment. Stored normalised instead, early transitions would keep the poor
statistics of their time for as long as they live, and one observation would mean two things to the critics.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacfast.replay import Batch

CLIP = 10.0  # standard deviations; beyond them an observation says no more than that it is far out
MIN_VARIANCE = 1e-8  # a constant entry becomes zero, not infinite


class ObservationNormalizer:
    """x -> clip((x - mean) / sqrt(variance + 1e-8), -10, 10), float32, by the statistics of what `update` has seen.

    Batches are merged by Chan's formula (Chan, Golub & LeVeque 1979; Welford's for single observations) in float64:
    sums of squares, which cancel, do not occur. Before the first update it changes nothing.
    """

    def __init__(self, obs_dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(obs_dim, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.mean)  # sum over observations of (x - mean)^2
        # What native code reads, in place for as long as the normalizer lives.
        self.shift = torch.zeros(obs_dim, device=device)
        self.scale = torch.ones_like(self.shift)
        self._share()

    def update(self, obs: np.ndarray | Tensor) -> None:
        """Take n observations [n, O] into the statistics."""
        if self.mean.device.type == "cpu" and not isinstance(obs, Tensor):
            x = np.asarray(obs, np.float64)
        else:
            x = self._plain(torch.as_tensor(obs, dtype=torch.float64, device=self.mean.device))
        n = len(x)
        if n == 0:
            return
        mean = x.sum(0) / n
        delta, total = mean - self._mean, self.count + n
        self._mean += delta * (n / total)
        self._squares += ((x - mean) ** 2).sum(0) + delta**2 * (self.count * n / total)
        self.count = total
        self._refresh()

    def _refresh(self) -> None:
        self._shift[:] = self._mean
        self._scale[:] = (self._squares / self.count + MIN_VARIANCE) ** -0.5 if self.count else 1.0

    def _share(self) -> None:
        self._mean, self._squares, self._shift, self._scale = map(
            self._plain, (self.mean, self.squares, self.shift, self.scale)
        )

    @staticmethod
    def _plain(tensor: Tensor) -> Any:
        """The CPU's numbers as an array that shares them: for a single observation NumPy is three times as fast."""
        return tensor.numpy() if tensor.device.type == "cpu" else tensor

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._share()

    def __call__(self, obs: Any) -> Any:
        """[..., O] normalised, float32: a tensor on its own device for a tensor, an array for an array."""
        if isinstance(obs, Tensor):
            normal = (obs.float() - self.shift.to(obs.device)) * self.scale.to(obs.device)
            return normal.clamp(-CLIP, CLIP)
        normal = (np.asarray(obs, np.float32) - self.shift.cpu().numpy()) * self.scale.cpu().numpy()
        return np.clip(normal, -CLIP, CLIP)

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Copies of what is subtracted and divided by, float32 [O] each, for a policy that leaves the agent."""
        return self.shift.clone(), self.scale.reciprocal()

    def batch(self, batch: Batch) -> Batch:
        return dataclasses.replace(batch, obs=self(batch.obs), next_obs=self(batch.next_obs))

    def named_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, with `count`, as live tensors."""
        return {"mean": self.mean, "squares": self.squares}

    def restore(self, tensors: dict[str, Tensor], count: int) -> None:
        """The inverse: take over the tensors, by name, and the count of a checkpoint."""
        for name, tensor in self.named_tensors().items():
            tensor.copy_(tensors[name])
        self.count = int(count)
        self._refresh()
