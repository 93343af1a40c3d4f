"""Acting by csrc/cpu/policy.cpp: an observation or a few to actions in one native call."""

import ctypes
import threading
from typing import Any

import numpy as np
from torch import Tensor

from sacfast.engines import abi
from sacfast.engines.base import TorchPolicy, check_observation
from sacfast.engines.structs import aim_policy_call, policy_call, policy_spec
from sacfast.envs import ActionBounds
from sacfast.errors import NativeUnavailable, SACError
from sacfast.state import SACState

SEVERAL = 64  # observations from which on products of matrices in PyTorch are faster than one after the other


class NativePolicy:
    """Observations [O] or [n, O] to actions in the environment's units, in one call."""

    def __init__(self, library: ctypes.CDLL, path: str, state: SACState, bounds: ActionBounds) -> None:
        # Keeps the interpreter lock: giving it up and waiting for it again would cost more than the action.
        self._library = abi.declare(ctypes.PyDLL(library._name))
        self._state, self._dims = state, (state.obs_dim, state.action_dim)
        self._many = TorchPolicy(state, bounds)
        self.lock = threading.Lock()  # a robot per thread, say: each gets the action for its own observation
        spec = policy_spec(state, bounds.low.ctypes.data, bounds.high.ctypes.data)
        arithmetic = self._library.sacfast_arithmetic(path.encode(), b"float32")
        self._policy = arithmetic and self._library.sacfast_policy_new(ctypes.byref(spec), arithmetic)
        if not self._policy:
            raise NativeUnavailable(f"the native policy failed: {self._library.sacfast_error().decode()}")
        abi.free_with(self, self._library.sacfast_policy_delete, self._policy)
        self._act = self._library.sacfast_policy_act
        self._obs, self._action = (np.zeros(dim, np.float32) for dim in self._dims)
        self._call = policy_call(1, self._obs.ctypes.data, self._action.ctypes.data)
        self._reference = ctypes.byref(self._call)

    def __call__(self, observation: np.ndarray | Tensor, evaluate: bool = False) -> np.ndarray:
        plain = type(observation) is np.ndarray and observation.dtype.kind in "fiu"
        if not plain or observation.shape != self._obs.shape:
            return self._several(check_observation(observation, self._dims[0]), evaluate)
        with self.lock:
            self._obs[:] = observation
            self._run(self._call, self._reference, evaluate)
            return self._action.copy()

    def _run(self, call: abi.PolicyCall, reference: Any, evaluate: bool) -> None:
        aim_policy_call(call, self._state, evaluate)
        self._act(self._policy, reference)
        if call.bad >= 0:
            value = ctypes.cast(call.obs, ctypes.POINTER(ctypes.c_float))[call.bad]
            raise SACError(f"the observation holds {value}; check the environment")
        if not evaluate:
            self._state.action_step += 1

    def _several(self, obs: np.ndarray, evaluate: bool) -> np.ndarray:
        if obs.ndim == 2 and len(obs) >= SEVERAL:
            return self._many(obs, evaluate)
        rows = np.ascontiguousarray(obs).reshape(-1, self._dims[0])
        action = np.empty((len(rows), self._dims[1]), np.float32)
        call = policy_call(len(rows), rows.ctypes.data, action.ctypes.data)
        with self.lock:
            self._run(call, ctypes.byref(call), evaluate)
        return action.reshape(*obs.shape[:-1], self._dims[1])
