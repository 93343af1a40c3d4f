"""Soft Actor-Critic in PyTorch: the specification that every native engine must match. Start reading here.

Equation numbers are those of "Soft Actor-Critic Algorithms and Applications", arXiv:1812.05905.
s, a, r, s', d stand for obs, action, reward, next_obs, terminated.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sacfast.config import SACConfig
from sacfast.engines.base import Engine, Metrics, Noise, check_inputs
from sacfast.errors import SACError
from sacfast.ops import (
    polyak_update_,
    polyak_update_reference_,
    squashed_gaussian,
    squashed_gaussian_reference,
)
from sacfast.replay import Batch
from sacfast.state import SACState


class ReferenceEngine(Engine):
    """SAC by autograd. With `native_operators` the sampling and the Polyak step go through the fused operators.

    Its threads are PyTorch's own (torch.set_num_threads).
    """

    def __init__(self, config: SACConfig, native_operators: bool = False, *, threads: int | None = None):
        super().__init__(config, threads=threads)
        self.name = "autograd with native operators" if native_operators else "reference"
        if config.precision != "float32":
            raise SACError(
                f"precision={config.precision!r} needs engine='native': the {self.name} engine computes in float32"
            )
        self._native_operators = native_operators
        self._squash: Callable = squashed_gaussian if native_operators else squashed_gaussian_reference
        self._polyak_: Callable = polyak_update_ if native_operators else polyak_update_reference_
        # actor_loss, alpha_loss and the mean of log pi, of the last update that computed them
        self._actor_metrics: tuple[Tensor, ...]
        self.recall(Metrics.unknown(torch.device("cpu")))

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"native_operators": self._native_operators}

    def update(self, state: SACState, batch: Batch, noise: Noise | None = None) -> Metrics:
        noise = noise or Noise.draw(state, len(batch.reward))
        check_inputs(state, batch, noise)
        for network in ("actor", "critic", "critic_target"):
            state.check_network(network)
        with torch.autocast(state.device.type, enabled=False):  # in float32, whoever asks
            return self._update(state, batch, noise)

    def _update(self, state: SACState, batch: Batch, noise: Noise) -> Metrics:
        batch = batch if state.normalizer is None else state.normalizer.batch(batch)
        alpha = state.log_alpha.detach().exp()

        critic_loss, q1, q2 = self._critic_step(state, batch, noise, alpha)
        if state.step % self.config.actor_update_period == 0:
            actor_loss, log_prob = self._actor_step(state, batch, noise, alpha)
            alpha_loss = self._temperature_step(state, log_prob)
            self._actor_metrics = (actor_loss.detach(), alpha_loss, log_prob.mean())
        self._polyak_(state.critic_target_params, state.critic_params, self.config.tau)
        state.step += 1

        actor_loss, alpha_loss, mean_log_prob = (value.to(state.device) for value in self._actor_metrics)
        alpha = state.log_alpha.exp().squeeze(0)
        values = [critic_loss, actor_loss, alpha_loss, alpha, q1.mean(), q2.mean(), mean_log_prob]
        return Metrics(torch.stack([v.detach() for v in values]))

    def recall(self, metrics: Metrics) -> None:
        self._actor_metrics = tuple(metrics[name] for name in ("actor_loss", "alpha_loss", "log_prob_mean"))

    def policy(self, state: SACState, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """a = tanh(mean + std * noise) [B, A] and log pi(a|s) [B]   (eq. 8)."""
        mean, log_std = state.actor(obs)
        return self._squash(mean, log_std, noise=noise)

    @torch.no_grad()
    def target(self, state: SACState, batch: Batch, noise: Noise, alpha: Tensor) -> Tensor:
        """y = r + gamma (1 - d) [min_i Qbar_i(s', a') - alpha log pi(a'|s')]   [B]   (eqs. 3 and 5).

        d is terminated alone: a time limit is not a terminal state, so the target bootstraps through truncation.
        """
        next_action, next_log_prob = self.policy(state, batch.next_obs, noise.next_action)
        q1, q2 = state.critic_target(batch.next_obs, next_action)
        next_value = torch.min(q1, q2).squeeze(1) - alpha * next_log_prob
        return batch.reward + self.config.gamma * (1 - batch.terminated) * next_value

    def _critic_step(
        self, state: SACState, batch: Batch, noise: Noise, alpha: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Descend J_Q = mean (Q_1 - y)^2 + mean (Q_2 - y)^2   (eq. 5, without its factor 1/2)."""
        target = self.target(state, batch, noise, alpha)
        q1, q2 = (q.squeeze(1) for q in state.critic(batch.obs, batch.action))
        loss = F.mse_loss(q1, target) + F.mse_loss(q2, target)
        grad = flat_gradient(loss, state.critic)
        state.critic_adam.update_(state.critic_params, grad, self.config.learning_rates.critic)
        return loss, q1, q2

    def _actor_step(
        self, state: SACState, batch: Batch, noise: Noise, alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Descend J_pi = mean [alpha log pi(a|s) - min_i Q_i(s, a)], a ~ pi, with the critics just updated (eq. 9)."""
        action, log_prob = self.policy(state, batch.obs, noise.action)
        q1, q2 = state.critic(batch.obs, action)
        loss = (alpha * log_prob - torch.min(q1, q2).squeeze(1)).mean()
        grad = flat_gradient(loss, state.actor)
        state.actor_adam.update_(state.actor_params, grad, self.config.learning_rates.actor)
        return loss, log_prob.detach()

    def _temperature_step(self, state: SACState, log_prob: Tensor) -> Tensor:
        """Descend J(alpha) = -log alpha * mean [log pi(a|s) + target_entropy].

        Eq. 18 with log alpha in the place of alpha, as in the authors' own code: the same sign and root,
        and alpha stays positive.
        """
        if not self.config.automatic_entropy_tuning:
            return log_prob.new_zeros(())
        grad = -(log_prob + self.target_entropy).mean()
        loss = (state.log_alpha * grad).squeeze(0)
        state.alpha_adam.update_(state.log_alpha, grad.view(1), self.config.learning_rates.alpha)
        return loss


def flat_gradient(loss: Tensor, module: nn.Module) -> Tensor:
    """d loss / d parameters of `module`, concatenated in the order of its flat buffer: [P]."""
    grads = torch.autograd.grad(loss, list(module.parameters()))
    return torch.cat([g.reshape(-1) for g in grads])
