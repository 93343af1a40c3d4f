"""The Engine protocol: one SAC update on a SACState, from an explicit batch or straight from a replay buffer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sacfast.config import SACConfig
from sacfast.errors import SACError
from sacfast.ops import Stream, normal
from sacfast.replay import Batch, ReplayBuffer
from sacfast.state import SACState


@dataclass(frozen=True)
class Noise:
    """Standard normals of one update: next_action [B, A] for a' ~ pi(s'), action [B, A] for a ~ pi(s)."""

    next_action: Tensor
    action: Tensor

    @classmethod
    def draw(cls, state: SACState, batch_size: int) -> "Noise":
        """The noise that belongs to update `state.step`: the same numbers in every engine, on every device."""
        shape = (batch_size, state.action_dim)
        return cls(
            normal(shape, state.key(Stream.NEXT_ACTION)),
            normal(shape, state.key(Stream.ACTION)),
        )


@dataclass(frozen=True, eq=False)
class Metrics(Mapping[str, Tensor]):
    """The seven numbers of one update, by name, in one float32 tensor [7] that stays on the device.

    `metrics["alpha"]` is a 0-d tensor; `as_dict()` makes Python numbers of all, with a single synchronisation.
    """

    tensor: Tensor
    names: ClassVar[tuple[str, ...]] = (
        "critic_loss",
        "actor_loss",
        "alpha_loss",
        "alpha",
        "q1_mean",
        "q2_mean",
        "log_prob_mean",
    )

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.tensor[self.names.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def as_dict(self) -> dict[str, float]:
        return dict(zip(self.names, self.tensor.tolist(), strict=True))


class Engine(ABC):
    """How an update is computed. Engines hold no learned state, so they can be swapped in the middle of a run.

    config: the hyper-parameters, with target_entropy resolved to a number.
    name: what a person is told about the engine in use.
    """

    name: str

    def __init__(self, config: SACConfig):
        if config.target_entropy is None:
            raise SACError("an engine needs target_entropy as a number; SACAgent takes -A for None")
        self.config = config
        self.target_entropy = config.target_entropy

    @abstractmethod
    def update(self, state: SACState, batch: Batch, noise: Noise | None = None) -> Metrics:
        """One SAC update of `state`, in place. Without `noise` it is drawn from the state's own key."""

    def train(self, state: SACState, buffer: ReplayBuffer, batch_size: int, updates: int = 1) -> Metrics:
        """`updates` updates, each on a fresh batch drawn with the state's key. Returns the last one's metrics."""
        if updates < 1:
            raise SACError(f"updates must be at least 1, not {updates}")
        for _ in range(updates):
            metrics = self.update(state, buffer.sample_batch(batch_size, state.key(Stream.BATCH)))
        return metrics


def check_inputs(state: SACState, batch: Batch, noise: Noise) -> None:
    """Raise SACError if a tensor of `batch` or `noise` has not the shape, dtype or device that `state` asks for."""
    size, obs_dim, action_dim = len(batch.reward), state.obs_dim, state.action_dim
    expected = {
        "batch.obs": (batch.obs, (size, obs_dim)),
        "batch.action": (batch.action, (size, action_dim)),
        "batch.reward": (batch.reward, (size,)),
        "batch.next_obs": (batch.next_obs, (size, obs_dim)),
        "batch.terminated": (batch.terminated, (size,)),
        "noise.next_action": (noise.next_action, (size, action_dim)),
        "noise.action": (noise.action, (size, action_dim)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise SACError(f"{name} has shape {list(tensor.shape)}; this agent needs {list(shape)}")
        if tensor.dtype != torch.float32 or tensor.device != state.device:
            raise SACError(
                f"{name} is {tensor.dtype} on {tensor.device}; this agent needs torch.float32 on {state.device}"
            )
    if size == 0:
        raise SACError("the batch is empty: an update needs at least one transition")
