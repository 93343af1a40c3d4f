"""replay_batch: the native pass against its PyTorch reference, and a hand-computed case."""

import pytest
import torch
from operator_checks import on_each_thread_count

from sacfast import native
from sacfast.errors import SACError
from sacfast.ops import indices_reference, random_key, replay_batch, replay_batch_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def memory(N=300, O=23, A=7, S=40, dtype=torch.float32):  # noqa: E741
    """Columns of one record each, as sacfast.replay keeps them, with links of every kind."""
    generator = torch.Generator().manual_seed(N + O + S)
    records = torch.randn((N, O + A + 5), generator=generator)
    obs, side = records.view(dtype)[:, :O], torch.randn((S, O), generator=generator).to(dtype)
    obs[:] = torch.randn((N, O), generator=generator)
    target = torch.randint(N + S, (N,), generator=generator)
    target[:2] = torch.tensor([N - 1, N])
    link = records.view(torch.int32)[:, O + A + 3]
    link[:] = torch.where(torch.rand(N, generator=generator) < 0.3, ~target, target)
    return obs, records[:, O : O + A], records[:, O + A + 1], link, side


def test_by_hand():
    obs = torch.tensor([[1.0], [2.0], [3.0]])
    action, reward = torch.tensor([[4.0], [5.0], [6.0]]), torch.tensor([7.0, 8.0, 9.0])
    link = torch.tensor([2, ~3, 4], dtype=torch.int32)
    side = torch.tensor([[10.0], [11.0]])
    key = random_key(0, 0, 0)
    rows = indices_reference(key, 30, 3)
    assert set(rows.tolist()) == {0, 1, 2}
    for sample in (replay_batch_reference, replay_batch):
        batch = sample(obs, action, reward, link, side, 3, 30, key)
        columns = (
            obs[:, 0],
            action[:, 0],
            reward,
            torch.tensor([3.0, 10.0, 11.0]),
            torch.tensor([0.0, 1.0, 0.0]),
        )
        for found, expected in zip(batch, columns, strict=True):
            assert torch.equal(found.flatten(), expected[rows])


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dims", [(1, 1), (3, 2), (23, 7), (64, 17), (113, 1)], ids=str)
@pytest.mark.parametrize("batch_size", [1, 2, 47, 301, 1024])
def test_the_same_bytes_as_the_reference(dtype, dims, batch_size):
    fields = memory(300, *dims, dtype=dtype)
    for size in (1, 300):
        key = random_key(3, 0, size)
        batch = replay_batch(*fields, size, batch_size, key)
        for found, expected in zip(
            batch, replay_batch_reference(*fields, size, batch_size, key), strict=True
        ):
            assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_every_number_of_16_bits(dtype):
    """Subnormals, infinities and signed zeros among them; a NaN stays one."""
    obs = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)[:, None]
    zeros = torch.zeros(2**16)
    link = torch.arange(2**16, dtype=torch.int32)
    key = random_key(1, 0, 0)
    found = replay_batch(obs, zeros[:, None], zeros, link, obs[:1], 2**16, 2**20, key)[3]
    expected = obs[indices_reference(key, 2**20, 2**16)].float()
    nan = expected.isnan()
    assert torch.equal(found.isnan(), nan)
    assert torch.equal(found.view(torch.int32)[~nan], expected.view(torch.int32)[~nan])


@pytest.mark.native
def test_any_number_of_threads_gives_the_same_bytes():
    fields, key = memory(5000), random_key(1, 0, 2)
    results = on_each_thread_count(lambda: replay_batch(*fields, 5000, 9001, key))
    for batch in results:
        assert all(torch.equal(a, b) for a, b in zip(batch, results[0], strict=True))


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    fields = memory(20, dtype=dtype)
    torch.library.opcheck(torch.ops.sacfast.replay_batch.default, (*fields, 20, 6, random_key(1, 2, 3)))


@pytest.mark.native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(20, 23, dtype=torch.float64)}, "obs is .*Double; expected float32"),
        ({0: torch.zeros(20, 46)[:, ::2]}, "contiguous rows"),
        ({1: torch.zeros(20, 7, dtype=torch.float64)}, "expected action and reward as float32"),
        ({1: torch.zeros(19, 7)}, "holds 19 rows but"),
        ({3: torch.zeros(20, dtype=torch.int64)}, "link as int32"),
        ({3: torch.zeros(20, 1, dtype=torch.int32)}, r"link \[N\]"),
        ({4: torch.zeros(5, 22)}, "side is .*; expected rows like obs"),
        ({4: torch.zeros(5, 23).half()}, "side is .*; expected rows like obs"),
        ({5: 0}, "size is 0; expected 1 to 20"),
        ({5: 21}, "size is 21; expected 1 to 20"),
        ({6: -1}, "batch_size is -1"),
        ({7: torch.zeros(3)}, "key is"),
    ],
)
def test_bad_input(change, message):
    arguments = [*memory(20), 20, 4, random_key(0, 0, 0)]
    for position, value in change.items():
        arguments[position] = value
    with pytest.raises(SACError, match=message):
        replay_batch(*arguments)


def test_no_side_at_all_where_no_link_needs_it():
    obs, action, reward, link, side = memory(20)
    link[:] = torch.arange(20, dtype=torch.int32).roll(1)
    fields = obs, action, reward, link, side[:0]
    found = [
        sample(*fields, 20, 30, random_key(1, 0, 0)) for sample in (replay_batch, replay_batch_reference)
    ]
    for ours, expected in zip(*found, strict=True):
        assert torch.equal(ours, expected)


def test_without_native_code_the_reference_runs(monkeypatch):
    monkeypatch.setattr(native, "available", lambda device_type="cpu": False)
    fields, key = memory(20), random_key(0, 0, 0)
    for found, expected in zip(
        replay_batch(*fields, 20, 9, (0, 0, 0)), replay_batch_reference(*fields, 20, 9, key), strict=True
    ):
        assert torch.equal(found, expected)
