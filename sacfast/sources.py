"""Where a run's environments come from: a name, an environment or a vector of the caller's, or what makes them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from sacfast.config import TrainConfig
from sacfast.envs import check_spaces, env_name, is_vector, make_env, same_environment, usable
from sacfast.errors import SACError, first_line
from sacfast.vector import close_env, make_vector_env, vectorise

AnyEnv = gymnasium.Env | VectorEnv
EnvSource = AnyEnv | Callable[[], AnyEnv] | None


def environments(
    config: TrainConfig, source: EnvSource, eval_source: EnvSource, owned: list[AnyEnv]
) -> tuple[str, AnyEnv, AnyEnv]:
    """The name of the environment, what to train on and what to evaluate on; `owned` gets those made here."""

    def own(env: Any) -> Any:
        known = any(env is each for each in owned)  # a function may give the same one twice
        if not known and _is_environment(env):
            owned.append(env)
        return env

    def given(source: Any) -> Any:
        """What the caller passed, or what the function that the caller passed makes, fit for SAC."""
        if _is_environment(source) or not callable(source):
            return _fit(source)
        return _fit(own(source()))

    if source is None:
        training = own(make_vector_env(config.env, config.num_envs, config.vector, **config.make_kwargs))
        if eval_source is not None:
            return config.env, training, given(eval_source)
        return config.env, training, own(make_env(config.env, **config.make_kwargs))
    made: Any = source
    first = training = given(source)
    ours = bool(owned)
    spare = None
    if config.num_envs > 1 and not is_vector(first):
        if not ours or config.vector == "envpool":
            raise SACError(
                f"num_envs={config.num_envs} with vector={config.vector!r} needs more environments than the one "
                "in env=; pass a function that makes it, and vector='sync' or 'async'."
            )
        training = own(vectorise(lambda: _fit(made()), config.num_envs, config.vector))
        _check_apart([first, *getattr(training, "envs", [])])
        spare = first
    if eval_source is not None:
        return env_name(first), training, given(eval_source)
    return env_name(first), training, spare or (given(source) if ours else own(_second(first)))


def _check_apart(envs: Sequence[Any]) -> None:
    if any(same_environment(*pair) for pair in itertools.combinations(envs, 2)):
        raise SACError(
            f"env= returned the same {env_name(envs[0])} twice; the function must make a new environment each time."
        )


def _fit(env: Any) -> Any:
    if isinstance(env, str):
        raise SACError(
            f"{env!r} is a name and no environment: name the one to train on in TrainConfig(env=...), make others by "
            "gymnasium.make."
        )
    if not _is_environment(env):
        raise SACError(
            f"env= gave a {type(env).__name__}, which is no gymnasium.Env; derive its class from that."
        )
    if not is_vector(env):
        return usable(env)
    check_spaces(env)
    return env


def _is_environment(env: Any) -> bool:
    return isinstance(env, gymnasium.Env) or (is_vector(env) and not isinstance(env, type))


def _second(env: AnyEnv) -> AnyEnv:
    """Another environment like one that the caller made."""
    bare = env
    while type(bare) is RecordEpisodeStatistics:
        bare = bare.env
    spec = getattr(env, "spec", None)
    # The specification of a vector says nothing of the wrappers around it.
    if isinstance(bare, VectorWrapper) or not isinstance(spec, gymnasium.envs.registration.EnvSpec):
        raise SACError(
            f"env={env} was not made by gymnasium.make, so no second one can be made for evaluation; "
            "pass a function that makes it instead, or eval_env as well (eval_env=env where there is only one)."
        )
    spec, options = copy.deepcopy(spec), {}
    for name in ("num_envs", "vectorization_mode", "vector_kwargs"):  # what gymnasium.make_vec leaves there
        spec.kwargs.pop(name, None)
    for name in ("max_episode_steps", "disable_env_checker"):  # which are gymnasium.make's own
        if name in spec.kwargs:
            options[name] = spec.kwargs.pop(name)
    try:
        if spec.kwargs.pop("wrappers", None):
            raise ValueError("make_vec keeps no record of its wrappers")
        second = usable(gymnasium.make(spec, **options))
        if not is_vector(env) and _layers(second) != _layers(env):
            close_env(second)
            raise ValueError(
                "Gymnasium would put its wrappers and time limits in another order, or another place"
            )
        return second
    except SACError:
        raise
    # A wrapper that does not record its arguments leaves Gymnasium none; a constructor may raise anything.
    except Exception as error:
        raise SACError(
            f"no second {env_name(env)} can be made for evaluation ({first_line(error)}); pass a "
            "function that makes it instead, or eval_env as well."
        ) from error


def _layers(env: AnyEnv) -> list[tuple[type, int | None]]:
    """The wrappers that make an environment another task, the outermost first, and the limit of each."""
    layers = []
    while isinstance(env, gymnasium.Wrapper):
        if not isinstance(env, (PassiveEnvChecker, OrderEnforcing)):
            layers.append((type(env), getattr(env, "_max_episode_steps", None)))
        env = env.env
    return layers


def check_alike(training: AnyEnv, evaluation: AnyEnv) -> None:
    """Raise SACError where what was learned in one environment has no meaning in the other."""
    spaces = check_spaces(training), check_spaces(evaluation)
    dims, bounds = [each.obs_dim for each in spaces], [each.bounds for each in spaces]
    if dims[0] != dims[1]:
        raise SACError(
            f"training observes {dims[0]} numbers and evaluation {dims[1]}; give eval_env the same wrappers as env."
        )
    if not bounds[0].nearly(bounds[1]):
        raise SACError(
            f"training has actions in {bounds[0]} and evaluation in {bounds[1]}; give eval_env the same wrappers as "
            "env."
        )
