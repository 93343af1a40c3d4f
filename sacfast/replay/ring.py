"""How transitions lie in memory: a ring of records that holds each observation once.

A record is [obs | action | reward | link], in words of 4 bytes. The observation after a transition is, as a rule, the
obs of a younger record, which outlives it because the oldest goes first; `link` names its row. What is no record's obs,
an episode's last observation and the newest of an episode under way, is kept in a table beside the ring, `side`.

    link = v, or ~v where the transition terminated;  next_obs = obs[v] for v < N, else side[v - N]

Slots of `side` are handed out one after the other. A slot falls out of use without anybody noticing, when its
record is overwritten or its observation arrives as the obs of a new record; only when the table is full are those in
use, found by looking whether their record still links to them, moved together.

Which transition a new one continues is told by its obs, which must equal that one's next_obs bit for bit, so it
does not matter who pushed what in which order, and a wrong guess costs a slot but is never wrong data. One that
terminated is taken to be continued by none.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacfast.errors import SACError
from sacfast.ops import replay_insert_
from sacfast.ops.put import can_put, put

BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
LINE_WORDS = 16
LEAST_SLOTS = 1024
MOST_PLACES = 2**31 - 1  # rows and slots together, which a link names
STAGED = 1 << 16  # bytes that CUDA takes over at once, so that a copy of no more need not be awaited
# A transition is continued by one of the next REACH or by none: bounds the memory for what is yet to be continued,
# and with it the environments that can be interleaved.
REACH = 16384


@dataclass(frozen=True)
class Rows:
    """n transitions, oldest first: obs, next_obs [n, O] in the ring's type, action [n, A], reward [n], float32,
    terminated [n], bool. Tensors on one device, or arrays, in which a 16-bit type is int16, its bits.
    """

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any

    def __len__(self) -> int:
        return len(self.reward)

    def __getitem__(self, which: slice) -> "Rows":
        return Rows(*(getattr(self, field.name)[which] for field in fields(self)))


class Ring:
    """The last `capacity` = N transitions.

    obs [N, O], action [N, A], reward [N], link [N]: columns of the records. side [S, O]. pushed: transitions ever
    written, which numbers them from 0; size: those held; position: the row that is written next.

    device, pinned: where; pinned is memory of the host that a GPU may read.
    """

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        obs_dtype: torch.dtype,
        device: torch.device,
        pinned: bool = False,
    ):
        self.capacity, self.obs_dim, self.action_dim = capacity, obs_dim, action_dim
        self.obs_dtype, self.device, self._pinned = obs_dtype, device, pinned
        self._obs_words = -(-obs_dim * obs_dtype.itemsize // 4)
        words = self._link_at + 1
        if obs_dtype.itemsize == 4:  # the smaller types are chosen for memory, and do without
            words += -words % LINE_WORDS
        # The operating system maps pages on first touch, so on a CPU a large empty ring costs no memory yet.
        self.records = self._new((capacity, words), torch.float32)
        self.obs, self.action, self.reward, self.link = self._columns(self.records)
        self.side = self._new((LEAST_SLOTS, obs_dim), obs_dtype)
        self._owner = self._new((LEAST_SLOTS,), torch.int32).zero_()  # row of each slot's record
        self._arrays: tuple[np.ndarray, ...] | None = None  # what `append` writes to on a CPU
        self._slots = 0  # handed out
        self.pushed = self.size = self.position = 0
        self._open: dict[bytes, int] = {}  # next_obs -> number of the newest transition it is yet to continue
        self._previous: Tensor | None = None  # next_obs of the last insert_blindly

    @property
    def _link_at(self) -> int:
        """The word of a record that is its link."""
        return self._obs_words + self.action_dim + 1

    @property
    def _puts(self) -> bool:
        """Whether the words that `append` writes go to a GPU by `put`."""
        return can_put(self.device, self.records.shape[1] + self.obs_dim + 2)

    @property
    def appends(self) -> bool:
        """Whether `append` may be used."""
        return self.obs_dtype == torch.float32 and (self.device.type == "cpu" or self._puts)

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with torch.inference_mode(False):  # what is made in that mode cannot be written to outside
            return torch.empty(shape, dtype=dtype, device=self.device, pin_memory=self._pinned)

    def _columns(self, records: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """obs, action, reward and link of records [n, W], as views."""
        action, reward = self._obs_words, self._obs_words + self.action_dim
        with torch.inference_mode(False):
            return (
                records.view(self.obs_dtype)[:, : self.obs_dim],
                records[:, action:reward],
                records[:, reward],
                records.view(torch.int32)[:, self._link_at],
            )

    def tensors(self) -> tuple[Tensor, ...]:
        """All the memory that the ring occupies."""
        return self.records, self.side, self._owner

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the views of this ring's tensors, which multiprocessing moves elsewhere."""
        self._arrays = None
        views = ("obs", "action", "reward", "link")
        return {name: value for name, value in self.__dict__.items() if name not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._pinned:  # which no copy is
            self.records, self.side, self._owner = (each.pin_memory() for each in self.tensors())
        self.obs, self.action, self.reward, self.link = self._columns(self.records)

    def clear(self, pushed: int = 0, position: int = 0) -> None:
        """Forget all transitions; the next is number `pushed` and goes to row `position`."""
        self._slots = self.size = 0
        self.pushed, self.position = pushed, position
        self._open.clear()
        self._previous = None

    def _row(self, number):
        """The ring's row of transition `number` (an integer, an array or a tensor)."""
        return (number + (self.position - self.pushed)) % self.capacity

    # ------------------------------------------------------------------------------------------ writing

    def insert(self, rows: Rows) -> None:
        """Add n <= N transitions that are given as arrays."""
        self._previous = None
        try:
            self._insert(rows)
        except BaseException:
            self._open.clear()  # it may name transitions that were never written
            raise

    def _insert(self, rows: Rows) -> None:
        target, earlier, later = self._continue(rows)
        apart = [i for i, row in enumerate(target) if row < 0]  # whose next_obs is no record's obs
        slots = self._reserve(len(apart))
        if apart:
            for slot, i in enumerate(apart, slots):
                target[i] = self.capacity + slot
            self._put(self.side, slots, rows.next_obs[apart])
            self._put(self._owner, slots, np.array([self._row(self.pushed + i) for i in apart], np.int32))
        records = _records(rows, np.array(target), self._obs_words, self.records.shape[1])
        before_end = min(len(rows), self.capacity - self.position)
        self._put(self.records, self.position, records[:before_end])
        self._put(self.records, 0, records[before_end:])
        self._advance(len(rows))
        self._continue_by(earlier, later)

    def append(self, record: np.ndarray, next_obs: np.ndarray, terminated: bool) -> None:
        """`insert` of one transition into a float32 ring, at a fraction of the cost.

        record [W], float32: obs, action and reward in their places; its link is written here.
        """
        self._previous = None
        number, row, N = self.pushed, self.position, self.capacity
        slot = self._reserve(1)
        continued = self._open.pop(record[: self.obs_dim].tobytes(), -1)
        earlier = (continued + row - number) % N if continued >= max(number + 1 - N, 0) else None
        record.view(np.int32)[self._link_at] = ~(N + slot) if terminated else N + slot
        if self._puts:
            self._put_record(row, record, slot, next_obs, earlier)
            self._advance(1)
        else:
            if self._arrays is None:
                self._arrays = tuple(
                    each.numpy() for each in (self.records, self.link, self.side, self._owner)
                )
            records, link, side, owner = self._arrays
            side[slot], owner[slot], records[row] = next_obs, row, record
            self._advance(1)
            if earlier is not None:
                link[earlier] = row
        # Only now: who waits here must have been written, however this was interrupted.
        key = next_obs.tobytes()
        self._open.pop(key, None)
        if not terminated:
            self._open[key] = number
        self._forget_unfinished(number + 1)

    def _put_record(
        self, row: int, record: np.ndarray, slot: int, next_obs: np.ndarray, earlier: int | None
    ) -> None:
        """To a GPU: a record, its next_obs in its slot, and its row into the link of the record `earlier`."""
        width, number = len(record), np.array(row, np.int32)
        pieces = [
            (self.records, row * width, record),
            (self.side, slot * self.obs_dim, next_obs),
            (self._owner, slot, number),
        ]
        if earlier is not None:
            pieces.append((self.records, earlier * width + self._link_at, number))
        put(pieces)

    def _forget_unfinished(self, pushed: int) -> None:
        """Give up waiting for what continues a transition, REACH transitions on."""
        open_ = self._open
        while open_ and open_[key := next(iter(open_))] < pushed - REACH:
            del open_[key]

    def _continue(self, rows: Rows) -> tuple[list[int], list[int], list[int]]:
        """For each of `rows` the row of the transition that continues it, -1 for none yet; then the rows of older
        transitions that are continued, and the rows that continue them.
        """
        open_, first, N = self._open, self.pushed, self.capacity
        oldest = first + len(rows) - N  # that will be left
        shift = self.position - first
        target, earlier, later = [-1] * len(rows), [], []
        keys = zip(_as_bytes(rows.obs), _as_bytes(rows.next_obs), strict=True)
        for number, (obs, next_obs) in enumerate(keys, first):
            continued = open_.pop(obs, -1)
            if continued >= first:
                target[continued - first] = (number + shift) % N
            elif continued >= max(oldest, 0):
                earlier.append((continued + shift) % N)
                later.append((number + shift) % N)
            open_.pop(next_obs, None)  # so that the dictionary stays in the order of the numbers
            if not rows.terminated[number - first]:
                open_[next_obs] = number
        self._forget_unfinished(first + len(rows))
        return target, earlier, later

    def _continue_by(self, rows: list[int], target: list[int]) -> None:
        """Let the transitions at `rows`, none of which terminated, link to `target`."""
        if not rows:
            return
        if self.device.type == "cpu":
            self.link.numpy()[rows] = target
        elif len(rows) == 1:
            self._put(self.link, rows[0], np.array(target, np.int32))
        else:
            rows_and_target = torch.tensor([rows, target], device=self.device)
            self.link[rows_and_target[0]] = rows_and_target[1].to(torch.int32)

    def _put(self, tensor: Tensor, first: int, values: np.ndarray) -> None:
        """Write `values` to rows of `tensor` from `first` on."""
        if len(values) == 0:
            return
        bits = tensor.view(torch.int16) if tensor.dtype.itemsize == 2 else tensor
        if self.device.type == "cpu":
            bits.numpy()[first : first + len(values)] = values
        else:
            few = values.nbytes <= STAGED
            bits[first : first + len(values)].copy_(torch.from_numpy(values), non_blocking=few)

    def insert_blindly(self, rows: Rows) -> None:
        """Add n <= N transitions that lie on the ring's device, without reading anything back from it.

        A transition is seen to continue the one before it, or the one in its place in the previous call.
        """
        n, N = len(rows), self.capacity
        slots = self._reserve(n)
        number = torch.arange(n, device=self.device)
        row = (number + self.position) % N
        target = N + slots + number
        follows = _same(rows.obs[1:], rows.next_obs[:-1])
        target[:-1] = torch.where(follows, row[1:], target[:-1])
        self.side[slots : slots + n] = rows.next_obs
        self._owner[slots : slots + n] = row.to(torch.int32)
        records = torch.zeros((n, self.records.shape[1]), dtype=torch.float32, device=self.device)
        obs, action, reward, link = self._columns(records)
        obs[:], action[:], reward[:] = rows.obs, rows.action, rows.reward
        link[:] = torch.where(rows.terminated, ~target, target)
        replay_insert_([self.records], [records], self.position)
        if self._previous is not None and len(self._previous) == n:
            overwritten = max(0, 2 * n - N)
            continues = _same(rows.obs, self._previous)[overwritten:]
            before = (number[overwritten:] + self.position - n) % N
            target = torch.where(continues, row[overwritten:], next_rows(self.link[before]))
            self.link[before] = self._links(before, target)
        self._advance(n)
        self._previous = rows.next_obs.clone()

    def _links(self, rows: Tensor, target: Tensor) -> Tensor:
        """What lets the transitions at `rows` link to `target`, both on the ring's device; whether they terminated
        stays.
        """
        return torch.where(self.link[rows] < 0, ~target, target).to(torch.int32)

    def _advance(self, n: int) -> None:
        self.pushed += n
        self.position = (self.position + n) % self.capacity
        self.size = min(self.size + n, self.capacity)

    def _reserve(self, n: int) -> int:
        """Hand out n slots in a row; returns the first. When the table is full, waits for the device."""
        if self._slots + n > len(self.side):
            slot = torch.arange(self._slots, device=self.device)
            used = (
                (next_rows(self.link[self._owner[: self._slots]]) == self.capacity + slot)
                .nonzero()
                .squeeze(1)
            )
            obs, owner, wanted = self.side[used], self._owner[used], len(used) + n
            rows = owner.long()
            link = self._links(rows, self.capacity + slot[: len(used)])
            side, owners = self.side, self._owner
            if wanted > len(side) * 7 // 8:  # fuller, and this would come round too often
                slots = min(wanted + wanted // 4, MOST_PLACES - self.capacity)
                side = self._new((slots, self.obs_dim), self.obs_dtype)
                owners = self._new((slots,), torch.int32).zero_()
            # Only now, with all memory at hand: half of it done would be links to other observations.
            side[: len(used)], owners[: len(used)], self.link[rows] = obs, owner, link
            self.side, self._owner, self._arrays = side, owners, None
            self._slots = len(used)
        self._slots += n
        return self._slots - n

    # ------------------------------------------------------------------------------------------ reading

    def segment(self, since: int) -> dict[str, Tensor]:
        """Transitions `since` up to `pushed`, of those held, oldest first, as tensors of their own on the CPU.

        obs, action, reward and link, one row a transition, and `side`: a ring of exactly these transitions.
        """
        first = min(max(since, self.pushed - self.size), self.pushed)
        n = self.pushed - first
        rows = self._row(torch.arange(first, self.pushed, device=self.device))
        link = self.link[rows].cpu()
        target = next_rows(link).long()
        apart = target >= self.capacity
        side = self.side[(target[apart] - self.capacity).to(self.device)].cpu()
        number = (target - self._row(first)) % self.capacity
        number[apart] = n + torch.arange(len(side), device="cpu")
        return {
            "obs": self.obs[rows].cpu(),
            "action": self.action[rows].cpu(),
            "reward": self.reward[rows].cpu(),
            "link": torch.where(link < 0, ~number, number).to(torch.int32),
            "side": side,
        }


def next_rows(link: Tensor) -> Tensor:
    """Where the next observation is: a row of the ring, or from N on a slot of `side`."""
    return torch.where(link < 0, ~link, link)


def segment_rows(segment: dict[str, Tensor]) -> Rows:
    """The transitions of `Ring.segment`, each with its next_obs, as tensors. Raises SACError for what is no segment."""
    for name, dimensions in {"obs": 2, "action": 2, "reward": 1, "link": 1, "side": 2}.items():
        if name not in segment or segment[name].ndim != dimensions:
            raise SACError(f"the replay segment is damaged: {name} is missing or of another shape")
    obs, side, link = segment["obs"], segment["side"], segment["link"]
    if side.shape[1] != obs.shape[1]:
        raise SACError("the replay segment is damaged: obs and side have rows of different lengths")
    target = next_rows(link).long()
    if (target >= len(obs) + len(side)).any():
        raise SACError("the replay segment is damaged: a transition's next observation lies outside it")
    return Rows(obs, segment["action"], segment["reward"], torch.cat([obs, side])[target], link < 0)


def _records(rows: Rows, target: np.ndarray, obs_words: int, words: int) -> np.ndarray:
    """`rows` as records, with `target` in their links."""
    records = np.zeros((len(rows), words), np.float32)
    records.view(rows.obs.dtype)[:, : rows.obs.shape[1]] = rows.obs
    end = obs_words + rows.action.shape[1]
    records[:, obs_words:end], records[:, end] = rows.action, rows.reward
    records.view(np.int32)[:, end + 1] = np.where(rows.terminated, ~target, target)
    return records


def _as_bytes(rows: np.ndarray) -> list[bytes]:
    width, data = rows.shape[1] * rows.itemsize, rows.tobytes()
    return [data[i : i + width] for i in range(0, len(data), width)]


def _same(a: Tensor, b: Tensor) -> Tensor:
    """Whether each row of a is that of b, bit for bit."""
    bits = BITS[a.dtype]
    return (a.contiguous().view(bits) == b.contiguous().view(bits)).all(dim=1)
