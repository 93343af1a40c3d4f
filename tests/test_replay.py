"""ReplayBuffer against a plain list of transitions."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sacfast import ReplayBuffer, SACError
from sacfast.ops import random_key

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
    return sorted(dict(buffer.named_tensors()).get("reward", torch.empty(0)).tolist())


@settings(max_examples=40, deadline=None)
@given(capacity=st.integers(1, 12), sizes=st.lists(st.integers(1, 15), min_size=1, max_size=8))
def test_holds_the_newest_transitions_whatever_the_pushes(capacity, sizes):
    buffer, pushed = ReplayBuffer(capacity), []
    for size in sizes:
        rows = [transition(len(pushed) + k) for k in range(size)]
        if size == 1:
            buffer.push(*rows[0])
        else:
            buffer.push_batch(*map(np.stack, zip(*rows, strict=True)))
        pushed += rows
        held = pushed[-capacity:]
        assert len(buffer) == len(held)
        assert rewards_held(buffer) == [t[2] for t in held]


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


@pytest.mark.parametrize("capacity", [7, 20, 4])
@pytest.mark.parametrize("pushed", [0, 3, 7, 11])
def test_restore_keeps_the_newest_and_goes_on_in_order(capacity, pushed):
    source = ReplayBuffer(7)
    for i in range(pushed):
        source.push(*transition(i))
    tensors = {name: t.clone() for name, t in source.named_tensors()}
    copy = ReplayBuffer(capacity)
    copy.restore(tensors, source.counters())
    expected = list(range(pushed))[-min(7, capacity) :]
    assert rewards_held(copy) == expected
    for i in range(pushed, pushed + 5):
        copy.push(*transition(i))
        expected = [*expected, i][-capacity:]
        assert rewards_held(copy) == expected


@pytest.mark.parametrize("capacity", [0, -5, 2.5, "many", 2**31])
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


def test_bad_batch_sizes():
    buffer = ReplayBuffer(10)
    with pytest.raises(SACError, match="above the 0 transitions"):
        buffer.sample(1)
    buffer.push(*transition(0))
    with pytest.raises(SACError, match="batch_size 2 is above the 1 transitions"):
        buffer.sample(2)
    for bad in (0, -1, 1.5):
        with pytest.raises(SACError, match="whole number"):
            buffer.sample(bad)


def test_an_empty_batch_changes_nothing():
    buffer = ReplayBuffer(10, obs_dim=3, action_dim=2)
    buffer.push_batch(np.zeros((0, 3)), np.zeros((0, 2)), [], np.zeros((0, 3)), [])
    assert len(buffer) == 0


def test_more_memory_than_there_is():
    with pytest.raises(SACError, match=r"2,147,483,647 transitions needs .* GB.*lower the capacity"):
        ReplayBuffer(2**31 - 1, obs_dim=10**7, action_dim=1)


@pytest.mark.parametrize("dims", [(-1, 2), (3, 0), (2.5, 1)])
def test_bad_dimensions(dims):
    with pytest.raises(SACError, match="_dim must be a whole number"):
        ReplayBuffer(10, obs_dim=dims[0], action_dim=dims[1])


def test_a_deep_copy_has_records_of_its_own():
    buffer = ReplayBuffer(10)
    buffer.push(*transition(1))
    twin = copy.deepcopy(buffer)
    twin.push(*transition(2))
    assert rewards_held(buffer) == [1.0] and rewards_held(twin) == [1.0, 2.0]
    assert set(twin.sample_batch(2, KEY).reward.tolist()) <= {1.0, 2.0}
    assert buffer.sample_batch(1, KEY).reward.item() == 1.0


def test_tensors_may_be_pushed():
    buffer = ReplayBuffer(10)
    obs = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    buffer.push(obs, torch.zeros(2), torch.tensor(1.5), torch.ones(3), torch.tensor(True))
    assert buffer.sample(1)[2].item() == 1.5
    assert buffer.sample(1)[4].item() == 1.0
