"""The policy and the twin critics: ReLU networks of one to four hidden layers, named as in the notebook.

`hidden_dim` is the width of both hidden layers, or a sequence of widths, one per hidden layer. `initialization` is
"orthogonal" (`initialize_weights`) or "pytorch", what nn.Linear starts with.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sacfast.config import INITIALIZATIONS, LOG_STD_BOUNDS, hidden_widths
from sacfast.ops.philox import Key
from sacfast.ops.squashed_gaussian import squashed_gaussian
from sacfast.requirements import check_choice


def initialize_weights(layer: nn.Module, gain: float = 1.0) -> None:
    """Orthogonal weights (Saxe et al., arXiv:1312.6120) scaled by `gain`, zero biases; other layers are left alone."""
    if isinstance(layer, nn.Linear):
        nn.init.orthogonal_(layer.weight, gain=gain)
        nn.init.constant_(layer.bias, 0.0)


def _add_hidden(network: nn.Module, inputs: int, widths: Sequence[int], first: int = 1) -> list[str]:
    """Give `network` the dense layers fc{first}, fc{first + 1}, ..., and return their names."""
    names = [f"fc{first + i}" for i in range(len(widths))]
    for name, n_in, n_out in zip(names, (inputs, *widths[:-1]), widths, strict=True):
        network.add_module(name, nn.Linear(n_in, n_out))
    return names


def _hidden(network: nn.Module, names: Iterable[str], x: Tensor) -> Tensor:
    for name in names:
        x = F.relu(getattr(network, name)(x))
    return x


class ActorNetwork(nn.Module):
    """Gaussian policy head: obs [B, O] -> mean [B, A], log_std [B, A] of the action before tanh.

    Layers fc1, fc2, ..., then mean and log_std side by side. `log_std` is kept in [log_std_min, log_std_max]
    by log_std_bound: "clamp", beyond which its gradient is zero, or "tanh", which is rescaled to the bounds.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden_dim: int | Sequence[int] = 256,
        log_std_min: float = -20,
        log_std_max: float = 2,
        initialization: str = "orthogonal",
        log_std_bound: str = "clamp",
    ):
        super().__init__()
        check_choice("initialization", initialization, INITIALIZATIONS)
        check_choice("log_std_bound", log_std_bound, LOG_STD_BOUNDS)
        self.state_dim, self.action_dim = state_dim, action_dim
        self.log_std_min = log_std_min
        self.log_std_max = log_std_max
        self.log_std_bound = log_std_bound
        widths = hidden_widths(hidden_dim)
        self._hidden_names = _add_hidden(self, state_dim, widths)
        self.mean = nn.Linear(widths[-1], action_dim)
        self.log_std = nn.Linear(widths[-1], action_dim)
        if initialization == "orthogonal":
            self.apply(lambda layer: initialize_weights(layer, gain=np.sqrt(2)))
            # A small head starts the policy near zero mean and unit standard deviation, whatever the observation.
            initialize_weights(self.mean, gain=0.01)
            initialize_weights(self.log_std, gain=0.01)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """obs [..., O] -> (mean [..., A], log_std [..., A] within its bounds)."""
        x = _hidden(self, self._hidden_names, state)
        low, high, log_std = self.log_std_min, self.log_std_max, self.log_std(x)
        if self.log_std_bound == "tanh":
            return self.mean(x), low + 0.5 * (high - low) * (torch.tanh(log_std) + 1)
        return self.mean(x), torch.clamp(log_std, low, high)

    def sample(
        self, state: Tensor, *, noise: Tensor | None = None, key: Key | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reparameterised action a = tanh(mean + std * noise) (arXiv:1812.05905, eq. 8), and its log-density
        (arXiv:1801.01290, eq. 21).

        state [B, O]; `noise` [B, A] standard normal, or a `key` to draw it from (sacfast.ops.random_key);
        with neither, torch's global generator is used. Returns action [B, A] in [-1, 1],
        log_prob [B, 1] in nats, and tanh(mean) [B, A].
        """
        mean, log_std = self(state)
        if noise is None and key is None:
            noise = torch.randn_like(mean)
        action, log_prob = squashed_gaussian(mean, log_std, noise=noise, key=key)
        return action, log_prob.unsqueeze(1), torch.tanh(mean)


class CriticNetwork(nn.Module):
    """Twin state-action values: obs [B, O], action [B, A] in [-1, 1] -> q1 [B, 1], q2 [B, 1].

    Two independent networks, as in clipped double Q-learning, arXiv:1802.09477. With L hidden layers they are
    fc1, ..., fcL, q1 and fc{L+1}, ..., fc{2L}, q2.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden_dim: int | Sequence[int] = 256,
        initialization: str = "orthogonal",
    ):
        super().__init__()
        check_choice("initialization", initialization, INITIALIZATIONS)
        self.state_dim, self.action_dim = state_dim, action_dim
        widths = hidden_widths(hidden_dim)
        self._hidden_names_1 = _add_hidden(self, state_dim + action_dim, widths)
        self.q1 = nn.Linear(widths[-1], 1)
        self._hidden_names_2 = _add_hidden(self, state_dim + action_dim, widths, first=len(widths) + 1)
        self.q2 = nn.Linear(widths[-1], 1)
        if initialization == "orthogonal":
            self.apply(lambda layer: initialize_weights(layer, gain=np.sqrt(2)))

    def forward(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """obs [B, O], action [B, A] -> (q1 [B, 1], q2 [B, 1])."""
        x = torch.cat([state, action], dim=1)
        q1 = self.q1(_hidden(self, self._hidden_names_1, x))
        q2 = self.q2(_hidden(self, self._hidden_names_2, x))
        return q1, q2
