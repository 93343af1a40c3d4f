"""The updates of a run: how many are due by a step, when they are made, and what the log says of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sacfast.agent import SACAgent
from sacfast.config import TrainConfig
from sacfast.diagnostics import GradientNorms, Stopwatch
from sacfast.engines import Metrics


class Learner:
    """Makes the updates that TrainConfig.updates_by asks for, after a step or beside the next one (`schedule`).

    `metrics` are the last update's; while `updating`, the agent is between one update and the next.
    """

    def __init__(self, config: TrainConfig, agent: SACAgent, stopwatch: Stopwatch) -> None:
        self.config, self.agent, self.stopwatch = config, agent, stopwatch
        self.metrics: Metrics | None = None
        self.updating = False
        self._norms: dict[str, Tensor | float | None] = {}
        self.forget_norms()

    def forget_norms(self) -> None:
        """Measure the gradients anew, for the next row of the log."""
        self._norms = dict.fromkeys(GradientNorms.names)

    @property
    def norms(self) -> dict[str, float | None]:
        """By name, what `_measure` found since the row before: None where the network had no turn yet."""
        return {name: None if norm is None else float(norm) for name, norm in self._norms.items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside the agent; `restore` is the inverse."""
        return {
            "norms": self.norms,
            "metrics": None if self.metrics is None else self.metrics.tensor.cpu().numpy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._norms = dict(state["norms"])
        if state["metrics"] is not None:
            self.metrics = Metrics(torch.from_numpy(state["metrics"]).to(self.agent.device))
            self.agent.engine.recall(self.metrics)

    def learn(self, step: int) -> None:
        """The updates that are due by `step`, unless they are for the next step to begin."""
        if self.config.schedule == "strict":
            left = self._measure(step)
            if left > 0:
                self._update(left)

    @contextmanager
    def beside(self, step: int) -> Iterator[None]:
        """Under schedule="overlap": the updates that are due by `step` run while the environments are stepped."""
        if self.config.schedule == "strict":
            yield
            return
        left = self._measure(step)
        if left <= 0:
            self.stopwatch.lap("update")
            yield
            return
        self.updating = True
        finish = self.agent.start(left)
        try:
            self.stopwatch.lap("update")
            yield
        finally:
            self.stopwatch.lap("env")
            self.metrics = finish()
            self.updating = False
            self.stopwatch.lap("update")

    def _update(self, updates: int) -> None:
        self.updating = True
        self.metrics = self.agent.train(updates)
        self.updating = False

    def _measure(self, step: int) -> int:
        """Of the updates that are due by `step` make those whose gradients the next row of the log reports, one at a
        time: the first since the row before, as a rule. Returns how many are left.
        """
        due = self.config.updates_by(step) - self.agent.training_steps
        while due > 0 and any(norm is None for norm in self._norms.values()):
            norms = GradientNorms(self.agent.state)
            self._update(1)
            self._norms |= norms.of_the_update_since()
            due -= 1
        return due
