"""Settings: one field is one command-line flag, with its default and its help beside it.

`SACConfig` holds the algorithm (arXiv:1801.01290 and 1812.05905), `TrainConfig` the run around it. Both are
frozen, checked when made, and survive a round trip through JSON (`to_dict`, `from_dict`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

from .errors import SACError
from .requirements import (
    known_fields,
    require_bool,
    require_choice,
    require_integer,
    require_number,
    require_text,
    whole,
)

ENGINES = ("auto", "reference", "native")
VECTORS = ("sync", "async", "envpool")
PRECISIONS = ("float32", "tf32", "bf16x3", "bf16")
OBS_DTYPES = ("float32", "float16", "bfloat16")
STORAGES = ("device", "host")
SCHEDULES = ("strict", "overlap")
LOG_STD_BOUNDS = ("clamp", "tanh")
INITIALIZATIONS = ("orthogonal", "pytorch")
MOST_HIDDEN_LAYERS = 4
MOST_UPDATES_PER_STEP = 1e6


def hidden_widths(hidden_dim: int | Sequence[int]) -> tuple[int, ...]:
    """The widths of the hidden layers that `hidden_dim` names: a single number means two layers of that width.

    Raises SACError unless they are 1 to 4 whole numbers of at least 1.
    """
    number = whole(hidden_dim)
    try:
        widths = [number, number] if number is not None else [whole(width) for width in hidden_dim]  # type: ignore[union-attr]
    except TypeError:
        widths = []
    if not 1 <= len(widths) <= MOST_HIDDEN_LAYERS or any(width is None or width < 1 for width in widths):
        raise SACError(
            f"hidden_dim={hidden_dim!r} must be the width of both hidden layers, or 1 to {MOST_HIDDEN_LAYERS} "
            "widths, one per hidden layer, as whole numbers of at least 1; the default is 256."
        )
    return tuple(width for width in widths if width is not None)


class LearningRates(NamedTuple):
    """Of Adam, for what each of its three optimizers updates."""

    actor: float
    critic: float
    alpha: float


@dataclass(frozen=True)
class SACConfig:
    """Hyper-parameters of soft actor-critic; the defaults were chosen by what they learned per minute of training
    (benchmarks/learning.py). `SACConfig.notebook()` has the usual ones, of arXiv:1812.05905, table 1.
    """

    hidden_dim: int | tuple[int, ...] = 256
    """Width of both hidden layers of the actor and of each critic, or 1 to 4 widths, one per hidden layer
    (400 300, say; a single hidden layer can be had from Python only, as hidden_dim=(256,))."""

    lr: float = 3e-4
    """Learning rate of the actor (Adam), and of critics and temperature where theirs is None."""

    critic_lr: float | None = 1e-3
    """Learning rate of the critics; None means lr."""

    alpha_lr: float | None = 1e-3
    """Learning rate of the temperature; None means lr."""

    gamma: float = 0.99
    """Discount factor, between 0 and 1."""

    tau: float = 0.005
    """Step of the target critics towards the critics at every update, above 0 and at most 1."""

    alpha: float = 0.2
    """Entropy temperature where it is fixed, that is with automatic entropy tuning switched off."""

    automatic_entropy_tuning: bool = True
    """Learn the temperature so that the policy's entropy meets the target entropy."""

    initial_alpha: float = 1.0
    """Temperature that learning starts from, where it is learned."""

    target_entropy: float | None = None
    """Entropy in nats that the temperature steers towards; None means target_entropy_per_dim times the dimension of
    the actions."""

    target_entropy_per_dim: float = -0.5
    """Where target_entropy is None, nats per dimension of the actions: -1 is usual, at -0.5 the policy stays more
    random."""

    buffer_capacity: int = 1_000_000
    """Transitions that the replay buffer holds; the oldest are overwritten."""

    batch_size: int = 128
    """Transitions per gradient update."""

    log_std_min: float = -20.0
    """Lower bound of the policy's log standard deviation."""

    log_std_max: float = 2.0
    """Upper bound of the policy's log standard deviation."""

    log_std_bound: str = "clamp"
    """How the policy's log standard deviation is bounded: clamp (no gradient outside), or tanh, rescaled."""

    initialization: str = "orthogonal"
    """First weights of the networks: orthogonal (zero biases, and a small last layer of the policy), or pytorch
    (nn.Linear's own, uniform in plus or minus one over the root of the inputs)."""

    actor_update_period: int = 2
    """The actor and the temperature are updated once in so many updates, critics and targets every time. CleanRL's
    policy_frequency, without its repetition of the skipped updates."""

    precision: str = "float32"
    """Arithmetic of the matrix products: float32; bf16x3 (about 16 bits; CPUs with AMX), tf32 (11 bits; CUDA) or bf16
    (8 bits), where the native engine has them. Weights, Adam's moments and sums are float32 in all of them."""

    obs_dtype: str = "float32"
    """How the replay buffer stores observations: float32, or in half the memory float16 (11 bits, up to 65504) or
    bfloat16 (8 bits)."""

    normalize_obs: bool = True
    """Let the networks see (observation - running mean) / sqrt(variance + obs_epsilon), clipped to -10 and 10."""

    obs_epsilon: float = 0.1
    """What is added to the variance of an observation that is normalised, as VecNormalize's epsilon: what varies
    little, contact forces say, is not magnified to the scale of what moves. Lower it where all observations vary by
    much less than its root, positions in metres say."""

    reward_scale: float = 1.0
    """Factor on rewards for learning: logged losses and Q means have it, returns do not. It weighs returns against
    entropy where the temperature is fixed, and sets the scale of the critics' errors where it is learned."""

    def __post_init__(self) -> None:
        widths = hidden_widths(self.hidden_dim)
        # One form for each network, so that settings can be compared: 256 and (256, 256) are the same.
        object.__setattr__(self, "hidden_dim", widths[0] if widths == widths[:1] * 2 else widths)
        require_number(self, "lr", 0.0, 1.0, open_low=True)
        for name in ("critic_lr", "alpha_lr"):
            require_number(self, name, 0.0, 1.0, open_low=True, optional=True)
        require_number(self, "gamma", 0.0, 1.0)
        require_number(self, "tau", 0.0, 1.0, open_low=True)
        require_number(self, "alpha", 0.0)
        require_bool(self, "automatic_entropy_tuning")
        require_number(self, "initial_alpha", 0.0, open_low=True)
        require_number(self, "target_entropy", optional=True)
        require_number(self, "target_entropy_per_dim")
        require_integer(self, "buffer_capacity", 1)
        require_integer(self, "batch_size", 1)
        require_number(self, "log_std_min")
        require_number(self, "log_std_max")
        if self.log_std_min >= self.log_std_max:
            raise SACError(
                f"log_std_min={self.log_std_min:g} must be below log_std_max={self.log_std_max:g}; "
                "the defaults are -20 and 2."
            )
        require_choice(self, "log_std_bound", LOG_STD_BOUNDS)
        require_choice(self, "initialization", INITIALIZATIONS)
        require_integer(self, "actor_update_period", 1)
        require_bool(self, "normalize_obs")
        require_number(self, "obs_epsilon", 1e-16)
        require_number(self, "reward_scale", 0.0, open_low=True)
        require_choice(self, "precision", PRECISIONS)
        require_choice(self, "obs_dtype", OBS_DTYPES)

    @classmethod
    def notebook(cls) -> SACConfig:
        """The choices of the notebook that sacfast began as, kept whatever the defaults become."""
        return cls(
            hidden_dim=256,
            lr=3e-4,
            critic_lr=None,
            alpha_lr=None,
            gamma=0.99,
            tau=0.005,
            alpha=0.2,
            automatic_entropy_tuning=True,
            initial_alpha=1.0,
            target_entropy=None,
            target_entropy_per_dim=-1.0,
            buffer_capacity=1_000_000,
            batch_size=256,
            log_std_min=-20.0,
            log_std_max=2.0,
            log_std_bound="clamp",
            initialization="orthogonal",
            actor_update_period=1,
            normalize_obs=False,
            precision="float32",
            obs_dtype="float32",
            obs_epsilon=1e-8,
            reward_scale=1.0,
        )

    @property
    def learning_rates(self) -> LearningRates:
        critic, alpha = (self.lr if rate is None else rate for rate in (self.critic_lr, self.alpha_lr))
        return LearningRates(self.lr, critic, alpha)

    @property
    def unread(self) -> dict[str, str]:
        """By name, the settings that nothing reads beside the others, and why."""
        why: dict[str, str] = {}
        if self.automatic_entropy_tuning:
            why["alpha"] = (
                "the temperature is learned: --initial-alpha says where it starts, "
                "--no-automatic-entropy-tuning fixes it"
            )
            if self.target_entropy is not None:
                why["target_entropy_per_dim"] = "target_entropy is given"
        else:
            names = ("initial_alpha", "alpha_lr", "target_entropy", "target_entropy_per_dim")
            why |= dict.fromkeys(names, "the temperature is fixed, at --alpha")
        if not self.normalize_obs:
            why["obs_epsilon"] = "observations are not normalised"
        return why

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers, first to last."""
        return hidden_widths(self.hidden_dim)

    def to_dict(self) -> dict[str, Any]:
        """Every field by name: keyword arguments of SACAgent, too."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SACConfig:
        """Inverse of `to_dict`. Raises SACError for fields it does not know."""
        known_fields(cls, values)
        return cls(**values)


@dataclass(frozen=True)
class TrainConfig:
    """Train soft actor-critic on a Gymnasium environment.

    Every run gets a folder of its own with its settings, logs, checkpoints and pictures.
    """

    env: str = "Pusher-v5"
    """Gymnasium environment id, or module:id for one that a module registers; observations must be a 1-D Box (Dict
    and Tuple are flattened), actions a bounded 1-D Box."""

    make_kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of gymnasium.make and of the environment's constructor, as JSON: '{"xml_file": "my.xml"}', or
    '{"max_episode_steps": 500}' for a time limit."""

    num_envs: int = 1
    """Environments stepped together. All counts are of single environments: one step of 8 together counts as 8."""

    vector: str = "sync"
    """How several environments are stepped: sync (in turn), async (a process each) or envpool (its C++ threads)."""

    steps: int = 50_000
    """Environment steps in total, rounded up to whole steps of all environments; with --resume it may be raised."""

    seed: int = 0
    """Seed of the environment, the action space, the networks and the sampler."""

    device: str = "cpu"
    """Where networks and replay buffer live: cpu, cuda, cuda:1, or auto (CUDA where there is one)."""

    storage: str = "device"
    """Where the replay buffer lies: device, or host (the host's memory, pinned for a GPU)."""

    engine: str = "auto"
    """Implementation of the update: auto, reference or native."""

    out: str = "runs"
    """Folder under which the run's own folder is made: OUT/ENV/DATE-TIME-sSEED, or OUT/ENV/NAME."""

    name: str = ""
    """Name of the run's folder (NAME-sSEED of one of several --seeds), for jobs that may be requeued: given again, the
    same command goes on with the run, as --resume does, and leaves it alone once it is finished."""

    resume: str | None = None
    """Folder of a run to continue; its settings are taken over."""

    learning_starts: int = 5_000
    """Steps of uniformly random actions; updates begin after them, or once there are batch_size transitions."""

    utd: float = 1.0
    """Updates per environment step once learning has started; 0.5 is an update on every second step, 4 is four
    on every step, each with a batch of its own."""

    schedule: str = "strict"
    """strict: environments and updates take turns. overlap: updates run while the environments are stepped, so that
    the policy that acts is one step's updates behind, and those of the last step are not made. In either the same seed
    gives the same run; the two differ."""

    eval_every: int = 5_000
    """Steps between deterministic evaluations on a separate environment; 0 evaluates at the end only."""

    eval_episodes: int = 10
    """Episodes per evaluation; their seeds are the same every time."""

    baselines: bool = True
    """Once training ends, score random and zero actions beside the best policy; a robot may want neither."""

    checkpoint_every: int = 10_000
    """Steps between checkpoints, from which the run can go on exactly; 0 writes at the beginning and the end only."""

    keep_checkpoints: int = 2
    """Newest checkpoints that are kept, beside the best policy; 0 keeps all of them."""

    discard_checkpoints: bool = False
    """Once the run is finished, remove checkpoints/ and replay/, 130 MB to 1.5 GB as a rule: its best policy stays, but
    it cannot be resumed."""

    log_every: int = 500
    """Steps between rows of progress.csv; losses leave the device only then, and at checkpoints."""

    threads: int = 0
    """CPU threads, of PyTorch and of the native engine; 0 means one per physical core, and at most
    OMP_NUM_THREADS."""

    tensorboard: bool = True
    """Write TensorBoard events beside the CSV files."""

    wandb: str = ""
    """Project of Weights & Biases to log to as well (pip install 'sacfast[wandb]'); empty for none."""

    sac: SACConfig = field(default_factory=SACConfig)

    def __post_init__(self) -> None:
        for name in ("env", "device", "out"):
            require_text(self, name)
        require_choice(self, "engine", ENGINES)
        require_choice(self, "storage", STORAGES)
        require_choice(self, "vector", VECTORS)
        require_choice(self, "schedule", SCHEDULES)
        if not isinstance(self.wandb, str):
            raise SACError(f"wandb={self.wandb!r} must be a project's name, or '' for none.")
        if self.resume is not None:
            require_text(self, "resume")
        self._check_name()
        self._check_make_kwargs()
        for name, minimum in (
            ("steps", 1),
            ("num_envs", 1),
            ("seed", 0),
            ("learning_starts", 0),
            ("eval_every", 0),
            ("eval_episodes", 1),
            ("checkpoint_every", 0),
            ("keep_checkpoints", 0),
            ("log_every", 1),
            ("threads", 0),
        ):
            require_integer(self, name, minimum)
        for name in ("tensorboard", "baselines", "discard_checkpoints"):
            require_bool(self, name)
        if not isinstance(self.sac, SACConfig):
            raise SACError(f"sac={self.sac!r} must be a SACConfig.")
        if self.sac.batch_size > self.sac.buffer_capacity:
            raise SACError(
                f"batch_size={self.sac.batch_size} is above buffer_capacity="
                f"{self.sac.buffer_capacity}, so the buffer could never hold a batch; lower "
                "batch_size or raise buffer_capacity."
            )
        if self.seed >= 2**31:
            raise SACError(f"seed={self.seed} must be below 2**31; any smaller number serves as well.")
        if self.steps <= self.first_update:
            raise SACError(
                f"steps={self.steps} must be above {self.first_update}, the step of the first update (the larger of "
                "learning_starts and batch_size), or next to nothing would be learned; raise --steps or lower "
                f"--{'learning-starts' if self.learning_starts >= self.sac.batch_size else 'batch-size'}."
            )
        require_number(self, "utd", 0.0, MOST_UPDATES_PER_STEP, open_low=True)
        if self.updates_by(self.steps) == 0:
            raise SACError(
                f"utd={self.utd:g} makes no update within {self.steps} steps, so nothing would be learned; "
                "raise --utd or --steps."
            )

    def _check_name(self) -> None:
        name = self.name
        if (
            not isinstance(name, str)
            or not name.isprintable()
            or name != name.strip()
            or set(name) & set("/\\:")
            or name in (".", "..")
        ):
            raise SACError(
                f"name={name!r} must be the name of one folder, without '/', '\\' and ':', or '' for none; "
                "--out says under which it lies."
            )

    def _check_make_kwargs(self) -> None:
        """make_kwargs travel through JSON to every part of a run, so they must survive it."""
        try:
            same = (
                isinstance(self.make_kwargs, dict)
                and json.loads(json.dumps(self.make_kwargs)) == self.make_kwargs
            )
        except (TypeError, ValueError):
            same = False
        if not same:
            raise SACError(
                f"make_kwargs={self.make_kwargs!r} must be a dictionary that JSON can hold; for anything else pass a "
                "function that makes the environment: train(config, env=...)."
            )

    @property
    def first_update(self) -> int:
        """Step of the first update: learning_starts, or later where that would not fill one batch."""
        return max(self.learning_starts, self.sac.batch_size)

    def updates_by(self, step: int) -> int:
        """Updates that a run has made by the end of environment step `step`: floor(n utd) over n = the steps from
        `first_update` on. A function of the step alone, so that nothing drifts and a resumed run goes on exactly.
        """
        n = max(0, step - self.first_update + 1)
        return n * self._utd.numerator // self._utd.denominator

    @cached_property
    def _utd(self) -> Fraction:
        """utd as it was meant: 0.7 is 7/10 and 0.3333333333333333 is 1/3, which the nearest floats are not."""
        return Fraction(self.utd).limit_denominator(1_000_000)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Inverse of `to_dict`. Raises SACError for fields it does not know."""
        known_fields(cls, values)
        values = dict(values)
        values["sac"] = SACConfig.from_dict(values.get("sac", {}))
        return cls(**values)
