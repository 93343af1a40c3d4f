"""Short arrays into a GPU's memory, and what is written so: under the emulator, and on a GPU where there is one."""

import copy
import functools

import numpy as np
import pytest
import torch

from sacfast import ReplayBuffer, SACError, native
from sacfast import normalizer as normalizer_module
from sacfast.normalizer import ObservationNormalizer
from sacfast.ops.put import MOST_PIECES, MOST_WORDS, can_put, put
from sacfast.replay import ring as ring_module
from sacfast.replay.ring import segment_rows

pytestmark = pytest.mark.native


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.cuda)])
def place(request, monkeypatch) -> str:
    """The device under test. Emulated, it is the CPU's memory that rings and normalizers put to."""
    if request.param == "gpu":
        return "cuda"
    emulated = functools.partial(put, library=request.getfixturevalue("cuda_emulation"))
    for module in (ring_module, normalizer_module):
        monkeypatch.setattr(module, "put", emulated)
        monkeypatch.setattr(module, "can_put", lambda device, words: words <= MOST_WORDS)
    monkeypatch.setitem(globals(), "put", emulated)
    return "cpu"


@pytest.fixture
def puts(monkeypatch) -> list[int]:
    """The numbers of pieces that rings and normalizers put, call by call."""
    counts: list[int] = []
    for module in (ring_module, normalizer_module):

        def counted(pieces, original=module.put):
            counts.append(len(pieces))
            original(pieces)

        monkeypatch.setattr(module, "put", counted)
    return counts


def test_each_piece_goes_where_it_belongs_and_nothing_else_changes(place):
    """Bits of float32 and int32, NaN's among them; an empty piece; as many pieces and words as there may be."""
    floats = torch.arange(1200.0, device=place).reshape(10, 120)
    integers = torch.arange(50, dtype=torch.int32, device=place)
    special = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    random = np.random.default_rng(0).standard_normal(MOST_WORDS - 5).astype(np.float32)
    pieces = [
        (floats, 3, special),
        (integers, 49, np.array(-1, np.int32)),
        (floats, 7, special[:0]),
        (floats, 1200 - len(random), random),
    ]
    assert len(pieces) == MOST_PIECES and sum(array.size for *_, array in pieces) == MOST_WORDS
    expected = [tensor.cpu().numpy().reshape(-1).copy() for tensor in (floats, integers)]
    for tensor, first, array in pieces:
        expected[tensor is integers][first : first + array.size] = array
    put(pieces)
    for *_, array in pieces:
        array += 1  # what is enqueued does not change with it
    assert floats.cpu().numpy().tobytes() == expected[0].tobytes()
    assert integers.cpu().numpy().tobytes() == expected[1].tobytes()


def test_what_does_not_fit_is_refused(place):
    target = torch.zeros(2000, device=place)
    words = np.ones(MOST_WORDS + 1, np.float32)
    with pytest.raises(SACError, match=r"put: more than fits into a kernel's parameter"):
        put([(target, 0, words)])
    with pytest.raises(SACError, match="more than fits"):
        put([(target, i, words[:1]) for i in range(MOST_PIECES + 1)])
    for first in (-1, 1999):
        with pytest.raises(
            SACError, match=f"2 numbers from number {first} on do not lie in a tensor of 2000"
        ):
            put([(target, first, words[:2])])
    with pytest.raises(SACError, match=r"put: float64 for torch.float32; numbers must have 4 bytes"):
        put([(target, 0, words[:2].astype(np.float64))])
    assert target.count_nonzero() == 0


def test_what_can_be_put(monkeypatch):
    monkeypatch.setattr(native, "available", lambda device_type: True)
    assert can_put(torch.device("cuda"), MOST_WORDS) and not can_put(torch.device("cuda"), MOST_WORDS + 1)
    assert not can_put(torch.device("cpu"), 1)
    monkeypatch.setattr(native, "available", lambda device_type: False)
    assert not can_put(torch.device("cuda"), 1)


@pytest.mark.parametrize("capacity", [1, 2, 50])
def test_a_ring_that_is_put_to_holds_what_others_hold(place, puts, monkeypatch, capacity):
    """Pushed one by one, with a batch now and then, over several rounds and tables of last observations: episodes that
    terminate and such that are cut off; copied and restored on the way.
    """
    monkeypatch.setattr(ring_module, "LEAST_SLOTS", 4)
    ours = ReplayBuffer(capacity, obs_dim=3, action_dim=2, device=place, seed=0)
    theirs = ReplayBuffer(capacity, obs_dim=3, action_dim=2, seed=0)
    ours.allocate()  # or the first push does, in another way
    random = np.random.default_rng(1)
    obs = random.standard_normal(3, np.float32)
    for i in range(180):
        next_obs = random.standard_normal(3, np.float32)
        transition = obs, random.standard_normal(2, np.float32), float(i), next_obs, i % 7 == 0
        ours.push(*transition)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ring_module, "can_put", lambda device, words: False)
            theirs.push(*transition)
        obs = next_obs if i % 7 and i % 11 else random.standard_normal(3, np.float32)
        if i % 50 == 40:
            ours = copy.deepcopy(ours)
        if i % 50 == 20:
            segments, counters = [ours.segment()], ours.counters()
            ours = ReplayBuffer(capacity, obs_dim=3, action_dim=2, device=place)
            ours.restore(segments, counters)
        if i % 50 == 30:
            batch = [random.standard_normal((3, n)).astype(np.float32) for n in (3, 2)]
            for buffer in (ours, theirs):
                buffer.push_batch(batch[0], batch[1], np.zeros(3), batch[0] + 1, np.zeros(3, bool))
    assert len(puts) == 180 and set(puts) <= {3, 4} and (4 in puts) == (capacity > 1)
    assert ours.counters() == theirs.counters()
    mine, other = ours.segment(), theirs.segment()
    for name in ("obs", "action", "reward"):
        assert torch.equal(mine[name], other[name]), name
    assert torch.equal(segment_rows(mine).next_obs, segment_rows(other).next_obs)
    assert torch.equal(mine["link"] < 0, other["link"] < 0)


def test_a_transition_that_could_not_be_put_is_forgotten(place, monkeypatch):
    """The next one begins where it ended, as a loop's does that catches the error; it is no continuation of itself."""
    buffer = ReplayBuffer(8, obs_dim=1, action_dim=1, device=place)
    points = [np.array([float(i)], np.float32) for i in range(4)]
    buffer.push(points[0], points[0], 0.0, points[1], False)

    def fails(pieces):
        raise SACError("put: no")

    with monkeypatch.context() as patch:
        patch.setattr(ring_module, "put", fails)
        with pytest.raises(SACError, match="put: no"):
            buffer.push(points[1], points[0], 1.0, points[2], False)
    buffer.push(points[2], points[0], 2.0, points[3], True)
    rows = segment_rows(buffer.segment())
    assert rows.obs.tolist() == [[0.0], [2.0]] and rows.next_obs.tolist() == [[1.0], [3.0]]
    assert rows.terminated.tolist() == [False, True]


def test_wide_observations_are_copied(place, puts):
    buffer = ReplayBuffer(8, obs_dim=MOST_WORDS // 2, action_dim=1, device=place)
    obs = np.ones(MOST_WORDS // 2, np.float32)
    for _ in range(2):
        buffer.push(obs, obs[:1], 1.0, obs + 1, True)
    assert puts == [] and len(buffer) == 2
    assert torch.equal(segment_rows(buffer.segment()).next_obs, torch.full((2, MOST_WORDS // 2), 2.0))


def test_a_normalizer_that_is_put_to_has_the_numbers_of_others(place, puts, monkeypatch):
    ours = ObservationNormalizer(4, place)
    x = np.random.default_rng(2).standard_normal((20, 4), np.float32)
    for row in x:
        ours.update(row[None])
    assert puts == [2] * 20
    monkeypatch.undo()
    theirs = ObservationNormalizer(4)
    for row in x:
        theirs.update(row[None])
    assert torch.equal(ours.shift.cpu(), theirs.shift) and torch.equal(ours.scale.cpu(), theirs.scale)
