"""ReplayBuffer as its user sees it; how it lies in memory is in test_replay_ring.py."""

import numpy as np
import pytest
import torch

from sacfast import ReplayBuffer, SACError
from sacfast.ops import random_key
from sacfast.replay.ring import segment_rows

KEY = random_key(5, 0, 0)


def transition(i: int, obs_dim: int = 3, action_dim: int = 2):
    """Transition number i: every value tells which one it is."""
    return (
        np.full(obs_dim, i, float),
        np.full(action_dim, i / 1000),
        float(i),
        np.full(obs_dim, i + 0.5),
        i % 3 == 0,
    )


def rewards_held(buffer: ReplayBuffer) -> list[float]:
    return sorted(buffer.segment().get("reward", torch.empty(0)).tolist())


def test_a_sampled_row_is_one_transition():
    buffer = ReplayBuffer(50)
    for i in range(70):
        buffer.push(*transition(i))
    batch = buffer.sample_batch(40, KEY)
    for k, i in enumerate(batch.reward.tolist()):
        obs, action, _, next_obs, done = transition(int(i))
        assert batch.obs[k].tolist() == obs.tolist()
        assert batch.next_obs[k].tolist() == next_obs.tolist()
        assert batch.action[k].tolist() == pytest.approx(action.tolist())
        assert batch.terminated[k].item() == done


def test_sample_gives_the_notebooks_shapes():
    buffer = ReplayBuffer(100)
    for i in range(10):
        buffer.push(*transition(i))
    states, actions, rewards, next_states, dones = buffer.sample(5)
    assert [x.shape for x in (states, actions, rewards, next_states, dones)] == [
        (5, 3),
        (5, 2),
        (5, 1),
        (5, 3),
        (5, 1),
    ]
    assert buffer.is_ready(10) and not buffer.is_ready(11)


def test_same_seed_same_draws_and_the_draws_differ():
    def draws(seed):
        buffer = ReplayBuffer(100, seed=seed)
        for i in range(100):
            buffer.push(*transition(i))
        return [buffer.sample(20)[2].ravel().tolist() for _ in range(3)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    first, second, _ = draws(1)
    assert first != second


def test_actions_are_kept_in_unit_bounds_and_given_back_in_the_environments():
    buffer = ReplayBuffer(4, action_low=np.array([-2.0, 0.0]), action_high=np.array([2.0, 10.0]))
    buffer.push(np.zeros(3), np.array([1.0, 10.0]), 0.0, np.zeros(3), False)
    assert buffer.sample_batch(1, KEY).action.tolist() == [[0.5, 1.0]]
    assert buffer.sample(1)[1].tolist() == [[1.0, 10.0]]
    for beyond, within in (([9.0, 11.0], [1.0, 1.0]), ([-9.0, -1.0], [-1.0, -1.0])):
        buffer.push(
            np.zeros(3, np.float32), np.array(beyond, np.float32), 0.0, np.zeros(3, np.float32), False
        )
        assert buffer.segment()["action"][-1].tolist() == within


@pytest.mark.parametrize("low", [-2.0, [-2.0, -2.0]])
def test_bounds_of_another_width_are_refused(low):
    with pytest.raises(SACError, match=r"action_low has \d entries, but action_dim is 3"):
        ReplayBuffer(4, action_dim=3, action_low=np.array(low), action_high=-np.array(low))


@pytest.mark.native
def test_bounds_that_are_replaced_by_others_of_another_width_are_refused():
    buffer = ReplayBuffer(9, obs_dim=2, action_dim=3, action_low=-np.ones(3), action_high=np.ones(3))
    transition = np.zeros(2), np.ones(3), 0.5, np.ones(2), False
    buffer.push(*transition)  # makes the memory, which only then takes the native way
    buffer.bounds = type(buffer.bounds)([-2.0], [2.0])
    with pytest.raises(SACError, match="bounds have 1 entries, but actions 3"):
        buffer.push(*transition)
    assert len(buffer) == 1


def test_what_sample_draws_goes_on_after_a_restore():
    source, copy = ReplayBuffer(100, seed=3), ReplayBuffer(100)
    for i in range(100):
        source.push(*transition(i))
    first = source.sample(20)[2]
    copy.restore([source.segment()], source.counters())
    second = source.sample(20)[2]
    np.testing.assert_array_equal(copy.sample(20)[2], second)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("capacity", [7, 20, 4])
@pytest.mark.parametrize("pushed", [0, 3, 7, 11])
def test_restore_keeps_the_newest_and_goes_on_in_order(capacity, pushed):
    source = ReplayBuffer(7)
    for i in range(pushed):
        source.push(*transition(i))
    copy = ReplayBuffer(capacity)
    copy.restore([source.segment()], source.counters())
    assert copy.pushed == pushed
    expected = list(range(pushed))[-min(7, capacity) :]
    assert rewards_held(copy) == expected
    for i in range(pushed, pushed + 5):
        copy.push(*transition(i))
        expected = [*expected, i][-capacity:]
        assert rewards_held(copy) == expected


def test_restore_refuses_segments_that_hold_less_or_something_else_and_changes_nothing():
    source, other = ReplayBuffer(10, obs_dtype="bfloat16"), ReplayBuffer(10, obs_dtype="float16")
    for i in range(6):
        source.push(*transition(i))
    before_the_last = source.segment()
    source.push(np.full(3, 1e6), np.zeros(2), 6, np.zeros(3), False)
    other.push(*transition(1))
    wrong = ReplayBuffer(10)
    wrong.push(*transition(1, obs_dim=4))
    for segments, message in (
        ([before_the_last], "hold 6 of the 7 transitions"),
        ([source.segment()], "obs holds 999424, which float16 cannot"),
        ([wrong.segment()], "obs has shape"),
    ):
        with pytest.raises(SACError, match=message):
            other.restore(
                segments, source.counters() if segments[0]["obs"].shape[1] == 3 else wrong.counters()
            )
        assert rewards_held(other) == [1.0] and other.pushed == 1


@pytest.mark.parametrize("capacity", [0, -5, 2.5, "many", 2**29 + 1])
def test_bad_capacity(capacity):
    with pytest.raises(SACError, match="capacity"):
        ReplayBuffer(capacity)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (0, np.array([0.0, np.nan, 0.0]), "obs holds nan"),
        (0, np.zeros(4), "obs has shape"),
        (0, np.zeros((2, 3)), "obs has"),
        (1, np.array([0.0, np.inf]), "action holds inf"),
        (1, "left", "action is not numeric"),
        (2, float("nan"), "reward holds nan"),
        (3, np.zeros(2), "next_obs has shape"),
        (3, np.array([1e300, 0, 0]), "next_obs holds inf"),
        (3, [[1.0], [1.0, 2.0]], "next_obs is not numeric"),
        (4, 2.0, "terminated holds 2; pass False or True"),
    ],
)
def test_a_bad_transition_is_named_and_not_stored(field, value, message):
    buffer = ReplayBuffer(10)
    buffer.push(*transition(1))
    bad = list(transition(2))
    bad[field] = value
    with pytest.raises(SACError, match=message):
        buffer.push(*bad)
    assert rewards_held(buffer) == [1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"obs_dtype": "int8"}, "obs_dtype='int8' must be one of"),
        ({"storage": "disk"}, "storage='disk' must"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(SACError, match=message):
        ReplayBuffer(10, **options)


@pytest.mark.parametrize("field", [0, 3])
def test_what_float16_cannot_hold_is_refused(field):
    buffer = ReplayBuffer(10, obs_dtype="float16")
    buffer.push(*transition(1))
    bad = list(transition(2))
    bad[field] = np.array([0.0, -65520.0, 1.0])
    with pytest.raises(
        SACError, match="obs holds -65520, which float16 cannot: the transition was not stored"
    ):
        buffer.push(*bad)
    assert rewards_held(buffer) == [1.0]
    bad[field] = np.array([0.0, -65504.0, 1.0])
    buffer.push(*bad)
    assert len(buffer) == 2


def test_bad_batch_sizes():
    buffer = ReplayBuffer(10)
    with pytest.raises(SACError, match="above the 0 transitions"):
        buffer.sample(1)
    buffer.push(*transition(0))
    with pytest.raises(SACError, match="batch_size 2 is above the 1 transitions"):
        buffer.sample(2)
    for bad in (0, -1, 1.5):
        with pytest.raises(SACError, match=f"batch_size={bad} must be a whole number of at least 1"):
            buffer.sample(bad)


def test_an_empty_batch_changes_nothing():
    buffer = ReplayBuffer(10, obs_dim=3, action_dim=2)
    buffer.push_batch(np.zeros((0, 3)), np.zeros((0, 2)), [], np.zeros((0, 3)), [])
    assert len(buffer) == 0


def test_more_memory_than_there_is():
    with pytest.raises(SACError, match=r"536,870,912 transitions needs .* GB.*lower the capacity"):
        ReplayBuffer(2**29, obs_dim=10**7, action_dim=1).allocate()


@pytest.mark.parametrize("dims", [(-1, 2), (3, 0), (2.5, 1)])
def test_bad_dimensions(dims):
    with pytest.raises(SACError, match="_dim=.* must be a whole number of at least 1"):
        ReplayBuffer(10, obs_dim=dims[0], action_dim=dims[1])


def test_tensors_may_be_pushed():
    buffer = ReplayBuffer(10)
    obs = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    buffer.push(obs, torch.zeros(2), torch.tensor(1.5), torch.ones(3), torch.tensor(True))
    assert buffer.sample(1)[2].item() == 1.5
    assert buffer.sample(1)[4].item() == 1.0


def test_what_is_first_filled_in_inference_mode_goes_on_outside():
    buffer = ReplayBuffer(3000)
    with torch.inference_mode():
        buffer.push(*transition(0))
    for i in range(1, 2000):  # each with a slot of its own: the table grows
        buffer.push(*transition(i))
    assert rewards_held(buffer) == list(range(2000))


@pytest.mark.parametrize("obs_dtype", ["float32", "float16"])
def test_arrays_are_stored_however_they_lie_in_memory(obs_dtype):
    obs = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    frozen = obs + 1
    frozen.setflags(write=False)
    buffer = ReplayBuffer(10, obs_dtype=obs_dtype)
    buffer.push_batch(obs[::-1], np.zeros((4, 2)), np.zeros(4), frozen[::-1], np.zeros(4, bool))
    assert segment_rows(buffer.segment()).next_obs.tolist() == frozen[::-1].tolist()


def test_observations_without_entries_leave_the_buffer_as_it_was():
    buffer = ReplayBuffer(10)
    with pytest.raises(SACError, match="obs has no entries"):
        buffer.push_batch(np.zeros((2, 0)), np.zeros((2, 1)), [0, 0], np.zeros((2, 0)), [0, 0])
    buffer.push(*transition(1))
    assert len(buffer) == 1


@pytest.mark.parametrize(
    "bad", [{"reward_scale": 0.0}, {"reward_scale": float("nan")}, {"reward_scale": "2"}, {"seed": 1.7}]
)
def test_bad_scales_and_seeds(bad):
    with pytest.raises(SACError, match=rf"{next(iter(bad))}(=\S+)? must be a"):
        ReplayBuffer(10, **bad)
