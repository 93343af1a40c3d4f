"""An environment's state, put into a fresh one, goes on with the same bytes."""

import math
from collections import deque

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.spaces import Box
from gymnasium.wrappers import (
    FlattenObservation,
    FrameStackObservation,
    NormalizeObservation,
    RecordEpisodeStatistics,
    RescaleAction,
    TimeLimit,
    TransformObservation,
)
from training_runs import Clockwork, WithState

from sacfast import envstate
from sacfast.checkpoint import pack, unpack
from sacfast.envstate import NotCapturable


def steps(env, count, seed=0):
    """Everything that `count` random steps return, resets included."""
    seen, space, generator = [], env.action_space, np.random.default_rng(seed)
    for _ in range(count):
        action = generator.uniform(space.low, space.high).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append((observation.tobytes(), float(reward).hex(), terminated, truncated))
        if terminated or truncated:
            seen.append(
                (env.reset()[0].tobytes(), {k: v for k, v in info.get("episode", {}).items() if k != "t"})
            )
    return seen


def wrapped():
    env = NormalizeObservation(FlattenObservation(RecordEpisodeStatistics(gymnasium.make("Hopper-v5"))))
    return TimeLimit(env, 11)


# Ant and Humanoid read positions that are a step old; the episodes of Hopper and InvertedPendulum end early.
NAMES = "Pusher-v5 HalfCheetah-v5 Hopper-v5 Ant-v5 Humanoid-v5 InvertedPendulum-v5 Pendulum-v1 MountainCarContinuous-v0"


@pytest.mark.parametrize(
    "make",
    [
        *(lambda name=name: gymnasium.make(name) for name in NAMES.split()),
        wrapped,
        lambda: TimeLimit(WithState(), 50),
    ],
    ids=[*NAMES.split(), "wrapped", "protocol"],
)
def test_a_fresh_environment_goes_on_exactly(make):
    first, second = make(), make()
    first.reset(seed=3)
    steps(first, 73)
    described, arrays = pack(envstate.capture(first))
    expected = steps(first, 120)
    second.reset(seed=99)
    steps(second, 7)
    envstate.restore(second, unpack(described, arrays))
    assert steps(second, 120) == expected
    assert expected != steps(second, 120)


class Touchy(HalfCheetahEnv):
    """Reads the contacts before it steps."""

    def step(self, action):
        touching = self.data.ncon
        observation, reward, *rest = super().step(action)
        return observation, reward + touching, *rest


def test_contacts_are_there_before_the_next_step():
    first, second = Touchy(), Touchy()
    for env in (first, second):
        env.reset(seed=1)
    steps(first, 40)
    touched = 0
    for moment in range(10):
        steps(first, 1, seed=moment)
        touched += first.data.ncon > 0
        envstate.restore(second, unpack(*pack(envstate.capture(first))))
        assert second.data.ncon == first.data.ncon
        assert steps(second, 3) == steps(first, 3)
    assert touched


class Variables(PendulumEnv):
    """An environment with variables of its own, not all of which are there after a reset."""

    ROUTE = np.arange(8.0).reshape(4, 2)

    def reset(self, **kwargs):
        self.clock, self.goal, self.queue, self.random = 0.0, self.ROUTE[0], None, None
        self.first = np.zeros(2)
        self.second = self.first
        return super().reset(**kwargs)

    def step(self, action):
        if self.queue is None:
            self.queue, self.random = deque(maxlen=3), np.random.default_rng(5)
        self.clock += 0.25
        self.goal = self.ROUTE[int(self.clock) % 4]
        self.queue.append(self.clock)
        self.first += self.goal
        observation, reward, *rest = super().step(action)
        reward += self.clock + sum(self.queue) + self.random.random() + self.second.sum()
        return observation, reward, *rest


def test_variables_come_back_as_what_they_were():
    first, second = Variables(), Variables()
    for env in (first, second):
        env.reset(seed=0)
    steps(first, 10)
    table = Variables.ROUTE.copy()
    envstate.restore(second, unpack(*pack(envstate.capture(first))))
    assert np.array_equal(Variables.ROUTE, table)
    assert second.queue.maxlen == 3 and second.first is second.second
    assert steps(second, 30) == steps(first, 30)


class TwoModels(PendulumEnv):
    """Keeps a second simulation with its own, larger model, for inverse kinematics say."""

    def __init__(self):
        super().__init__()
        body = "<body><freejoint/><geom size='1'/></body>"
        self.model, self.other_model = (
            mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{body * bodies}</worldbody></mujoco>")
            for bodies in (1, 3)
        )
        self.data, self.other = mujoco.MjData(self.model), mujoco.MjData(self.other_model)


def test_every_simulation_is_taken_by_its_own_model():
    first, second = TwoModels(), TwoModels()
    for env in (first, second):
        env.reset(seed=0)
    mujoco.mj_step(first.other_model, first.other, 20)
    mujoco.mj_step(first.model, first.data, 10)
    captured = envstate.capture(first)
    size = mujoco.mj_stateSize(first.other_model, mujoco.mjtState.mjSTATE_INTEGRATION)
    assert captured["state"]["other"]["integration"].shape == (size,)
    envstate.restore(second, unpack(*pack(captured)))
    for name in ("data", "other"):
        ours, theirs = getattr(first, name), getattr(second, name)
        assert ours.time == theirs.time > 0
        np.testing.assert_array_equal(ours.qpos, theirs.qpos)
        np.testing.assert_array_equal(ours.qvel, theirs.qvel)


def test_a_view_of_another_variable_is_one_again():
    first, second = (PendulumEnv() for _ in range(2))
    for env, row in ((first, 2), (second, 0)):
        env.reset(seed=0)
        env.column = None
        env.table = np.arange(12.0).reshape(4, 3)
        env.row, env.column, env.also = env.table[row], env.table[:, 1], None
        env.also = env.column
    first.column += 100.0
    envstate.restore(second, unpack(*pack(envstate.capture(first))))
    second.row[:] = -1.0
    second.column[3] = -2.0
    assert second.also is second.column
    np.testing.assert_array_equal(second.table, [[0, 101, 2], [3, 104, 5], [-1, -1, -1], [9, -2, 11]])


@pytest.mark.parametrize("where", ["in a list", "in a wrapper", "of what has no name"])
def test_arrays_that_share_memory_are_named_since_they_would_be_torn_apart(where):
    env = PendulumEnv()
    env.reset(seed=0)
    env.whole = np.zeros(4)
    outermost = TimeLimit(env, 9)
    if where == "in a list":
        env.parts = [np.zeros(2), {"x": env.whole[2:]}]
    elif where == "in a wrapper":
        outermost.part = env.whole[1:]
    else:
        env.whole, env.part = env.whole[:2], env.whole[1:]
    with pytest.raises(
        NotCapturable, match=r"PendulumEnv\.(whole|parts?) shares memory with \w+\.(whole|part)"
    ):
        envstate.capture(outermost)


def test_frames_that_are_one_array_and_halves_of_another_are_taken():
    env = FrameStackObservation(PendulumEnv(), 3, padding_type="reset")
    env.reset(seed=0)
    env.unwrapped.left, env.unwrapped.right = np.split(np.arange(4.0), 2)
    envstate.capture(env)


def test_what_is_captured_stays_as_it_was():
    env = gymnasium.make("Pusher-v5")
    env.reset(seed=0)
    captured = envstate.capture(env)
    before = {name: array.clone() for name, array in pack(captured)[1].items()}
    steps(env, 5)
    assert all(np.array_equal(before[name], array) for name, array in pack(captured)[1].items())


def test_what_cannot_be_captured_is_named():
    env = Clockwork()
    env.reset(seed=0)
    with pytest.raises(NotCapturable, match=r"Clockwork has no get_state\(\) and set_state\(\)"):
        envstate.capture(env)
    env = gymnasium.make("Hopper-v5")
    env.reset(seed=0)
    env.unwrapped.simulator = object()
    with pytest.raises(NotCapturable, match=r"HopperEnv.simulator is a object, not plain"):
        envstate.capture(env)


class LowPass:
    """A filter, which remembers."""

    def __init__(self):
        self.last = 0.0

    def __call__(self, obs):
        self.last = 0.9 * self.last + 0.1 * obs
        return self.last


@pytest.mark.parametrize(
    "make",
    [
        lambda smooth, random: smooth.__call__,
        lambda smooth, random: lambda obs: smooth(obs),
        lambda smooth, random: lambda obs, smooth=smooth: smooth(obs),
        lambda smooth, random: (lambda inner: lambda obs: inner(obs))(lambda obs: smooth(obs)),
        lambda smooth, random: lambda obs: obs + random.normal(),
        lambda smooth, random: random.permutation,
    ],
    ids=["method", "closure", "default", "nested", "generator", "built-in method"],
)
def test_a_function_that_may_remember_is_no_constant(make):
    env = gymnasium.make("Pendulum-v1")
    env = TransformObservation(env, make(LowPass(), np.random.default_rng(0)), env.observation_space)
    env.reset(seed=0)
    with pytest.raises(
        NotCapturable, match="TransformObservation.func is a function with an object of its own"
    ):
        envstate.capture(env)


@pytest.mark.parametrize("scale", [2.0, np.ones(3), [1.0, 2.0, 3.0], {"by": 2}])
def test_a_function_with_constants_is_one(scale):
    def scaled(obs, by=(1, None)):
        return np.tanh(obs * (scale["by"] if isinstance(scale, dict) else np.array(scale)) * by[0])

    env = gymnasium.make("Pendulum-v1")
    env = RescaleAction(TransformObservation(env, lambda obs: scaled(obs), env.observation_space), -1, 1)
    env.reset(seed=0)
    env.unwrapped.squash, env.unwrapped.root, env.unwrapped.own = scaled, math.sqrt, env.unwrapped.step
    assert "squash" not in envstate.capture(env)["state"]


class Jittery(gymnasium.ActionWrapper):
    """Draws from a space of its own."""

    def reset(self, **kwargs):
        self.spread = Box(-1.0, 1.0, (1,), seed=4)
        return super().reset(**kwargs)

    def action(self, action):
        return action + self.spread.sample()


def test_the_random_numbers_of_a_space_go_on():
    first, second = (Jittery(gymnasium.make("Pendulum-v1")) for _ in range(2))
    for env in (first, second):
        env.reset(seed=0)
    steps(first, 5)
    envstate.restore(second, unpack(*pack(envstate.capture(first))))
    assert steps(second, 5) == steps(first, 5)


def test_another_environment_is_refused():
    first, other = gymnasium.make("Hopper-v5"), gymnasium.make("Walker2d-v5")
    for env in (first, other):
        env.reset(seed=0)
    with pytest.raises(NotCapturable, match="the environment was .*HopperEnv, and is .*Walker2dEnv"):
        envstate.restore(other, envstate.capture(first))
    heavier = gymnasium.make("Hopper-v5")
    heavier.reset(seed=0)
    heavier.unwrapped.model.body_mass[1] *= 2
    with pytest.raises(NotCapturable, match="the MuJoCo model of HopperEnv is not the one that was saved"):
        envstate.restore(heavier, envstate.capture(first))


def test_packing_keeps_every_bit_and_type():
    tree = {
        "a": np.array([1.5, -0.0, np.nan]),
        "b": [np.float64(0.1), np.int8(-3), (1, 2.5, None), True],
        "c": {"empty": np.zeros((0, 3), np.float32), "text": "x", "big": 2**100, "bool": np.array([True])},
    }
    again = unpack(*pack(tree))
    assert again["a"].tobytes() == tree["a"].tobytes()
    assert again["b"] == tree["b"] and [type(x) for x in again["b"]] == [type(x) for x in tree["b"]]
    assert again["c"]["empty"].shape == (0, 3) and again["c"]["empty"].dtype == np.float32
    assert (again["c"]["text"], again["c"]["big"]) == ("x", 2**100)
    assert again["c"]["bool"].dtype == np.bool_


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"mass": np.random.default_rng(0)}, r"rngs\['mass'\] is a Generator"),
        ([deque([1])], r"rngs\[0\] is a deque"),
    ],
)
def test_what_would_come_back_as_something_else_is_named(value, what):
    env = gymnasium.make("Hopper-v5")
    env.reset(seed=0)
    env.unwrapped.rngs = value
    with pytest.raises(NotCapturable, match=what):
        envstate.capture(env)
    env.unwrapped.rngs = np.random.default_rng(0), 1
    with pytest.raises(NotCapturable, match=r"rngs\[0\] is a Generator"):
        envstate.capture(env)
    env.unwrapped.rngs = np.random.default_rng(0)  # a variable by itself is put back
    envstate.capture(env)


def test_a_generator_in_the_state_that_an_environment_gives_is_named():
    class Drawing(WithState):
        def get_state(self):
            return {"random": self.np_random}

    env = Drawing()
    env.reset(seed=0)
    with pytest.raises(NotCapturable, match=r"get_state\(\)\['random'\] is a Generator"):
        envstate.capture(env)
