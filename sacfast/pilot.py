"""Acting in training, until learning diverges, which is an error."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sacfast.agent import SACAgent
from sacfast.collector import Array
from sacfast.config import TrainConfig
from sacfast.errors import SACError
from sacfast.requirements import fits_float32


class DivergedError(SACError):
    """The policy's numbers are no longer finite: the one error after which nothing must be saved."""


class Pilot:
    """The agent's actions in a run, whose `folder` holds the checkpoints of before."""

    def __init__(self, config: TrainConfig, agent: SACAgent, folder: Path) -> None:
        self.config, self.agent, self.folder = config, agent, folder

    def act(self, observation: Array, step: int, evaluate: bool = False) -> Array:
        """Actions for observations [O] or [n, O]. Raises DivergedError for one that is not finite, except for tensors
        in training: the collector looks at these together with what comes of them, so that a GPU is awaited but once.
        """
        action: Array
        if isinstance(observation, Tensor):
            action = self.agent.act(observation, evaluate)
            if not evaluate:
                return action
        elif len(observation) == 1 and observation.ndim == 2:
            action = self.agent.select_action(observation[0], evaluate)[None]  # the fastest call of engines
        else:
            action = self.agent.select_action(observation, evaluate)
        finite = torch.isfinite(action).all() if isinstance(action, Tensor) else fits_float32(action)
        if not finite:
            first = action.reshape(-1, self.agent.action_dim)[0].tolist()
            raise self.diverged(f"the policy's action at step {step} is {first}")
        return action

    def check(self, step: int) -> None:
        """Raise DivergedError where the networks, the temperature or Adam's moments are no longer numbers."""
        state = self.agent.state
        self.agent.engine.settle(state)
        learned = {
            "actor": state.actor_params,
            "critics": state.critic_params,
            "alpha": state.log_alpha.exp(),
            # One infinite square stays in the mean for ever, and by it no step is more than 0.
            "actor_adam": state.actor_adam.exp_avg_sq,
            "critic_adam": state.critic_adam.exp_avg_sq,
        }
        if self.agent.automatic_entropy_tuning:  # a fixed temperature may be 0
            learned |= {"log_alpha": state.log_alpha, "alpha_adam": state.alpha_adam.exp_avg_sq}
        for name, weights in learned.items():
            if not torch.isfinite(weights).all():
                raise self.diverged(f"{name} at step {step} holds NaN or an infinity")

    def diverged(self, what: str) -> DivergedError:
        sac = self.config.sac
        critics = "" if sac.critic_lr is None else f", a lower --critic-lr than {sac.critic_lr:g}"
        return DivergedError(
            f"{what}: training diverged; start again with a lower --lr than {sac.lr:g}{critics} or smaller rewards "
            f"(checkpoints in {self.folder} are older)."
        )
