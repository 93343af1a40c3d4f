"""Environments: bounds, spaces that are refused, names that are nearly right."""

import gymnasium
import gymnasium.wrappers.vector
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiDiscrete, Sequence
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import FlattenObservation
from hypothesis import given, settings
from hypothesis import strategies as st

from sacfast.envs import (
    ActionBounds,
    check_finite,
    check_spaces,
    flattened,
    make_env,
    nearest_names,
    usable,
)
from sacfast.errors import SACError
from sacfast.requirements import fits_float32

VECTOR = Box(-np.inf, np.inf, (3,))
ACTION = Box(-1.0, 1.0, (2,), np.float32)


class Spaces(gymnasium.Env):
    def __init__(self, observation, action):
        self.observation_space, self.action_space = observation, action


def test_bounds_by_hand():
    bounds = ActionBounds([-2.0, 0.0], [2.0, 10.0])
    np.testing.assert_array_equal(bounds.to_env(np.array([0.5, -1.0])), [1.0, 0.0])
    np.testing.assert_array_equal(
        bounds.to_unit(np.array([[1.0, 0.0], [-2.0, 7.5]])), [[0.5, -1.0], [-1.0, 0.5]]
    )
    assert bounds.to_env(np.zeros(2)).dtype == np.float32
    np.testing.assert_array_equal(bounds.to_unit([99.0, -99.0]), [1.0, -1.0])
    assert bounds == ActionBounds([-2, 0], [2, 10])
    assert bounds != ActionBounds.unit(2)


@settings(deadline=None)
@given(
    low=st.floats(-1e3, 1e3, width=32),
    width=st.floats(0.125, 1e3, width=32),
    unit=st.floats(-1.0, 1.0, width=32),
)
def test_there_and_back(low, width, unit):
    bounds = ActionBounds([low], [np.float32(low) + np.float32(width)])
    there = bounds.to_env(np.array([unit], np.float32))
    assert bounds.low[0] <= there[0] <= bounds.high[0]
    # One rounding of a number as large as the bounds, seen through the division by half the width.
    error = 4 * np.finfo(np.float32).eps * max(abs(bounds.low[0]), abs(bounds.high[0])) / (0.5 * width)
    assert abs(bounds.to_unit(there)[0] - unit) <= error + 1e-6


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ([-np.inf], [1.0]),
        ([0.0], [np.inf]),
        ([1.0], [1.0]),
        ([2.0], [1.0]),
        ([np.nan], [1.0]),
        ([-3e38], [3e38]),
        ([0.0], [1e300]),
    ],
)
def test_unusable_bounds(low, high):
    with pytest.raises(SACError, match=r"action dimension 0 has bounds .* finite bounds"):
        ActionBounds(low, high)


def test_what_a_user_flattened_is_used_as_it_is():
    class Square(gymnasium.Env):
        observation_space, action_space = Box(-1, 1, (4, 3)), Box(-1, 1, (2,))

    with pytest.raises(SACError, match="FlattenObservation"):
        usable(Square())
    env = FlattenObservation(Square())
    assert usable(env) is env
    assert flattened(env) is None


@settings(deadline=None)
@given(bound=st.floats(0.01, 1e3))
def test_bounds_that_float32_does_not_have_are_never_left(bound):
    space = Box(-bound, bound, (1,), np.float64)
    bounds = ActionBounds(space.low, space.high)
    for unit in (-1.0, 1.0):
        assert space.contains(bounds.to_env(np.array([unit], np.float32)))
        assert space.contains(bounds.to_env(torch.tensor([unit])).numpy())
    assert bounds == ActionBounds(bounds.low.astype(np.float64), bounds.high)


def test_bounds_of_different_shapes():
    with pytest.raises(SACError, match=r"shapes \(1,\) and \(2,\)"):
        ActionBounds([0.0], [1.0, 2.0])
    with pytest.raises(SACError, match="not numeric"):
        ActionBounds("low", "high")


@pytest.mark.parametrize(
    ("observation", "action", "words"),
    [
        (Dict({"x": VECTOR}), ACTION, ["Dict", "FlattenObservation"]),
        (Box(0, 255, (8, 8, 3), np.uint8), ACTION, ["(8, 8, 3)", "FlattenObservation"]),
        (Discrete(4), ACTION, ["Discrete(4)", "1-D Box"]),
        (VECTOR, Discrete(2), ["Discrete(2)", "continuous"]),
        (VECTOR, MultiDiscrete([2, 3]), ["MultiDiscrete", "continuous"]),
        (VECTOR, Box(-1.0, 1.0, (2, 2)), ["(2, 2)", "ActionWrapper"]),
        (VECTOR, Box(0, 3, (2,), np.int64), ["int64", "floats"]),
        (
            VECTOR,
            Box(-np.inf, np.inf, (2,)),
            ["action dimension 0", "[-inf, inf]", "wrappers.TransformAction."],
        ),
    ],
)
def test_unusable_spaces_are_named_with_a_remedy(observation, action, words):
    with pytest.raises(SACError) as caught:
        check_spaces(Spaces(observation, action))
    for word in ["Spaces", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("held", [None, (3,)])
@pytest.mark.parametrize("which", ["observation_space", "action_space"])
def test_a_missing_space_is_named(which, held):
    env = Spaces(VECTOR, ACTION)
    setattr(env, which, held)
    with pytest.raises(
        SACError, match=f"Spaces needs a gymnasium.Space as its {which}, and .*set it in __init__"
    ):
        usable(env)


def test_a_single_environment_may_have_what_vectors_have_too():
    env = Spaces(VECTOR, ACTION)
    env.single_action_space = Box(-9, 9, (5,))  # of its many agents, say
    assert check_spaces(env).bounds.dim == ACTION.shape[0]


def test_integers_of_a_dictionary_are_told():
    env = usable(Spaces(Dict({"angle": Box(-180, 180, (2,), np.int64), "x": VECTOR}), ACTION))
    assert "angle [2] as int64, without fractions, x [" in flattened(env)


@pytest.mark.parametrize("observation", [Dict({"x": VECTOR}), Box(0, 1, (2, 3)), VECTOR])
def test_the_remedy_for_a_vector_is_one_of_vectors_and_helps(observation):
    bounded = observation is not VECTOR
    action = ACTION if bounded else Box(-np.inf, np.inf, (2,))
    envs = SyncVectorEnv([lambda: Spaces(observation, action)] * 2)
    with pytest.raises(SACError) as caught:
        check_spaces(envs)
    name = (
        "gymnasium.wrappers.vector.FlattenObservation"
        if bounded
        else "gymnasium.wrappers.vector.TransformAction"
    )
    assert str(caught.value).endswith(f" {name}.")
    wrapper = getattr(gymnasium.wrappers.vector, name.rpartition(".")[2])
    check_spaces(
        wrapper(envs) if bounded else wrapper(envs, lambda action: action, single_action_space=ACTION)
    )


@pytest.mark.parametrize("part", [Sequence(VECTOR), Graph(VECTOR, None)])
@pytest.mark.parametrize("vector", [False, True])
def test_what_cannot_be_flattened_is_to_be_left_out(part, vector):
    observation = Dict({"place": VECTOR, "others": part})
    with pytest.raises(SACError, match="leave out the part without a fixed size"):
        if vector:
            check_spaces(SyncVectorEnv([lambda: Spaces(observation, ACTION)]))
        else:
            usable(Spaces(observation, ACTION))


def test_usable_spaces_of_either_precision():
    for dtype in (np.float32, np.float64):
        obs_dim, bounds = check_spaces(Spaces(Box(-1, 1, (3,), dtype), Box(-2, 2, (2,), dtype)))
        assert obs_dim == 3
        np.testing.assert_array_equal(bounds.high, [2, 2])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Pusher-v99", "Pusher-v5"),
        ("pusher-v5", "Pusher-v5"),
        ("Puhser-v5", "Pusher-v5"),
        ("pendulum", "Pendulum-v1"),
    ],
)
def test_unknown_names_bring_up_the_nearest(typed, meant):
    assert nearest_names(typed)[0] == meant
    with pytest.raises(SACError, match=f"{typed}.*not registered.*did you mean {meant}"):
        make_env(typed)


def test_a_name_like_no_other_and_a_missing_module():
    with pytest.raises(SACError, match="pprint_registry"):
        make_env("Zqxjkv-v0")
    with pytest.raises(SACError, match="could not be made"):
        make_env("no_such_module:Thing-v0")


def test_values_that_are_not_finite_are_located():
    largest = np.finfo(np.float32).max
    check_finite("Toy", 1, np.full(3, largest), float(largest))
    check_finite("Toy", 1, np.full(3, float(largest)), 2.0)
    with pytest.raises(SACError, match=r"Toy returned at step 7 .*entry 1 is nan"):
        check_finite("Toy", 7, np.array([0.0, np.nan, np.inf]))
    with pytest.raises(SACError, match="Toy returned at step 8 the reward inf"):
        check_finite("Toy", 8, np.zeros(3), np.inf)
    with pytest.raises(
        SACError, match=r"Toy returned at step 9 .*entry 2 is 1e\+50, beyond float32; that cannot"
    ):
        check_finite("Toy", 9, np.array([0.0, 1e38, 1e50]))
    with pytest.raises(
        SACError, match=r"Toy returned at step 9 the reward -1e\+50, beyond float32; that cannot"
    ):
        check_finite("Toy", 9, np.zeros(3), -1e50)


@pytest.mark.parametrize(
    ("kind", "largest"),
    [
        (bool, True),
        (np.uint8, 255),
        (np.int64, 2**63 - 1),
        (np.float16, 65504),
        (np.float32, np.finfo(np.float32).max),
        (np.float64, np.finfo(np.float32).max),
    ],
)
def test_whatever_float32_has_passes(kind, largest):
    assert fits_float32(np.full((2, 3), largest, kind))


class Simplex(gymnasium.Space):
    """A space of the user's own, of which Gymnasium knows nothing."""


@pytest.mark.parametrize(
    "space", [Simplex((3,), np.float32), Dict({"x": VECTOR, "y": Simplex((3,), np.float32)})]
)
def test_a_space_of_the_users_own_is_one_sentence(space):
    with pytest.raises(SACError, match="leave out the part without a fixed size"):
        usable(Spaces(space, ACTION))
