"""Environments: making them by name, checking their spaces, and the action bounds that rescale the policy.

The policy acts in [-1, 1] (it ends in tanh); an environment has bounds of its own. `ActionBounds` is the
only place where one becomes the other.
"""

from __future__ import annotations

import difflib
import math
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers import FlattenObservation
from torch import Tensor

from sacfast.errors import SACError, raised
from sacfast.requirements import FLOAT32_MAX, fits_float32, float32_has


@dataclass(frozen=True, eq=False)
class ActionBounds:
    """Affine map between the environment's actions in [low, high] and the policy's in [-1, 1].

    unit = (action - centre) / half,  action = centre + half * unit,
    centre = (high + low) / 2, half = (high - low) / 2, each [A] float32.

    Raises SACError when low and high are not finite 1-D arrays of one shape with low < high.
    """

    low: np.ndarray
    high: np.ndarray

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            try:
                value = _rounded_inwards(getattr(self, name), -np.inf if name == "high" else np.inf)
            except (TypeError, ValueError) as error:
                raise SACError(f"the action bound {name}={getattr(self, name)!r} is not numeric.") from error
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if self.low.ndim != 1 or self.low.shape != self.high.shape:
            raise SACError(
                f"action bounds have shapes {self.low.shape} and {self.high.shape}; both must be [A], "
                "with one entry per action dimension."
            )
        with np.errstate(over="ignore", invalid="ignore"):
            width = self.high - self.low  # infinite too where finite bounds are too wide for float32
        bad = ~(np.isfinite(width) & (width > 0))
        if bad.any():
            i = int(np.argmax(bad))
            raise SACError(
                f"action dimension {i} has bounds [{self.low[i]:g}, {self.high[i]:g}]; SAC needs finite "
                "bounds with low below high: give the environment a bounded action space."
            )

    @classmethod
    def unit(cls, action_dim: int) -> ActionBounds:
        """Bounds [-1, 1] in every dimension, for which both maps are the identity."""
        return cls(-np.ones(action_dim, np.float32), np.ones(action_dim, np.float32))

    def __str__(self) -> str:
        return f"[{self.low.tolist()}, {self.high.tolist()}]"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActionBounds):
            return NotImplemented
        return np.array_equal(self.low, other.low) and np.array_equal(self.high, other.high)

    __hash__ = None  # type: ignore[assignment]

    def nearly(self, other: ActionBounds) -> bool:
        """Whether both are the same but for the rounding of float64 bounds."""
        pairs = (self.low, other.low), (self.high, other.high)
        return self.dim == other.dim and all(np.allclose(*pair, rtol=1e-6, atol=0) for pair in pairs)

    @property
    def dim(self) -> int:
        return self.low.shape[0]

    def to_unit(self, action):
        """[..., A] in the environment's units -> [..., A] float32, clipped to [-1, 1]; arrays or tensors alike."""
        if isinstance(action, Tensor):
            centre, half, *_ = self._tensors(action.device)
            return ((action.float() - centre) / half).clamp(-1.0, 1.0)
        centre, half = self.centre_and_half
        unit = (np.asarray(action, np.float32) - centre) / half
        # What np.clip does, which takes longer on a row.
        return np.minimum(np.maximum(unit, np.float32(-1.0)), np.float32(1.0))

    def to_env(self, unit):
        """[..., A] in [-1, 1] -> [..., A] float32 in the environment's units, never outside [low, high]."""
        if isinstance(unit, Tensor):
            centre, half, low, high = self._tensors(unit.device)
            return (centre + half * unit.float()).clamp(low, high)
        centre, half = self.centre_and_half
        return np.clip(centre + half * np.asarray(unit, np.float32), self.low, self.high)

    @cached_property
    def centre_and_half(self) -> tuple[np.ndarray, np.ndarray]:
        """What both maps are made of, [A] each."""
        return 0.5 * (self.high + self.low), 0.5 * (self.high - self.low)

    def _tensors(self, device: torch.device) -> tuple[Any, ...]:
        """Centre, half, low and high."""
        held = self._on.get(device)
        if held is None:  # a copy to the device waits for it, so once is enough
            arrays = (*self.centre_and_half, self.low, self.high)
            held = self._on[device] = tuple(torch.tensor(array, device=device) for array in arrays)
        return held

    @cached_property
    def _on(self) -> dict[torch.device, tuple[Tensor, ...]]:
        return {}


def _rounded_inwards(bound: Any, inwards: float) -> np.ndarray:
    """The bound [A] in float32, and no further out than it is given: an environment may check its actions."""
    exact = np.array(bound, dtype=np.float64, ndmin=1)
    with np.errstate(over="ignore"):
        value = exact.astype(np.float32)
    outside = value > exact if inwards < 0 else value < exact
    return np.where(outside & np.isfinite(value), np.nextafter(value, np.float32(inwards)), value)


def nearest_names(env_id: str) -> list[str]:
    """Up to three: newest versions of the registered environments whose names resemble `env_id`, nearest first.

    The comparison leaves out version and case, so that a version that does not exist finds the one that does.
    """
    newest: dict[str, str] = {}
    for name, spec in gymnasium.registry.items():
        held = newest.setdefault(_stem(name), name)
        if (spec.version or 0) > (gymnasium.registry[held].version or 0):
            newest[_stem(name)] = name
    close = difflib.get_close_matches(_stem(env_id), newest, n=3, cutoff=0.6)
    return [newest[stem] for stem in close]


def _stem(name: str) -> str:
    return name.rsplit("-v", 1)[0].lower()


def make_env(env_id: str, /, **kwargs: Any) -> gymnasium.Env:
    """gymnasium.make with spaces checked.

    env_id: a registered name, or "module:name" for one that the module registers when imported. kwargs go to
    gymnasium.make; Dict and Tuple observations are flattened. Raises SACError for an unknown id (with the nearest
    names), for an environment whose packages are missing or that fails to start, and for spaces that SAC cannot use
    (`check_spaces`).
    """
    try:
        env = gymnasium.make(env_id, **kwargs)
    except Exception as error:  # a constructor may raise anything
        raise SACError(_cannot_make(env_id, error)) from error
    try:
        return usable(env)
    except SACError:
        with suppress(Exception):  # what it cannot be used for is what is told
            env.close()
        raise


def _has_fixed_size(space: gymnasium.Space) -> bool:
    try:
        return space.is_np_flattenable
    except NotImplementedError:  # a class of the user's own
        return False


def usable(env: gymnasium.Env) -> gymnasium.Env:
    """`env`, its Dict or Tuple observations flattened by Gymnasium's FlattenObservation.

    Raises SACError for spaces that SAC cannot use (`check_spaces`).
    """
    space = getattr(env, "observation_space", None)
    if isinstance(space, (gymnasium.spaces.Dict, gymnasium.spaces.Tuple)) and _has_fixed_size(space):
        env = FlattenObservation(env)
    check_spaces(env)
    return env


def flattened(env: Any) -> str | None:
    """One line that says what `usable` flattened, if it did."""
    if not isinstance(env, FlattenObservation):
        return None
    space = env.env.observation_space
    if not isinstance(space, (gymnasium.spaces.Dict, gymnasium.spaces.Tuple)):
        return None  # the user's own doing, of a Box say
    items = space.items() if isinstance(space, gymnasium.spaces.Dict) else enumerate(space)
    parts = ", ".join(f"{name} [{gymnasium.spaces.flatdim(part)}]{_if_whole(part)}" for name, part in items)
    return f"{type(space).__name__} observations are flattened, in this order: {parts} (FlattenObservation)"


def _if_whole(space: gymnasium.Space) -> str:
    """What flattening makes of the fractions that a Box of integers should not have."""
    whole = isinstance(space, Box) and np.issubdtype(space.dtype, np.integer)
    return f" as {space.dtype}, without fractions" if whole else ""


def env_name(env: Any) -> str:
    """What messages call an environment, or a vector of them: its id, or its class."""
    name = getattr(getattr(env, "spec", None), "id", None)
    return name if name is not None else type(getattr(env, "unwrapped", env)).__name__


def normalising_wrappers(env: Any) -> list[str]:
    """Which of Gymnasium's normalising wrappers `env` is in, or the first environment of a vector, by name."""
    names = []
    while isinstance(env, (gymnasium.Wrapper, VectorWrapper, SyncVectorEnv)):
        name = type(env).__name__
        if name in ("NormalizeObservation", "NormalizeReward"):
            names.append(name)
        env = env.envs[0] if isinstance(env, SyncVectorEnv) else env.env
    return names


def same_environment(one: Any, other: Any) -> bool:
    """Whether two environments, or vectors, are the same beneath their wrappers, or have one in common."""

    def beneath(env: Any) -> set[int]:
        bare = getattr(env, "unwrapped", env)
        return {id(bare), *(id(getattr(each, "unwrapped", each)) for each in getattr(bare, "envs", ()))}

    return not beneath(one).isdisjoint(beneath(other))


def _cannot_make(env_id: str, error: Exception) -> str:
    name = env_id.rpartition(":")[2]
    if isinstance(error, gymnasium.error.Error) and name not in gymnasium.registry:
        nearest = nearest_names(name)
        hint = (
            f"did you mean {' or '.join(nearest)}?"
            if nearest
            else "gymnasium.pprint_registry() lists the names."
        )
        return f"environment {env_id!r} is not registered with Gymnasium; {hint}"
    return f"environment {env_id!r} could not be made: it {raised(error)}."


def is_vector(env: Any) -> bool:
    """Whether `env` follows Gymnasium's vector interface; simulators need not inherit from its class."""
    return hasattr(env, "num_envs") and hasattr(env, "single_action_space")


class Spaces(NamedTuple):
    """Of an environment: how many numbers it observes, and the bounds of its actions."""

    obs_dim: int
    bounds: ActionBounds


def check_spaces(env: gymnasium.Env | VectorEnv) -> Spaces:
    """Check that SAC can use `env`, or each environment of a vector, and return what it needs to know of them.

    The observation space must be a 1-D Box, the action space a 1-D Box with finite low < high; otherwise
    SACError names the space and the wrapper that helps.
    """
    if isinstance(env, str):
        raise SACError(f"{env!r} is a name and no environment; pass gymnasium.make({env!r}).")
    name, vector = env_name(env), is_vector(env)
    observation, action = (
        _space(env, f"single_{which}" if vector else which) for which in ("observation_space", "action_space")
    )
    wrappers = "gymnasium.wrappers.vector" if vector else "gymnasium.wrappers"
    if not isinstance(observation, Box) or len(observation.shape) != 1:
        remedy = f"wrap the environment in {wrappers}.FlattenObservation"
        if not _has_fixed_size(observation):
            remedy = f"leave out the part without a fixed size, in {wrappers}.TransformObservation"
        raise SACError(
            f"{name} has observations {_describe(observation)}, but SAC needs a 1-D Box; {remedy}."
        )
    if observation.shape[0] == 0:
        raise SACError(
            f"{name} has empty observations of shape (0,); SAC needs at least one number to act on."
        )
    if not isinstance(action, Box):
        raise SACError(
            f"{name} has actions {_describe(action)}, but SAC needs continuous ones (a 1-D Box); use an "
            "environment with continuous actions, or an algorithm for discrete ones."
        )
    if len(action.shape) != 1 or action.shape[0] == 0 or not np.issubdtype(action.dtype, np.floating):
        raise SACError(
            f"{name} has actions {_describe(action)}, but SAC needs a 1-D Box of floats; reshape them in a "
            f"{'gymnasium.vector.VectorActionWrapper' if vector else 'gymnasium.ActionWrapper'}."
        )
    try:
        return Spaces(observation.shape[0], ActionBounds(action.low, action.high))
    except SACError as error:
        raise SACError(
            f"{name}: {str(error).rstrip('.')}, for instance by {wrappers}.TransformAction."
        ) from None


def _space(env: Any, which: str) -> gymnasium.Space:
    space = getattr(env, which, None)
    if not isinstance(space, gymnasium.Space):
        held = "lacks it" if space is None else f"has {space!r} there"
        raise SACError(
            f"{env_name(env)} needs a gymnasium.Space as its {which}, and {held}; set it in __init__."
        )
    return space


def _describe(space: gymnasium.Space) -> str:
    """The space in a few words: arrays of bounds (an image's, say) are left out."""
    if isinstance(space, Box):
        return f"Box of shape {space.shape} and type {space.dtype}"
    text = str(space)
    return text if len(text) <= 60 else type(space).__name__


def check_finite(env_name: str, step: int, observation: np.ndarray, reward: float = 0.0) -> None:
    """Raise SACError for a reward or an observation [O] with NaN, an infinity, or what float32 makes one, naming the
    first such value.
    """
    if abs(reward) <= FLOAT32_MAX and fits_float32(observation):
        return
    where = f"{env_name} returned at step {step}"
    remedy = "that cannot be learned from: check the environment, or clip what it returns in a wrapper."
    if not float32_has(reward):
        raise SACError(f"{where} the reward {_told(reward)}; {remedy}")
    held = float32_has(observation)
    if not held.all():
        i = int(np.argmin(held))
        raise SACError(f"{where} an observation whose entry {i} is {_told(observation[i])}; {remedy}")


def _told(value: float) -> str:
    return f"{value}, beyond float32" if math.isfinite(value) else f"{value}"
