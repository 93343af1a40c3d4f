"""The replay buffer: a ring of transitions as float32 tensors, sampled uniformly by the counter-based generator."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sacfast.envs import ActionBounds
from sacfast.errors import SACError
from sacfast.ops import Stream, random_key, replay_insert_, replay_sample

FIELDS = ("obs", "action", "reward", "next_obs", "terminated")
CACHE_LINE_FLOATS = 16
MAX_CAPACITY = 2**31 - 1


@dataclass(frozen=True)
class Batch:
    """B transitions, float32: obs, next_obs [B, O], action [B, A] in [-1, 1], reward, terminated (0 or 1) [B]."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor


class ReplayBuffer:
    """The last `capacity` transitions, on one device, without a Python object per transition.

    A transition is one float32 record [obs | action | reward | next_obs | terminated], padded to whole cache
    lines: a random transition then costs neighbouring lines instead of five distant ones.

    Dimensions are taken from the first push when not given. With `action_low`/`action_high` [A], actions are
    pushed and sampled in the environment's units and stored in [-1, 1]; without them they are stored as given.
    `seed` keys `sample`; None takes one from torch's global generator.

    Raises SACError for a capacity outside [1, 2**31), a wrong shape, or a NaN or infinity in a transition; the
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
    ):
        if not is_whole(capacity) or not 1 <= capacity <= MAX_CAPACITY:
            raise SACError(f"capacity must be a whole number from 1 to {MAX_CAPACITY}, not {capacity!r}")
        self.capacity = int(capacity)
        self.device = torch.device(device)
        self.bounds = _bounds(action_low, action_high)
        if self.bounds is not None and action_dim is None:
            action_dim = self.bounds.dim
        self.seed = int(torch.randint(2**31, ()).item()) if seed is None else int(seed)
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.size = 0
        self.position = 0
        self._draws = 0
        self._records: Tensor | None = None  # [N, R]
        self._fields: tuple[Tensor, ...] = ()  # its columns, as views
        if obs_dim is not None and action_dim is not None:
            self._allocate(obs_dim, action_dim)

    def _allocate(self, obs_dim: int, action_dim: int) -> Tensor:
        for name, dim in (("obs_dim", obs_dim), ("action_dim", action_dim)):
            if not is_whole(dim) or dim < 1:
                raise SACError(f"{name} must be a whole number of at least 1, not {dim!r}")
        used = 2 * obs_dim + action_dim + 2
        padding = -used % CACHE_LINE_FLOATS
        width = used + padding
        try:
            # The operating system maps pages on first touch, so on a CPU a large empty ring costs no memory yet.
            self._records = torch.empty((self.capacity, width), device=self.device)
        except (RuntimeError, MemoryError):
            raise SACError(
                f"a buffer of {self.capacity:,} transitions needs {4e-9 * self.capacity * width:.1f} GB, which "
                f"cannot be had on {self.device}; lower the capacity (buffer_capacity)"
            ) from None
        self.obs_dim, self.action_dim = obs_dim, action_dim
        obs, action, reward, next_obs, terminated, _ = self._records.split(
            [obs_dim, action_dim, 1, obs_dim, 1, padding], dim=1
        )
        self._fields = (obs, action, reward.squeeze(1), next_obs, terminated.squeeze(1))
        return self._records

    def push(self, state, action, reward, next_state, done) -> None:
        """Add one transition: state [O], action [A], reward, next_state [O], done.

        `done` means terminated: the episode's end is a state without future. A time limit (truncated) is not:
        pass False, and the true last observation as next_state.
        """
        values = zip(FIELDS, (state, action, reward, next_state, done), strict=True)
        self._insert([as_float32(name, value)[None] for name, value in values])

    def push_batch(self, state, action, reward, next_state, done) -> None:
        """Add n transitions at once, oldest first: state, next_state [n, O], action [n, A], reward, done [n]."""
        values = zip(FIELDS, (state, action, reward, next_state, done), strict=True)
        self._insert([as_float32(name, value) for name, value in values])

    def _insert(self, columns: list[np.ndarray]) -> None:
        """Store the FIELDS of n transitions, float32, once they have passed every check."""
        self._check(columns)
        rows, obs_dim, action_dim = len(columns[2]), columns[0].shape[1], columns[1].shape[1]
        if rows == 0:
            return
        if self.bounds is not None:
            columns[1] = self.bounds.to_unit(columns[1])
        records = self._records if self._records is not None else self._allocate(obs_dim, action_dim)
        parts = [column.reshape(rows, -1) for column in columns]
        padding = np.zeros((rows, records.shape[1] - sum(part.shape[1] for part in parts)), np.float32)
        new = torch.from_numpy(np.concatenate([*parts, padding], axis=1))
        replay_insert_([records], [new.to(self.device)], self.position)
        self.position = (self.position + rows) % self.capacity
        self.size = min(self.size + rows, self.capacity)

    def _check(self, columns: list[np.ndarray]) -> None:
        """Raise SACError naming the first of the FIELDS that is wrong."""
        for name, column, ndim in zip(FIELDS, columns, (2, 2, 1, 2, 1), strict=True):
            if column.ndim != ndim:
                raise SACError(f"{name} has {column.ndim - 1} dimensions per transition, not {ndim - 1}")
        rows = len(columns[2])
        obs_dim, action_dim = self.obs_dim or columns[0].shape[1], self.action_dim or columns[1].shape[1]
        shapes = field_shapes(rows, obs_dim, action_dim)
        for name, column, shape in zip(FIELDS, columns, shapes, strict=True):
            if column.shape != shape:
                raise SACError(
                    f"{name} has shape {list(column.shape[1:])} in {len(column)} transitions; "
                    f"this buffer needs {list(shape[1:])} in {rows}"
                )
            if not np.isfinite(column).all():
                bad = column[~np.isfinite(column)].flat[0]
                raise SACError(f"{name} holds {bad}: the transition was not stored; check the environment")
        ends = columns[4]
        if ((ends != 0) & (ends != 1)).any():
            bad = ends[(ends != 0) & (ends != 1)][0]
            raise SACError(f"terminated holds {bad:g}; pass False or True")

    def sample(self, batch_size: int):
        """Draw (states [B, O], actions [B, A], rewards [B, 1], next_states [B, O], dones [B, 1]), NumPy float32.

        Uniform, with replacement. Raises SACError if batch_size exceeds the transitions held.
        """
        batch = self.sample_batch(batch_size, random_key(self.seed, Stream.BATCH, self._draws, self.device))
        self._draws += 1
        action = batch.action.cpu().numpy()
        return (
            batch.obs.cpu().numpy(),
            action if self.bounds is None else self.bounds.to_env(action),
            batch.reward.cpu().numpy()[:, None],
            batch.next_obs.cpu().numpy(),
            batch.terminated.cpu().numpy()[:, None],
        )

    def sample_batch(self, batch_size: int, key: Tensor) -> Batch:
        """Draw a batch on the device; the same `key` and contents give the same batch. Raises as `sample` does."""
        fields, _ = replay_sample(self.fields_to_sample(batch_size), self.size, int(batch_size), key)
        return Batch(*fields)

    def fields_to_sample(self, batch_size: int) -> tuple[Tensor, ...]:
        """The storage of each of the FIELDS, [N, ...] as views, once a batch can be drawn; raises as `sample` does."""
        if not is_whole(batch_size) or batch_size < 1:
            raise SACError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
        if self._records is None or batch_size > self.size:
            raise SACError(
                f"batch_size {batch_size} is above the {self.size} transitions in the buffer: "
                "collect more first, or lower batch_size"
            )
        return self._fields

    def __len__(self) -> int:
        return self.size

    def is_ready(self, batch_size: int) -> bool:
        """Whether the buffer holds at least batch_size transitions."""
        return self.size >= batch_size

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The filled part of every field, in storage order, as views: what a checkpoint keeps."""
        for name, field in zip(FIELDS, self._fields, strict=bool(self._fields)):
            yield name, field[: self.size]

    def counters(self) -> dict[str, int]:
        """The integers of a checkpoint; `restore` reads them."""
        return {
            "capacity": self.capacity,
            "size": self.size,
            "position": self.position,
            "seed": self.seed,
            "draws": self._draws,
        }

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, int]) -> None:
        """Replace the contents by a checkpoint's: `tensors` as named_tensors gave them, `counters` likewise.

        A smaller capacity keeps the newest transitions; a larger one all of them.
        """
        size, position = int(counters["size"]), int(counters["position"])
        kept, same_ring = min(size, self.capacity), counters["capacity"] == self.capacity
        if size:
            rows = [tensors[name] for name in FIELDS]
            if self._records is None:
                self._allocate(rows[0].shape[1], rows[1].shape[1])
            self.size = kept
            for (_, target), source in zip(self.named_tensors(), rows, strict=True):
                if not same_ring:  # it closes elsewhere: lay it out oldest first
                    source = source.roll(-position, 0)[size - kept :]
                target.copy_(source)
        self.size, self.position = kept, position if same_ring else kept % self.capacity
        self.seed, self._draws = int(counters["seed"]), int(counters["draws"])


def field_shapes(rows: int, obs_dim: int, action_dim: int) -> tuple[tuple[int, ...], ...]:
    """The shapes of the FIELDS of `rows` transitions."""
    return (rows, obs_dim), (rows, action_dim), (rows,), (rows, obs_dim), (rows,)


def is_whole(value) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _bounds(low: np.ndarray | None, high: np.ndarray | None) -> ActionBounds | None:
    if (low is None) != (high is None):
        raise SACError("give both action_low and action_high, or neither")
    return None if low is None or high is None else ActionBounds(low, high)


def as_float32(name: str, value) -> np.ndarray:
    """`value` (numbers, an array, a tensor on any device) as a float32 array, or a SACError that names it."""
    try:
        if isinstance(value, Tensor):
            return value.detach().to("cpu", torch.float32).numpy()
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
            return np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise SACError(f"{name} is not numeric ({error}): pass numbers of one shape") from None
