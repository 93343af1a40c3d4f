"""Running mean and variance of the observations, by which networks see them on a scale of about one.

The replay buffer holds raw observations; engines normalise a batch when they draw it, an observation when they act
on it, always with the statistics of that moment. Stored normalised instead, early transitions would keep the poor
statistics of their time for as long as they live, and one observation would mean two things to the critics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacfast import native
from sacfast.errors import SACError
from sacfast.ops.put import can_put, put
from sacfast.replay import Batch
from sacfast.replay.transition import MomentsWriter

CLIP = 10.0  # standard deviations; larger values are clipped to it


class ObservationNormalizer:
    """x -> clip((x - mean) / sqrt(variance + epsilon), -10, 10), float32, by the statistics of what `update` has seen.

    epsilon: at least 1e-16, so that a constant entry becomes zero; 1 keeps what varies little from being magnified.

    Batches are merged by Chan's formula (Chan, Golub & LeVeque 1979; Welford's for single observations) in float64:
    sums of squares, which cancel, do not occur. Before the first update it only clips.
    """

    def __init__(self, obs_dim: int, device: torch.device | str = "cpu", epsilon: float = 1e-8) -> None:
        self.count, self.epsilon = 0, epsilon
        # On the device that the last observations came from, because a GPU is slow at a few numbers from elsewhere.
        self.mean = torch.zeros(obs_dim, dtype=torch.float64, device="cpu")
        self.squares = torch.zeros_like(self.mean)  # sum over observations of (x - mean)^2
        # What native code reads, in place for as long as the normalizer lives.
        self.shift = torch.zeros(obs_dim, dtype=torch.float32, device=device)
        self.scale = torch.ones_like(self.shift)
        self._writer: MomentsWriter | None = None
        self._addresses: tuple[int, ...] = ()  # of the four tensors that it was made for
        self._in_place = False  # it writes to shift and scale themselves

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse, for what native code reads and writes, a tensor of another type or shape, with SACError."""
        old = self.__dict__.get(name)
        if isinstance(old, Tensor):
            fits = isinstance(value, Tensor) and (value.dtype, value.shape) == (old.dtype, old.shape)
            if not fits or not value.is_contiguous():
                raise SACError(
                    f"the normalizer's {name} is {old.dtype} {list(old.shape)}; write into it, with copy_, what it is "
                    "to be"
                )
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without what knows this normalizer's own memory."""
        return self.__dict__ | {"_writer": None}

    def update(self, obs: np.ndarray | Tensor) -> None:
        """Take n observations [n, O] into the statistics, where they are: nothing waits for a GPU that holds them.

        Raises SACError for another shape.
        """
        if obs.ndim != 2 or obs.shape[1:] != self.mean.shape:
            raise SACError(
                f"observations of shape {list(obs.shape)}; the normalizer takes [n, {len(self.mean)}]"
            )
        where = obs.device if isinstance(obs, Tensor) else torch.device("cpu")
        if self.mean.device != where:
            self.mean, self.squares = self.mean.to(where), self.squares.to(where)
        n = len(obs)
        if n == 0:
            return
        if n == 1 and isinstance(obs, np.ndarray) and native.available():
            self._update_by_one(obs[0])
            return
        total_mean, total_squares = _plain(self.mean), _plain(self.squares)
        x = _plain(obs.double()) if isinstance(obs, Tensor) else np.asarray(obs, np.float64)
        mean = x.sum(0) / n
        delta, total = mean - total_mean, self.count + n
        total_mean += delta * (n / total)
        apart = delta**2 * (self.count * n / total)
        total_squares += ((x - mean) ** 2).sum(0) + apart
        self.count = total
        self._refresh()

    def _update_by_one(self, obs: np.ndarray) -> None:
        writer, results = self._writer, (self.shift, self.scale)
        addresses = tuple(each.data_ptr() for each in (self.mean, self.squares, *results))
        if writer is None or addresses != self._addresses:  # multiprocessing moves what it shares
            self._addresses = addresses
            device = self.shift.device
            self._in_place = device.type == "cpu" and not can_put(device, 2 * len(self.shift))
            arrays = [each.numpy() if self._in_place else np.zeros(len(each), np.float32) for each in results]
            writer = self._writer = MomentsWriter(self.mean, self.squares, self.epsilon, *arrays)
        writer.add(obs, self.count)
        self.count += 1
        if not self._in_place:
            _write(results, (writer.shift, writer.scale))

    def _refresh(self) -> None:
        if self.count == 0:
            self.shift.zero_()
            self.scale.fill_(1.0)
        else:
            shift = _plain(self.mean)
            scale = 1 / (_plain(self.squares) / self.count + self.epsilon) ** 0.5
            _write((self.shift, self.scale), (shift, scale))

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


def _plain(tensor: Tensor) -> Any:
    """The CPU's numbers as an array that shares them, which for so few is faster."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _write(tensors: Sequence[Tensor], values: Sequence[Any]) -> None:
    """Each of the values, all arrays or all tensors, into its tensor; nothing waits for a GPU."""
    device = tensors[0].device
    if isinstance(values[0], np.ndarray) and can_put(device, sum(map(len, values))):
        put([(tensor, 0, value.astype(np.float32)) for tensor, value in zip(tensors, values, strict=True)])
        return
    for tensor, value in zip(tensors, values, strict=True):
        if isinstance(value, Tensor):
            tensor.copy_(value)
        elif device.type == "cpu":
            tensor.numpy()[:] = value
        else:  # so few bytes have been read when this returns
            tensor.copy_(torch.from_numpy(value.astype(np.float32)), non_blocking=True)
