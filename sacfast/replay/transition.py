"""What one step of one environment leaves to be written, by one native call each (csrc/cpu/transition.cpp)."""

import ctypes
import functools
from typing import Any

import numpy as np
from torch import Tensor

from sacfast import native
from sacfast.envs import ActionBounds
from sacfast.errors import SACError


class TransitionWriter:
    """Rounds transitions to float32, one at a time, as the replay ring stores them. Raises NativeUnavailable,
    and SACError for bounds of another width.

    `record` [words]: obs [O], action [A] in [-1, 1], reward times `reward_scale`, and zeros; `next_obs` [O]. Both are
    written anew by every `write`.
    """

    def __init__(
        self, obs_dim: int, action_dim: int, words: int, bounds: ActionBounds | None, reward_scale: float
    ) -> None:
        if bounds is not None and bounds.dim != action_dim:  # whose memory is read for every action
            raise SACError(f"the replay buffer's bounds have {bounds.dim} entries, but actions {action_dim}")
        given = np.zeros(2 * obs_dim + action_dim + 1)
        self._obs, self._action, self._following, self._reward = np.split(
            given, np.cumsum((obs_dim, action_dim, obs_dim))
        )
        self.record, self.next_obs = np.zeros(words, np.float32), np.zeros(obs_dim, np.float32)
        centre, half = (None, None) if bounds is None else bounds.centre_and_half
        self.made_for = bounds, reward_scale
        self._held = given, centre, half  # whose memory the arguments name
        arrays = [None if array is None else array.ctypes.data for array in self._held]
        outputs = self.record.ctypes.data, self.next_obs.ctypes.data
        call, _ = _functions(native.engine_library())
        self._call = functools.partial(call, obs_dim, action_dim, *arrays, reward_scale, *outputs)

    def write(self, obs: np.ndarray, action: np.ndarray, reward: float, next_obs: np.ndarray) -> bool:
        """Whether all numbers are finite in float32. Raises TypeError or ValueError for what are no numbers."""
        self._obs[:], self._action[:], self._following[:], self._reward[0] = obs, action, next_obs, reward
        return bool(self._call())


class MomentsWriter:
    """Takes observations, one at a time, into running moments. Raises NativeUnavailable.

    `mean` and `squares`, the sum of squared deviations, are the CPU's, contiguous float64 [O]. Every `add` writes the
    mean and 1 / sqrt(variance + epsilon) to `shift` and `scale`, float32 [O].
    """

    def __init__(
        self, mean: Tensor, squares: Tensor, epsilon: float, shift: np.ndarray, scale: np.ndarray
    ) -> None:
        self.shift, self.scale = shift, scale
        self._held = mean, squares  # whose memory the arguments name
        self._x = np.zeros(len(mean))
        arrays = [each.ctypes.data for each in (self._x, mean.numpy(), squares.numpy(), shift, scale)]
        _, call = _functions(native.engine_library())
        self._call = functools.partial(call, len(mean), epsilon, *arrays)

    def add(self, x: np.ndarray, count: int) -> None:
        """The observation x [O], after `count` others."""
        self._x[:] = x
        self._call(count)


@functools.cache
def _functions(library: ctypes.CDLL) -> tuple[Any, Any]:
    """The C functions with their types; they keep the interpreter's lock, which would cost more to give up."""
    library = ctypes.PyDLL(library._name)
    transition, moments = library.sacfast_transition, library.sacfast_moments
    transition.restype, moments.restype = ctypes.c_int, None
    transition.argtypes = (
        *[ctypes.c_int64] * 2,
        *[ctypes.c_void_p] * 3,
        ctypes.c_float,
        *[ctypes.c_void_p] * 2,
    )
    moments.argtypes = (ctypes.c_int64, ctypes.c_double, *[ctypes.c_void_p] * 5, ctypes.c_int64)
    return transition, moments
