"""No wrong transition, however a vector environment resets its episodes."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from exact_env import COUNT, MODES, STEPS, Exact, Torch, collect, expected_rows, length, makers, seeds
from gymnasium.error import AlreadyPendingCallError
from gymnasium.spaces import Box
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from sacfast.checked import CheckedEnv
from sacfast.collector import Collector, episode_seed, of_actions


def check(rows, ended, mode):
    for index in range(COUNT):
        mine = [row[1:] for row in rows if row[0] == index]
        expected = expected_rows(index, len(mine))
        if mode is not AutoresetMode.NEXT_STEP:
            assert len(mine) == STEPS
        for (obs, action, reward, next_obs, terminated), (episode, t, value, end) in zip(
            mine, expected, strict=True
        ):
            assert obs[:3] == [index, episode, t - 1]
            assert next_obs[:3] == [index, episode, t]
            assert next_obs[3] == pytest.approx(action[0])  # what the environment was given in this very step
            assert (reward, bool(terminated)) == (value, end)
        episodes = [episode for episode in ended if episode.env == index]
        complete = sum(expected_rows(index, len(mine) + 1)[-1][:1])
        assert len(episodes) == complete
        for number, episode in enumerate(episodes):
            steps = length(index, number)
            assert episode.length == steps
            assert episode.total == sum(100 * index + 10 * number + t for t in range(1, steps + 1))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("copy", [True, False])
def test_every_transition_of_every_mode_is_true(kind, mode, copy):
    envs = kind(makers(COUNT), autoreset_mode=mode, copy=copy)
    try:
        collector = Collector(envs, "Exact", seeds)
        collector.reset()
        rows, ended = collect(collector)
        given = envs.get_attr("seeds")
    finally:
        envs.close()
    check(rows, ended, mode)
    assert collector.episodes.tolist() == [sum(e.env == i for e in ended) for i in range(COUNT)]
    if mode is AutoresetMode.NEXT_STEP:
        resets = sum(collector.episodes) - int(collector._resetting.sum())
        assert len(rows) == STEPS * COUNT - resets
    for index, own in enumerate(given):
        if mode is AutoresetMode.DISABLED:
            assert own == [seeds(index, episode) for episode in range(len(own))]
        else:
            assert own[0] == seeds(index, 0)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_every_transition_of_tensors_is_true(mode):
    envs = Torch(SyncVectorEnv(makers(COUNT), autoreset_mode=mode))
    collector = Collector(envs, "Exact", seeds)
    collector.reset()
    rows, ended = collect(collector)
    check(rows, ended, mode)
    new, _ = collector.step(torch.zeros(COUNT, 1))
    assert all(isinstance(column, torch.Tensor) for column in new)


class Clearing:
    """Its reset clears what its last step returned, as simulators on a GPU do; terminates at every third step."""

    num_envs = 2
    single_observation_space, single_action_space = Box(-99, 99, (1,)), Box(-1, 1, (1,))
    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, zeros):
        self.t, self.reward = zeros(2), zeros(2)
        self.terminated, self.truncated = zeros(2) != 0, zeros(2) != 0

    def reset(self, *, seed=None, options=None):
        mask = options["reset_mask"] if options else slice(None)
        for each in (self.t, self.reward, self.terminated):
            each[mask] = 0
        return self.t.reshape(2, 1), {}

    def step(self, action):
        self.t += 1
        self.reward[:] = 5
        self.terminated[:] = self.t >= 3
        return self.t.reshape(2, 1), self.reward, self.terminated, self.truncated, {}


@pytest.mark.parametrize("zeros", [np.zeros, torch.zeros], ids=["numpy", "torch"])
def test_a_reset_does_not_reach_what_the_step_before_it_returned(zeros):
    collector = Collector(Clearing(zeros), "Clearing", seeds)
    collector.reset()
    for t in range(1, 13):
        rows, ended = collector.step(collector.random_action())
        assert rows.reward.tolist() == [5, 5]
        assert rows.terminated.tolist() == [t % 3 == 0] * 2 and len(ended) == 2 * (t % 3 == 0)


def test_a_single_environment_is_a_vector_of_one():
    env = Exact()
    collector = Collector(env, "Exact", seeds)
    collector.reset()
    rows, ended = collect(collector)
    assert [tuple(np.ravel(row[4])[1:3]) for row in rows] == [row[:2] for row in expected_rows(0, STEPS)]
    assert [episode.length for episode in ended] == [length(0, number) for number in range(len(ended))]
    assert env.seeds == [seeds(0, episode) for episode in range(len(env.seeds))]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_the_state_continues_in_the_middle_of_episodes(mode):
    def fresh():
        envs = SyncVectorEnv(makers(COUNT), autoreset_mode=mode)
        collector = Collector(envs, "Exact", seeds)
        collector.reset()
        return envs, collector

    envs, first = fresh()
    collect(first, 9)
    state = first.state()
    saved = json.loads(json.dumps({name: value for name, value in state.items() if name != "obs"}))
    _, second = fresh()
    second.envs = envs  # the simulators, as they stand
    second.restore(saved | {"obs": state["obs"]})
    np.testing.assert_array_equal(first.random_action(), second.random_action())
    assert first.next_episodes() == second.next_episodes()
    continued = collect(second, 9)
    envs, whole = fresh()
    before = collect(whole, 9)
    assert before[1]
    assert [str(part) for part in continued] == [str(part) for part in collect(whole, 9)]


def test_random_actions_come_from_the_episodes_seeds():
    single = Collector(Exact(), "Exact", seeds)
    single.reset()
    space = gymnasium.spaces.Box(-5.0, 5.0, (1,))
    space.seed(of_actions(episode_seed(0, 0)))
    environments, _ = gymnasium.utils.seeding.np_random(episode_seed(0, 0))
    assert space.np_random.random() != environments.random()  # its noise would be the action
    space.seed(of_actions(episode_seed(0, 0)))
    assert [single.random_action()[0] for _ in range(3)] == [space.sample() for _ in range(3)]
    many = Collector(SyncVectorEnv(makers(COUNT)), "Exact", seeds)
    many.reset()
    drawn = np.stack([many.random_action() for _ in range(100)])
    assert len(np.unique(drawn)) == drawn.size
    tensors = Collector(Torch(SyncVectorEnv(makers(COUNT))), "Exact", seeds)
    tensors.reset()
    drawn = torch.stack([tensors.random_action() for _ in range(200)])
    assert drawn.shape == (200, COUNT, 1)
    assert -5 <= drawn.min() < -4 and 4 < drawn.max() <= 5


def test_episode_seeds_reduce_to_those_of_a_single_environment_and_do_not_repeat():
    assert episode_seed(3, 5) == int(np.random.SeedSequence((3, 5)).generate_state(1)[0])
    every = {episode_seed(run, episode, env) for run in range(8) for episode in range(20) for env in range(8)}
    assert len(every) == 8 * 20 * 8


@pytest.mark.parametrize("kind", [float, np.int64])
@pytest.mark.parametrize("tensors", [False, True])
def test_ends_may_be_numbers(kind, tensors):
    class Numbers(SyncVectorEnv):
        def step(self, actions):
            obs, reward, *ends, info = super().step(actions)
            return obs, reward, *(each.astype(kind) for each in ends), info

    envs = Numbers(makers(COUNT), autoreset_mode=AutoresetMode.DISABLED)
    collector = Collector(Torch(envs) if tensors else envs, "Exact", seeds)
    collector.reset()
    check(*collect(collector), AutoresetMode.DISABLED)


def test_a_vectors_own_mode_counts_before_its_metadata():
    """Which in some versions of Gymnasium is the environment's class's, so that a second vector rewrites it."""
    envs = SyncVectorEnv(makers(1), autoreset_mode=AutoresetMode.SAME_STEP)
    envs.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    assert Collector(envs, "Exact", seeds).mode is AutoresetMode.SAME_STEP


def test_an_environment_that_checks_its_options_for_none_is_not_given_empty_ones():
    given = []

    class Options(Exact):
        def reset(self, *, seed=None, options=None):
            given.append(options)
            return super().reset(seed=seed)

    envs = SyncVectorEnv([lambda: CheckedEnv(Options())] * 2, autoreset_mode=AutoresetMode.DISABLED)
    collector = Collector(envs, "Exact", seeds)
    collector.reset()
    collect(collector)
    assert len(given) > 4 and set(given) == {None}


def test_whatever_keeps_the_environments_state_back_is_an_obstacle_and_no_error(monkeypatch):
    """A worker that hangs in the midst of another call, say."""

    def pending(envs):
        raise AlreadyPendingCallError("waiting for a pending call to `get_attr`", "get_attr")

    collector = Collector(SyncVectorEnv(makers(COUNT)), "Exact", seeds)
    collector.reset()
    monkeypatch.setattr("sacfast.collector.captured_states", pending)
    assert collector.captured()["obstacle"] == "waiting for a pending call to `get_attr`"


def test_a_single_seed_reaches_no_episode_under_way():
    class OneSeed(Torch):
        given: list = []  # noqa: RUF012
        unwrapped = property(lambda self: self)

        def reset(self, *, seed=None, options=None):
            self.given.append((seed, options is None or bool(options["reset_mask"].all())))
            return super().reset(seed=seed, options=options)

    envs = OneSeed(SyncVectorEnv(makers(COUNT), autoreset_mode=AutoresetMode.DISABLED))
    collector = Collector(envs, "OneSeed", seeds)
    collector.reset()
    _, ended = collect(collector)
    assert ended and envs.given[0] == (seeds(0, 0), True)
    assert not all(every for _, every in envs.given)
    assert all((seed is not None) == every for seed, every in envs.given)
