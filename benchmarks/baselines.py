"""What PyTorch users write instead of our operators and engines: the usual way, and as fast as it goes.

The usual form is that of the notebook and CleanRL, and of Stable-Baselines3 but for the Polyak update, which that does
in place. The `_eager` forms are the fastest that we know how to write by hand; torch.compile is applied to those.
"""

import math
import runpy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from sacfast.config import SACConfig
from sacfast.state import SACState

OBS_DIM, ACTION_DIM = 23, 7  # Pusher-v5
NOTEBOOK = Path(__file__).resolve().parent.parent / "tests" / "notebook" / "original.py"


def notebook_classes() -> dict[str, Any]:
    """The notebook's own classes, by name."""
    return runpy.run_path(str(NOTEBOOK))


# ---------------------------------------------------------------------------------------- squashed_gaussian


def squashed_gaussian_usual(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
    normal = Normal(mean, log_std.exp())
    u = normal.rsample()
    action = torch.tanh(u)
    log_prob = normal.log_prob(u)
    log_prob = log_prob - torch.log(1 - action.pow(2) + 1e-6)
    return action, log_prob.sum(1)


def squashed_gaussian_eager(
    mean: Tensor, log_std: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As few passes over [B, A] as the formula allows: constants are added to [B] instead."""
    noise = torch.randn_like(mean) if noise is None else noise
    u = torch.addcmul(mean, log_std.exp(), noise)
    terms = 2 * (u + F.softplus(-2 * u)) - log_std
    constant = mean.shape[1] * (0.5 * math.log(2 * math.pi) + 2 * math.log(2))
    return torch.tanh(u), torch.addcmul(terms, noise, noise, value=-0.5).sum(1) - constant


# ------------------------------------------------------------------------------------------- polyak_update_


def polyak_usual(target: Sequence[Tensor], source: Sequence[Tensor], tau: float) -> None:
    for param, target_param in zip(source, target, strict=True):
        target_param.data.copy_(tau * param.data + (1 - tau) * target_param.data)


@torch.no_grad()
def polyak_eager(target: Sequence[Tensor], source: Sequence[Tensor], tau: float) -> None:
    torch._foreach_lerp_(target, source, tau)


# -------------------------------------------------------------------------------------------- replay_sample


def sample_usual(storage: Sequence[np.ndarray], batch_size: int) -> tuple[list[Tensor], Tensor]:
    """NumPy storage and fancy indexing, a tensor per field."""
    indices = np.random.randint(0, len(storage[0]), size=batch_size)
    return [torch.from_numpy(field[indices]) for field in storage], torch.from_numpy(indices)


def sample_eager(storage: Sequence[Tensor], batch_size: int) -> tuple[list[Tensor], Tensor]:
    indices = torch.randint(len(storage[0]), (batch_size,), device=storage[0].device)
    return [field.index_select(0, indices) for field in storage], indices


# ----------------------------------------------------------------------------------------------- the update


def critics_forward(params: Sequence[Tensor], obs: Tensor, action: Tensor) -> Tensor:
    """Both critics as one batched product per layer: [2, B]."""
    w1, b1, w2, b2, w3, b3 = params
    x = torch.cat([obs, action], 1).expand(2, -1, -1)
    x = torch.baddbmm(b1, x, w1).relu()
    x = torch.baddbmm(b2, x, w2).relu()
    return torch.baddbmm(b3, x, w3).squeeze(2)


def actor_forward(params: Sequence[Tensor], obs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log_std from one head: [B, A] each."""
    w1, b1, w2, b2, w3, b3 = params
    x = F.linear(obs, w1, b1).relu()
    x = F.linear(x, w2, b2).relu()
    mean, log_std = F.linear(x, w3, b3).chunk(2, 1)
    return mean, log_std.clamp(-20.0, 2.0)


class HandWrittenSAC:
    """SAC as an expert would write it for speed in plain PyTorch.

    Batched twin critics, fused Adam, tensor replay, no gradient that is not needed, nothing read back. Starts
    from `state`'s weights, on their device; `compiled` compiles the losses, their gradients and the target. On CUDA
    `train` can be captured into a graph (GraphedSAC).
    """

    def __init__(
        self, state: SACState, config: SACConfig, storage: Sequence[Tensor], *, compiled: bool = False
    ):
        self.config, self.storage = config, storage
        self.actor = [p.detach().clone().requires_grad_() for p in _actor_parameters(state.actor)]
        self.critic = [p.clone().requires_grad_() for p in _critic_parameters(state.critic)]
        self.frozen_critic = [p.detach() for p in self.critic]  # shares memory, asks for no gradient
        self.target_critic = [p.clone() for p in self.frozen_critic]
        self.log_alpha = state.log_alpha.clone().requires_grad_()
        options = {"lr": config.lr, "fused": True, "capturable": state.device.type == "cuda"}
        self.critic_adam = torch.optim.Adam(self.critic, **options)
        self.policy_adam = torch.optim.Adam([*self.actor, self.log_alpha], **options)
        wrap: Callable = partial(torch.compile, dynamic=False) if compiled else lambda function: function
        self._target_values = wrap(target_values)
        self._critic_loss = wrap(critic_loss)
        self._actor_loss = wrap(actor_loss)

    def train(self, batch_size: int) -> tuple[Tensor, Tensor]:
        return self.update(*sample_eager(self.storage, batch_size)[0])

    def update(
        self, obs, action, reward, next_obs, terminated, next_noise=None, noise=None
    ) -> tuple[Tensor, Tensor]:
        """One update; critic and actor loss, on the device."""
        next_noise = torch.randn_like(action) if next_noise is None else next_noise
        noise = torch.randn_like(action) if noise is None else noise
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            next_value = self._target_values(self.actor, self.target_critic, next_obs, next_noise, alpha)
            target = torch.addcmul(reward, 1 - terminated, next_value, value=self.config.gamma)
        q_loss = self._critic_loss(self.critic, obs, action, target)
        q_loss.backward()
        self.critic_adam.step()
        self.critic_adam.zero_grad()

        pi_loss, log_prob = self._actor_loss(self.actor, self.frozen_critic, obs, noise, alpha)
        pi_loss.backward()
        self.log_alpha.grad = -(log_prob + self.config.target_entropy).mean().view(1)
        self.policy_adam.step()
        self.policy_adam.zero_grad()
        polyak_eager(self.target_critic, self.frozen_critic, self.config.tau)
        return q_loss.detach(), pi_loss.detach()


class GraphedSAC:
    """HandWrittenSAC's update, sampling included, as one CUDA graph: the strongest baseline on a GPU."""

    WARM_UP = 5  # updates outside the graph, in which torch.compile compiles and Adam makes its state

    def __init__(self, inner: HandWrittenSAC, batch_size: int):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self.WARM_UP):
                inner.train(batch_size)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.losses = inner.train(batch_size)

    def train(self) -> tuple[Tensor, Tensor]:
        self.graph.replay()
        return self.losses


def target_values(
    actor: Sequence[Tensor], critic: Sequence[Tensor], obs: Tensor, noise: Tensor, alpha: Tensor
) -> Tensor:
    action, log_prob = squashed_gaussian_eager(*actor_forward(actor, obs), noise)
    return critics_forward(critic, obs, action).amin(0) - alpha * log_prob


def critic_loss(params: Sequence[Tensor], obs: Tensor, action: Tensor, target: Tensor) -> Tensor:
    return (critics_forward(params, obs, action) - target).square().mean(1).sum()


def actor_loss(
    actor: Sequence[Tensor], critic: Sequence[Tensor], obs: Tensor, noise: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor]:
    action, log_prob = squashed_gaussian_eager(*actor_forward(actor, obs), noise)
    q = torch.minimum(*critics_forward(critic, obs, action))
    return (alpha * log_prob - q).mean(), log_prob.detach()


def _actor_parameters(actor) -> list[Tensor]:
    weight = torch.cat([actor.mean.weight, actor.log_std.weight])
    bias = torch.cat([actor.mean.bias, actor.log_std.bias])
    return [actor.fc1.weight, actor.fc1.bias, actor.fc2.weight, actor.fc2.bias, weight, bias]


@torch.no_grad()
def _critic_parameters(critic) -> list[Tensor]:
    """Stacked over the two critics, transposed for baddbmm: weights [2, in, out], biases [2, 1, out]."""
    layers = [(critic.fc1, critic.fc3), (critic.fc2, critic.fc4), (critic.q1, critic.q2)]
    params = []
    for one, two in layers:
        params.append(torch.stack([one.weight.t(), two.weight.t()]).contiguous())
        params.append(torch.stack([one.bias, two.bias]).unsqueeze(1))
    return params
