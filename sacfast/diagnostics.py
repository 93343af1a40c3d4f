"""What a row of the log says beside the losses: where the time goes, and whether learning is in good health."""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from sacfast.state import BETA1, SACState

STAGES = ("act", "env", "insert", "update", "log")
SATURATED = 0.99  # of the way to a bound


class Stopwatch:
    """Time of the training loop, by stage: `lap` books what has passed since the lap before. `elapsed_s` is all that
    was booked, and what was before.
    """

    def __init__(self, elapsed_s: float = 0.0) -> None:
        self.elapsed_s = elapsed_s
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._last = perf_counter()

    def lap(self, stage: str) -> None:
        now = perf_counter()
        self._seconds[stage] += now - self._last
        self.elapsed_s += now - self._last
        self._last = now

    def skip(self) -> None:
        """Leave the time since the last lap out."""
        self._last = perf_counter()

    def shares(self) -> dict[str, float]:
        """Each stage's share of the time since the last call, as time_act and so on; their sum is 1."""
        total = sum(self._seconds.values()) or 1.0
        shares = {f"time_{stage}": seconds / total for stage, seconds in self._seconds.items()}
        self._seconds = dict.fromkeys(STAGES, 0.0)
        return shares


class GradientNorms:
    """L2 norms of the critics' and the actor's gradients in one update, whichever engine makes it.

    Adam's first moment is m_t = beta1 m_{t-1} + (1 - beta1) g_t (arXiv:1412.6980, algorithm 1), so that two of them
    tell g_t. Make one, update once, and ask.
    """

    names = ("critic_grad_norm", "actor_grad_norm")

    def __init__(self, state: SACState) -> None:
        self._adams = (state.critic_adam, state.actor_adam)
        self._before = [(adam.step, adam.exp_avg.clone()) for adam in self._adams]

    def of_the_update_since(self) -> dict[str, Tensor]:
        """By name, 0-d tensors on the state's device; without the actor's where it had no turn."""
        return {
            name: torch.linalg.vector_norm(adam.exp_avg - BETA1 * moment) / (1 - BETA1)
            for name, adam, (step, moment) in zip(self.names, self._adams, self._before, strict=True)
            if adam.step > step
        }


def saturation(actions: Tensor) -> float | None:
    """The share of numbers in `actions` [n, A], in units of [-1, 1], beyond 0.99 either way; None without any."""
    return None if actions.numel() == 0 else (actions.abs() > SATURATED).float().mean().item()
