"""No wrong transition, however a vector environment resets its episodes and whatever it returns."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from exact_env import MODES, Exact, Torch, expected_rows, length, makers
from gymnasium.error import AlreadyPendingCallError
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from sacfast.collector import Collector, episode_seed, of_actions
from sacfast.errors import SACError
from sacfast.vector import CheckedEnv, close_env

STEPS, COUNT = 40, 3


def seeds(env, episode):
    return episode_seed(0, episode, env)


def collect(collector, steps=STEPS):
    """Everything that `steps` steps yield, with actions that tell the steps and environments apart."""
    rows, ended = [], []
    for step in range(steps):
        action = np.array([[step / 10 + 0.01 * i] for i in range(collector.num_envs)], np.float32)
        if isinstance(collector.obs, torch.Tensor):
            action = torch.from_numpy(action)
        new, episodes = collector.step(action, len(rows))
        columns = (new.obs[:, 0], new.obs, new.action, new.reward, new.next_obs, new.terminated)
        rows += list(zip(*(np.asarray(column).tolist() for column in columns), strict=True))
        ended += episodes
    return rows, ended


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


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            lambda o, *rest: (o * np.nan, *rest),
            r"Exact \(environment 1 of 3\) returned at step 19 .*entry 0 is nan",
        ),
        (lambda o, r, *rest: (o, -np.inf, *rest), r"\(environment 1 of 3\) .* step 19 the reward -inf"),
        (
            lambda o, *rest: (o - 1e50, *rest),
            r"\(environment 1 of 3\) .* step 19 .*entry 0 is -1e\+50, beyond",
        ),
        (
            lambda o, r, *rest: (o, 1e50, *rest),
            r"\(environment 1 of 3\) .* step 19 the reward 1e\+50, beyond",
        ),
        (lambda o, r, *rest: (o, "much", *rest), r"\(environment 1 of 3\), at step 19, .*reward 'much'"),
        (lambda o, r, *rest: (o, None, *rest), r"\(environment 1 of 3\), at step 19, .*reward None"),
        (lambda o, *rest: (o[:1], *rest), r"\(environment 1 of 3\), .*shape \[1\], but announced \[4\]"),
        (
            lambda o, *rest: (np.array([1, 2, 3, None]), *rest),
            r"\(environment 1 of 3\), at step 19, returned an observation of type object instead of numbers",
        ),
        (
            lambda o, *rest: ([[1, 2], [3]], *rest),
            r"\(environment 1 of 3\), at step 19, returned an observation that is no array: .*inhomogeneous",
        ),
        (
            lambda o, r, *ends: (o, r, torch.zeros(2), *ends[1:]),
            r"\(environment 1 of 3\), at step 19, .*terminated tensor\(\[0., 0.\]\)",
        ),
        (
            lambda *_: 1 / 0,
            r"\(environment 1 of 3\), at step 19, raised ZeroDivisionError: .*test_collector.py",
        ),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_a_fault_names_the_environment_the_step_and_the_value(fault, words, kind, recwarn):
    made = [lambda make=make: CheckedEnv(make()) for make in makers(COUNT, fault=fault)]
    envs = kind(made, copy=False, autoreset_mode=AutoresetMode.DISABLED)
    try:
        collector = Collector(envs, "Exact", seeds)
        collector.reset()
        with pytest.raises(SACError, match=words):
            collect(collector)
        assert not [w for w in recwarn if "ERROR" in str(w.message)]
    finally:
        close_env(envs)


def test_what_a_vector_of_others_does_wrong_is_one_sentence():
    class NoFinal(Torch):
        def step(self, actions):
            return *super().step(actions)[:4], {}

    collector = Collector(NoFinal(SyncVectorEnv(makers(COUNT), autoreset_mode="SameStep")), "NoFinal", seeds)
    collector.reset()
    with pytest.raises(SACError, match="NoFinal ended an episode .* holds no final_obs"):
        collect(collector)

    class Column(Torch):
        def step(self, actions):
            obs, reward, *rest = super().step(actions)
            return obs, reward[:, None], *rest

    collector = Collector(Column(SyncVectorEnv(makers(COUNT))), "Column", seeds)
    collector.reset()
    with pytest.raises(SACError, match=r"rewards of type torch.float64 and shape \[3, 1\].* must be \[3\]"):
        collect(collector)

    class Listed(Torch):
        def step(self, actions):
            obs, reward, *ends, info = super().step(actions)
            return obs, reward, *(each.tolist() for each in ends), info

    collector = Collector(Listed(SyncVectorEnv(makers(COUNT))), "Listed", seeds)
    collector.reset()
    with pytest.raises(
        SACError, match=r"Listed returned at step 1 .* truncated of type list; they must be \[3\]"
    ):
        collect(collector)

    class Silent(Torch):
        metadata = {}  # noqa: RUF012

    with pytest.raises(SACError, match=r"Silent has metadata\['autoreset_mode'\]=None.*SameStep"):
        Collector(Silent(SyncVectorEnv(makers(COUNT))), "Silent", seeds)


def test_the_old_interface_is_told_with_what_is_missing():
    class OldStep(Exact):
        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated or truncated, info

    class OldReset(Exact):
        def reset(self, **options):
            return super().reset(**options)[0]

    collector = Collector(OldStep(), "OldStep", seeds)
    collector.reset()
    parts = "observation, reward, terminated, truncated, info"
    words = (
        rf"^OldStep, at step 1, returned 4 values from step instead of {parts} \(Gymnasium's interface\)\.$"
    )
    with pytest.raises(SACError, match=words):
        collect(collector)
    words = "^OldReset, at step 0, returned one value of type ndarray from reset instead of observation, info"
    with pytest.raises(SACError, match=words):
        Collector(OldReset(), "OldReset", seeds).reset()


def with_none(array):
    """The array with a last entry that is no number."""
    array = array.astype(object)
    array.flat[-1] = None
    return array


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (
            lambda *results: (*results[:4], []),
            "at step 1, returned info of type list instead of a dictionary",
        ),
        (lambda *results: (*results[:4], None), "at step 1, returned info of type NoneType"),
        (
            lambda *results: results[:4],
            "returned 4 values from step instead of .*terminated, truncated, info",
        ),
        (lambda *_: None, "returned one value of type NoneType from step instead of"),
        (lambda o, *rest: (with_none(o), *rest), "at step 1, returned an observation of type object"),
        (
            lambda o, *rest: ([[1.0], [1.0, 2.0]], *rest),
            "at step 1, returned an observation that is no array",
        ),
        (
            lambda o, r, *rest: (o, with_none(r), *rest),
            r"rewards of type object and shape \[3\], terminated",
        ),
        (lambda o, r, t, *rest: (o, r, t[:2], *rest), r"terminated of type bool and shape \[2\]"),
    ],
)
def test_whatever_a_vector_returns_is_one_sentence(spoiled, words):
    class Spoiled(SyncVectorEnv):
        def step(self, actions):
            return spoiled(*super().step(actions))

    collector = Collector(Spoiled(makers(COUNT)), "Spoiled", seeds)
    collector.reset()
    with pytest.raises(SACError, match=f"^Spoiled.* {words}"):
        collect(collector)


def test_tensors_beyond_float32_are_located():
    class Double(Torch):
        def step(self, actions):
            obs, reward, *rest = super().step(actions)
            return obs.double().masked_fill(obs == 2, 1e50), reward, *rest

    collector = Collector(Double(SyncVectorEnv(makers(COUNT))), "Double", seeds)
    collector.reset()
    with pytest.raises(
        SACError, match=r"environment 2 of 3\) returned at step 1 .*entry 0 is 1e\+50, beyond float32"
    ):
        collect(collector)


def test_a_vector_of_the_old_interface_is_told_at_its_reset():
    class Bare(SyncVectorEnv):
        def reset(self, **options):
            return super().reset(**options)[0]

    words = "Bare, at step 0, returned one value of type ndarray from reset instead of observation, info"
    with pytest.raises(SACError, match=words):
        Collector(Bare(makers(COUNT)), "Bare", seeds).reset()


@pytest.mark.parametrize(
    ("tensors", "spoiled", "words"),
    [
        (
            False,
            lambda final: final[:0],
            r"environment 0 of 3.* at step 4, but row 0 of final_obs .*shape \[0\]",
        ),
        (False, lambda final: [with_none(np.ones(4))] * COUNT, "row 0 of final_obs of type list"),
        (False, lambda final: 5, "row 0 of final_obs of type int"),
        (True, lambda final: final[:2], r"final_obs of type torch.float32 and shape \[2, 4\]; it must be"),
        (True, lambda final: final.numpy(), "final_obs of type float32 .*; it must be a tensor"),
    ],
)
def test_a_final_obs_without_a_row_per_environment_is_one_sentence(tensors, spoiled, words):
    class Spoiled(Torch):
        def step(self, actions):
            *results, info = super().step(actions) if tensors else self.env.step(actions)
            if "final_obs" in info:
                info["final_obs"] = spoiled(info["final_obs"])
            return *results, info

        def reset(self, **options):
            return super().reset(**options) if tensors else self.env.reset(**options)

    collector = Collector(Spoiled(SyncVectorEnv(makers(COUNT), autoreset_mode="SameStep")), "Spoiled", seeds)
    collector.reset()
    with pytest.raises(SACError, match=f"Spoiled.*{words}"):
        collect(collector)


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


def test_an_observation_that_is_not_finite_at_reset_is_named_as_such():
    class Broken(Exact):
        def reset(self, **options):
            obs, info = super().reset(**options)
            return obs * np.nan, info

    with pytest.raises(SACError, match=r"step 0 an observation whose entry 0 is nan"):
        Collector(Broken(), "Broken", seeds).reset()


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
