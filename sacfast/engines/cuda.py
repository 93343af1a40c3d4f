"""The whole SAC update on a GPU (csrc/cuda/sac_update_engine.cuh), up to 32 updates per launch of one CUDA graph.

Nothing here waits for the GPU, but for a replay buffer in the host's memory. A batch that is not finite is therefore
reported by the call after the one that it belongs to, or by `settle`; neither it nor any update after it has been
applied then, and the state's counters say so.
"""

import ctypes
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacfast import native
from sacfast.config import SACConfig
from sacfast.engines import abi
from sacfast.engines.base import Metrics, Policy, TorchPolicy, check_observation
from sacfast.engines.native import NativeEngine
from sacfast.engines.structs import (
    aim_policy_call,
    policy_call,
    policy_spec,
    state_pointers,
    take_counters,
)
from sacfast.envs import ActionBounds
from sacfast.errors import NativeUnavailable, SACError
from sacfast.ops.launch import current_stream, find_device, on_device
from sacfast.replay import ReplayBuffer
from sacfast.state import SACState

PRECISIONS = ("float32", "tf32", "bf16")
WIDEST_POLICY = 6144  # numbers of a layer that CudaPolicy has room for twice in 48 KB of shared memory


class CudaEngine(NativeEngine):
    """SAC as CUDA graphs of up to 32 updates, on PyTorch's current stream.

    Precision "float32" computes with float32 FMA; "tf32" and "bf16" use the matrix units, which round what they
    multiply to 11 and 8 bits and add in float32. Adam, targets and losses are float32 in all of them.

    device: where the states that it updates are. library: the compiled kernels, for tests. Raises NativeUnavailable
    without kernels for this GPU, SACError for a precision that CUDA has not.
    """

    def __init__(
        self,
        config: SACConfig,
        *,
        threads: int | None = None,
        device: torch.device | str = "cuda",
        library: ctypes.CDLL | None = None,
    ):
        super(NativeEngine, self).__init__(config, threads=threads)
        if library is None and not native.available("cuda"):
            now = native.status()
            raise NativeUnavailable(
                f"engine='native' on CUDA needs the native CUDA kernels: {now.cuda_reason or now.reason}"
            )
        if config.precision not in PRECISIONS:
            raise SACError(
                f"precision={config.precision!r} is not available on CUDA, which has {', '.join(PRECISIONS)}"
            )
        self.device = find_device(device)
        declared = abi.declare(library or native.engine_library(), abi.CUDA_SIGNATURES)
        self._begin(declared, self.device, {"device": self.device, "library": library})
        self.name = f"native cuda {config.precision}"
        self._last: weakref.ref[SACState] | None = None  # the state whose updates the GPU may refuse yet
        self._stream: torch.cuda.Stream | None = None  # of the last updates
        self._workspace: Tensor | None = None
        self._phase_ms = np.zeros(0)

    @property
    def starts(self) -> bool:
        return True

    def train(self, state: SACState, buffer: ReplayBuffer, batch_size: int, updates: int = 1) -> Metrics:
        return self.start(state, buffer, batch_size, updates)()

    def start(
        self, state: SACState, buffer: ReplayBuffer, batch_size: int, updates: int = 1
    ) -> Callable[[], Metrics]:
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

        def wait() -> None:
            """Whoever goes on here, on another stream perhaps, finds the updates made."""
            if stream is None:  # the tests' emulator
                return
            if buffer.storage == "host":
                stream.synchronize()  # it reads the memory that the host writes the next transitions to
            elif (here := torch.cuda.current_stream(self.device)) != stream:
                here.wait_stream(stream)

        try:
            metrics = super().train(state, buffer, batch_size, updates)
        except BaseException:
            with suppress(RuntimeError):  # of the GPU: what is raised already says more
                wait()
            raise

        def finish() -> Metrics:
            wait()
            if stream is not None and (here := torch.cuda.current_stream(self.device)) != stream:
                metrics.tensor.record_stream(here)  # or its memory might be given away before it is read here
            return metrics

        return finish

    def settle(self, state: SACState) -> None:
        self.check_turn()
        with self._lock:
            try:
                self._owner = threading.get_ident()
                if self._last is not None and self._last() is state:
                    self._settle_last()
            finally:
                self._owner = None

    def _settle_last(self) -> None:
        """Wait for the updates of the last state. Raises SACError for one that was refused, its counters set back."""
        last = self._last() if self._last is not None else None
        if self._update is None:
            return
        counters = abi.StatePointers() if last is None else state_pointers(last)
        with on_device(self.device):
            result = self._library.sacfast_cuda_update_settle(
                self._update, ctypes.byref(counters), current_stream(self.device)
            )
        if last is not None:
            self._report(result, last, counters)

    def _prepare(self, state: SACState, *args: Any) -> tuple[int, abi.UpdateCall]:
        if self._last is None or self._last() is not state:
            self._settle_last()
        self._last = weakref.ref(state)
        self._stream = self._after_updates()  # the last metrics are perhaps not copied yet there
        return super()._prepare(state, *args)

    def _after_updates(self) -> torch.cuda.Stream | None:
        """PyTorch's current stream, which from here on is behind this engine's last updates, whatever theirs was.

        None for the tests' emulator.
        """
        if self.device.type != "cuda":
            return None
        stream = torch.cuda.current_stream(self.device)
        if self._stream not in (None, stream):
            stream.wait_stream(self._stream)
        return stream

    def profile(self, enabled: bool = True) -> dict[str, float]:
        """Seconds by phase, as Engine.profile; while it measures, phases are launched and awaited one by one."""
        found: dict[str, float] = {}
        for i, ms in enumerate(self._phase_ms.tolist()):
            name = self._library.sacfast_cuda_update_phase(self._update, i).decode()
            found[name] = found.get(name, 0.0) + ms / 1000
        self._phase_ms = np.zeros_like(self._phase_ms)
        self._profiling = enabled
        return found

    def make_policy(self, state: SACState, bounds: ActionBounds) -> Policy:
        widest = max([2 * state.action_dim, state.obs_dim, *(layer.outputs for layer in state.actor_layers)])
        if widest > WIDEST_POLICY or state.device != self._metrics.device:
            return TorchPolicy(state, bounds)
        return CudaPolicy(self, state, bounds)

    def _check_device(self, state: SACState) -> None:
        if state.device != self._metrics.device:
            raise SACError(
                f"this engine is for states on {self._metrics.device}, and this agent is on {state.device}; "
                "agent.use_engine('native') makes one for it"
            )

    def _new(self, spec: abi.UpdateSpec) -> tuple[int, Any]:
        self._workspace, self._phase_ms = None, np.zeros(0)
        library, device, precision = self._library, self.device, self.config.precision.encode()

        def delete(handle: int) -> None:
            with on_device(device):
                library.sacfast_cuda_update_delete(handle)

        with on_device(device):
            handle = library.sacfast_cuda_update_new(ctypes.byref(spec), precision)
            if not handle and self._may_work_now():
                handle = library.sacfast_cuda_update_new(ctypes.byref(spec), precision)
        return handle, delete

    def _execute(self, handle: int, call: abi.UpdateCall) -> int:
        with on_device(self.device):
            workspace = self._room(handle, call.batch_size)
            where = (workspace.data_ptr(), current_stream(self.device))
            if not self._profiling:
                result = self._library.sacfast_cuda_update_run(handle, ctypes.byref(call), *where)
                if result < 0 and self._may_work_now():
                    result = self._library.sacfast_cuda_update_run(handle, ctypes.byref(call), *where)
                return result
            phases = self._library.sacfast_cuda_update_phases(handle)
            if len(self._phase_ms) != phases:
                self._phase_ms = np.zeros(phases)
            ms = self._phase_ms  # which `profile` may replace meanwhile
            return self._library.sacfast_cuda_update_profile(
                handle, ctypes.byref(call), *where, ms.ctypes.data
            )

    def _may_work_now(self) -> bool:
        """Whether what failed is worth another try: PyTorch has returned the memory that it keeps for later, or
        another thread, by waiting for the whole GPU, has broken a graph that was being captured.
        """
        error = self._library.sacfast_error()
        if b"out of memory" in error:
            torch.cuda.empty_cache()
            return True
        return b"captur" in error

    def _stale(self, state: SACState) -> bool:
        return False  # nothing is packed

    def _conclude(self, result: int, state: SACState, call: abi.UpdateCall, first: int) -> None:
        self._report(result, state, call.state)

    def _report(self, result: int, state: SACState, counters: abi.StatePointers) -> None:
        if result < 0:
            raise SACError(f"the CUDA update failed: {self._library.sacfast_error().decode()}")
        if result > 0:
            take_counters(state, counters)
            raise SACError(
                f"the batch of update {state.step} holds a NaN or an infinity, so neither that update nor those "
                "after it were applied; check what was pushed"
            )

    def _room(self, handle: int, batch_size: int) -> Tensor:
        """The workspace for this batch size, one that is large enough if there is one."""
        size = self._library.sacfast_cuda_update_workspace_bytes(handle, batch_size)
        if self._workspace is None or len(self._workspace) < size:
            if self._workspace is not None and self._stream is not None:
                self._stream.synchronize()  # updates may use it yet
            self._workspace = None
            try:
                self._workspace = torch.empty(size, dtype=torch.uint8, device=self.device)
            except (RuntimeError, MemoryError):  # torch.OutOfMemoryError is a RuntimeError
                raise SACError(
                    f"updates of batch_size={batch_size} need {size / 1e9:.1f} GB, which cannot be had on "
                    f"{self.device}; lower batch_size or hidden_dim"
                ) from None
        return self._workspace


class CudaPolicy:
    """Observations [O] or [n, O] to actions in the environment's units: one launch that reads and writes pinned memory.

    It is enqueued behind the updates that it is to see, on PyTorch's current stream, and awaited.
    """

    MOST = 64  # observations, beyond which products of matrices in PyTorch are faster

    def __init__(self, engine: CudaEngine, state: SACState, bounds: ActionBounds) -> None:
        self._engine, self._library = engine, engine._library
        self._state, self._dims = state, (state.obs_dim, state.action_dim)
        self._many = TorchPolicy(state, bounds)
        self._lock = threading.Lock()  # one call at a time: the interpreter's is given up meanwhile
        pinned = engine.device.type == "cuda"
        self._obs, self._action = (
            torch.zeros(self.MOST, dim, dtype=torch.float32, device="cpu", pin_memory=pinned)
            for dim in self._dims
        )
        self._rows, self._actions = self._obs.numpy(), self._action.numpy()
        self._bounds = [torch.tensor(bound, device=engine.device) for bound in (bounds.low, bounds.high)]
        self._spec = policy_spec(state, *(bound.data_ptr() for bound in self._bounds))
        self._call = policy_call(1, self._obs.data_ptr(), self._action.data_ptr())

    def __call__(self, observation: np.ndarray | Tensor, evaluate: bool = False) -> np.ndarray:
        obs = check_observation(observation, self._dims[0])
        self._engine._after_updates()
        if obs.size > self._rows.size:
            return self._many(obs, evaluate)
        rows = obs.reshape(-1, self._dims[0])
        with self._lock:
            return self._act(rows, evaluate).reshape(*obs.shape[:-1], self._dims[1])

    def _act(self, rows: np.ndarray, evaluate: bool) -> np.ndarray:
        self._rows[: len(rows)] = rows
        call, device = self._call, self._engine.device
        call.n = len(rows)
        aim_policy_call(call, self._state, evaluate)
        with on_device(device):
            result = self._library.sacfast_cuda_policy_act(
                ctypes.byref(self._spec), ctypes.byref(call), current_stream(device)
            )
        if result < 0:
            raise SACError(f"acting on CUDA failed: {self._library.sacfast_error().decode()}")
        if not evaluate:
            self._state.action_step += 1
        return self._actions[: len(rows)].copy()
