"""The whole SAC update in one native call on the CPU (csrc/cpu/sac_update.cpp), behind the Engine protocol.

The state's own tensors are updated in place; packed copies of the weights belong to the engine and are rebuilt
when torch's version counters say that somebody else wrote (after a write through `.data` or NumPy, which leaves no
trace there, call `NativeEngine.sync()`). The interface is csrc/engine.cpp, one struct per call, through ctypes.
"""

import ctypes
import weakref
from collections.abc import Sequence
from ctypes import c_char_p, c_double, c_float, c_int, c_int64, c_void_p
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacfast import native
from sacfast.config import SACConfig
from sacfast.engines.base import Engine, Metrics, Noise, Policy, check_inputs, check_observation
from sacfast.envs import ActionBounds
from sacfast.errors import NativeUnavailable, SACError
from sacfast.ops import Stream
from sacfast.replay import FIELDS, Batch, ReplayBuffer
from sacfast.state import BETA1, BETA2, EPSILON, Layer, SACState

MAX_HIDDEN = 4
PHASES = (
    "gather",
    "actor forward",
    "target",
    "critic forward",
    "critic backward",
    "Adam and packing",
    "critics of the policy's actions",
    "actor backward",
    "waiting",
)


def _fields(*groups: tuple[str, Any]) -> list[tuple[str, Any]]:
    return [(name, kind) for names, kind in groups for name in names.split()]


class _Layer(ctypes.Structure):
    _fields_ = _fields(("weight bias outputs inputs", c_int64))


class _UpdateSpec(ctypes.Structure):
    _fields_ = _fields(
        ("obs_dim action_dim hidden_layers threads", c_int64),
        ("actor", _Layer * (MAX_HIDDEN + 2)),
        ("critic", _Layer * (MAX_HIDDEN + 1) * 2),
        ("lr gamma tau beta1 beta2 epsilon target_entropy log_std_min log_std_max", c_double),
        ("learn_alpha actor_update_period", c_int64),
    )


class _State(ctypes.Structure):
    _fields_ = _fields(
        ("actor critic critic_target log_alpha", c_void_p),
        ("actor_m actor_v critic_m critic_v alpha_m alpha_v", c_void_p),
        ("seed step actor_adam_step critic_adam_step alpha_adam_step", c_int64),
    )


class _Transitions(ctypes.Structure):
    _fields_ = _fields(
        (" ".join(FIELDS), c_void_p),
        (" ".join(f"{name}_stride" for name in FIELDS), c_int64),
        ("size", c_int64),
    )


class _UpdateCall(ctypes.Structure):
    _fields_ = _fields(
        ("state", _State),
        ("transitions", _Transitions),
        ("batch_size updates", c_int64),
        ("next_noise noise metrics", c_void_p),
        ("repack", c_int64),
    )


class _PolicySpec(ctypes.Structure):
    _fields_ = _fields(
        ("obs_dim action_dim hidden_layers", c_int64),
        ("actor", _Layer * (MAX_HIDDEN + 2)),
        ("log_std_min log_std_max", c_double),
        ("low high", c_void_p),
    )


class _PolicyCall(ctypes.Structure):
    _fields_ = _fields(
        ("params obs action", c_void_p),
        ("n seed stream step deterministic bad", c_int64),
    )


_SIGNATURES = {
    "sacfast_error": (c_char_p,),
    "sacfast_arithmetic": (c_void_p, c_char_p, c_char_p),
    "sacfast_arithmetic_path": (c_char_p, c_void_p),
    "sacfast_arithmetic_names": (c_char_p,),
    "sacfast_update_new": (c_void_p, c_void_p, c_void_p),
    "sacfast_update_delete": (None, c_void_p),
    "sacfast_update_run": (c_int, c_void_p, c_void_p),
    "sacfast_update_set_profiling": (None, c_void_p, c_int),
    "sacfast_update_take_profile": (None, c_void_p, c_void_p),
    "sacfast_policy_new": (c_void_p, c_void_p, c_void_p),
    "sacfast_policy_delete": (None, c_void_p),
    "sacfast_policy_act": (None, c_void_p, c_void_p),
}


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def available(library: ctypes.CDLL) -> dict[str, list[str]]:
    """The precisions of each arithmetic path that is compiled in and runs here, fastest path first."""
    found: dict[str, list[str]] = {}
    for entry in _declare(library).sacfast_arithmetic_names().decode().split():
        path, precision = entry.split(":")
        found.setdefault(path, []).append(precision)
    return found


class NativeEngine(Engine):
    """SAC as one call per `train`, without autograd and without the interpreter lock.

    threads: None or 0 for the physical cores. path: an arithmetic path by name ("avx512", "avx2", ...), "" for the
    fastest at `config.precision`. Raises NativeUnavailable without native code, SACError for a precision or path
    that this CPU lacks.
    """

    def __init__(
        self,
        config: SACConfig,
        *,
        threads: int | None = None,
        path: str | None = None,
        library: ctypes.CDLL | None = None,
    ):
        super().__init__(config, threads=threads)
        self._settings = {"path": path, "library": library}
        self._library = _declare(library or native.engine_library())
        path = native.cpu_path() if path is None else path
        self._arithmetic = self._library.sacfast_arithmetic(path.encode(), config.precision.encode())
        if not self._arithmetic:
            raise SACError(_missing(available(self._library), path, config.precision))
        self.path = self._library.sacfast_arithmetic_path(self._arithmetic).decode()
        self.name = f"native {self.path} {config.precision}, {self.threads} thread{'s' * (self.threads > 1)}"
        self._update: int | None = None
        self._shape: tuple | None = None
        self._packed: tuple[weakref.ref, int] | None = (
            None  # the state, and its version, behind the packed weights
        )
        self._metrics = torch.full((len(Metrics.names),), torch.nan)
        self._profiling = native.profiling()

    def settings(self) -> dict[str, Any]:
        return super().settings() | self._settings

    def update(self, state: SACState, batch: Batch, noise: Noise | None = None) -> Metrics:
        _check_device(state)
        if noise is not None:
            check_inputs(state, batch, noise)
            noise = Noise(noise.next_action.contiguous(), noise.action.contiguous())
        else:
            check_inputs(state, batch)
        fields = [_unit_stride(getattr(batch, name)) for name in FIELDS]
        return self._run(state, fields, 0, len(batch.reward), 1, noise)

    def train(self, state: SACState, buffer: ReplayBuffer, batch_size: int, updates: int = 1) -> Metrics:
        _check_device(state)
        if updates < 1:
            raise SACError(f"updates must be at least 1, not {updates}")
        fields = buffer.fields_to_sample(batch_size)
        if (buffer.obs_dim, buffer.action_dim) != (state.obs_dim, state.action_dim):
            raise SACError(
                f"the buffer holds observations [{buffer.obs_dim}] and actions [{buffer.action_dim}]; "
                f"this agent needs [{state.obs_dim}] and [{state.action_dim}]"
            )
        return self._run(state, fields, len(buffer), batch_size, updates, None)

    def sync(self) -> None:
        """Take the weights anew before the next update: for writes that bypass torch's version counters."""
        self._packed = None

    def profile(self, enabled: bool = True) -> dict[str, float]:
        """Seconds per phase since the last call, summed over threads; afterwards timing is on or off as told."""
        seconds = np.zeros(len(PHASES))
        if self._update:
            self._library.sacfast_update_take_profile(self._update, seconds.ctypes.data)
            self._library.sacfast_update_set_profiling(self._update, enabled)
        self._profiling = enabled
        return dict(zip(PHASES, seconds.tolist(), strict=True))

    def make_policy(self, state: SACState, bounds: ActionBounds) -> Policy:
        if state.device.type != "cpu":
            return super().make_policy(state, bounds)
        return NativePolicy(self._library, self.config, state, bounds)

    def _run(
        self,
        state: SACState,
        fields: Sequence[Tensor],
        size: int,
        batch_size: int,
        updates: int,
        noise: Noise | None,
    ) -> Metrics:
        handle, first = self._handle(state), state.step
        call = _UpdateCall(
            state=_pointers(state),
            transitions=_Transitions(
                *(field.data_ptr() for field in fields), *(field.stride(0) for field in fields), size
            ),
            batch_size=batch_size,
            updates=updates,
            next_noise=noise and noise.next_action.data_ptr(),
            noise=noise and noise.action.data_ptr(),
            metrics=self._metrics.data_ptr(),
            repack=self._stale(state),
        )
        result = self._library.sacfast_update_run(handle, ctypes.byref(call))
        done = call.state
        state.step = done.step
        state.actor_adam.step, state.critic_adam.step = done.actor_adam_step, done.critic_adam_step
        state.alpha_adam.step = done.alpha_adam_step
        state.written()
        self._packed = (weakref.ref(state), state.version())
        if result < 0:
            raise SACError(f"the native update failed: {self._library.sacfast_error().decode()}")
        if result == 1:
            raise SACError(
                f"the batch of update {state.step} holds a NaN or an infinity, so the update was not applied "
                f"({state.step - first} of {updates} before it were); check what was pushed"
            )
        return Metrics(self._metrics.clone())

    def _stale(self, state: SACState) -> bool:
        if self._packed is None:
            return True
        packed, version = self._packed
        return packed() is not state or version != state.version()

    def _handle(self, state: SACState) -> int:
        """The native object for networks of this shape."""
        shape = (state.actor_layers, state.critic_layers)
        if self._update is None or self._shape != shape:
            spec = self._spec(state)
            handle = self._library.sacfast_update_new(ctypes.byref(spec), self._arithmetic)
            if not handle:
                raise NativeUnavailable(f"the native engine failed: {self._library.sacfast_error().decode()}")
            weakref.finalize(self, self._library.sacfast_update_delete, handle)
            self._library.sacfast_update_set_profiling(handle, self._profiling)
            self._update, self._shape, self._packed = handle, shape, None
        return self._update

    def _spec(self, state: SACState) -> _UpdateSpec:
        config = self.config
        return _UpdateSpec(
            obs_dim=state.obs_dim,
            action_dim=state.action_dim,
            hidden_layers=len(state.actor_layers) - 2,
            threads=self.threads,
            actor=_layers(state.actor_layers),
            critic=tuple(_layers(layers) for layers in state.critic_layers),
            lr=config.lr,
            gamma=config.gamma,
            tau=config.tau,
            beta1=BETA1,
            beta2=BETA2,
            epsilon=EPSILON,
            target_entropy=self.target_entropy,
            log_std_min=state.actor.log_std_min,
            log_std_max=state.actor.log_std_max,
            learn_alpha=config.automatic_entropy_tuning,
            actor_update_period=config.actor_update_period,
        )


class NativePolicy:
    """Observations [O] or [n, O] to actions in the environment's units, in one call. Not for two threads at once."""

    def __init__(
        self, library: ctypes.CDLL, config: SACConfig, state: SACState, bounds: ActionBounds
    ) -> None:
        # Keeps the interpreter lock: giving it up and waiting for it again would cost more than the action.
        self._library = _declare(ctypes.PyDLL(library._name))
        self._state, self._dims = state, (state.obs_dim, state.action_dim)
        spec = _PolicySpec(
            *self._dims,
            len(state.actor_layers) - 2,
            _layers(state.actor_layers),
            state.actor.log_std_min,
            state.actor.log_std_max,
            bounds.low.ctypes.data,
            bounds.high.ctypes.data,
        )
        arithmetic = self._library.sacfast_arithmetic(b"", b"float32")
        self._policy = self._library.sacfast_policy_new(ctypes.byref(spec), arithmetic)
        weakref.finalize(self, self._library.sacfast_policy_delete, self._policy)
        self._act = self._library.sacfast_policy_act
        self._obs, self._action = (np.zeros(dim, np.float32) for dim in self._dims)
        self._call = _PolicyCall(n=1, obs=self._obs.ctypes.data, action=self._action.ctypes.data)
        self._call.stream = Stream.EXPLORE
        self._reference = ctypes.byref(self._call)

    def __call__(self, observation: np.ndarray | Tensor, evaluate: bool = False) -> np.ndarray:
        plain = type(observation) is np.ndarray and observation.dtype.kind in "fiu"
        if not plain or observation.shape != self._obs.shape:
            return self._several(check_observation(observation, self._dims[0]), evaluate)
        self._obs[:] = observation
        self._run(self._call, self._reference, evaluate)
        return self._action.copy()

    def _run(self, call: _PolicyCall, reference: Any, evaluate: bool) -> None:
        state = self._state
        call.params = state.actor_params.data_ptr()
        call.seed, call.step, call.deterministic = state.seed, state.action_step, evaluate
        self._act(self._policy, reference)
        if call.bad >= 0:
            value = ctypes.cast(call.obs, ctypes.POINTER(c_float))[call.bad]
            raise SACError(f"the observation holds {value}; check the environment")
        if not evaluate:
            state.action_step += 1

    def _several(self, obs: np.ndarray, evaluate: bool) -> np.ndarray:
        rows = np.ascontiguousarray(obs).reshape(-1, self._dims[0])
        action = np.empty((len(rows), self._dims[1]), np.float32)
        call = _PolicyCall(n=len(rows), obs=rows.ctypes.data, action=action.ctypes.data)
        call.stream = Stream.EXPLORE
        self._run(call, ctypes.byref(call), evaluate)
        return action.reshape(*obs.shape[:-1], -1)


def _layers(layers: tuple[Layer, ...]) -> tuple[_Layer, ...]:
    return tuple(_Layer(x.weight_offset, x.bias_offset, x.outputs, x.inputs) for x in layers)


def _pointers(state: SACState) -> _State:
    tensors = (
        state.actor_params,
        state.critic_params,
        state.critic_target_params,
        state.log_alpha,
        state.actor_adam.exp_avg,
        state.actor_adam.exp_avg_sq,
        state.critic_adam.exp_avg,
        state.critic_adam.exp_avg_sq,
        state.alpha_adam.exp_avg,
        state.alpha_adam.exp_avg_sq,
    )
    return _State(
        *(tensor.data_ptr() for tensor in tensors),
        state.seed,
        state.step,
        state.actor_adam.step,
        state.critic_adam.step,
        state.alpha_adam.step,
    )


def _unit_stride(field: Tensor) -> Tensor:
    return field if field.ndim == 1 or field.stride(1) == 1 else field.contiguous()


def _check_device(state: SACState) -> None:
    if state.device.type != "cpu":
        raise SACError(
            f"the native engine runs on the CPU, and this agent is on {state.device}; use device='cpu'"
        )


def _missing(found: dict[str, list[str]], path: str, precision: str) -> str:
    has = "; ".join(f"{name}: {', '.join(precisions)}" for name, precisions in found.items())
    wanted = f"precision={precision!r}" + (f" on the arithmetic path {path!r}" if path else "")
    return f"{wanted} is not available on this CPU, which has {has}; choose one of these"
