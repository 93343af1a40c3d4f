"""sacfast: Soft Actor-Critic at hardware speed. Importing it compiles nothing."""

from sacfast.agent import SACAgent
from sacfast.config import SACConfig, TrainConfig
from sacfast.engines import Metrics, NativeEngine, Noise, make_engine
from sacfast.errors import CheckpointError, NativeUnavailable, SACError
from sacfast.export import export
from sacfast.networks import ActorNetwork, CriticNetwork
from sacfast.plotting import plot_episode_rewards, plot_training_metrics
from sacfast.replay import Batch, ReplayBuffer

__version__ = "0.1.0"

__all__ = [
    "ActorNetwork",
    "Batch",
    "CheckpointError",
    "CriticNetwork",
    "Metrics",
    "NativeEngine",
    "NativeUnavailable",
    "Noise",
    "ReplayBuffer",
    "SACAgent",
    "SACConfig",
    "SACError",
    "TrainConfig",
    "export",
    "make_engine",
    "plot_episode_rewards",
    "plot_training_metrics",
]
