"""replay_sample and replay_insert_: the same rows on every path, wrap-around, registration, and bad input."""

import pytest
import torch
from operator_checks import on_each_thread_count, replay_storage

from sacfast.errors import SACError
from sacfast.ops import (
    indices_reference,
    random_key,
    replay_insert_,
    replay_insert_reference_,
    replay_sample,
    replay_sample_reference,
)


def test_reference_by_hand():
    """Key (0, 0, 0): the first two indices from the generator's known answer."""
    words = 0x6627E8D5 << 32 | 0xE169C58D, 0xBC57AC4C << 32 | 0x9B00DBD8
    expected = [(word * 10) >> 64 for word in words]
    (rows,), indices = replay_sample_reference([10 * torch.arange(12)], 10, 2, (0, 0, 0))
    assert indices.tolist() == expected and rows.tolist() == [10 * i for i in expected]


@pytest.mark.native
@pytest.mark.parametrize("B", [0, 1, 2, 3, 63, 64, 65, 255, 256, 257, 1000])
def test_native_equals_the_reference(B):
    storage, key = replay_storage(1000), random_key(-5, 0, 2**50 + B)
    rows, indices = replay_sample(storage, 900, B, key)
    expected, expected_indices = replay_sample_reference(storage, 900, B, key)
    assert torch.equal(indices, expected_indices)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(rows, expected, strict=True))


def test_more_fields_than_the_cuda_kernel_takes(either_path):
    storage = [torch.arange(5 * f, 5 * f + 5) for f in range(40)]
    rows, indices = replay_sample(storage, 5, 16, (1, 2, 3))
    assert all(torch.equal(row, 5 * f + indices) for f, row in enumerate(rows))
    replay_insert_(storage, [torch.tensor([f]) for f in range(40)], 2)
    assert [field[2].item() for field in storage] == list(range(40))


@pytest.mark.native
def test_operators_themselves_refuse_missing_lists():
    """Here the public functions fall back; on a GPU, see test_cuda.py."""
    rows, key = [torch.zeros(2)], random_key(1, 2, 3)
    with pytest.raises(ValueError, match="storage has no fields"):
        torch.ops.sacfast.replay_insert_([], rows, 0)
    with pytest.raises(ValueError, match="rows has 0 fields"):
        torch.ops.sacfast.replay_insert_(rows, [], 0)
    with pytest.raises(ValueError, match="storage has no fields"):
        torch.ops.sacfast.replay_sample([], torch.tensor(1), 1, key)


@pytest.mark.native
def test_size_may_be_a_tensor_and_key_a_tuple():
    storage = replay_storage(1000)
    by_int = replay_sample(storage, 77, 64, random_key(1, 2, 3))
    by_tensor = replay_sample(storage, torch.tensor(77), 64, (1, 2, 3))
    assert torch.equal(by_int[1], by_tensor[1]) and by_int[1].max() < 77
    assert all(torch.equal(a, b) for a, b in zip(by_int[0], by_tensor[0], strict=True))


@pytest.mark.native
def test_the_number_of_threads_changes_no_byte():
    storage, key = [torch.randn(5000, 23), torch.randn(5000)], random_key(7, 0, 0)
    results = on_each_thread_count(lambda: replay_sample(storage, 5000, 20001, key))
    assert torch.equal(results[0][1], indices_reference(key, 20001, 5000))
    for rows, indices in results:
        assert torch.equal(indices, results[0][1])
        assert all(torch.equal(field[indices], row) for field, row in zip(storage, rows, strict=True))


@pytest.mark.native
def test_native_indices_are_uniform():
    """Chi-square over 1000 cells below its 0.1 % quantile (1142.8 at 999 degrees of freedom)."""
    _, indices = replay_sample([torch.zeros(1000)], 1000, 2**20, random_key(1, 0, 1))
    counts = torch.bincount(indices, minlength=1000).double()
    expected = 2**20 / 1000
    assert ((counts - expected) ** 2 / expected).sum().item() < 1142.8


@pytest.mark.parametrize(
    "n, position", [(0, 3), (1, 0), (1, 9), (4, 8), (10, 0), (10, 3), (13, 7), (20, 0), (37, 9)]
)
def test_insertion_goes_round_and_keeps_the_last(either_path, n, position):
    """Against the definition: one row after the other."""
    storage = replay_storage(10)
    rows = [field.clone()[:1].expand(n, *field.shape[1:]).clone() for field in storage]
    for row in rows:
        row.copy_((torch.arange(row.numel()) % 97).reshape(row.shape) if row.numel() else row)
    expected = [field.clone() for field in storage]
    for j in range(n):
        for field, row in zip(expected, rows, strict=True):
            field[(position + j) % 10] = row[j]
    versions = [field._version for field in storage]
    replay_insert_(storage, rows, position)
    assert all(torch.equal(a, b) for a, b in zip(storage, expected, strict=True))
    assert n == 0 or all(
        field._version > v for field, v in zip(storage, versions, strict=True) if field.numel()
    )


def test_fields_may_be_columns_of_one_record(either_path):
    """Their bytes are those of fields of their own, also for offsets that no vector width divides."""
    records = torch.arange(500 * 40, dtype=torch.float32).reshape(500, 40)
    columns = [records[:, 1:24], records[:, 24:31], records[:, 31], records.view(500, 8, 5)[:, 7]]
    rows, indices = replay_sample(columns, 450, 300, (1, 0, 9))
    expected, expected_indices = replay_sample_reference(
        [column.contiguous() for column in columns], 450, 300, (1, 0, 9)
    )
    assert torch.equal(indices, expected_indices)
    assert all(torch.equal(a, b) and a.is_contiguous() for a, b in zip(rows, expected, strict=True))


def test_columns_of_a_record_are_not_written(either_path):
    with pytest.raises(SACError, match="expected a contiguous tensor"):
        replay_insert_([torch.zeros(8, 6)[:, :3]], [torch.ones(2, 3)], 0)


def test_no_gradients_flow_to_the_storage(either_path):
    rows, _ = replay_sample([torch.zeros(4, 3, requires_grad=True)], 4, 2, (1, 2, 3))
    assert not rows[0].requires_grad


@pytest.mark.native
def test_rows_need_not_be_contiguous():
    storage, rows = [torch.zeros(8, 3)], torch.randn(3, 5)
    replay_insert_(storage, [rows.T], 6)
    assert torch.equal(storage[0][[6, 7, 0, 1, 2]], rows.T)


@pytest.mark.native
def test_opcheck():
    storage, key = replay_storage(20), random_key(1, 2, 3)
    ops = torch.ops.sacfast
    torch.library.opcheck(ops.replay_sample.default, (storage, torch.tensor(20), 6, key))
    torch.library.opcheck(ops.replay_sample.int, (storage, 20, 6, key))
    records = torch.randn(20, 12)
    torch.library.opcheck(ops.replay_sample.int, ([records[:, :5], records[:, 7]], 20, 6, key))
    torch.library.opcheck(ops.replay_insert_.default, (storage, [f[:4].clone() for f in storage], 18))


@pytest.mark.native
def test_compiles_without_a_graph_break():
    storage = [torch.randn(30, 4), torch.randn(30)]
    compiled, expected = [[f.clone() for f in storage] for _ in range(2)]

    def step(storage, rows, size, key):
        replay_insert_(storage, rows, 28)
        (x, y), indices = replay_sample(storage, size, 12, key)
        return x.sum(1) + y, indices

    for size in (30, torch.tensor(30)):
        arguments = [torch.ones(5, 4), torch.ones(5)], size, random_key(4, 0, 4)
        actual = torch.compile(step, fullgraph=True, backend="aot_eager")(compiled, *arguments)
        wanted = step(expected, *arguments)
        assert all(torch.equal(a, b) for a, b in zip(actual, wanted, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(compiled, expected, strict=True))


@pytest.mark.parametrize(
    "storage, size, batch_size, key, message",
    [
        ([], 1, 2, (1, 2, 3), "storage has (no|0) fields"),
        ([torch.zeros(4), torch.zeros(5)], 4, 2, (1, 2, 3), "storage\\[1\\] holds 5 rows"),
        ([torch.zeros(4, 6)[:, ::2]], 4, 2, (1, 2, 3), "contiguous"),
        ([torch.zeros(())], 1, 2, (1, 2, 3), "N at least 1"),
        ([torch.zeros(0, 3)], 1, 2, (1, 2, 3), "N at least 1"),
        ([torch.zeros(4)], 0, 2, (1, 2, 3), "size is 0; expected 1 to 4"),
        ([torch.zeros(4)], 5, 2, (1, 2, 3), "size is 5; expected 1 to 4"),
        ([torch.zeros(4)], torch.tensor(5), 2, (1, 2, 3), "size is 5; expected 1 to 4"),
        ([torch.zeros(4)], 4, -1, (1, 2, 3), "-1"),
        ([torch.zeros(4)], 4, 2, torch.zeros(3), "key is"),
    ],
)
def test_bad_samples(either_path, storage, size, batch_size, key, message):
    with pytest.raises(SACError, match=message):
        replay_sample(storage, size, batch_size, key)


@pytest.mark.parametrize(
    "rows, position, message",
    [
        ([torch.zeros(2, 3)], 0, "rows has 1 fields but storage has 2"),
        ([torch.zeros(2, 4), torch.zeros(2)], 0, "rows\\[0\\] .*expected"),
        ([torch.zeros(2, 3), torch.zeros(3)], 0, "rows\\[1\\]"),
        ([torch.zeros(2, 3), torch.zeros(2).double()], 0, "rows\\[1\\] is .*(float64|Double)"),
        ([torch.zeros(2, 3), torch.zeros(2)], 5, "position is 5; expected 0 to 4"),
        ([torch.zeros(2, 3), torch.zeros(2)], -1, "position is -1; expected 0 to 4"),
    ],
)
def test_bad_insertions(either_path, rows, position, message):
    storage = [torch.ones(5, 3), torch.ones(5)]
    with pytest.raises(SACError, match=message):
        replay_insert_(storage, rows, position)
    assert all((field == 1).all() for field in storage)


def test_rows_may_not_be_part_of_the_storage(either_path):
    storage = torch.arange(10.0)
    with pytest.raises(SACError, match="overlaps"):
        replay_insert_([storage], [storage[2:5]], 4)
    assert torch.equal(storage, torch.arange(10.0))


def test_insert_reference_by_hand():
    storage = torch.zeros(4)
    replay_insert_reference_([storage], [torch.tensor([1.0, 2.0, 3.0])], 2)
    assert storage.tolist() == [3.0, 0.0, 1.0, 2.0]


@pytest.mark.native
def test_a_key_that_is_a_column_is_refused():
    keys = torch.tensor([[1, 0], [2, 0], [3, 0]])
    with pytest.raises(SACError, match="contiguous int64"):
        replay_sample([torch.arange(9.0)], 9, 4, keys[:, 0])
