"""Short arrays into a GPU's memory, and what is written so: under the emulator, and on a GPU where there is one."""

import functools

import numpy as np
import pytest
import torch

from sacfast import ReplayBuffer, SACError
from sacfast import normalizer as normalizer_module
from sacfast.normalizer import ObservationNormalizer
from sacfast.ops.put import MOST_PIECES, MOST_WORDS, can_put, put
from sacfast.replay import ring as ring_module

pytestmark = pytest.mark.native


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.cuda)])
def place(request, monkeypatch) -> str:
    """The device under test. Emulated, it is the CPU's memory that the ring and the normalizer put to."""
    if request.param == "gpu":
        return "cuda"
    emulated = functools.partial(put, library=request.getfixturevalue("cuda_emulation"))
    for module in (ring_module, normalizer_module):
        monkeypatch.setattr(module, "put", emulated)
        monkeypatch.setattr(module, "can_put", lambda device, words: True)
    monkeypatch.setitem(globals(), "put", emulated)
    return "cpu"


def test_each_piece_goes_where_it_belongs_and_nothing_else_changes(place):
    """Bits of float32 and int32, NaN's among them; empty pieces; as many pieces and words as there may be."""
    floats = torch.arange(1000.0, device=place).reshape(10, 100)
    integers = torch.arange(50, dtype=torch.int32, device=place)
    expected = floats.cpu().numpy().copy().reshape(-1), integers.cpu().numpy().copy()
    random = np.random.default_rng(0)
    special = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    pieces = [(floats, 3, special), (integers, 49, np.array(-1, np.int32)), (floats, 7, special[:0])]
    left = MOST_WORDS - 5
    for width in (1, 2, 129, 130, left - 262):
        first = sum(array.size for tensor, _, array in pieces if tensor is floats) + 4
        pieces.append((floats, first, random.standard_normal(width, np.float32)))
    assert len(pieces) == MOST_PIECES and sum(array.size for *_, array in pieces) == MOST_WORDS
    put(pieces)
    for tensor, first, array in pieces:
        expected[tensor is integers][first : first + array.size] = array
        array += 1  # what is enqueued does not change with it
    assert floats.cpu().numpy().tobytes() == expected[0].tobytes()
    assert integers.cpu().numpy().tobytes() == expected[1].tobytes()


def test_what_does_not_fit_is_refused(place):
    target = torch.zeros(2000, device=place)
    words = np.zeros(MOST_WORDS + 1, np.float32)
    with pytest.raises(SACError, match=r"put: more than fits into a kernel's parameter"):
        put([(target, 0, words)])
    with pytest.raises(SACError, match="more than fits"):
        put([(target, i, words[:1]) for i in range(MOST_PIECES + 1)])
    for first in (-1, 1999):
        with pytest.raises(
            SACError, match=f"2 numbers from number {first} on do not lie in a tensor of 2000"
        ):
            put([(target, first, words[:2])])


def test_only_a_gpu_is_put_to():
    assert not can_put(torch.device("cpu"), 1)
    assert not can_put(torch.device("cuda"), MOST_WORDS + 1)


def test_a_ring_that_is_put_to_holds_what_others_hold(place, monkeypatch):
    """Transitions pushed one by one, over several rounds: episodes that terminate and such that are cut off."""
    random = np.random.default_rng(1)
    theirs, ours = (ReplayBuffer(50, obs_dim=3, action_dim=2, device=d) for d in ("cpu", place))
    ring = ours.ring_to_sample
    puts = []
    emulated = ring_module.put
    monkeypatch.setattr(ring_module, "put", lambda pieces: (puts.append(len(pieces)), emulated(pieces)))
    ours._ring.device = torch.device("cuda")  # under the emulator too; nothing but `append` is called
    assert ours._ring.appends
    obs = random.standard_normal(3, np.float32)
    for i in range(180):
        next_obs = random.standard_normal(3, np.float32)
        transition = obs, random.standard_normal(2, np.float32), float(i), next_obs, i % 7 == 0
        theirs.push(*transition)
        ours.push(*transition)
        obs = next_obs if i % 7 and i % 11 else random.standard_normal(3, np.float32)
    assert set(puts) == {3, 4} and len(puts) == 180
    ours._ring.device = torch.device(place)
    assert ours.counters() | {"seed": 0} == theirs.counters() | {"seed": 0}
    mine, other = ours.segment(), theirs.segment()
    assert all(torch.equal(mine[name], other[name]) for name in other)
    assert ring(1).size == 50


def test_a_normalizer_that_is_put_to_has_the_numbers_of_others(place, monkeypatch):
    ours = ObservationNormalizer(4, place)
    x = np.random.default_rng(2).standard_normal((20, 4), np.float32)
    for row in x:
        ours.update(row[None])
    monkeypatch.undo()
    theirs = ObservationNormalizer(4)
    for row in x:
        theirs.update(row[None])
    assert torch.equal(ours.shift.cpu(), theirs.shift) and torch.equal(ours.scale.cpu(), theirs.scale)
