"""Whatever an environment or a vector returns that cannot be a transition is told in one sentence."""

import gymnasium
import numpy as np
import pytest
import torch
from exact_env import COUNT, Exact, Torch, collect, makers, seeds
from gymnasium.spaces import Box
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from sacfast.checked import CheckedEnv
from sacfast.collector import Collector
from sacfast.errors import SACError
from sacfast.vector import close_env, vectorise


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
            r"\(environment 1 of 3\), at step 19, raised ZeroDivisionError: .*test_collector_bad_input.py",
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

    class Elsewhere(Torch):
        def step(self, actions):
            obs, reward, *rest = super().step(actions)
            return obs, reward.to("meta"), *rest

    collector = Collector(Elsewhere(SyncVectorEnv(makers(COUNT))), "Elsewhere", seeds)
    collector.reset()
    with pytest.raises(SACError, match=r"rewards of type torch.float64 and shape \[3\] on meta, terminated"):
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


class Foreign:
    """An array of another library's."""

    def __init__(self, array):
        self.dtype, self.shape = array.dtype, array.shape


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
        (lambda o, r, t, _, info: (o, r, t, None, info), "truncated of type NoneType; they must be"),
        (lambda o, r, t, _, info: (o, r, t, (), info), "truncated of type tuple; they must be"),
        (
            lambda o, r, *rest: (o, Foreign(r), *rest),
            r"rewards of type Foreign and shape \[3\].* \[3\] NumPy arrays",
        ),
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


@pytest.mark.parametrize("vector", ["sync", "async"])
def test_fractions_that_an_announced_type_would_lose_are_told(vector):
    class Degrees(gymnasium.Env):
        observation_space, action_space = Box(-180, 180, (2,), np.int64), Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            return np.array([12, 34]), {}

        def step(self, action):
            return np.array([12.5, 34.5]), 0.0, False, False, {}

    envs = vectorise(Degrees, 2, vector)
    try:
        collector = Collector(envs, "Degrees", seeds)
        collector.reset()
        with pytest.raises(
            SACError, match=r"an observation of type float64, but announced int64.* Box of float32"
        ):
            collect(collector)
    finally:
        close_env(envs)


@pytest.mark.parametrize("vector", ["sync", "async"])
def test_numbers_beyond_the_announced_integers_are_told(vector):
    """200 would become -56 where environments run together; what fits, of another type, is taken."""

    class Bytes(gymnasium.Env):
        observation_space, action_space = Box(-128, 127, (2,), np.int8), Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            return np.array([12, -34]), {}

        def step(self, action):
            return np.array([200, 34]), 0.0, False, False, {}

    envs = vectorise(Bytes, 2, vector)
    try:
        collector = Collector(envs, "Bytes", seeds)
        collector.reset()
        assert collector.obs.tolist() == [[12, -34]] * 2
        with pytest.raises(
            SACError, match="holds 200, but announced int8, which does not hold it; declare a Box"
        ):
            collect(collector)
    finally:
        close_env(envs)


def test_rewards_keep_no_graph():
    class Differentiable(Torch):
        def step(self, actions):
            obs, reward, *rest = super().step(actions)
            return obs, reward.requires_grad_(), *rest

    collector = Collector(Differentiable(SyncVectorEnv(makers(COUNT))), "Differentiable", seeds)
    collector.reset()
    rows, _ = collector.step(collector.random_action())
    assert not rows.reward.requires_grad and not collector._returns.requires_grad


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
        (
            True,
            lambda final: final[:2],
            r"final_obs of type torch.float32 and shape \[2, 4\] on cpu; it must be",
        ),
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


def test_an_observation_that_is_not_finite_at_reset_is_named_as_such():
    class Broken(Exact):
        def reset(self, **options):
            obs, info = super().reset(**options)
            return obs * np.nan, info

    with pytest.raises(SACError, match=r"step 0 an observation whose entry 0 is nan"):
        Collector(Broken(), "Broken", seeds).reset()
