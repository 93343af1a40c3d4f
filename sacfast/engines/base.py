"""The Engine protocol: SAC updates of a SACState, from an explicit batch or straight from a replay buffer, and the
policy's actions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sacfast.config import SACConfig
from sacfast.cores import thread_count
from sacfast.envs import ActionBounds
from sacfast.errors import SACError
from sacfast.ops import Stream, normal
from sacfast.replay import Batch, ReplayBuffer, as_float32
from sacfast.requirements import check_whole
from sacfast.state import SACState

# policy(observation [O] or [n, O], evaluate) -> action [A] or [n, A], float32, in the environment's units.
Policy = Callable[[np.ndarray | Tensor, bool], np.ndarray]


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

    critic_loss is the sum of both critics' mean squared errors, alpha the temperature after the update, log_prob_mean
    in nats. actor_loss, alpha_loss and log_prob_mean are of the actor's last turn with this engine, NaN before one and
    after a load of the agent. `metrics["alpha"]` is a 0-d tensor; `as_dict()` makes Python numbers of all, for which it
    waits for the device once.
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

    @classmethod
    @torch.inference_mode(False)  # engines write into it
    def unknown(cls, device: torch.device) -> "Metrics":
        """Of no update: NaN."""
        return cls(torch.full((len(cls.names),), torch.nan, dtype=torch.float32, device=device))

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
    """How updates and actions are computed. Engines hold no learned state, so they can be swapped in mid-run.

    config: the hyper-parameters, with target_entropy resolved to a number.
    threads: how many the engine may use, where the threads are its own; None and 0 mean one per physical core.
    name: what a person is told about the engine in use.

    A copy, by copy.deepcopy or pickle, is a new engine of the same settings with resources of its own.
    """

    name: str

    def __init__(self, config: SACConfig, *, threads: int | None = None):
        if config.target_entropy is None:
            raise SACError(
                "target_entropy=None: an engine needs a number in nats; SACAgent's is target_entropy_per_dim per action"
            )
        self.config = config
        self.target_entropy = config.target_entropy
        self.threads = thread_count(threads)

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make an equal engine."""
        return {"config": self.config, "threads": self.threads}

    def __reduce__(self) -> tuple:
        return partial(type(self), **self.settings()), ()

    @abstractmethod
    def update(self, state: SACState, batch: Batch, noise: Noise | None = None) -> Metrics:
        """One SAC update of `state`, in place. Without `noise` it is drawn from the state's own key.

        The batch's observations are the environment's: where the state has a normalizer, it is applied here.
        """

    def train(self, state: SACState, buffer: ReplayBuffer, batch_size: int, updates: int = 1) -> Metrics:
        """`updates` updates, each on a fresh batch drawn with the state's key. Returns the last one's metrics.

        Until then no other thread may push to `buffer`.
        """
        for _ in range(check_whole("updates", updates, 1)):
            metrics = self.update(state, buffer.sample_batch(batch_size, state.key(Stream.BATCH)))
        return metrics

    def start(
        self, state: SACState, buffer: ReplayBuffer, batch_size: int, updates: int = 1
    ) -> Callable[[], Metrics]:
        """Begin `train`; the function returned waits for its end and returns what `train` would.

        Until then nothing may touch `state`, `buffer` or this engine. One that cannot work meanwhile (`starts` says so)
        does it all when that function is called.
        """
        return partial(self.train, state, buffer, batch_size, updates)

    @property
    def starts(self) -> bool:
        """Whether `start` lets updates run while the caller does something else."""
        return False

    def check_turn(self) -> None:  # noqa: B027 (most engines begin nothing)
        """Raise SACError where waiting for the engine's turn would be for ever: `start` has yet to be ended."""

    def settle(self, state: SACState) -> None:  # noqa: B027 (most engines have nothing to wait for)
        """Wait until the updates of `state` so far have happened; raises SACError for what they met."""

    def sync(self) -> None:  # noqa: B027 (most engines read the weights where they are)
        """Take the weights anew before the next update: for writes that bypass torch's version counters, as
        SACState.version says.
        """

    def recall(self, metrics: Metrics) -> None:  # noqa: B027 (an engine that renews all of them need not remember)
        """Take over the metrics of the update before, which this engine did not make. An update that leaves the actor
        as it is repeats the actor's (SACConfig.actor_update_period).
        """

    def profile(self, enabled: bool = True) -> dict[str, float]:
        """Seconds by phase of the updates since the last call, summed over threads; then measures, or stops doing so.

        {} where the engine does not measure itself. With SACFAST_PROFILE=1 measuring is on from the start. Raises
        SACError while updates that `start` began are under way.
        """
        return {}

    def make_policy(self, state: SACState, bounds: ActionBounds) -> Policy:
        """The policy of `state` as a function of observations, for `select_action` to call again and again.

        It checks what it is given, and raises SACError as check_observation does. Its exploration is drawn with
        state.key(Stream.EXPLORE), and counted in state.action_step: the same numbers in every engine.
        """
        return TorchPolicy(state, bounds)


class TorchPolicy:
    """a = tanh(mean + std * noise), or tanh(mean) to evaluate, rescaled to `bounds` (arXiv:1812.05905, eq. 8)."""

    def __init__(self, state: SACState, bounds: ActionBounds):
        if bounds.dim != state.action_dim:
            raise SACError(
                f"the bounds have {bounds.dim} entries, but this agent has {state.action_dim} actions"
            )
        self.state, self.bounds = state, bounds

    @torch.no_grad()
    def __call__(self, observation: np.ndarray | Tensor, evaluate: bool = False) -> np.ndarray:
        state = self.state
        obs = check_observation(observation, state.obs_dim)
        rows = torch.from_numpy(np.ascontiguousarray(obs).reshape(-1, state.obs_dim)).to(state.device)
        action = self._unit(rows, evaluate)
        return self.bounds.to_env(action.cpu().numpy().reshape(*obs.shape[:-1], state.action_dim))

    @torch.no_grad()
    def act(self, obs: Tensor, evaluate: bool = False) -> Tensor:
        """Actions [n, A] for observations [n, O], both tensors on obs's device; values are not checked."""
        state = self.state
        if obs.ndim != 2 or obs.shape[1] != state.obs_dim:
            raise SACError(
                f"the observations have shape {list(obs.shape)}; this agent needs [n, {state.obs_dim}]"
            )
        rows = obs.detach().to(state.device, torch.float32)
        return self.bounds.to_env(self._unit(rows, evaluate)).to(obs.device)

    def _unit(self, rows: Tensor, evaluate: bool) -> Tensor:
        """[n, O] -> [n, A] in [-1, 1]."""
        state = self.state
        rows = rows if state.normalizer is None else state.normalizer(rows)
        with torch.autocast(state.device.type, enabled=False):  # as native policies, whoever asks
            if evaluate:
                return torch.tanh(state.actor(rows)[0])
            action, _, _ = state.actor.sample(rows, key=state.key(Stream.EXPLORE))
        state.action_step += 1
        return action


def check_observation(observation: np.ndarray | Tensor, obs_dim: int) -> np.ndarray:
    """One observation [O], or several [n, O], as float32. Raises SACError for another shape, NaN, or an infinity."""
    obs = as_float32("the observation", observation)
    if obs.ndim not in (1, 2) or obs.shape[-1] != obs_dim:
        raise SACError(f"the observation has shape {list(obs.shape)}; this agent needs [{obs_dim}]")
    if not np.isfinite(obs).all():
        raise SACError(f"the observation holds {obs[~np.isfinite(obs)][0]}; check the environment")
    return obs


def check_inputs(state: SACState, batch: Batch, noise: Noise | None = None) -> None:
    """Raise SACError if a tensor of `batch` or `noise` has not the shape, dtype or device that `state` asks for."""
    size, obs_dim, action_dim = len(batch.reward), state.obs_dim, state.action_dim
    expected = {
        "batch.obs": (batch.obs, (size, obs_dim)),
        "batch.action": (batch.action, (size, action_dim)),
        "batch.reward": (batch.reward, (size,)),
        "batch.next_obs": (batch.next_obs, (size, obs_dim)),
        "batch.terminated": (batch.terminated, (size,)),
    }
    if noise is not None:
        expected["noise.next_action"] = (noise.next_action, (size, action_dim))
        expected["noise.action"] = (noise.action, (size, action_dim))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise SACError(f"{name} has shape {list(tensor.shape)}; this agent needs {list(shape)}")
        if tensor.dtype != torch.float32 or tensor.device != state.device:
            raise SACError(
                f"{name} is {tensor.dtype} on {tensor.device}; this agent needs torch.float32 on {state.device}"
            )
    if size == 0:
        raise SACError("the batch is empty: an update needs at least one transition")
