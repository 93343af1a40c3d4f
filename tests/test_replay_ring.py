"""The replay memory against a plain list of transitions: one copy of each observation, and nothing else changed."""

import copy
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sacfast import ReplayBuffer, native
from sacfast.ops import random_key, replay_sample_reference
from sacfast.ops.replay_batch import OBS_TYPES
from sacfast.replay import ring
from sacfast.replay.ring import segment_rows

OBS_DIM, ACTION_DIM = 3, 2


@dataclass
class Environment:
    """Observations that tell the environment, its episode and the step; -0.0, which equals 0.0, among them."""

    number: int
    episode: int = 0
    step: int = 0

    def obs(self) -> np.ndarray:
        return np.array([self.number or -0.0, self.episode, self.step], np.float32)

    def transition(self, reward: int, outcome: str) -> tuple:
        obs = self.obs()
        self.step += 1
        next_obs = self.obs()
        if outcome != "goes on":
            self.episode, self.step = self.episode + 1, 0
        return (
            obs,
            np.full(ACTION_DIM, reward / 7, np.float32),
            float(reward),
            next_obs,
            outcome == "terminates",
        )


def push(buffer: ReplayBuffer, transitions: list, how: str) -> None:
    if how == "one by one":
        for transition in transitions:
            buffer.push(*transition)
    elif how == "as a batch":
        buffer.push_batch(*map(np.stack, zip(*transitions, strict=True)))
    else:  # what a GPU's tensors go through
        buffer._push_blindly(*(torch.tensor(np.stack(column)) for column in zip(*transitions, strict=True)))


def check(buffer: ReplayBuffer, pushed: list, *, exact: bool = True) -> None:
    """`buffer` holds the newest of `pushed`: in segments, in each row of its ring, and in what is sampled."""
    held = pushed[-buffer.capacity :]
    assert (buffer.pushed, len(buffer)) == (len(pushed), len(held))
    segment = buffer.segment()
    rows = segment_rows(segment)
    for k, field in enumerate(("obs", "action", "reward", "next_obs", "terminated")):
        expected = torch.tensor(np.stack([transition[k] for transition in held]))
        found = getattr(rows, field)
        assert found.float().numpy().tobytes() == expected.float().numpy().tobytes(), field
    begun = {transition[0].tobytes() for transition in held}
    apart = sum(transition[3].tobytes() not in begun for transition in held)
    assert len(segment["side"]) >= apart
    assert not exact or len(segment["side"]) == apart

    memory, by_reward = buffer.ring_to_sample(1), {transition[2]: transition for transition in held}
    at = memory.position - len(held) + np.arange(len(held))
    np.testing.assert_array_equal(memory.reward[at % buffer.capacity], [transition[2] for transition in held])
    key, size = random_key(len(pushed), 0, 1), min(len(held), 8)
    _, drawn = replay_sample_reference([memory.reward], len(held), size, key)
    batch = buffer.sample_batch(size, key)
    assert torch.equal(batch.reward, memory.reward[drawn])
    for i, reward in enumerate(batch.reward.tolist()):
        sampled = (batch.obs[i], batch.action[i], batch.reward[i], batch.next_obs[i], batch.terminated[i])
        for found, expected in zip(sampled, by_reward[reward], strict=True):
            np.testing.assert_array_equal(found, np.float32(expected))


OUTCOMES = st.sampled_from(["goes on", "goes on", "terminates", "is truncated"])
# Which environments step in a call, in which order, and what becomes of each.
CALLS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 3), OUTCOMES), min_size=1, max_size=6),
        st.sampled_from(["one by one", "as a batch"]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(
    calls=CALLS,
    capacity=st.integers(1, 14),
    obs_dtype=st.sampled_from(list(OBS_TYPES)),
    slots=st.integers(1, 8),
    is_native=st.booleans(),
    saves=st.sets(st.integers(0, 11), max_size=3),
)
def test_any_interleaving_against_a_list(calls, capacity, obs_dtype, slots, is_native, saves):
    """Environments step when they like, several times in a call too; buffers of 1 transition and of less than a call.

    After the calls in `saves` the buffer goes on as another one, restored from incremental segments.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "LEAST_SLOTS", slots)
        if not is_native:
            patch.setattr(native, "available", lambda device_type="cpu": False)
        buffer, environments = ReplayBuffer(capacity, obs_dtype=obs_dtype), [Environment(i) for i in range(4)]
        pushed, segments, saved = [], [], 0
        for number, (steps, how) in enumerate(calls):
            new = [environments[e].transition(len(pushed) + k, end) for k, (e, end) in enumerate(steps)]
            push(buffer, new, how)
            pushed += new
            check(buffer, pushed)
            if number in saves:
                segments.append(buffer.segment(saved))
                saved = buffer.pushed
                before, counters = buffer.segment(), buffer.counters()
                buffer = ReplayBuffer(capacity, obs_dtype=obs_dtype)
                buffer.restore(segments, counters)
                assert buffer.counters() == counters
                after = buffer.segment()
                assert all(torch.equal(before[name], after[name]) for name in before)
                check(buffer, pushed)


@settings(max_examples=80, deadline=None)
@given(
    ends=st.lists(st.lists(OUTCOMES, min_size=3, max_size=3), min_size=1, max_size=12),
    capacity=st.integers(1, 14),
    slots=st.integers(1, 8),
    mixed=st.booleans(),
)
def test_tensors_that_stay_on_their_device_against_a_list(ends, capacity, slots, mixed):
    """Three environments stepped together; `mixed`: every third call comes from the host."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "LEAST_SLOTS", slots)
        buffer, environments, pushed = ReplayBuffer(capacity), [Environment(i) for i in range(3)], []
        for number, outcomes in enumerate(ends):
            new = [environments[e].transition(len(pushed) + e, end) for e, end in enumerate(outcomes)]
            push(buffer, new, "as a batch" if mixed and number % 3 == 2 else "as tensors")
            pushed += new
            check(buffer, pushed, exact=not mixed and capacity > 3)


def test_a_trajectory_of_tensors_is_one_copy_too():
    buffer, environment = ReplayBuffer(100), Environment(1)
    pushed = [environment.transition(i, "terminates" if i % 5 == 4 else "goes on") for i in range(40)]
    push(buffer, pushed, "as tensors")
    check(buffer, pushed)


@pytest.mark.parametrize("fails_at", ["_put", "_advance", "_continue_by"])
def test_a_batch_that_could_not_be_written_is_never_continued(fails_at, monkeypatch):
    """The next one begins where it ended, as a loop's does that goes on after Ctrl-C."""
    buffer = ReplayBuffer(8, obs_dim=1, action_dim=1)

    def rows(*numbers: int) -> list[tuple]:
        return [(np.float32([i]), np.float32([i]), float(i), np.float32([i + 1]), i == 4) for i in numbers]

    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    push(buffer, rows(0), "as a batch")
    with monkeypatch.context() as patch:
        patch.setattr(ring.Ring, fails_at, interrupted)
        with pytest.raises(KeyboardInterrupt):
            push(buffer, rows(1, 2), "as a batch")
    held = len(buffer)
    assert held == (3 if fails_at == "_continue_by" else 1)  # what is written but for a link may stay
    push(buffer, rows(3), "as a batch")
    push(buffer, rows(4), "one by one")
    found = segment_rows(buffer.segment())
    assert found.next_obs.tolist() == (found.obs + 1).tolist()
    assert found.terminated.tolist() == [False] * (held + 1) + [True]


@pytest.mark.parametrize("fails_at", ["_new", "_links"])
def test_without_memory_for_a_larger_table_everything_stays_as_it_was(fails_at, monkeypatch):
    monkeypatch.setattr(ring, "LEAST_SLOTS", 4)
    buffer, environment = ReplayBuffer(100, obs_dim=OBS_DIM, action_dim=ACTION_DIM), Environment(1)
    pushed = [environment.transition(i, "terminates") for i in range(4)]
    push(buffer, pushed, "as a batch")

    def no_memory(*_, **__):
        raise RuntimeError("out of memory")

    more = [environment.transition(4, "terminates")]
    with monkeypatch.context() as patch:
        patch.setattr(ring.Ring, fails_at, no_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            push(buffer, more, "as a batch")
    check(buffer, pushed)
    push(buffer, more, "as a batch")
    check(buffer, pushed + more)


def test_tensors_are_scaled_and_told_as_arrays_are():
    told, held = [], []
    options = {"action_low": [-2.0, 0.0], "action_high": [2.0, 10.0], "reward_scale": 0.5}
    actions = np.array([[-2.0, 0.0], [2.0, 10.0]], np.float32)
    rows = [(np.full(3, i), action, i + 1.0, np.ones(3), True) for i, action in enumerate(actions)]
    for how in ("as tensors", "as a batch"):
        buffer = ReplayBuffer(4, on_push=lambda obs: told.append(np.asarray(obs).tolist()), **options)
        push(buffer, rows, how)
        held.append(buffer.segment())
    assert told == [[[0.0] * 3, [1.0] * 3]] * 2
    for name in ("action", "reward"):
        assert torch.equal(held[0][name], held[1][name])


def test_an_observation_that_comes_back_is_told_by_its_bits_alone():
    """Equal observations in different places, a transition onto itself, and an end that equals the next start."""
    a, b = np.zeros(OBS_DIM, np.float32), np.ones(OBS_DIM, np.float32)
    pushed = [
        (start, np.zeros(ACTION_DIM, np.float32), float(i), end, i % 3 == 0)
        for i, (start, end) in enumerate([(a, a), (a, a), (a, b), (b, a), (b, a), (a, -a), (a, b), (-a, b)])
    ]
    for how, capacity in itertools.product(("one by one", "as a batch", "as tensors"), (1, 2, 3, 5, 8)):
        buffer = ReplayBuffer(capacity)
        push(buffer, pushed, how)
        memory = segment_rows(buffer.segment())
        expected = np.stack([transition[3] for transition in pushed[-capacity:]])
        assert memory.next_obs.numpy().tobytes() == expected.tobytes()
        assert memory.terminated.tolist() == [transition[4] for transition in pushed[-capacity:]]


def test_what_waits_to_be_continued_is_bounded(monkeypatch):
    monkeypatch.setattr(ring, "REACH", 10)
    buffer, environments = ReplayBuffer(1000), [Environment(i) for i in range(2)]
    pushed = []
    for i in range(60):
        pushed.append(environments[i % 30 == 0].transition(i, "terminates" if i % 2 else "goes on"))
        push(buffer, pushed[-1:], "one by one")
        assert len(buffer._ring._open) <= 10
    check(buffer, pushed, exact=False)


@pytest.mark.parametrize(
    ("obs_dtype", "environments", "bound"),
    [("float32", 1, 130e6), ("float32", 500, 130e6), ("bfloat16", 500, 86e6)],
)
def test_memory_of_a_million_pusher_transitions(obs_dtype, environments, bound):
    """Episodes of 100 steps, truncated; the environments are at different places in theirs."""
    N, length, calls = 1_000_000, 100, 5000 // environments
    buffer = ReplayBuffer(N, obs_dim=23, action_dim=7, obs_dtype=obs_dtype)
    rng = np.random.default_rng(0)
    at, obs = np.arange(environments) % length, rng.random((environments, 23), np.float32)
    action, zeros = np.zeros((5000, 7), np.float32), np.zeros(5000, np.float32)
    while buffer.pushed < N + 20_000:
        following = rng.random((calls, environments, 23), np.float32)
        ends = (at + np.arange(calls)[:, None]) % length == length - 1
        begun = np.where(ends[:, :, None], 1 - following, following)
        first = np.concatenate([obs[None], begun[:-1]])
        obs, at = begun[-1], at + calls
        buffer.push_batch(first.reshape(-1, 23), action, zeros, following.reshape(-1, 23), zeros)
    assert len(buffer) == N
    assert buffer.nbytes <= bound
    assert len(buffer.segment()["side"]) <= N / length + environments


def test_a_deep_copy_shares_nothing():
    buffer, environment = ReplayBuffer(5), Environment(1)
    pushed = [environment.transition(i, "goes on") for i in range(12)]
    push(buffer, pushed[:7], "one by one")
    twin = copy.deepcopy(buffer)
    push(twin, pushed[7:], "one by one")
    check(buffer, pushed[:7])
    check(twin, pushed)


def test_one_transition_is_stored_as_many_are():
    """`push` of plain arrays takes a shorter way: the same contents, scaling, statistics and continuity."""
    buffers, seen = [], []
    for how in ("one by one", "with care"):
        told = []
        options = {"action_low": [-2, -1], "action_high": [1, 3], "reward_scale": 0.3, "on_push": told.append}
        buffer = ReplayBuffer(7, obs_dim=OBS_DIM, action_dim=ACTION_DIM, **options)
        environments = [Environment(number) for number in range(3)]
        for i in range(40):
            outcome = ("goes on", "goes on", "stops", "terminates")[i * 7 % 4]
            obs, action, reward, next_obs, done = environments[i * 5 % 3].transition(i, outcome)
            plain = how == "one by one"
            buffer.reward_scale = 0.3 if i < 30 else 0.7
            buffer.push(obs if plain else obs.tolist(), action, reward, next_obs, done)
        assert (buffer._writer is not None) == (how == "one by one" and native.available())
        buffers.append(buffer.segment())
        seen.append(np.concatenate(told))
    assert seen[0].tobytes() == seen[1].tobytes()
    for name, tensor in buffers[0].items():
        assert tensor.numpy().tobytes() == buffers[1][name].numpy().tobytes(), name
