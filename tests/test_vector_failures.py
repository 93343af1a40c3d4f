"""Vectors whose environments or workers fail, die or hang: one sentence, nothing lost, and nothing left open."""

import itertools
import multiprocessing
import os
import signal
import sys
import time

import gymnasium
import numpy as np
import pytest
from exact_env import Exact
from gymnasium.vector import VectorWrapper
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from training_runs import (
    only_run,
    replay_of,
    small,
)

from sacfast import vector
from sacfast.errors import SACError
from sacfast.train import train
from sacfast.vector import close_env, vectorise


@pytest.mark.parametrize("vector", ["sync", "async"])
def test_a_fault_of_one_of_several_is_reported_once_the_rest_is_saved(tmp_path, vector):
    def nan(obs, *rest):
        return obs * np.nan, *rest

    made = []

    def make():
        made.append(1)
        return Exact(index=0 if len(made) == 1 else 1, fault=nan, fault_at=30)

    config = small(tmp_path, num_envs=3, vector=vector, eval_every=0)
    with pytest.raises(
        SACError, match=r"Exact \(environment \d of 3\) returned at step 88 an observation .* nan"
    ):
        train(config, env=make)
    assert len(replay_of(only_run(config))[0]["obs"]) == 87


class Mortal(Exact):
    def step(self, action):
        if self.index == 1 and self.steps == 29:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


@pytest.mark.timeout(120)  # it would hang for ever
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_worker_that_dies_ends_the_run_with_everything_saved(tmp_path):
    made = []

    def make():
        made.append(1)
        return Mortal(index=len(made) - 2)  # the first is for evaluation, the second tells the spaces

    config = small(tmp_path, num_envs=3, vector="async", eval_every=0)
    with pytest.raises(
        SACError, match=r"environment \d of 3: its worker process died \(signal SIGKILL\) at step 88"
    ):
        train(config, env=make)
    assert len(replay_of(only_run(config))[0]["obs"]) == 87


def test_closing_waits_for_no_dead_worker():
    envs = vectorise(lambda: gymnasium.make("Pendulum-v1"), 2, "async")
    envs.processes[0].kill()
    envs.processes[0].join()
    close_env(envs)
    assert envs.closed
    assert not any(process.is_alive() for process in envs.processes)


class Stuck(Exact):
    def step(self, action):
        time.sleep(1000)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("wrap", [lambda envs: envs, RecordEpisodeStatistics], ids=["bare", "wrapped"])
def test_closing_waits_for_no_worker_that_is_stuck(monkeypatch, wrap):
    monkeypatch.setattr(vector, "PATIENCE", 1.0)
    envs = vectorise(Stuck, 2, "async")
    envs.reset(seed=[0, 1])
    envs.step_async(np.zeros((2, 1), np.float32))
    close_env(wrap(envs))
    assert not any(process.is_alive() for process in envs.processes)


class Closing(Exact):
    """Notes in `closed` that it was closed; the environments of `stuck` raise."""

    closed: list = []  # noqa: RUF012
    stuck = ()

    def close(self):
        self.closed.append(self.index)
        if self.index in self.stuck:
            raise RuntimeError(f"{self.index} is stuck")


@pytest.fixture
def closing(monkeypatch):
    monkeypatch.setattr(Closing, "closed", [])
    made = iter(range(100))
    return lambda: Closing(next(made))


@pytest.mark.parametrize("wrap", [lambda envs: envs, RecordEpisodeStatistics], ids=["bare", "wrapped"])
def test_every_environment_is_closed_whatever_the_others_raise(closing, monkeypatch, wrap):
    monkeypatch.setattr(Closing, "stuck", (0, 2))
    envs = wrap(vectorise(closing, 4, "sync"))
    with pytest.raises(RuntimeError, match="0 is stuck"):
        close_env(envs)
    assert sorted(Closing.closed) == [0, 1, 2, 3]
    close_env(envs)
    assert len(Closing.closed) == 4


def test_what_is_around_a_vector_is_closed_too(closing):
    told = []

    class Around(VectorWrapper):
        def close(self, **options):
            told.append("around")
            super().close(**options)

    close_env(Around(vectorise(closing, 2, "sync")))
    assert (sorted(Closing.closed), told) == ([0, 1], ["around"])


def test_a_factory_that_fails_leaves_no_environment_open(closing, monkeypatch):
    monkeypatch.setattr(Closing, "stuck", (1,))

    def make():
        env = closing()
        if env.index == 3:
            raise RuntimeError("no fourth")
        return env

    with pytest.raises(RuntimeError, match="no fourth"):
        vectorise(make, 8, "sync")
    assert Closing.closed == [0, 1, 2]


@pytest.mark.timeout(60)
@pytest.mark.skipif(sys.platform == "win32", reason="the workers are forked")
def test_a_worker_that_cannot_start_is_one_sentence(capfd):
    here = os.getpid()

    def make():
        if os.getpid() != here:
            raise RuntimeError("the port is taken")
        return Exact()

    before = multiprocessing.active_children()
    with pytest.raises(
        SACError, match=r"^a worker process of Exact ended while it was starting .* --vector sync"
    ):
        vectorise(make, 2, "async")
    assert "RuntimeError: the port is taken" in capfd.readouterr().err
    assert multiprocessing.active_children() == before


def test_what_the_first_environment_raises_is_not_blamed_on_a_worker():
    def make():
        raise ConnectionRefusedError("no robot")

    with pytest.raises(ConnectionRefusedError, match="no robot"):
        vectorise(make, 2, "async")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_environments_of_different_spaces_are_one_sentence(kind):
    """Robots of random bounds, say; no worker is left behind."""
    bounds = itertools.count(1)

    class Random(gymnasium.Env):
        action_space = gymnasium.spaces.Box(-1, 1, (1,))

        def __init__(self):
            self.observation_space = gymnasium.spaces.Box(-1, next(bounds), (3,))

    with pytest.raises(SACError, match="environments of Random cannot be run together .* the same spaces"):
        vectorise(Random, 2, kind)
    assert not multiprocessing.active_children()
