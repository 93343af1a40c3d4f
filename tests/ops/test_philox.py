"""The counter-based generator: known answers, one definition on every path, and the distributions drawn from
it.
"""

import math

import pytest
import torch
from tolerances import EPSILON, NORMAL_ULPS

from sacfast.errors import SACError
from sacfast.ops import (
    Stream,
    indices_reference,
    normal,
    normal_reference,
    philox4x32_reference,
    random_key,
    replay_sample,
)

# Random123's kat_vectors for philox4x32-10: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_reference_gives_random123s_known_answers(counter, key, expected):
    name = random_key(key[0] | key[1] << 32, counter[1], counter[2] | counter[3] << 32)
    words = philox4x32_reference(name, torch.tensor([counter[0]]))
    assert words.tolist() == [list(expected)]


def _words_of_native_indices(key, blocks):
    """With 2^62 rows an index holds the top 62 bits of its two words; no row is read because a row has no
    bytes.
    """
    _, indices = replay_sample([torch.empty(2**62, 0)], 2**62, 2 * blocks, key)
    return indices


@pytest.mark.native
@pytest.mark.parametrize("seed, stream, step", [(0, 0, 0), (-1, 0xFFFFFFFF, -1), (2**63 + 5, 3, 2**40 + 9)])
def test_native_draws_the_references_words(seed, stream, step):
    key = random_key(seed, stream, step)
    words = philox4x32_reference(key, torch.arange(300))
    hi, lo = words.reshape(-1, 2).unbind(1)
    assert torch.equal(_words_of_native_indices(key, 300), (hi << 30) | (lo >> 2))


def test_random_key_wraps_unsigned_integers():
    assert random_key(2**64 - 1, Stream.ACTION, 2**63).tolist() == [-1, 2, -(2**63)]


def test_normal_reference_by_hand():
    """Seed, stream and step 0: words 6627e8d5 e169c58d ... of the known answer, through the formula."""
    u, angle = ((0x6627E8D5 >> 9) + 0.5) / 2**23, 2 * math.pi * (0xE169C58D >> 8) / 2**24
    radius = math.sqrt(-2 * math.log(u))
    drawn = normal_reference((2,), (0, 0, 0), torch.float64)
    assert drawn[0].item() == pytest.approx(radius * math.cos(angle), abs=1e-14)
    assert drawn[1].item() == pytest.approx(radius * math.sin(angle), abs=1e-14)


def test_indices_reference_by_hand():
    word = 0x6627E8D5 << 32 | 0xE169C58D, 0xBC57AC4C << 32 | 0x9B00DBD8
    for size in (1, 7, 1000003, 2**40 + 1, 2**62):
        assert indices_reference((0, 0, 0), 2, size).tolist() == [(w * size) >> 64 for w in word]


@pytest.mark.native
@pytest.mark.parametrize("shape", [(0,), (1,), (5, 1), (3, 17), (257, 7), (4, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_normals_match_the_reference(shape, dtype):
    key = random_key(11, Stream.ACTION, 5)
    drawn, expected = normal(shape, key, dtype), normal_reference(shape, key, torch.float64)
    assert drawn.dtype == dtype and drawn.shape == shape
    bar = NORMAL_ULPS * EPSILON[dtype] * expected.abs().clamp_min(1.0)
    assert ((drawn.double() - expected).abs() <= bar).all()


@pytest.mark.native
def test_float32_normals_keep_their_bound_over_many_draws():
    for step in range(4):
        key = random_key(3, 0, step)
        drawn, expected = normal((2**18,), key), normal_reference((2**18,), key, torch.float64)
        ulps = (drawn.double() - expected).abs() / (EPSILON[torch.float32] * expected.abs().clamp_min(1.0))
        assert ulps.max().item() <= NORMAL_ULPS


@pytest.mark.parametrize("draw", [normal_reference, pytest.param(normal, id="public")])
def test_normals_are_standard_normal(draw):
    """Moments within 5 standard errors, and the Kolmogorov-Smirnov distance below its 0.1 % quantile."""
    n = 2**18
    key = random_key(2024, 1, 7)
    x = draw((n,), key).double()
    for moment, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**moment).mean().item() - expected) < 5 * math.sqrt(variance / n)
    ordered = torch.special.ndtr(x.sort().values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((ordered - steps[:-1]).abs().max(), (ordered - steps[1:]).abs().max()).item()
    assert distance * math.sqrt(n) < 1.95
    neighbours = (x[0::2] * x[1::2]).mean().item()
    assert abs(neighbours) < 5 / math.sqrt(n / 2)


def test_indices_are_uniform():
    """Chi-square over 64 cells below its 0.1 % quantile (103.4 at 63 degrees of freedom), for several
    keys.
    """
    for step in range(4):
        indices = indices_reference(random_key(9, 0, step), 2**15, 64)
        counts = torch.bincount(indices, minlength=64).double()
        assert ((counts - 512) ** 2 / 512).sum().item() < 103.4


def test_streams_and_steps_differ():
    drawn = {tuple(normal((4,), (1, stream, step)).tolist()) for stream in Stream for step in range(3)}
    assert len(drawn) == 12


def test_a_longer_draw_begins_with_the_shorter():
    key = random_key(1, 2, 3)
    assert torch.equal(normal((1000,), key)[:37], normal((37,), key))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes_take_the_reference(dtype):
    key = random_key(1, 2, 3)
    assert torch.equal(normal((9,), key, dtype), normal_reference((9,), key, dtype))


def test_normals_are_no_integers():
    with pytest.raises(SACError, match="int64; expected a floating dtype"):
        normal((3,), (1, 2, 3), torch.int64)


@pytest.mark.parametrize("draw", [lambda key: normal((3,), key), lambda key: indices_reference(key, 3, 5)])
@pytest.mark.parametrize("key", [torch.zeros(3), torch.zeros(2, dtype=torch.int64), (1, 2)])
def test_malformed_keys_are_refused(draw, key):
    with pytest.raises(SACError, match="key is"):
        draw(key)
