"""The replay buffer: transitions as tensors, checked when pushed, sampled uniformly by the counter-based generator."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sacfast import native
from sacfast.config import OBS_DTYPES, STORAGES
from sacfast.envs import ActionBounds
from sacfast.errors import SACError
from sacfast.ops import Stream, random_key, replay_batch
from sacfast.ops.launch import find_device
from sacfast.ops.replay_batch import OBS_TYPES
from sacfast.replay.ring import Ring, Rows, segment_rows
from sacfast.replay.transition import TransitionWriter
from sacfast.requirements import check_whole, fits_float32, require_choice

FIELDS = ("obs", "action", "reward", "next_obs", "terminated")
MAX_CAPACITY = 2**29  # a link, 31 bits, names a row or one of up to twice as many slots beside them
PIECE = 8192  # transitions that are written at a time


@dataclass(frozen=True)
class Batch:
    """B transitions, float32: obs, next_obs [B, O], action [B, A] (in [-1, 1] where bounds are known), reward [B]
    (times reward_scale), terminated [B] (0 or 1).
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor


class ReplayBuffer:
    """The last `capacity` transitions, without a Python object per transition, each observation kept once.

    A next observation that a later transition begins with is kept as that one's observation (ring.py says how), with
    any number of environments (up to 16384) whose transitions may be pushed in any order. What is sampled is what was
    pushed: an episode may terminate, be truncated or just stop.

    The first push gives the dimensions that are missing, and takes the memory (unless `allocate` did). With
    `action_low`/`action_high` [A], `push` and `sample` have actions in the environment's units, storage and
    `sample_batch` in [-1, 1]; without them all have them as given. Rewards likewise: storage and `sample_batch` have
    them times `reward_scale`. `on_push` is called with the observations [n, O] of every push, of which it copies what
    it keeps. `seed` keys `sample`; None takes one from torch's global generator.

    obs_dtype    how observations are stored: "float32", "float16" or "bfloat16"; they are sampled in float32
    storage      "device", or "host": the host's memory, pinned for a GPU `device`; batches come to `device`

    One thread at a time, and on a GPU one stream: where one pushes while another samples, both need a lock of the
    caller's, and streams that wait for one another.

    Raises SACError for a capacity outside [1, 2**29], a wrong shape, or a NaN or infinity in a transition; the
    buffer is then as it was.
    """

    def __init__(
        self,
        capacity: int = 1000000,
        *,
        obs_dim: int | None = None,
        action_dim: int | None = None,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        action_low: np.ndarray | None = None,
        action_high: np.ndarray | None = None,
        obs_dtype: str = "float32",
        storage: str = "device",
        reward_scale: float = 1.0,
        on_push: Callable[[np.ndarray | Tensor], None] | None = None,
    ):
        self.capacity, self.device = check_whole("capacity", capacity, 1, MAX_CAPACITY), find_device(device)
        self.obs_dtype, self.storage = obs_dtype, storage
        require_choice(self, "obs_dtype", OBS_DTYPES)
        require_choice(self, "storage", STORAGES)
        if not (isinstance(reward_scale, (int, float, np.number)) and 0 < reward_scale < math.inf):
            raise SACError(f"reward_scale must be a finite number above 0, not {reward_scale!r}")
        if seed is None:
            seed = int(torch.randint(2**31, (), device="cpu").item())
        self.seed = check_whole("seed", seed)
        self.reward_scale, self.on_push = float(reward_scale), on_push
        self.bounds = _bounds(action_low, action_high)
        if self.bounds is not None and action_dim is None:
            action_dim = self.bounds.dim
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self._draws = 0
        self._ring: Ring | None = None
        self._writer: TransitionWriter | None = None
        for name, dim in (("obs_dim", obs_dim), ("action_dim", action_dim)):
            if dim is not None:
                check_whole(name, dim, 1)
        if self.bounds is not None and self.bounds.dim != action_dim:
            raise SACError(f"action_low has {self.bounds.dim} entries, but action_dim is {action_dim}")

    def allocate(self) -> None:
        """Take the memory now, where the dimensions are known, instead of at the first push. Raises SACError without
        enough of it.
        """
        if self._ring is None and self.obs_dim is not None and self.action_dim is not None:
            self._allocate(self.obs_dim, self.action_dim)

    def _allocate(self, obs_dim: int, action_dim: int) -> Ring:
        host, dtype = self.storage == "host", OBS_TYPES[self.obs_dtype]
        device = torch.device("cpu") if host else self.device
        try:
            self._ring = Ring(
                self.capacity, obs_dim, action_dim, dtype, device, pinned=host and self.device.type == "cuda"
            )
        except (RuntimeError, MemoryError):
            size = self.capacity * (dtype.itemsize * obs_dim + 4 * (action_dim + 2))
            raise SACError(
                f"a buffer of {self.capacity:,} transitions needs {1e-9 * size:.1f} GB, which "
                f"cannot be had on {device}; lower the capacity (buffer_capacity)"
            ) from None
        self.obs_dim, self.action_dim = obs_dim, action_dim
        return self._ring

    @property
    def pushed(self) -> int:
        """Transitions ever stored."""
        return 0 if self._ring is None else self._ring.pushed

    @property
    def size(self) -> int:
        """Transitions held."""
        return 0 if self._ring is None else self._ring.size

    @property
    def nbytes(self) -> int:
        """Memory of the tensors, in bytes."""
        return 0 if self._ring is None else sum(tensor.nbytes for tensor in self._ring.tensors())

    def push(
        self,
        state: ArrayLike | Tensor,
        action: ArrayLike | Tensor,
        reward: float,
        next_state: ArrayLike | Tensor,
        done: bool,
    ) -> None:
        """Add one transition: state [O], action [A], reward, next_state [O], done.

        `done` means terminated: the episode's end is a state without future. A time limit (truncated) is not:
        pass False, and the true last observation as next_state.
        """
        if not self._push_plainly(state, action, reward, next_state, done):
            values = zip(FIELDS, (state, action, reward, next_state, done), strict=True)
            self._push([as_float32(name, value)[None] for name, value in values])

    def _push_plainly(self, state, action, reward, next_state, done) -> bool:
        """What a training loop pushes: arrays of this buffer's shapes, finite, where native code runs. False, and
        nothing done, for all else, which `push` stores, or refuses, with more care.
        """
        ring = self._ring
        if ring is None or not ring.appends or not isinstance(done, (bool, np.bool_)):
            return False
        if not (
            type(state) is type(action) is type(next_state) is np.ndarray
            and state.shape == next_state.shape == (ring.obs_dim,)
            and action.shape == (ring.action_dim,)
            and native.available()
        ):
            return False
        writer = self._writer
        if writer is None or writer.made_for != (self.bounds, self.reward_scale):
            dims = ring.obs_dim, ring.action_dim, ring.records.shape[1]
            writer = self._writer = TransitionWriter(*dims, self.bounds, self.reward_scale)
        try:
            if not writer.write(state, action, reward, next_state):
                return False
        except (TypeError, ValueError):
            return False
        ring.append(writer.record, writer.next_obs, bool(done))
        if self.on_push is not None:
            self.on_push(writer.record[None, : ring.obs_dim].copy())
        return True

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without what knows this buffer's own memory."""
        return self.__dict__ | {"_writer": None}

    def push_batch(
        self,
        state: ArrayLike | Tensor,
        action: ArrayLike | Tensor,
        reward: ArrayLike | Tensor,
        next_state: ArrayLike | Tensor,
        done: ArrayLike | Tensor,
    ) -> None:
        """Add n transitions at once, oldest first: state, next_state [n, O], action [n, A], reward, done [n].

        Tensors that are all on a GPU that holds this buffer stay there, and nothing waits for it (but once in many
        calls, to make room for last observations): no value is then checked (the native engine refuses a batch that
        is not finite, others do not), and a transition is seen to continue only the one before it or the one in its
        place in the previous call of as many, which is how environments that are stepped together push.
        """
        values: tuple[Any, ...] = (state, action, reward, next_state, done)
        single = all(type(value) is np.ndarray and value.shape[:1] == (1,) for value in values)
        if single and self._push_plainly(*(value[0] for value in values)):
            return
        on_gpu = self.storage == "device" and self.device.type != "cpu"
        if on_gpu and all(isinstance(value, Tensor) and value.device == self.device for value in values):
            self._push_blindly(*values)
        else:
            self._push([as_float32(name, value) for name, value in zip(FIELDS, values, strict=True)])

    def _push(self, columns: list[np.ndarray]) -> None:
        """Store the FIELDS of n transitions, float32, once they have passed every check."""
        if self.reward_scale != 1.0:
            columns[2] = columns[2] * np.float32(self.reward_scale)
        self._check(columns)
        if len(columns[2]) == 0:
            return
        if self.bounds is not None:
            columns[1] = self.bounds.to_unit(columns[1])
        raw, action, reward, next_obs, terminated = columns
        obs, next_obs = self._stored("obs", raw), self._stored("next_obs", next_obs)
        self._insert(Rows(obs, action, reward, next_obs, terminated != 0))
        if self.on_push is not None:
            self.on_push(raw)

    def _insert(self, rows: Rows) -> None:
        ring = self._ring or self._allocate(rows.obs.shape[1], rows.action.shape[1])
        piece = min(PIECE, self.capacity)
        for begin in range(0, len(rows), piece):
            ring.insert(rows[begin : begin + piece])

    def _push_blindly(
        self, state: Tensor, action: Tensor, reward: Tensor, next_state: Tensor, done: Tensor
    ) -> None:
        columns = [value.detach() for value in (state, action, reward, next_state, done)]
        self._check_shapes(columns)
        if len(reward) == 0:
            return
        state, action, reward, next_state, done = columns
        if self.bounds is not None:
            action = self.bounds.to_unit(action)
        ring = self._ring or self._allocate(state.shape[1], action.shape[1])
        if self.reward_scale != 1.0:
            reward = reward * self.reward_scale
        rows = Rows(state.to(ring.obs_dtype), action, reward, next_state.to(ring.obs_dtype), done != 0)
        for begin in range(0, len(rows), self.capacity):
            ring.insert_blindly(rows[begin : begin + self.capacity])
        if self.on_push is not None:
            self.on_push(state)

    def _stored(self, name: str, obs: np.ndarray) -> np.ndarray:
        """Observations in float32 as they are stored: of a 16-bit type the bits, int16."""
        if self.obs_dtype == "float32":
            return obs
        plain = torch.from_numpy(np.require(obs, requirements=["C", "W"]))
        bits = plain.to(OBS_TYPES[self.obs_dtype]).view(torch.int16).numpy()
        exponent = 0x7C00 if self.obs_dtype == "float16" else 0x7F80
        infinite = (bits & exponent) == exponent
        if infinite.any():
            raise SACError(
                f"{name} holds {obs[infinite][0]:g}, which {self.obs_dtype} cannot: the transition was not stored; "
                "scale the observations or use another obs_dtype"
            )
        return bits

    def _check(self, columns: list[np.ndarray]) -> None:
        """Raise SACError naming the first of the FIELDS that is wrong."""
        self._check_shapes(columns)
        for name, column in zip(FIELDS, columns, strict=True):
            if not fits_float32(column):
                bad = column[~np.isfinite(column)].flat[0]
                raise SACError(f"{name} holds {bad}: the transition was not stored; check the environment")
        ends = columns[4]
        if ((ends != 0) & (ends != 1)).any():
            bad = ends[(ends != 0) & (ends != 1)][0]
            raise SACError(f"terminated holds {bad:g}; pass False or True")

    def _check_shapes(self, columns: Sequence[np.ndarray | Tensor]) -> None:
        for name, column, ndim in zip(FIELDS, columns, (2, 2, 1, 2, 1), strict=True):
            if column.ndim != ndim:
                raise SACError(f"{name} has {column.ndim - 1} dimensions per transition, not {ndim - 1}")
        rows = len(columns[2])
        obs_dim, action_dim = self.obs_dim or columns[0].shape[1], self.action_dim or columns[1].shape[1]
        for name, dim in (("obs", obs_dim), ("action", action_dim)):
            if dim == 0:
                raise SACError(f"{name} has no entries; this buffer needs at least one")
        shapes = (rows, obs_dim), (rows, action_dim), (rows,), (rows, obs_dim), (rows,)
        for name, column, shape in zip(FIELDS, columns, shapes, strict=True):
            if tuple(column.shape) != shape:
                raise SACError(
                    f"{name} has shape {list(column.shape[1:])} in {len(column)} transitions; "
                    f"this buffer needs {list(shape[1:])} in {rows}"
                )

    def sample(self, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Draw (states [B, O], actions [B, A], rewards [B, 1], next_states [B, O], dones [B, 1]), NumPy float32.

        Uniform, with replacement. Raises SACError if batch_size exceeds the transitions held.
        """
        batch = self.sample_batch(batch_size, random_key(self.seed, Stream.BATCH, self._draws, self.device))
        self._draws += 1
        action = batch.action.cpu().numpy()
        return (
            batch.obs.cpu().numpy(),
            action if self.bounds is None else self.bounds.to_env(action),
            batch.reward.cpu().numpy()[:, None] / np.float32(self.reward_scale),
            batch.next_obs.cpu().numpy(),
            batch.terminated.cpu().numpy()[:, None],
        )

    def sample_batch(self, batch_size: int, key: Tensor) -> Batch:
        """Draw a batch on the device; the same `key` and contents give the same batch. Raises as `sample` does."""
        ring = self.ring_to_sample(batch_size)
        moved = ring.device != self.device
        fields = replay_batch(
            ring.obs,
            ring.action,
            ring.reward,
            ring.link,
            ring.side,
            ring.size,
            int(batch_size),
            key.to(ring.device) if moved else key,
        )
        return Batch(*(field.to(self.device) for field in fields) if moved else fields)

    def ring_to_sample(self, batch_size: int) -> Ring:
        """The memory, once a batch can be drawn from its first `size` rows; raises as `sample` does."""
        check_whole("batch_size", batch_size, 1)
        if self._ring is None or batch_size > self.size:
            raise SACError(
                f"batch_size {batch_size} is above the {self.size} transitions in the buffer: "
                "collect more first, or lower batch_size"
            )
        return self._ring

    def __len__(self) -> int:
        return self.size

    def is_ready(self, batch_size: int) -> bool:
        """Whether the buffer holds at least batch_size transitions."""
        return self.size >= batch_size

    def newest_actions(self, n: int) -> Tensor:
        """The actions [n, A] of the last n transitions, or of all where there are fewer, in units of [-1, 1] where
        the buffer knows bounds.
        """
        ring = self._ring
        if ring is None:
            return torch.empty(0, self.action_dim or 0, dtype=torch.float32, device=self.device)
        rows = torch.arange(ring.position - min(n, ring.size), ring.position, device=ring.device)
        return ring.action[rows % ring.capacity]

    def segment(self, since: int = 0) -> dict[str, Tensor]:
        """The transitions from number `since` on, of those still held, oldest first: CPU tensors that stand alone.

        obs [n, O] (and each observation once, in its stored type), action [n, A], reward [n], link [n], side [m, O]:
        the observation after row i is obs[v] where v < n, else side[v - n], with v = link[i], or ~link[i] where the
        transition terminated. {} before the first push.
        """
        return {} if self._ring is None else self._ring.segment(since)

    def counters(self) -> dict[str, int]:
        """The integers of a checkpoint; `restore` reads them."""
        return {
            "capacity": self.capacity,
            "size": self.size,
            "position": 0 if self._ring is None else self._ring.position,
            "pushed": self.pushed,
            "seed": self.seed,
            "draws": self._draws,
        }

    def restore(self, segments: Sequence[dict[str, Tensor]], counters: dict[str, int]) -> None:
        """Replace the contents by a checkpoint's: `counters` as it gave them, and `segments`, each of which goes on
        where the one before it ended; what is older than the transitions that were held is passed over.

        The buffer goes on as the saved one would have, if need be in its own capacity (a smaller one keeps the newest
        transitions, a larger one all) and obs_dtype. Raises SACError, with nothing changed, for segments that hold
        less than the counters say or are damaged, and values or dimensions that this buffer cannot hold.
        """
        size, position = int(counters["size"]), int(counters["position"])
        kept = min(size, self.capacity)
        segments = [segment for segment in segments if segment]
        # Every complaint comes before the first change.
        surplus = sum(len(self._rows_of(segment)) for segment in segments) - kept
        if surplus < 0:
            raise SACError(
                f"the replay segments hold {surplus + kept} of the {size} transitions that were saved"
            )
        if int(counters["pushed"]) < kept:
            raise SACError(f"{kept} transitions are held of {counters['pushed']} that were ever pushed")
        ring = self._ring
        if ring is None and segments:
            ring = self._allocate(segments[0]["obs"].shape[1], segments[0]["action"].shape[1])
        if ring is not None:
            at = position - kept if counters["capacity"] == self.capacity else 0
            ring.clear(int(counters["pushed"]) - kept, at % self.capacity)
        for segment in segments:
            rows = self._rows_of(segment)
            skipped = min(surplus, len(rows))
            surplus -= skipped
            self._insert(rows[skipped:])
        self.seed, self._draws = int(counters["seed"]), int(counters["draws"])

    def _rows_of(self, segment: dict[str, Tensor]) -> Rows:
        """The transitions of one of `restore`'s segments, oldest first, in the type they are to be stored in."""
        rows = segment_rows(segment)
        columns = [as_float32(name, getattr(rows, name)) for name in FIELDS]
        self._check_shapes(columns)
        obs, action, reward, next_obs, terminated = columns
        obs, next_obs = self._stored("obs", obs), self._stored("next_obs", next_obs)
        return Rows(obs, action, reward, next_obs, terminated != 0)


def _bounds(low: np.ndarray | None, high: np.ndarray | None) -> ActionBounds | None:
    if (low is None) != (high is None):
        raise SACError("give both action_low and action_high, or neither")
    return None if low is None or high is None else ActionBounds(low, high)


def as_float32(name: str, value) -> np.ndarray:
    """`value` (numbers, an array, a tensor on any device) as a float32 array, or a SACError that names it."""
    try:
        if isinstance(value, Tensor):
            return value.detach().to("cpu", torch.float32).numpy()
        if type(value) is np.ndarray and value.dtype.char in "f?":
            return value.astype(np.float32, copy=False)  # nothing can overflow
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
            return np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise SACError(f"{name} is not numeric ({error}): pass numbers of one shape") from None
