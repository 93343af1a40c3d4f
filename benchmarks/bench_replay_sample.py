"""replay_sample: a batch of five fields from a million transitions, which no cache holds."""

import itertools

import pytest
import torch
from baselines import ACTION_DIM, OBS_DIM, sample_eager, sample_usual
from race import COMPILED, OURS, Case, race

from sacfast.ops import Stream, random_key, replay_sample, replay_sample_reference

N = 1_000_000
LINE_BYTES = 64


@pytest.fixture(scope="module")
def storage() -> list[torch.Tensor]:
    widths = ((OBS_DIM,), (ACTION_DIM,), (), (OBS_DIM,), ())
    return [torch.randn(N, *width) for width in widths]


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
    arrays = [field.numpy() for field in storage]
    # A key per call, as in training: the same rows twice would come from the cache.
    keys = itertools.cycle([random_key(0, Stream.BATCH, step) for step in range(1024)])
    compiled = torch.compile(sample_eager, fullgraph=True, dynamic=False)
    contestants = {
        OURS: lambda: replay_sample(storage, N, batch, next(keys)),
        "usual": lambda: sample_usual(arrays, batch),
        "eager": lambda: sample_eager(storage, batch),
        COMPILED: lambda: compiled(storage, batch),
    }

    def check(call) -> None:
        fields, indices = call()
        assert indices.shape == (batch,) and indices.min() >= 0 and indices.max() < N
        assert abs(indices.double().mean() / N - 0.5) < 6 / (12 * batch) ** 0.5
        for field, rows in zip(storage, fields, strict=True):
            assert torch.equal(rows, field[indices])

    key = random_key(1, Stream.BATCH, 2)
    ours, expected = (
        sample(storage, N, batch, key)[1] for sample in (replay_sample, replay_sample_reference)
    )
    assert torch.equal(ours, expected)

    shape = f"{batch} of {N:,}" + (f", {threads} thread{'s' * (threads > 1)}" if batch > 1024 else "")
    moved = moved_bytes(storage, batch) if batch > 1024 else None
    race(benchmark, Case("operators", "replay_sample", shape, moved), contestants, check)
