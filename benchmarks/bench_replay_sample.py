"""replay_sample: a batch from a million transitions, which no cache holds.

As five separate fields, and as ReplayBuffer keeps them: one padded record per transition, where a next observation is
the following record's observation. Baselines have the fields.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from baselines import ACTION_DIM, OBS_DIM, sample_eager, sample_usual
from race import COMPILED, OURS, Case, race

from sacfast import ReplayBuffer
from sacfast.ops import Stream, random_key, replay_sample, replay_sample_reference

N = 1_000_000
LINE_BYTES = 64


@pytest.fixture(scope="module")
def storage() -> list[torch.Tensor]:
    widths = ((OBS_DIM,), (ACTION_DIM,), (), (OBS_DIM,), ())
    fields = [torch.randn(N, *width) for width in widths]
    fields[3][:-1] = fields[0][1:]  # next_obs of episodes whose ends are few
    fields[3][99::100] = torch.randn(N // 100, OBS_DIM)
    fields[-1] = (fields[-1] > 2).float()  # terminated
    return fields


def lines_per_row(field: torch.Tensor) -> float:
    """Cache lines that a row touches, on average over the rows: what the memory has to move for it."""
    row_bytes = field[0].nbytes
    offset = (torch.arange(LINE_BYTES) * row_bytes + field.data_ptr()) % LINE_BYTES
    return ((offset + row_bytes + LINE_BYTES - 1) // LINE_BYTES).double().mean().item()


def moved_bytes(storage: list[torch.Tensor], batch: int) -> int:
    """Lines read, rows written."""
    read = sum(lines_per_row(field) * LINE_BYTES for field in storage)
    return round(batch * (read + sum(field[0].nbytes for field in storage)))


@pytest.mark.parametrize(("batch", "threads"), [(256, 2), (8192, 1), (8192, 2)], indirect=["threads"])
def test_sample(benchmark, storage, batch, threads):
    keys = new_keys()
    check_same_indices(storage, batch)
    shape = f"{batch} of {N:,}" + (f", {threads} thread{'s' * (threads > 1)}" if batch > 1024 else "")
    moved = moved_bytes(storage, batch) if batch > 1024 else None
    contestants = {OURS: lambda: replay_sample(storage, N, batch, next(keys)), **baselines(storage, batch)}
    race(benchmark, Case("operators", "replay_sample", shape, moved), contestants, checker(storage, batch))


@pytest.mark.parametrize("batch", [256, 8192])
def test_replay_buffer(benchmark, storage, batch):
    keys = new_keys()
    buffer = ReplayBuffer(N)
    buffer.push_batch(*(field.numpy() for field in storage))

    def ours():
        sampled = buffer.sample_batch(batch, next(keys))
        return [getattr(sampled, field.name) for field in dataclasses.fields(sampled)]

    def check(call) -> None:
        if call is ours:
            key = random_key(1, Stream.BATCH, 2)
            rows, expected = buffer.sample_batch(batch, key), replay_sample(storage, N, batch, key)[0]
            for field, wanted in zip(dataclasses.fields(rows), expected, strict=True):
                assert torch.equal(getattr(rows, field.name), wanted)
        else:
            checker(storage, batch)(call)

    contestants = {OURS: ours, **baselines(storage, batch)}
    race(benchmark, Case("operators", "ReplayBuffer.sample_batch", f"{batch} of {N:,}"), contestants, check)


def new_keys() -> Iterator[torch.Tensor]:
    """A key per call, as in training: the same rows twice would come from the cache."""
    return itertools.cycle([random_key(0, Stream.BATCH, step) for step in range(1024)])


def baselines(storage: list[torch.Tensor], batch: int) -> dict[str, Callable]:
    arrays = [field.numpy() for field in storage]
    compiled = torch.compile(sample_eager, fullgraph=True, dynamic=False)
    return {
        "usual": lambda: sample_usual(arrays, batch),
        "eager": lambda: sample_eager(storage, batch),
        COMPILED: lambda: compiled(storage, batch),
    }


def checker(storage: list[torch.Tensor], batch: int) -> Callable[[Callable], None]:
    """Checks that a contestant's indices are spread over the storage and that its rows are those of its indices."""

    def check(call) -> None:
        fields, indices = call()
        assert indices.shape == (batch,) and indices.min() >= 0 and indices.max() < N
        assert abs(indices.double().mean() / N - 0.5) < 6 / (12 * batch) ** 0.5
        for field, rows in zip(storage, fields, strict=True):
            assert torch.equal(rows, field[indices])

    return check


def check_same_indices(storage: list[torch.Tensor], batch: int) -> None:
    key = random_key(1, Stream.BATCH, 2)
    ours, expected = (
        sample(storage, N, batch, key)[1] for sample in (replay_sample, replay_sample_reference)
    )
    assert torch.equal(ours, expected)
