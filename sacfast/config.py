"""Settings: one field is one command-line flag, with its default and its help beside it.

`SACConfig` holds the algorithm (arXiv:1801.01290 and 1812.05905), `TrainConfig` the run around it. Both are
frozen, checked when made, and survive a round trip through JSON (`to_dict`, `from_dict`).
"""

from __future__ import annotations

import dataclasses
import math
import operator
from dataclasses import dataclass, field
from typing import Any

from .errors import SACError

ENGINES = ("auto", "reference", "native")

# What may differ when a run is resumed: nothing here changes what is learned from the steps already taken.
RESUMABLE_FIELDS = frozenset(
    {"steps", "device", "engine", "threads", "checkpoint_every", "log_every", "tensorboard", "resume"}
)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _require_integer(config: Any, name: str, minimum: int) -> None:
    """Store the field as a Python int of at least `minimum`; NumPy integers are welcome, bools are not."""
    value = getattr(config, name)
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < minimum:
        default = next(f.default for f in dataclasses.fields(config) if f.name == name)
        raise SACError(
            f"{name}={value!r} must be a whole number of at least {minimum}; the default is {default}."
        )
    object.__setattr__(config, name, number)


def _require_number(
    config: Any, name: str, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False
) -> None:
    """Store the field as a finite Python float in [low, high], or in (low, high] with `open_low`."""
    value = getattr(config, name)
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or not low <= number <= high or (open_low and number == low):
        wanted = "a finite number"
        if low > -math.inf:
            wanted += f" {'above' if open_low else 'of at least'} {low:g}"
        if high < math.inf:
            wanted += f" and at most {high:g}"
        default = next(f.default for f in dataclasses.fields(config) if f.name == name)
        raise SACError(f"{name}={value!r} must be {wanted}; the default is {default}.")
    object.__setattr__(config, name, number)


def _require_bool(config: Any, name: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, bool):
        raise SACError(f"{name}={value!r} must be True or False.")


def _require_text(config: Any, name: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, str) or not value.strip():
        raise SACError(f"{name}={value!r} must be a non-empty string.")


def _known_fields(cls: type, values: dict[str, Any]) -> None:
    if not isinstance(values, dict):
        raise SACError(f"{cls.__name__} expects a mapping of field names to values, not {values!r}.")
    names = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise SACError(
            f"{cls.__name__} has no field {', '.join(unknown)}; it was mistyped or written by another "
            f"version (fields: {', '.join(sorted(names))})."
        )


@dataclass(frozen=True)
class SACConfig:
    """Hyper-parameters of soft actor-critic; the defaults are those of arXiv:1812.05905, table 1."""

    hidden_dim: int = 256
    """Width of both hidden layers of the actor and of each critic."""

    lr: float = 3e-4
    """Learning rate of Adam, the same for actor, critics and temperature."""

    gamma: float = 0.99
    """Discount factor, between 0 and 1."""

    tau: float = 0.005
    """Step of the target critics towards the critics at every update, above 0 and at most 1."""

    alpha: float = 0.2
    """Entropy temperature where it is fixed, that is with automatic entropy tuning switched off."""

    automatic_entropy_tuning: bool = True
    """Learn the temperature so that the policy's entropy meets the target entropy."""

    target_entropy: float | None = None
    """Entropy in nats that the temperature steers towards; None means minus the action dimension."""

    buffer_capacity: int = 1_000_000
    """Transitions that the replay buffer holds; the oldest are overwritten."""

    batch_size: int = 256
    """Transitions per gradient update."""

    log_std_min: float = -20.0
    """Lower clamp of the policy's log standard deviation."""

    log_std_max: float = 2.0
    """Upper clamp of the policy's log standard deviation."""

    def __post_init__(self) -> None:
        _require_integer(self, "hidden_dim", 1)
        _require_number(self, "lr", 0.0, 1.0, open_low=True)
        _require_number(self, "gamma", 0.0, 1.0)
        _require_number(self, "tau", 0.0, 1.0, open_low=True)
        _require_number(self, "alpha", 0.0)
        _require_bool(self, "automatic_entropy_tuning")
        if self.target_entropy is not None:
            _require_number(self, "target_entropy")
        _require_integer(self, "buffer_capacity", 1)
        _require_integer(self, "batch_size", 1)
        _require_number(self, "log_std_min")
        _require_number(self, "log_std_max")
        if self.log_std_min >= self.log_std_max:
            raise SACError(
                f"log_std_min={self.log_std_min:g} must be below log_std_max={self.log_std_max:g}; "
                "the defaults are -20 and 2."
            )

    def agent_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for SACAgent: every field except batch_size."""
        values = self.to_dict()
        del values["batch_size"]
        return values

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SACConfig:
        """Inverse of `to_dict`. Raises SACError for fields it does not know."""
        _known_fields(cls, values)
        return cls(**values)


@dataclass(frozen=True)
class TrainConfig:
    """Train soft actor-critic on a Gymnasium environment.

    Every run gets a folder of its own with its settings, logs, checkpoints and pictures.
    """

    env: str = "Pusher-v5"
    """Gymnasium environment id; observations must be a 1-D Box, actions a bounded 1-D Box."""

    steps: int = 50_000
    """Environment steps in total; with --resume it may be raised."""

    seed: int = 0
    """Seed of the environment, the action space, the networks and the sampler."""

    device: str = "cpu"
    """Where networks and replay buffer live: cpu, cuda, cuda:1, or auto (CUDA where there is one)."""

    engine: str = "auto"
    """Implementation of the update: auto, reference or native."""

    out: str = "runs"
    """Folder under which the run's own folder is made: OUT/ENV/DATE-TIME-sSEED."""

    resume: str | None = None
    """Folder of a run to continue; its settings are taken over."""

    learning_starts: int = 1_000
    """Steps of uniformly random actions before the first update."""

    eval_every: int = 5_000
    """Steps between deterministic evaluations on a separate environment; 0 evaluates at the end only."""

    eval_episodes: int = 10
    """Episodes per evaluation; their seeds are the same every time."""

    checkpoint_every: int = 10_000
    """Steps between writes of the last checkpoint, replay buffer included; 0 writes at the end only."""

    log_every: int = 500
    """Steps between rows of progress.csv; metrics leave the device only then."""

    threads: int = 0
    """CPU threads that PyTorch uses; 0 means one per physical core."""

    tensorboard: bool = True
    """Write TensorBoard events beside the CSV files."""

    sac: SACConfig = field(default_factory=SACConfig)

    def __post_init__(self) -> None:
        for name in ("env", "device", "engine", "out"):
            _require_text(self, name)
        if self.engine not in ENGINES:
            raise SACError(f"engine={self.engine!r} must be one of {', '.join(ENGINES)}.")
        if self.resume is not None:
            _require_text(self, "resume")
        for name, minimum in (
            ("steps", 1),
            ("seed", 0),
            ("learning_starts", 0),
            ("eval_every", 0),
            ("eval_episodes", 1),
            ("checkpoint_every", 0),
            ("log_every", 1),
            ("threads", 0),
        ):
            _require_integer(self, name, minimum)
        _require_bool(self, "tensorboard")
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
                f"steps={self.steps} ends before the first update at step {self.first_update} (the larger of "
                f"learning_starts and batch_size), so nothing would be learned; raise --steps or lower "
                "--learning-starts."
            )

    @property
    def first_update(self) -> int:
        """Steps of pure collection: learning_starts, or longer where that would not fill one batch."""
        return max(self.learning_starts, self.sac.batch_size)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Inverse of `to_dict`. Raises SACError for fields it does not know."""
        _known_fields(cls, values)
        values = dict(values)
        values["sac"] = SACConfig.from_dict(values.get("sac", {}))
        return cls(**values)


def check_resume(saved: TrainConfig, wanted: TrainConfig) -> None:
    """Refuse settings that contradict those of the run being resumed.

    Raises SACError naming the first contradictory field, or when steps were lowered.
    """
    before, after = saved.to_dict(), wanted.to_dict()
    before |= before.pop("sac")
    after |= after.pop("sac")
    for name, value in after.items():
        if name not in RESUMABLE_FIELDS and value != before[name]:
            raise SACError(
                f"{_flag(name)} {value} contradicts the run being resumed, which has {before[name]}; leave "
                f"{_flag(name)} out, or start a new run without --resume."
            )
    if wanted.steps < saved.steps:
        raise SACError(
            f"--steps {wanted.steps} is below the {saved.steps} of the run being resumed; leave it out or "
            "raise it."
        )
