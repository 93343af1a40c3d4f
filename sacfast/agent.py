"""SACAgent: the notebook's agent, with action bounds, any engine behind it, and checkpoints that hold everything."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from functools import cached_property
from inspect import signature
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from sacfast import agent_file, checkpoint, notebook_file
from sacfast.config import SACConfig, hidden_widths
from sacfast.engines import Metrics, make_engine
from sacfast.engines.base import Policy, TorchPolicy
from sacfast.envs import ActionBounds, check_spaces
from sacfast.errors import CheckpointError, SACError
from sacfast.networks import ActorNetwork, CriticNetwork
from sacfast.normalizer import ObservationNormalizer
from sacfast.ops.launch import find_device
from sacfast.replay import ReplayBuffer
from sacfast.requirements import check_whole
from sacfast.state import SACState

# torch's generator and its default dtype are the process's: agents are made in turn.
_drawing = threading.Lock()


@contextmanager
def _float32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class SACAgent:
    """Soft Actor-Critic (arXiv:1812.05905) for observations [O] and actions [A].

    The first ten arguments are the notebook's. `settings` are the other fields of SACConfig, which describes them all,
    and where they are not given they are as in SACConfig.notebook(): the networks of such an agent see observations as
    they are. `from_env` has the defaults of SACConfig, as training has.

    engine          "auto", "reference" or "native" (sacfast.engines.make_engine); `use_engine` changes it later
    threads         of the native engine; None or 0: one per physical core. PyTorch's are torch.set_num_threads
    seed            of weights, exploration, batches and noise; None takes them from torch's global generator
    action_low, action_high    bounds [A] of the environment's actions: select_action returns, and
                    replay_buffer takes, actions in these units; without them, actions in [-1, 1]
    storage         where the replay buffer lies: "device", or "host", pinned for a GPU

    `config` holds the settings, with target_entropy as a number. The replay buffer has observations and rewards as they
    are; with normalize_obs the statistics (`normalizer`) follow what is pushed into it, and are saved with the policy.

    Raises SACError for an argument out of range, naming it, or one that neither this class nor SACConfig has, and
    NativeUnavailable where native code cannot run, for engine="native" or a precision other than float32.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden_dim: int | Sequence[int] = 256,
        lr: float = 3e-4,
        gamma: float = 0.99,
        tau: float = 0.005,
        alpha: float = 0.2,
        automatic_entropy_tuning: bool = True,
        buffer_capacity: int = 1000000,
        device: torch.device | str = "cpu",
        *,
        engine: str = "auto",
        threads: int | None = None,
        seed: int | None = None,
        action_low: np.ndarray | None = None,
        action_high: np.ndarray | None = None,
        storage: str = "device",
        **settings: Any,
    ):
        self.state_dim = check_whole("state_dim", state_dim, 1)
        self.action_dim = check_whole("action_dim", action_dim, 1)
        _check_names(settings)
        config = replace(
            SACConfig.notebook(),
            hidden_dim=hidden_widths(hidden_dim),
            lr=lr,
            gamma=gamma,
            tau=tau,
            alpha=alpha,
            automatic_entropy_tuning=automatic_entropy_tuning,
            buffer_capacity=buffer_capacity,
            **settings,
        )
        if config.target_entropy is None:
            config = replace(config, target_entropy=self.action_dim * config.target_entropy_per_dim)
        self.config = config
        self.device = find_device(device)
        self.engine = make_engine(engine, config, threads=threads, device=self.device)
        self.state = self._new_state(seed)
        self.replay_buffer = ReplayBuffer(
            config.buffer_capacity,
            obs_dim=self.state_dim,
            action_dim=self.action_dim,
            device=self.device,
            seed=self.state.seed,
            action_low=action_low,
            action_high=action_high,
            obs_dtype=config.obs_dtype,
            storage=storage,
            reward_scale=config.reward_scale,
            on_push=None if self.normalizer is None else self.normalizer.update,
        )
        self.bounds = self.replay_buffer.bounds or ActionBounds.unit(self.action_dim)

    @classmethod
    def from_env(cls, env: gymnasium.Env | VectorEnv, **kwargs: Any) -> "SACAgent":
        """An agent for `env`, or for each environment of a vector: dimensions and action bounds from its spaces,
        `kwargs` as the constructor's, and for all else the defaults of SACConfig, as training has.

        Raises SACError if the observations are not a 1-D Box or the actions not a bounded 1-D Box.
        """
        obs_dim, bounds = check_spaces(env)
        own = {"action_low": bounds.low, "action_high": bounds.high}
        return cls(obs_dim, bounds.dim, **(SACConfig().to_dict() | own | kwargs))

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike,
        *,
        device: torch.device | str = "cpu",
        engine: str = "auto",
        threads: int | None = None,
        precision: str | None = None,
        storage: str = "device",
    ) -> "SACAgent":
        """The agent that `save` wrote to `path`, with its dimensions and settings; a `precision` given here replaces
        its own (acting is float32 in all of them). Raises CheckpointError, or what the constructor raises.
        """
        if notebook_file.recognised(path):
            raise CheckpointError(
                f"{path} is the notebook's format, which lacks some settings; make a SACAgent and load() it"
            )
        meta = checkpoint.read_meta(path)
        settings = SACConfig.from_dict(meta["config"]).to_dict()
        if precision is not None:
            settings["precision"] = precision
        agent = cls(
            meta["state_dim"],
            meta["action_dim"],
            **settings,
            device=device,
            engine=engine,
            threads=threads,
            storage=storage,
            seed=meta["counters"]["seed"],
            action_low=np.array(meta["action_low"]),
            action_high=np.array(meta["action_high"]),
        )
        agent.load(path)
        return agent

    def use_engine(self, name: str, *, threads: int | None = None) -> None:
        """Compute with another engine from now on; what was learned stays.

        `threads` as in the constructor; None keeps their number. Raises as the constructor does, and SACError for an
        update that the engine before has refused; the agent then has that engine still.
        """
        self.engine.settle(self.state)
        threads = self.engine.threads if threads is None else threads
        self.engine = make_engine(name, self.config, threads=threads, device=self.device)

    @cached_property
    def _policy(self) -> Policy:
        return self.engine.make_policy(self.state, self.bounds)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("engine", "state", "bounds"):
            self.__dict__.pop("_policy", None)
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """For copies: without the policy, which belongs to this agent's own engine and state. Raises SACError for an
        update that the engine has refused, which the copy's would know nothing of.
        """
        self.engine.settle(self.state)
        return {name: value for name, value in self.__dict__.items() if name != "_policy"}

    def _new_state(self, seed: int | None) -> SACState:
        """Fresh networks, from torch's global generator or, with a seed, leaving that generator as it was."""
        if seed is None:
            with _drawing:
                return self._draw_state(int(torch.randint(2**31, (), device="cpu").item()))
        seed = check_whole("seed", seed, 0, 2**63 - 1)
        with _drawing, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._draw_state(seed)

    @torch.inference_mode(False)  # in which tensors could not be trained
    def _draw_state(self, seed: int) -> SACState:
        config = self.config
        dims = self.state_dim, self.action_dim, config.widths
        log_std = config.log_std_min, config.log_std_max
        with torch.device("cpu"), _float32():  # the same weights for a seed whatever torch's defaults are
            actor = ActorNetwork(*dims, *log_std, config.initialization, config.log_std_bound)
            critic = CriticNetwork(*dims, config.initialization)
            log_alpha = torch.tensor(
                [config.initial_alpha if config.automatic_entropy_tuning else config.alpha]
            ).log()
        normalizer = None
        if config.normalize_obs:
            normalizer = ObservationNormalizer(self.state_dim, self.device, config.obs_epsilon)
        return SACState(
            actor.to(self.device), critic.to(self.device), log_alpha.to(self.device), seed, normalizer
        )

    @property
    def actor(self) -> ActorNetwork:
        return self.state.actor

    @property
    def critic(self) -> CriticNetwork:
        return self.state.critic

    @property
    def critic_target(self) -> CriticNetwork:
        return self.state.critic_target

    @property
    def normalizer(self) -> ObservationNormalizer | None:
        return self.state.normalizer

    @property
    def log_alpha(self) -> Tensor:
        return self.state.log_alpha

    @property
    def alpha(self) -> Tensor:
        """The entropy temperature, [1]."""
        return self.state.log_alpha.exp()

    @property
    def training_steps(self) -> int:
        """Updates done."""
        return self.state.step

    @property
    def gamma(self) -> float:
        return self.config.gamma

    @property
    def tau(self) -> float:
        return self.config.tau

    @property
    def target_entropy(self) -> float:
        """In nats."""
        return self.engine.target_entropy

    @property
    def automatic_entropy_tuning(self) -> bool:
        return self.config.automatic_entropy_tuning

    def select_action(self, state: np.ndarray | Tensor, evaluate: bool = False) -> np.ndarray:
        """The policy's action for one observation [O], or for several [n, O]: float32 [A] or [n, A].

        Sampled, or deterministic (tanh of the mean) with `evaluate`; in the environment's units.
        Raises SACError for a wrong shape or a NaN or infinity in `state`.
        """
        return self._policy(state, evaluate)

    def predict(
        self,
        observation: np.ndarray | Tensor,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """(select_action(observation, deterministic), state): Stable-Baselines3's signature, for code written for it.

        `state` and `episode_start` are for recurrent policies; `state` is returned as given.
        """
        return self.select_action(observation, evaluate=deterministic), state

    def act(self, obs: Tensor, evaluate: bool = False) -> Tensor:
        """select_action for tensors: observations [n, O] to float32 actions [n, A] on the device of `obs`, with
        nothing copied to the host and so no value checked. On a GPU it belongs on the stream of the updates, or on one
        that waits for it. Raises SACError for a wrong shape.
        """
        return TorchPolicy(self.state, self.bounds).act(obs, evaluate)

    def update(self, batch_size: int | None = None) -> dict[str, float]:
        """`train` once; its Metrics as numbers (waits for a GPU)."""
        return self.train(1, batch_size).as_dict()

    def train(self, updates: int = 1, batch_size: int | None = None) -> Metrics:
        """`updates` gradient updates, each on a fresh batch from the replay buffer, of config.batch_size unless told
        otherwise. The last one's metrics, left on the device.

        Until it returns no other thread may push to the replay buffer.
        """
        size = self.config.batch_size if batch_size is None else batch_size
        return self.engine.train(self.state, self.replay_buffer, size, updates)

    def start(self, updates: int = 1, batch_size: int | None = None) -> Callable[[], Metrics]:
        """Begin `train`, and return a function that ends it, to be called once; it returns what `train` would.

        In between an environment may be stepped, but the agent must be left alone, its replay buffer included. The
        native engine works meanwhile, with two threads or more or on CUDA; others do it all in that call.
        """
        size = self.config.batch_size if batch_size is None else batch_size
        return self.engine.start(self.state, self.replay_buffer, size, updates)

    def save(
        self, filepath: str | os.PathLike, *, replay_buffer: bool = True, extra: dict[str, Any] | None = None
    ) -> None:
        """Write everything to one safetensors file, atomically: weights, targets, Adam moments, log_alpha, counters,
        and the replay buffer unless told otherwise. `load` returns `extra`, a dictionary that JSON can hold.

        Raises CheckpointError if it cannot be written; an earlier file at `filepath` is then untouched.
        """
        self.engine.settle(self.state)
        buffer = self.replay_buffer if replay_buffer else None
        agent_file.write(filepath, self.state, self.config, self.bounds, buffer, extra or {})

    def load(self, filepath: str | os.PathLike) -> dict[str, Any]:
        """Take over a checkpoint of `save`, or of the notebook's own save(), in place; returns `extra` of `save`.

        The agent keeps its own hyper-parameters and, with a fixed temperature, its own alpha. A replay buffer in the
        file replaces the agent's. Raises CheckpointError, before anything is changed, if the file is damaged or was
        made for other dimensions, action bounds, bounds of log_std, scales of rewards or normalisation, or has a fixed
        temperature of 0 where this agent learns one; SACError while updates that `start` began are under way.
        """
        tensors, meta = agent_file.read(filepath, self.state, self.config, self.bounds)
        self.engine.check_turn()
        with suppress(SACError):  # for an update that was refused: it is about what is replaced now
            self.engine.settle(self.state)
        agent_file.take_over(filepath, tensors, meta, self.state, self.config, self.replay_buffer)
        self.engine.recall(Metrics.unknown(self.device))
        return meta.get("extra", {})


def _check_names(settings: dict[str, Any]) -> None:
    known = {field.name for field in fields(SACConfig)}
    if unknown := sorted(settings.keys() - known):
        known |= signature(SACAgent).parameters.keys() - {"settings"}
        raise SACError(f"SACAgent has no argument {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
