"""From the results of vector steps to transitions: which rows are true, where episodes end, how the next begin.

A vector environment resets a finished episode in one of Gymnasium's three ways (gymnasium.vector.AutoresetMode):

    DISABLED    `reset` with a mask does, and we call it at once; every episode has a seed of ours
    NEXT_STEP   the following step does, ignoring its action: that row is a reset, not a transition, and is dropped
    SAME_STEP   the step itself does: its observation is the next episode's, the last one is info["final_obs"]

Environments that return torch tensors stay on their device. One small copy per step comes to the host: whether a
value is not finite, and whether an episode ended; then also which did, with their returns and lengths.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from sacfast.checked import FAULT, RESET, STEP, EnvironmentFault, as_numbers, check_parts, observed
from sacfast.envs import check_finite, check_spaces, is_vector
from sacfast.envstate import NotCapturable
from sacfast.errors import ActionNotFinite, SACError, first_line, raised
from sacfast.requirements import fits_float32
from sacfast.vector import SingleEnv, captured_states, dead_worker, put_states, takes_seeds

Array = Any  # np.ndarray or Tensor, the same throughout one run


class Transitions(NamedTuple):
    """The transitions of one vector step, in the order of push_batch: obs, next_obs [n, O], action [n, A] in the
    environment's units, reward, terminated [n]; arrays or tensors as the environments return them.
    """

    obs: Array
    action: Array
    reward: Array
    next_obs: Array
    terminated: Array


@dataclass(frozen=True)
class Episode:
    """A finished one: its environment's index, its undiscounted return and its length in steps."""

    env: int
    total: float
    length: int


def episode_seed(seed: int, episode: int, env: int = 0) -> int:
    """The seed of one episode of one environment of a run, well mixed: neighbouring runs share no episodes."""
    key = (seed, episode, env) if env else (seed, episode)
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def of_actions(seed: int) -> int:
    """Another seed for the random actions of an episode: from its own they would be the environment's own numbers."""
    return int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])


class Collector:
    """Steps N environments and hands out what is true of each step.

    envs: a gymnasium.Env, or anything with Gymnasium's vector interface: num_envs, single_observation_space,
        single_action_space, metadata["autoreset_mode"], reset and step, with arrays or tensors.
    name: how errors call it.
    seeds: (environment, episode of that environment) -> the seed of that episode.

    `obs` [N, O] is what to act on next; `episodes` [N] counts each environment's episodes begun before its current
    one. Where an environment takes one seed instead of a list, or resets itself, its own generator goes on from the
    seed of its first episode.

    Raises SACError for spaces that SAC cannot use, for an environment that does not say how it resets, and for
    whatever one does wrong in reset or step, naming its index, the step and the value.
    """

    def __init__(self, envs: gymnasium.Env | VectorEnv, name: str, seeds: Callable[[int, int], int]) -> None:
        self.envs: VectorEnv = envs if is_vector(envs) else SingleEnv(envs)  # type: ignore[assignment, arg-type]
        self.name, self.seeds = name, seeds
        self.num_envs = int(self.envs.num_envs)
        self._obs_dim, self.bounds = check_spaces(self.envs)
        self.mode = autoreset_mode(self.envs, name)
        self.episodes = np.zeros(self.num_envs, np.int64)
        self.obs: Array = None
        self._takes_seeds = takes_seeds(self.envs)
        self._generator: torch.Generator | None = None
        self._spaces: list[gymnasium.Space] = []
        self._lengths: Array = np.zeros(self.num_envs, np.int64)

    def reset(self, at: int = 0) -> None:
        """Begin the episodes that `episodes` counts up to, in every environment. `at` as in `step`."""
        self.obs = self._reset(None, at)
        self._returns, self._lengths = self._zeros("float64"), self._zeros("int64")
        self._resetting = self._zeros("bool")  # under NEXT_STEP: the coming row is a reset
        self._any_resetting = False

    def random_action(self) -> Array:
        """Uniform over the action space [N, A]; from the environment's own space, seeded with its episode."""
        if not self._tensors:
            return np.stack([space.sample() for space in self._spaces])
        shape = (self.num_envs, self.bounds.dim)
        unit = torch.empty(shape, dtype=torch.float32, device=self.obs.device)
        return self.bounds.to_env(unit.uniform_(-1, 1, generator=self._generator))

    def step(self, action: Array, at: int = 0) -> tuple[Transitions, list[Episode]]:
        """Act [N, A] in the environment's units. Returns the transitions, none of them a reset, and the episodes
        that ended. `at` is the number of environment steps before this one, for messages. Of tensors the action is
        checked too, together with what came of it: raises ActionNotFinite.
        """
        obs, resetting = self.obs, self._resetting
        given = (
            action.clone() if isinstance(action, Tensor) else action.copy()
        )  # an environment may write into it
        results = self._call(lambda: self.envs.step(given), at + 1, STEP)
        following, reward, terminated, truncated, info = results
        following = self._own(following, at + 1)
        done = _either(terminated, truncated)
        if not all(self._is_column(each) for each in (reward, terminated, done)):
            raise SACError(
                f"{self.name} returned at step {at + 1} rewards {_described(reward)}, terminated "
                f"{_described(terminated)} and truncated {_described(truncated)}; they must be [{self.num_envs}] "
                f"{'tensors' if self._tensors else 'NumPy arrays'}, one number per environment."
            )
        reward, terminated = _copied(reward), _copied(terminated)  # a reset may clear them
        if self._any_resetting:
            done = done & ~resetting
        any_done, next_obs = self._look(following, reward, done, at + 1, action), following
        if any_done and self.mode is AutoresetMode.SAME_STEP:
            next_obs = self._final_obs(following, done, info, at + 1)
        rows = Transitions(obs, action, reward, next_obs, terminated)
        self._returns += reward
        self._lengths += 1
        if self._any_resetting:
            self._returns[resetting] = 0.0
            self._lengths[resetting] = 0
            kept = (~resetting).nonzero()
            kept = kept.flatten() if self._tensors else kept[0]
            rows = Transitions(*(column[kept] for column in rows))
        self.obs = following
        if self.mode is AutoresetMode.NEXT_STEP:
            self._resetting, self._any_resetting = done, any_done
        return rows, self._end(done, at + self.num_envs) if any_done else []

    def _end(self, done: Array, at: int) -> list[Episode]:
        """Account for the episodes that ended by step `at`, and begin the next ones where that is ours to do."""
        ended = done.nonzero().flatten().tolist() if self._tensors else np.flatnonzero(done).tolist()
        totals, lengths = self._returns[done].tolist(), self._lengths[done].tolist()
        self._returns[done] = 0.0
        self._lengths[done] = 0
        self.episodes[ended] += 1
        if self.mode is AutoresetMode.DISABLED:
            self.obs = self._reset(done, at)
        else:
            self._seed_spaces(ended)
        return [Episode(*each) for each in zip(ended, totals, lengths, strict=True)]

    def captured(self, within_step: bool = False) -> dict[str, Any]:
        """The episodes under way, with the environments' state, or with the obstacle to having it; `recover` is the
        inverse. `within_step`: this is no moment between two steps.
        """
        state: dict[str, Any] = {
            "obstacle": None,
            "next_episodes": self.next_episodes(),
            "under_way": any(length > 0 for _, length in self.under_way()),
        }
        try:
            if within_step:
                raise NotCapturable("the run ended within a step")
            return state | {"simulators": captured_states(self.envs), "collector": self.state()}
        except Exception as error:  # of a worker that died just now, say: it must not cost what was learned
            return state | {"obstacle": first_line(error)}

    def recover(self, saved: dict[str, Any], at: int) -> str | None:
        """Put the environments back to where they were when `saved` was captured, or on to their next episodes.

        Returns the obstacle in the latter case. `at` as in `step`.
        """
        obstacle = saved["obstacle"]
        if obstacle is None:
            # Some things an environment makes at its first reset only.
            self.begin(saved["collector"]["episodes"], at)
            try:
                put_states(self.envs, saved["simulators"], saved["collector"]["resetting"])
                self.restore(saved["collector"])
                return None
            except NotCapturable as error:
                obstacle = str(error)
        self.begin(saved["next_episodes"], at)
        return obstacle

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside the simulators themselves; `restore` is the inverse. JSON-able but for
        `obs` [N, O], the observations to act on next.
        """
        return {
            "episodes": self.episodes.tolist(),
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
            "resetting": self._resetting.tolist(),
            "random": [space.np_random.bit_generator.state for space in self._spaces],
            "obs": copy.deepcopy(self.obs),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on in the middle of the episodes of `state`, once the simulators have been put back to where they were.

        Call it after `reset`; `recover` does all of it.
        """
        self.episodes[:] = state["episodes"]
        for mine, name in (
            (self._returns, "returns"),
            (self._lengths, "lengths"),
            (self._resetting, "resetting"),
        ):
            mine[:] = torch.tensor(state[name], device=mine.device) if self._tensors else state[name]
        self._any_resetting = any(state["resetting"])
        for space, saved in zip(self._spaces, state["random"], strict=True):
            space.np_random.bit_generator.state = saved
        self.obs = copy.deepcopy(state["obs"])

    def next_episodes(self) -> list[int]:
        """What `episodes` becomes for a run that cannot continue the episodes under way: they are left behind."""
        return (self.episodes + (np.asarray(self._lengths.tolist()) > 0)).tolist()

    def begin(self, episodes: list[int], at: int = 0) -> None:
        """Leave the episodes under way behind and begin those that `episodes` counts up to. `at` as in `step`."""
        self.episodes[:] = episodes
        self._lengths[:] = 0  # nor are they under way where the reset fails
        self.reset(at)

    def under_way(self) -> list[tuple[float, int]]:
        """Return and length so far of each environment's current episode."""
        return list(zip(self._returns.tolist(), self._lengths.tolist(), strict=True))

    @property
    def _tensors(self) -> bool:
        return isinstance(self.obs, Tensor)

    def _zeros(self, dtype: str) -> Array:
        """One per environment."""
        if self._tensors:
            return torch.zeros(self.num_envs, dtype=getattr(torch, dtype), device=self.obs.device)
        return np.zeros(self.num_envs, dtype)

    def _reset(self, mask: Array, at: int) -> Array:
        """Reset all environments, or those in `mask`; the observations of all, [N, O]."""
        begun = range(self.num_envs) if mask is None else np.flatnonzero(np.asarray(mask.tolist())).tolist()
        seeds: list[int | None] = [None] * self.num_envs
        for i in begun:
            seeds[i] = self.seeds(i, int(self.episodes[i]))
        # A single seed reaches the episodes that are under way too.
        one = seeds[0] if len(begun) == self.num_envs else None
        seed: Any = seeds if self._takes_seeds else one
        options = None if mask is None else {"reset_mask": mask}
        obs = self._own(self._call(lambda: self.envs.reset(seed=seed, options=options), at, RESET)[0], at)
        self.obs = obs
        self._seed_spaces(begun)
        self._look(obs, self._zeros("float64"), None, at)
        return obs

    def _seed_spaces(self, begun: Any) -> None:
        if self._tensors:
            if self._generator is None:
                self._generator = torch.Generator(self.obs.device)
                self._generator.manual_seed(of_actions(self.seeds(0, int(self.episodes.sum()))))
            return
        if not self._spaces:
            self._spaces = [copy.deepcopy(self.envs.single_action_space) for _ in range(self.num_envs)]
        for i in begun:
            self._spaces[i].seed(of_actions(self.seeds(i, int(self.episodes[i]))))

    def _own(self, obs: Array, step: int) -> Array:
        """A copy, since simulators and vectorisers may write into what they returned; its shape checked."""
        try:
            obs = _copied(obs if isinstance(obs, Tensor) else as_numbers(obs))
        except EnvironmentFault as fault:
            raise SACError(f"{self.name}, at step {step}, {fault}.") from fault.__cause__
        if obs.shape != (self.num_envs, self._obs_dim):
            raise SACError(
                f"{self.name} returned at step {step} observations of shape {list(obs.shape)}, but announced "
                f"{[self.num_envs, self._obs_dim]}; an environment must keep its shapes."
            )
        return obs

    def _call(self, function: Callable[[], Any], step: int, parts: tuple[str, ...]) -> Any:
        """A reset or a step, with whatever goes wrong as one sentence."""
        try:
            results = function()
            check_parts(results, parts)
            info = results[-1]
            if not isinstance(info, Mapping):
                raise EnvironmentFault(f"returned info of type {type(info).__name__} instead of a dictionary")
        except SACError:
            raise
        except EnvironmentFault as error:
            raise SACError(f"{self.name}, at step {step}, {error}.") from None
        except (Exception, SystemExit) as error:  # pygame's programs exit when their window is closed
            if isinstance(error, (EOFError, OSError)):
                dead = dead_worker(self.envs)
                if dead is not None:
                    raise SACError(f"{self.name}: {dead} at step {step}.") from None
            raise SACError(f"{self.name}, at step {step}, {raised(error)}.") from error
        faults = info.get(FAULT)
        if faults is not None:
            i, fault = next((i, fault) for i, fault in enumerate(faults) if fault is not None)
            raise SACError(f"{self._called(i)}, at step {step}, {fault}.") from fault.__cause__
        return results

    def _is_column(self, value: Any) -> bool:
        """Whether it is one number per environment, and a tensor where the observations are."""
        if isinstance(value, Tensor) or self._tensors:
            return self._tensors and isinstance(value, Tensor) and self._fits(value, (self.num_envs,))
        return (
            isinstance(value, np.ndarray) and value.shape == (self.num_envs,) and value.dtype.kind in "biuf"
        )

    def _fits(self, value: Tensor, shape: Sequence[int]) -> bool:
        return value.shape == tuple(shape) and value.device == self.obs.device

    def _called(self, env: int) -> str:
        return self.name if self.num_envs == 1 else f"{self.name} (environment {env} of {self.num_envs})"

    def _look(self, obs: Array, reward: Array, done: Array, step: int, action: Array = None) -> bool:
        """Whether an episode ended. Raises SACError for the first value that is not finite, or not in float32."""
        if self._tensors:
            ended = torch.zeros((), dtype=torch.bool, device=obs.device) if done is None else done.any()
            acted = torch.isfinite(action).all() if isinstance(action, Tensor) else torch.ones_like(ended)
            finite = torch.isfinite(obs.float()).all() & torch.isfinite(reward.float()).all()
            fine, any_done, fine_action = torch.stack([finite, ended, acted]).tolist()
            if not fine_action:
                bad = action[~torch.isfinite(action).all(1)][0].tolist()
                raise ActionNotFinite(f"the policy's action at step {step} is {bad}")
        else:
            fine = fits_float32(obs) and fits_float32(reward)
            any_done = done is not None and bool(np.count_nonzero(done))
        if not fine:
            rows = zip(np.asarray(obs.tolist()), reward.tolist(), strict=True)
            for i, (row, each) in enumerate(rows):
                check_finite(self._called(i), step, row, each)
        return any_done

    def _final_obs(self, following: Array, done: Array, info: dict[str, Any], step: int) -> Array:
        """[N, O]: the last observation of the episodes that ended, and of the others what follows."""
        final = next((info[key] for key in ("final_obs", "final_observation") if key in info), None)
        if final is None:
            raise SACError(
                f"{self.name} ended an episode at step {step} and began the next one in the same step, but info holds "
                "no final_obs: what the last transition led to is unknown; have the environment return it, or reset "
                "in the next step (AutoresetMode.NEXT_STEP)."
            )
        if self._tensors:
            if not isinstance(final, Tensor) or not self._fits(final, following.shape):
                raise SACError(
                    f"{self.name} returned at step {step} final_obs {_described(final)}; it must be a tensor of "
                    f"shape {list(following.shape)} on {following.device}, one row per environment."
                )
            next_obs = torch.where(done[:, None], final, following)
        else:
            next_obs = following.copy()
            for i in np.flatnonzero(done).tolist():
                try:
                    next_obs[i] = observed(final[i], following.shape[1:])
                except (EnvironmentFault, LookupError, TypeError) as error:
                    raise SACError(
                        f"{self._called(i)} ended an episode at step {step}, but row {i} of final_obs "
                        f"{_described(final)} is not its last observation; it must have one row per environment."
                    ) from error
        self._look(next_obs, self._zeros("float64"), None, step)
        return next_obs


def _copied(value: Array) -> Array:
    """With memory of its own, and without a graph, which would keep those of all steps."""
    return value.detach().clone() if isinstance(value, Tensor) else np.array(value)


def _either(terminated: Any, truncated: Any) -> Array:
    """Whether one or the other, as booleans; None where they do not fit together, or are no arrays."""
    if not hasattr(terminated, "dtype") or not hasattr(truncated, "dtype"):
        return None
    try:
        done = terminated | truncated
    except Exception:
        try:
            done = (terminated != 0) | (truncated != 0)  # numbers that are no integers
        except Exception:
            return None
    return done if isinstance(done, np.ndarray) and done.dtype.kind == "b" else done != 0


def _described(value: Any) -> str:
    known, shape = isinstance(value, (np.ndarray, np.generic, Tensor)), getattr(value, "shape", None)
    kind = value.dtype if known else type(value).__name__
    where = f" on {value.device}" if isinstance(value, Tensor) else ""
    return f"of type {kind}{where}" if shape is None else f"of type {kind} and shape {list(shape)}{where}"


def autoreset_mode(envs: VectorEnv, name: str) -> AutoresetMode:
    """How `envs` resets a finished episode. Raises SACError where neither it nor its metadata says so."""
    metadata = getattr(envs, "metadata", None) or {}
    # The metadata may be its class's, to which another vector writes.
    own = getattr(envs, "autoreset_mode", None)
    declared = own if isinstance(own, AutoresetMode) else metadata.get("autoreset_mode")
    try:
        return declared if isinstance(declared, AutoresetMode) else AutoresetMode(declared)
    except ValueError:
        modes = ", ".join(mode.value for mode in AutoresetMode)
        raise SACError(
            f"{name} has metadata['autoreset_mode']={declared!r}, which does not say how it resets a finished "
            f"episode; set it to one of {modes} (gymnasium.vector.AutoresetMode)."
        ) from None
