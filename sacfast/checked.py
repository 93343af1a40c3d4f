"""One environment, and what it may return: numbers, as Gymnasium's interface has them and its spaces announced them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from sacfast import envstate
from sacfast.envstate import NotCapturable
from sacfast.errors import first_line, raised

FAULT = "sacfast_fault"  # the key in `info` under which a CheckedEnv reports what went wrong
# What Gymnasium's interface has each call return.
STEP = ("observation", "reward", "terminated", "truncated", "info")
RESET = ("observation", "info")


class EnvironmentFault(Exception):
    """What an environment did wrong, as the end of a sentence that begins with its name."""


def check_parts(results: Any, parts: tuple[str, ...]) -> None:
    """Raise EnvironmentFault unless a call returned as many values as it has `parts`: STEP or RESET."""
    several = isinstance(results, (tuple, list))
    if several and len(results) == len(parts):
        return
    given = f"{len(results)} values" if several else f"one value of type {type(results).__name__}"
    call = "step" if parts is STEP else "reset"
    raise EnvironmentFault(
        f"returned {given} from {call} instead of {', '.join(parts)} (Gymnasium's interface)"
    )


def as_numbers(obs: Any) -> np.ndarray:
    """`obs` as an array of real numbers. Raises EnvironmentFault where it cannot be one."""
    try:
        obs = np.asarray(obs)
    except Exception as error:  # a list of lists of several lengths, a tensor on a GPU
        raise EnvironmentFault(f"returned an observation that is no array: {first_line(error)}") from error
    if obs.dtype.kind not in "biuf":
        raise EnvironmentFault(f"returned an observation of type {obs.dtype} instead of numbers")
    return obs


def observed(obs: Any, shape: tuple[int, ...] | None) -> np.ndarray:
    """`obs` as an array of real numbers in the announced shape. Raises EnvironmentFault where it cannot be one."""
    obs = as_numbers(obs)
    if obs.shape != shape:
        raise EnvironmentFault(
            f"returned an observation of shape {list(obs.shape)}, but announced {list(shape or ())}"
        )
    return obs


def stepped(results: Any, shape: tuple[int, ...] | None) -> tuple[np.ndarray, float, bool, bool]:
    """What a single environment's step returned, without info. Raises EnvironmentFault where it is malformed."""
    check_parts(results, STEP)
    obs, reward, terminated, truncated, _ = results
    try:
        numbers = float(reward), bool(terminated), bool(truncated)
    except Exception as error:  # None, a text, an array or a tensor of several
        what = f"the reward {reward!r} (terminated {terminated!r}, truncated {truncated!r})"
        raise EnvironmentFault(f"returned {what}, which is not a number") from error
    return observed(obs, shape), *numbers


def begun(results: Any, shape: tuple[int, ...] | None) -> np.ndarray:
    """The observation that a single environment's reset returned. Raises EnvironmentFault where it is malformed."""
    check_parts(results, RESET)
    return observed(results[0], shape)


class CheckedEnv(gymnasium.Wrapper):
    """An environment that reports its exceptions and malformed results in `info` instead of raising them.

    A worker process then lives on and the report keeps its environment's index. Other entries of `info` are left
    out: nothing reads them, and vectorisers spend longer on merging them than on the rest of a step.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.obstacle: str | None = None  # why the state that was put back last could not be
        space = env.observation_space  # for which each wrapper below would be asked in turn, at every step
        self._shape, self._dtype = space.shape, space.dtype

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        try:
            obs, *others = stepped(self.env.step(action), self._shape)
            return self._whole(obs), *others, {}  # type: ignore[return-value]
        except (Exception, SystemExit) as error:
            return self._blank(), 0.0, False, False, _report(error)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        try:
            # {} is what is left of a vector's mask.
            return self._whole(begun(self.env.reset(seed=seed, options=options or None), self._shape)), {}
        except (Exception, SystemExit) as error:
            return self._blank(), _report(error, " in reset")

    def _whole(self, obs: np.ndarray) -> np.ndarray:
        """`obs`, in the announced type where that is of integers: a vectoriser would cut off fractions, and wrap."""
        if obs.dtype.kind == "f" and self._dtype is not None and self._dtype.kind != "f":
            raise EnvironmentFault(
                f"returned an observation of type {obs.dtype}, but announced {self._dtype}, in which fractions are "
                "lost; declare a Box of float32"
            )
        if self._dtype is None or self._dtype.kind not in "iu" or obs.dtype == self._dtype:
            return obs
        whole = obs.astype(self._dtype)
        if (wrong := whole != obs).any():
            raise EnvironmentFault(
                f"returned an observation that holds {obs[wrong][0]}, but announced {self._dtype}, which does not hold "
                "it; declare a Box of float32"
            )
        return whole

    @property
    def captured(self) -> dict[str, Any] | str:
        """The environment's state (envstate.capture), or why it cannot be had; set it to put it back."""
        try:
            return envstate.capture(self.env)
        except NotCapturable as error:
            return str(error)

    @captured.setter
    def captured(self, state: dict[str, Any]) -> None:
        try:
            envstate.restore(self.env, state)
            self.obstacle = None
        except NotCapturable as error:
            self.obstacle = str(error)

    def _blank(self) -> np.ndarray:
        space = self.env.observation_space
        return np.zeros(space.shape or (), space.dtype)


def _report(error: BaseException, where: str = "") -> dict[str, Any]:
    if isinstance(error, EnvironmentFault):
        return {FAULT: error}
    fault = EnvironmentFault(raised(error) + where)
    fault.__cause__ = error
    return {FAULT: fault}
