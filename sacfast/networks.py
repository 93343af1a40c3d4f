"""The policy and the twin critics: two hidden ReLU layers each, named as in the notebook."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sacfast.ops.squashed_gaussian import squashed_gaussian


def initialize_weights(layer: nn.Module, gain: float = 1.0) -> None:
    """Orthogonal weights (Saxe et al., arXiv:1312.6120) scaled by `gain`, zero biases; other layers are left alone."""
    if isinstance(layer, nn.Linear):
        nn.init.orthogonal_(layer.weight, gain=gain)
        nn.init.constant_(layer.bias, 0.0)


class ActorNetwork(nn.Module):
    """Gaussian policy head: obs [B, O] -> mean [B, A], log_std [B, A] of the action before tanh.

    `log_std` is clamped to [log_std_min, log_std_max]; beyond the bounds its gradient is zero.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden_dim: int = 256,
        log_std_min: float = -20,
        log_std_max: float = 2,
    ):
        super().__init__()
        self.log_std_min = log_std_min
        self.log_std_max = log_std_max
        self.fc1 = nn.Linear(state_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)
        self.mean = nn.Linear(hidden_dim, action_dim)
        self.log_std = nn.Linear(hidden_dim, action_dim)
        self.apply(lambda layer: initialize_weights(layer, gain=np.sqrt(2)))
        # A small head starts the policy near zero mean and unit standard deviation, whatever the observation.
        initialize_weights(self.mean, gain=0.01)
        initialize_weights(self.log_std, gain=0.01)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """obs [..., O] -> (mean [..., A], clamped log_std [..., A])."""
        x = F.relu(self.fc1(state))
        x = F.relu(self.fc2(x))
        return self.mean(x), torch.clamp(self.log_std(x), self.log_std_min, self.log_std_max)

    def sample(
        self, state: Tensor, *, noise: Tensor | None = None, key: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reparameterised action a = tanh(mean + std * noise), arXiv:1812.05905, eq. 8.

        state [B, O]; `noise` [B, A] standard normal, or a `key` to draw it from (sacfast.ops.random_key);
        with neither, torch's global generator is used. Returns action [B, A] in (-1, 1),
        log_prob [B, 1] in nats, and tanh(mean) [B, A].
        """
        mean, log_std = self(state)
        if noise is None and key is None:
            noise = torch.randn_like(mean)
        action, log_prob = squashed_gaussian(mean, log_std, noise=noise, key=key)
        return action, log_prob.unsqueeze(1), torch.tanh(mean)


class CriticNetwork(nn.Module):
    """Twin state-action values: obs [B, O], action [B, A] in [-1, 1] -> q1 [B, 1], q2 [B, 1].

    Two independent networks (fc1, fc2, q1 and fc3, fc4, q2), as in clipped double Q-learning, arXiv:1802.09477.
    """

    def __init__(self, state_dim: int, action_dim: int, hidden_dim: int = 256):
        super().__init__()
        self.fc1 = nn.Linear(state_dim + action_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)
        self.q1 = nn.Linear(hidden_dim, 1)
        self.fc3 = nn.Linear(state_dim + action_dim, hidden_dim)
        self.fc4 = nn.Linear(hidden_dim, hidden_dim)
        self.q2 = nn.Linear(hidden_dim, 1)
        self.apply(lambda layer: initialize_weights(layer, gain=np.sqrt(2)))

    def forward(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """obs [B, O], action [B, A] -> (q1 [B, 1], q2 [B, 1])."""
        x = torch.cat([state, action], dim=1)
        q1 = self.q1(F.relu(self.fc2(F.relu(self.fc1(x)))))
        q2 = self.q2(F.relu(self.fc4(F.relu(self.fc3(x)))))
        return q1, q2
