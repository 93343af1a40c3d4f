"""Many environments behind one interface: Gymnasium's vectorisers, EnvPool, or a single environment.

Environments that we make are never reset by the vectoriser (AutoresetMode.DISABLED): every episode then starts
from a seed of ours, whichever environment runs it, and no row of a reset exists that could be mistaken for a
transition. What other vector environments do is translated by sacfast.collector.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from sacfast import envstate
from sacfast.checked import CheckedEnv
from sacfast.envs import env_name, make_env
from sacfast.envstate import NotCapturable
from sacfast.errors import SACError, first_line, raised

RESPITE = 30  # seconds that a worker lives on after SIGTERM or SIGHUP, for the trainer to save what it holds
PATIENCE = 5.0  # seconds to wait for workers that are to close


class SingleEnv(VectorEnv):
    """One environment as a vector of one, reset from outside, without a vectoriser's cost per step."""

    num_envs = 1
    checked = True

    def __init__(self, env: gymnasium.Env) -> None:
        self.env = CheckedEnv(env)
        self.spec = None
        self.metadata = env.metadata | {"autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed[0] if isinstance(seed, list) else seed)
        return obs[None], _as_vector(info)

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(actions[0])
        return obs[None], np.array([reward]), np.array([terminated]), np.array([truncated]), _as_vector(info)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        return (getattr(self.env, name),)

    def set_attr(self, name: str, values: Sequence[Any]) -> None:
        setattr(self.env, name, values[0])

    def close_extras(self, **_: Any) -> None:
        self.env.close()


def _as_vector(info: dict[str, Any]) -> dict[str, Any]:
    return {key: [value] for key, value in info.items()} if info else info


class EnvPool(VectorEnv):
    """EnvPool's environments (`pip install 'sacfast[envpool]'`), made at reset: they take seeds only when made.

    They reset themselves one step after an episode's end (AutoresetMode.NEXT_STEP). Where an episode terminates
    in the very step of its time limit, EnvPool says truncated and not terminated; nothing returned tells the two
    apart.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(self, env_id: str, num_envs: int, /, **kwargs: Any) -> None:
        ours = sorted({"num_envs", "seed"} & kwargs.keys())
        if ours:
            raise SACError(
                f"EnvPool's {ours[0]} is set by --{ours[0].replace('_', '-')}; leave it out of make_kwargs."
            )
        self.spec, self.env_id, self.num_envs, self.kwargs = None, env_id, num_envs, kwargs
        self._pool: Any = None
        try:
            import envpool
        except ImportError as error:
            raise SACError(
                f"--vector envpool needs {error.name}, which is not installed; pip install 'sacfast[envpool]', "
                "or use --vector sync or async."
            ) from None
        self._make: Callable[..., Any] = envpool.make_gymnasium
        try:
            spec = envpool.make_spec(env_id, **kwargs)
            self.single_observation_space = spec.gymnasium_observation_space
            self.single_action_space = spec.gymnasium_action_space
        except Exception as error:  # an AssertionError for an unknown name, and whatever C++ throws
            reason = first_line(error)
            raise SACError(
                f"EnvPool cannot make {env_id!r}: {reason}; use --vector sync or async."
            ) from error

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None or self._pool is None:
            # Its seeds are 32-bit and signed.
            seeds = [each % 2**31 for each in seed] if isinstance(seed, list) else int(seed or 0) % 2**31
            self.close_extras()
            self._pool = self._make(self.env_id, num_envs=self.num_envs, seed=seeds, **self.kwargs)
        return self._pool.reset(options=options)

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        return self._pool.step(actions)

    def close_extras(self, **_: Any) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def takes_seeds(envs: VectorEnv) -> bool:
    """Whether reset takes a list of seeds, one per environment; the interface itself promises a single number."""
    return isinstance(getattr(envs, "unwrapped", envs), (SyncVectorEnv, AsyncVectorEnv, SingleEnv, EnvPool))


def vectorise(make: Callable[[], gymnasium.Env], num_envs: int, vector: str) -> VectorEnv:
    """`num_envs` environments from `make`, as one: "sync" steps them in turn, "async" in a process each.

    Both are reset from outside, and hand out one buffer again and again: copy what you keep. Raises what `make` raises
    here, and SACError where a worker process ends before it has made its environment.
    """
    envs: Any = _in_processes(make, num_envs) if vector == "async" else _in_turn(make, num_envs)
    envs.checked = True
    return envs


def _in_turn(make: Callable[[], gymnasium.Env], num_envs: int) -> SyncVectorEnv:
    envs: list[gymnasium.Env] = []
    try:
        for _ in range(num_envs):
            envs.append(CheckedEnv(make()))
        makers = [lambda env=env: env for env in envs]
        try:
            return SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        except RuntimeError as error:
            raise _unlike(env_name(envs[0]), error) from error
    except BaseException:
        for env in envs:
            with suppress(Exception):  # what made the others fail is what is told
                env.close()
        raise


def _in_processes(make: Callable[[], gymnasium.Env], num_envs: int) -> AsyncVectorEnv:
    here = os.getpid()
    names: list[str] = []  # of what this process made: the workers get a copy, which must stay easy to pickle

    def checked(index: int) -> gymnasium.Env:
        if os.getpid() != here:
            # A forked worker has this process's generators, which an environment that ignores its seed may draw from.
            own = (int(np.random.randint(2**31)) + index) % 2**31
            for seed in (np.random.seed, random.seed, torch.manual_seed):
                seed(own)
            # Ctrl-C, and a terminal's end, reach every process of the terminal, a batch system's SIGTERM every process
            # of the job; whether to stop, and when, is the trainer's to say.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if hasattr(signal, "alarm"):
                for signum in (signal.SIGTERM, signal.SIGHUP):
                    if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup
                        signal.signal(signum, lambda *_: signal.alarm(RESPITE))
            # PyTorch's other threads were not forked, and it would wait for them for ever.
            torch.set_num_threads(1)
        env = CheckedEnv(make())
        names.append(env_name(env))
        return env

    envs = AsyncVectorEnv.__new__(AsyncVectorEnv)  # known here before it is complete, to be closed
    try:
        makers = [partial(checked, index) for index in range(num_envs)]
        AsyncVectorEnv.__init__(envs, makers, copy=False, autoreset_mode=AutoresetMode.DISABLED)
    except (EOFError, ConnectionError, RuntimeError) as error:
        if not names:  # the environment that tells the spaces raised it, in this process
            raise
        close_env(envs)
        if isinstance(error, RuntimeError):
            raise _unlike(names[0], error) from error
        raise SACError(
            f"a worker process of {names[0]} ended while it was starting (its own words are above); check what only "
            "one process may hold, or use --vector sync."
        ) from error
    return envs


def _unlike(name: str, error: RuntimeError) -> SACError:
    return SACError(
        f"environments of {name} cannot be run together ({first_line(error)}); make each announce the same spaces"
    )


def make_vector_env(env_id: str, num_envs: int, vector: str, /, **kwargs: Any) -> VectorEnv:
    """`num_envs` environments by name; `vector` is "sync", "async" or "envpool", `kwargs` go to their constructor.

    Raises SACError as make_env does, and where EnvPool is missing or lacks the environment.
    """
    if vector == "envpool":
        return EnvPool(env_id, num_envs, **kwargs)
    if num_envs == 1 and vector == "sync":
        return SingleEnv(make_env(env_id, **kwargs))
    return vectorise(lambda: make_env(env_id, **kwargs), num_envs, vector)


def captured_states(envs: VectorEnv) -> list[dict[str, Any]]:
    """The state of each environment in mid-episode, whichever process it is in. Raises NotCapturable."""
    if type(envs) is SyncVectorEnv and not hasattr(envs, "checked"):  # the caller's own
        return [envstate.capture(env) for env in envs.envs]
    states = _checked(envs).get_attr("captured")
    for state in states:
        if isinstance(state, str):
            raise NotCapturable(state)
    return list(states)


def put_states(envs: VectorEnv, states: Sequence[dict[str, Any]], resetting: Sequence[bool]) -> None:
    """Put back what `captured_states` gave; the environments must have been reset. `resetting` says which of them the
    next step resets (AutoresetMode.NEXT_STEP). Raises NotCapturable.
    """
    if type(envs) is SyncVectorEnv and not hasattr(envs, "checked"):
        for env, state in zip(envs.envs, states, strict=True):
            envstate.restore(env, state)
        envs._autoreset_envs[:] = resetting
        return
    _checked(envs).set_attr("captured", list(states))
    for obstacle in _checked(envs).get_attr("obstacle"):
        if obstacle is not None:
            raise NotCapturable(obstacle)


def _checked(envs: Any) -> Any:
    """`envs`, if they are CheckedEnvs, which hand their state out, and nothing else keeps any."""
    if not getattr(envs, "checked", False):
        raise NotCapturable(f"{type(getattr(envs, 'unwrapped', envs)).__name__} keeps its state to itself")
    return envs


def dead_worker(envs: VectorEnv) -> str | None:
    """Which worker process has died, if one has."""
    processes = getattr(getattr(envs, "unwrapped", envs), "processes", [])
    if not processes:
        return None
    gone = multiprocessing.connection.wait([process.sentinel for process in processes], timeout=5.0)
    for index, process in enumerate(processes):
        if process.sentinel in gone:
            process.join(5.0)  # its pipes close a moment before the system knows how it ended
            code = process.exitcode
            how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
            return f"environment {index} of {len(processes)}: its worker process died ({how})"
    return None


def close_and_tell(env: gymnasium.Env | VectorEnv) -> None:
    """close_env; what that raises is told, as it must neither hide how something ended nor keep others open."""
    try:
        close_env(env)
    except Exception as error:
        print(f"closing {env_name(env)}: it {raised(error)}", file=sys.stderr)


def close_env(env: gymnasium.Env | VectorEnv) -> None:
    """Close, without waiting for workers that are dead or in the middle of something; of several environments each,
    whatever the others raise. A simulator may have nothing to close.
    """
    if not hasattr(env, "close"):
        return
    bare: Any = getattr(env, "unwrapped", env)
    if type(bare) is SyncVectorEnv and not bare.closed:
        bare.closed = True  # its own closing would stop at the first that raises
        # Callbacks run in reverse, and the last error is the one raised: the first environment's.
        with ExitStack() as stack:
            for each in (env, *bare.envs):
                stack.callback(each.close)
        return
    processes = getattr(bare, "processes", [])
    last_resort = threading.Timer(PATIENCE, _kill, [processes])
    last_resort.daemon = True
    if processes:
        last_resort.start()
    try:
        if all(process.is_alive() for process in processes):
            env.close(**({"timeout": 2} if processes else {}))
            return
    except (EOFError, OSError):  # a worker died just now
        pass
    finally:
        last_resort.cancel()
    _kill(processes)
    for process in processes:
        process.join(PATIENCE)
    bare.closed = True


def _kill(processes: Sequence[Any]) -> None:
    for process in processes:
        process.kill()
