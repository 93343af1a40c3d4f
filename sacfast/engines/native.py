"""The whole SAC update in one native call on the CPU (csrc/cpu/sac_update.cpp), behind the Engine protocol.

The state's own tensors are updated in place; packed copies of the weights belong to the engine and are rebuilt
when torch's version counters say that somebody else wrote (after a write that leaves no trace there, by `.data`,
NumPy or an optimizer with fused=True, call `NativeEngine.sync()`). The interface is csrc/engine.cpp (abi.py), one
struct per call.
"""

import atexit
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacfast import native
from sacfast.config import SACConfig
from sacfast.engines import abi
from sacfast.engines.base import Engine, Metrics, Noise, Policy, check_inputs
from sacfast.engines.native_policy import NativePolicy
from sacfast.engines.structs import (
    check_memory,
    layer_specs,
    log_std_bounds,
    obs_statistics,
    state_pointers,
    take_counters,
    transitions_of,
)
from sacfast.envs import ActionBounds
from sacfast.errors import NativeUnavailable, SACError
from sacfast.ops.replay_batch import OBS_TYPES
from sacfast.replay import FIELDS, Batch, ReplayBuffer
from sacfast.requirements import check_whole
from sacfast.state import BETA1, BETA2, EPSILON, SACState

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


def available(library: ctypes.CDLL) -> dict[str, list[str]]:
    """The precisions of each arithmetic path that is compiled in and runs here, fastest path first."""
    found: dict[str, list[str]] = {}
    for entry in abi.declare(library).sacfast_arithmetic_names().decode().split():
        path, precision = entry.split(":")
        found.setdefault(path, []).append(precision)
    return found


_engines: "weakref.WeakSet[NativeEngine]" = weakref.WeakSet()
_policies: "weakref.WeakSet[NativePolicy]" = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child, a lock that another thread held would stay locked for ever."""
    for engine in _engines:
        engine._lock, engine._started, engine._owner = threading.Lock(), None, None
    for policy in _policies:
        policy.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


@atexit.register
def _end_what_was_started() -> None:
    """The interpreter frees what threads of native code are working on."""
    for engine in list(_engines):
        if engine._started is not None and engine._waits_for_ever(engine._started[0]):
            engine._library.sacfast_update_finish(engine._update)


class NativeEngine(Engine):
    """SAC as one call per `train`, without autograd and without the interpreter lock.

    threads: None or 0 for the physical cores. path: an arithmetic path by name ("avx512", "avx2", ...), "" for the
    fastest at `config.precision`, None for what SACFAST_CPU_PATH names. Raises NativeUnavailable without native code,
    SACError for a precision or path that this CPU lacks.
    """

    # The records and the side table that batches were last drawn from, and how native code finds them.
    _memory: tuple[weakref.ref, weakref.ref, abi.Transitions] | None = None

    @property
    def starts(self) -> bool:
        return self.threads > 1  # one is the caller's own

    def __init__(
        self,
        config: SACConfig,
        *,
        threads: int | None = None,
        path: str | None = None,
        library: ctypes.CDLL | None = None,
    ):
        super().__init__(config, threads=threads)
        declared = abi.declare(library or native.engine_library())
        self._begin(declared, torch.device("cpu"), {"path": path, "library": library})
        path = native.cpu_path() if path is None else path
        self._arithmetic = self._library.sacfast_arithmetic(path.encode(), config.precision.encode())
        if not self._arithmetic:
            raise SACError(_missing(available(self._library), path, config.precision))
        self.path = self._library.sacfast_arithmetic_path(self._arithmetic).decode()
        self.name = f"native {self.path} {config.precision}"

    def _begin(self, library: ctypes.CDLL, device: torch.device, settings: dict[str, Any]) -> None:
        """What this engine and CUDA's have in common, before their first update."""
        self._library, self._settings = library, settings
        self._lock = threading.Lock()  # one update at a time; the interpreter's is given up meanwhile
        self._owner: int | None = None  # the thread that has it
        _engines.add(self)
        self._started: tuple[threading.Thread, SACState, Sequence[Tensor], abi.UpdateCall] | None = None
        self._update: int | None = None
        self._free: weakref.finalize | None = None
        self._shape: tuple | None = None
        # The state, and its version, that the packed weights are of.
        self._packed: tuple[weakref.ref, int] | None = None
        self._next: tuple[weakref.ref, int] | None = None  # what that will be after the update under way
        self._metrics = Metrics.unknown(device).tensor
        self._profiling = native.profiling()

    def settings(self) -> dict[str, Any]:
        return super().settings() | self._settings

    def recall(self, metrics: Metrics) -> None:
        self._metrics.copy_(metrics.tensor)

    def update(self, state: SACState, batch: Batch, noise: Noise | None = None) -> Metrics:
        self._check_device(state)
        check_inputs(state, batch, noise)
        if noise is not None:
            noise = Noise(noise.next_action.contiguous(), noise.action.contiguous())
        fields = [_unit_stride(getattr(batch, name)) for name in FIELDS]
        return self._run(state, transitions_of(*fields), len(batch.reward), 1, noise, fields)

    def train(self, state: SACState, buffer: ReplayBuffer, batch_size: int, updates: int = 1) -> Metrics:
        transitions, memory = self._drawn(state, buffer, batch_size, updates)
        return self._run(state, transitions, batch_size, updates, None, memory)

    def start(
        self, state: SACState, buffer: ReplayBuffer, batch_size: int, updates: int = 1
    ) -> Callable[[], Metrics]:
        transitions, memory = self._drawn(state, buffer, batch_size, updates)
        self.check_turn()
        self._lock.acquire()
        try:
            self._owner = threading.get_ident()
            handle, call = self._prepare(state, transitions, batch_size, updates)
            finish = partial(self._finish, handle, state, call)
            # What the other threads work on must not go, whatever becomes of the function returned.
            self._started = threading.current_thread(), state, memory, call
            if self._library.sacfast_update_start(handle, ctypes.byref(call)) < 0:
                self._started = None
                raise self._failed(call)
            self._owner = None
            return finish
        except BaseException:
            self._owner = None
            if self._started is None:
                self._lock.release()
            else:  # Ctrl-C arrives as the call returns, with the updates under way
                with suppress(SACError):
                    self._finish(handle, state, call)
                self.sync()
            raise

    def _finish(self, handle: int, state: SACState, call: abi.UpdateCall) -> Metrics:
        """The end of what `start` began."""
        if self._started is None or self._started[3] is not call:
            raise SACError("what was started has ended already; call what `start` returned once")
        try:
            self._apply(state, call, lambda: self._library.sacfast_update_finish(handle))
            return Metrics(self._metrics.clone())
        except BaseException:  # Ctrl-C perhaps, before that call: nothing may go while threads work on it
            self._library.sacfast_update_finish(handle)
            take_counters(state, call.state)
            raise
        finally:
            self._started = None
            self._lock.release()

    @staticmethod
    def _waits_for_ever(starter: threading.Thread) -> bool:
        """Whether nobody but the caller is left to end what that thread started."""
        return starter is threading.current_thread() or not starter.is_alive()

    def settle(self, state: SACState) -> None:
        self.check_turn()
        with self._lock:
            pass

    def _settle_last(self) -> None:
        """Raise SACError for what the native object has yet to report; all of it has been reported here."""

    def _drawn(
        self, state: SACState, buffer: ReplayBuffer, batch_size: int, updates: int
    ) -> tuple[abi.Transitions, Sequence[Tensor]]:
        """The replay memory that batches are drawn from, once it is known to fit, and the tensors that it is in."""
        self._check_device(state)
        check_whole("updates", updates, 1, 2**63 - 1)
        ring = buffer.ring_to_sample(batch_size)
        if buffer.device != state.device:
            raise SACError(f"the buffer is on {buffer.device}, but this agent is on {state.device}")
        if (buffer.obs_dim, buffer.action_dim) != (state.obs_dim, state.action_dim):
            raise SACError(
                f"the buffer holds observations [{buffer.obs_dim}] and actions [{buffer.action_dim}]; "
                f"this agent needs [{state.obs_dim}] and [{state.action_dim}]"
            )
        memory = records, side = ring.records, ring.side
        held = self._memory
        there = ring.obs.data_ptr(), side.data_ptr()  # which move where multiprocessing shares the memory
        if (
            held is None
            or held[0]() is not records
            or held[1]() is not side
            or (held[2].obs, held[2].next_obs) != there
        ):
            transitions = transitions_of(
                ring.obs,
                ring.action,
                ring.reward,
                side,
                link=ring.link,
                capacity=ring.capacity,
                obs_type=list(OBS_TYPES.values()).index(ring.obs_dtype),
            )
            self._memory = held = weakref.ref(records), weakref.ref(side), transitions
        held[2].size = ring.size
        return held[2], memory

    def sync(self) -> None:
        self._packed = None

    def profile(self, enabled: bool = True) -> dict[str, float]:
        seconds = np.zeros(len(PHASES))
        self.check_turn()
        with self._lock:
            if self._update:
                self._library.sacfast_update_take_profile(self._update, seconds.ctypes.data)
                self._library.sacfast_update_set_profiling(self._update, enabled)
            self._profiling = enabled
        return dict(zip(PHASES, seconds.tolist(), strict=True))

    def make_policy(self, state: SACState, bounds: ActionBounds) -> Policy:
        if state.device.type != "cpu":
            return super().make_policy(state, bounds)
        policy = NativePolicy(self._library, self.path, state, bounds)
        _policies.add(policy)
        return policy

    def _check_device(self, state: SACState) -> None:
        if state.device.type != "cpu":
            raise SACError(
                f"the native engine runs on the CPU, and this agent is on {state.device}; use device='cpu'"
            )

    def _run(
        self,
        state: SACState,
        transitions: abi.Transitions,
        batch_size: int,
        updates: int,
        noise: Noise | None,
        memory: Sequence[Tensor],
    ) -> Metrics:
        """`memory`: what `transitions` point into, which another thread may replace meanwhile."""
        self.check_turn()
        with self._lock:  # by `with`, since Ctrl-C may come between a call of acquire and the next statement
            try:
                self._owner = threading.get_ident()
                handle, call = self._prepare(state, transitions, batch_size, updates, noise)
                self._apply(state, call, lambda: self._execute(handle, call))
                return Metrics(self._metrics.clone())
            finally:
                self._owner = None

    def check_turn(self) -> None:
        if self._started is not None and self._waits_for_ever(self._started[0]):
            raise SACError("updates that were started are under way; first call what start returned")
        if self._owner == threading.get_ident():
            raise SACError(
                "an update is under way in this very thread: let a signal handler set a flag, and do this once the "
                "update has ended"
            )

    def _prepare(
        self,
        state: SACState,
        transitions: abi.Transitions,
        batch_size: int,
        updates: int,
        noise: Noise | None = None,
    ) -> tuple[int, abi.UpdateCall]:
        """The native object and the call to make."""
        handle = self._handle(state)
        check_memory(state)
        return handle, abi.UpdateCall(
            state=state_pointers(state),
            transitions=transitions,
            statistics=obs_statistics(state),
            batch_size=batch_size,
            updates=updates,
            next_noise=noise and noise.next_action.data_ptr(),
            noise=noise and noise.action.data_ptr(),
            metrics=self._metrics.data_ptr(),
            repack=self._stale(state),
        )

    def _stale(self, state: SACState) -> bool:
        """Whether the packed weights are not those of `state`. From here on they are whatever the update leaves."""
        packed, version = self._packed, state.version()
        # What somebody else writes to the weights meanwhile shows as a higher version.
        self._next, self._packed = (weakref.ref(state), version + state.writes), None
        return packed is None or packed[0]() is not state or packed[1] != version

    def _execute(self, handle: int, call: abi.UpdateCall) -> int:
        return self._library.sacfast_update_run(handle, ctypes.byref(call))

    def _apply(self, state: SACState, call: abi.UpdateCall, execute: Callable[[], int]) -> None:
        """Let `execute` make the updates of `call`, and take over the counters that it returns."""
        first, result = state.step, -1
        try:
            result = execute()
        finally:  # Ctrl-C arrives as the call returns, with the weights already ahead
            take_counters(state, call.state)
            state.written()
        self._conclude(result, state, call, first)

    def _conclude(self, result: int, state: SACState, call: abi.UpdateCall, first: int) -> None:
        """Raise SACError for what went wrong in the updates from number `first` on."""
        if result < 0:
            raise self._failed(call)
        self._packed = self._next
        if result > 0:
            raise SACError(
                f"the batch of update {state.step} holds a NaN or an infinity, so the update was not applied "
                f"({state.step - first} of {call.updates} before it were); check what was pushed"
            )

    def _failed(self, call: abi.UpdateCall) -> SACError:
        reason = self._library.sacfast_error().decode()
        if "out of memory" in reason:
            reason += f" (batch_size={call.batch_size}; a smaller one needs less)"
        return SACError(f"the native update failed: {reason}")

    def _handle(self, state: SACState) -> int:
        """The native object for networks of this shape."""
        shape = (state.actor_layers, state.critic_layers, log_std_bounds(state))
        if self._update is None or self._shape != shape:
            nets = (state.actor_layers[:-2], state.critic_layers[0][:-1])
            actor, critic = ([layer.outputs for layer in net] for net in nets)
            if any(layers[0].inputs != state.obs_dim + state.action_dim for layers in state.critic_layers):
                raise SACError(
                    f"the critics do not take {state.obs_dim} observations and {state.action_dim} actions, as the "
                    "actor has; make them with its dimensions"
                )
            if actor != critic:
                raise SACError(
                    f"the actor's hidden layers are {actor} wide and the critics' {critic}; the native engine "
                    "needs the same, engine='reference' does not"
                )
            if self._free:
                self._settle_last()
                self._free()
                self._update = None
            handle, delete = self._new(self._spec(state))
            if not handle:
                raise NativeUnavailable(f"the native engine failed: {self._library.sacfast_error().decode()}")
            self._free = abi.free_with(self, delete, handle)
            self._update, self._shape, self._packed = handle, shape, None
        return self._update

    def _new(self, spec: abi.UpdateSpec) -> tuple[int, Any]:
        """A native object for `spec`, 0 where that fails, and the function that ends it."""
        handle = self._library.sacfast_update_new(ctypes.byref(spec), self._arithmetic)
        if handle:
            self._library.sacfast_update_set_profiling(handle, self._profiling)
        return handle, self._library.sacfast_update_delete

    def _spec(self, state: SACState) -> abi.UpdateSpec:
        config = self.config
        return abi.UpdateSpec(
            obs_dim=state.obs_dim,
            action_dim=state.action_dim,
            hidden_layers=len(state.actor_layers) - 2,
            threads=self.threads,
            actor=layer_specs(state.actor_layers),
            critic=tuple(layer_specs(layers) for layers in state.critic_layers),
            lr=tuple(config.learning_rates),
            gamma=config.gamma,
            tau=config.tau,
            beta1=BETA1,
            beta2=BETA2,
            epsilon=EPSILON,
            target_entropy=self.target_entropy,
            log_std=log_std_bounds(state),
            learn_alpha=config.automatic_entropy_tuning,
            actor_update_period=config.actor_update_period,
        )


def _unit_stride(field: Tensor) -> Tensor:
    return field if field.ndim == 1 or field.stride(1) == 1 else field.contiguous()


def _missing(found: dict[str, list[str]], path: str, precision: str) -> str:
    has = "; ".join(f"{name}: {', '.join(precisions)}" for name, precisions in found.items())
    wanted = f"precision={precision!r}" + (f" on the arithmetic path {path!r}" if path else "")
    return f"{wanted} is not available on this CPU, which has {has}; choose one of these"
