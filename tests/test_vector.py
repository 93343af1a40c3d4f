"""Many environments in one run: the same numbers however they are stepped."""

import importlib.util
import os
import random
import signal
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from exact_env import Exact, Torch, expected_rows, makers
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import NormalizeObservation, NormalizeReward, RecordEpisodeStatistics
from training_runs import (
    FLAGS,
    assert_one_error_line,
    assert_same_learning,
    assert_same_run,
    counters_of,
    described,
    replay_of,
    small,
    start,
    wait_until_training,
)

from sacfast.envs import check_spaces
from sacfast.errors import SACError
from sacfast.evaluate import evaluate, load_agent, zero_policy
from sacfast.logger import read_csv
from sacfast.train import main, parse, train
from sacfast.vector import EnvPool, SingleEnv, close_env, make_vector_env, vectorise

MISSING_ENVPOOL = importlib.util.find_spec("envpool") is None


def check_buffer(run, count):
    """Each environment's transitions in the replay buffer are those of Exact, in order and complete."""
    replay, _ = replay_of(run)
    total = 0
    for index in range(count):
        mine = replay["next_obs"][:, 0] == index
        rows = zip(
            *replay["next_obs"][mine].T[1:3], replay["reward"][mine], replay["terminated"][mine], strict=True
        )
        assert list(rows) == expected_rows(index, mine.sum())
        np.testing.assert_array_equal(replay["obs"][mine][:, 2], replay["next_obs"][mine][:, 2] - 1)
        np.testing.assert_array_equal(replay["obs"][mine][:, :2], replay["next_obs"][mine][:, :2])
        total += mine.sum()
    np.testing.assert_allclose(replay["action"][:, 0] * 5, replay["next_obs"][:, 3], rtol=1e-5, atol=1e-5)
    assert total == len(replay["reward"])


@pytest.mark.parametrize("mode", AutoresetMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("tensors", [False, True])
def test_a_vector_of_others_fills_the_buffer_with_true_transitions(tmp_path, mode, tensors):
    envs = SyncVectorEnv(makers(3), autoreset_mode=mode)
    config = small(tmp_path, steps=150, utd=0.3, eval_every=0)
    run = train(config, env=Torch(envs) if tensors else envs, eval_env=Exact)
    check_buffer(run, 3)
    _, meta = replay_of(run)
    step = meta["extra"]["step"]
    assert 150 <= step < 153
    assert meta["counters"]["step"] == int(
        (step - 49) * 0.3
    )  # updates count environment steps, whatever N is
    assert len(replay_of(run)[0]["reward"]) == step
    rows = read_csv(run / "episodes.csv")
    assert [row["episode"] for row in rows] == list(range(1, len(rows) + 1))


SHORT = {"max_episode_steps": 20}


def test_sync_and_async_are_the_same_run(tmp_path):
    settings = {"num_envs": 3, "steps": 190, "learning_starts": 40, "utd": 0.5, "make_kwargs": SHORT}
    sync, parallel = (train(small(tmp_path, vector=vector, **settings)) for vector in ("sync", "async"))
    assert_same_run(sync, parallel)
    assert [row["step"] for row in read_csv(sync / "evaluation.csv")] == [102, 192]
    assert [row["step"] for row in read_csv(sync / "episodes.csv")] == [60] * 3 + [120] * 3 + [180] * 3


class Careless(gymnasium.Env):
    """Draws from the process's own generators, whatever its seed is."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float64)
    action_space = Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        return np.array([np.random.uniform(), random.random(), torch.rand(()).item()]), {}


@pytest.mark.skipif(sys.platform == "win32", reason="the workers are forked")
def test_workers_draw_numbers_of_their_own():
    envs = vectorise(Careless, 3, "async")
    try:
        drawn = envs.reset()[0]
    finally:
        close_env(envs)
    assert all(len(set(column)) == 3 for column in drawn.T.tolist())


class Networked(Careless):
    """Asks PyTorch for more than one thread would do."""

    def step(self, action):
        return np.full(3, (torch.ones(2_000_000) * 2).sum().item()), 0.0, False, False, {}


@pytest.mark.skipif(sys.platform == "win32", reason="the workers are forked")
def test_workers_do_not_wait_for_threads_that_were_not_forked():
    torch.set_num_threads(2)
    (torch.ones(2_000_000) * 2).sum()  # PyTorch's threads are there now
    envs = vectorise(Networked, 2, "async")
    try:
        envs.reset()
        envs.step_async(np.zeros((2, 1), np.float32))
        assert (envs.step_wait(timeout=30)[0] == 4e6).all()
    finally:
        for process in envs.processes:
            process.kill()  # one that waits for ever would not hear that it is to close
        close_env(envs)


def test_a_vector_of_one_is_the_same_run_as_its_environment(tmp_path):
    config = small(tmp_path, steps=130, make_kwargs=SHORT)

    def make():
        return gymnasium.make("Pendulum-v1", **SHORT)

    assert isinstance(make_vector_env("Pendulum-v1", 1, "sync"), SingleEnv)
    single = train(config)
    vector = train(config, env=SyncVectorEnv([make], autoreset_mode="Disabled"), eval_env=make)
    assert {run.parent.name for run in (single, vector)} == {"Pendulum-v1", "SyncVectorEnv"}
    assert_same_learning(single, vector)


def test_resuming_several_environments_between_episodes_equals_never_having_stopped(tmp_path):
    settings = {"num_envs": 3, "utd": 0.5, "eval_every": 60, "log_every": 60, "make_kwargs": SHORT}
    whole = train(small(tmp_path, steps=240, **settings))
    part = train(small(tmp_path, steps=120, **settings))
    assert described(part)["state"]["environments"]["collector"]["episodes"] == [2, 2, 2]
    assert main(["--resume", str(part), "--steps", "240"]) == 0
    assert_same_run(whole, part)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    "signum", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM]
)  # of a terminal, of a batch system
def test_a_signal_that_reaches_the_workers_too_lets_the_run_save(tmp_path, signum):
    flags = ["--env", "Pendulum-v1", "--steps", "1000000", "--learning-starts", "50", "--log-every", "50"]
    flags += ["--num-envs", "2", "--vector", "async", "--out", str(tmp_path / "runs")]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup had the tests ignore, perhaps
    try:
        process = start(*FLAGS, *flags, start_new_session=True)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_until_training(process)
    os.killpg(process.pid, signum)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (128 + signum, "")
    (run,) = (tmp_path / "runs" / "Pendulum-v1").iterdir()
    assert counters_of(run)["step"] >= 50
    assert described(run)["state"]["environments"]["obstacle"] is None


class Goal(gymnasium.Env):
    """Dict observations of two types, and an argument of its own."""

    observation_space = Dict(
        {"goal": Box(-1, 1, (2,), np.float64), "position": Box(-1, 1, (1, 3), np.float32)}
    )
    action_space = Box(-1.0, 1.0, (2,))

    def __init__(self, size=1.0):
        self.size = size

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.obs(), {}

    def step(self, action):
        self.t += 1
        return self.obs(), self.size, False, self.t == 20, {}

    def obs(self):
        return {"goal": np.full(2, 0.5), "position": np.full((1, 3), self.t / 20, np.float32)}


def test_dict_observations_are_flattened_with_one_line(tmp_path, capsys):
    run = train(small(tmp_path, steps=60, num_envs=2, eval_every=0), env=Goal)
    text = capsys.readouterr().out
    assert (
        text.count(
            "Dict observations are flattened, in this order: goal [2], position [3] (FlattenObservation)"
        )
        == 1
    )
    replay, _ = replay_of(run)
    np.testing.assert_array_equal(replay["obs"][:, :2], 0.5)
    assert replay["next_obs"][:, 2:].max() == 1


def test_module_ids_and_make_kwargs_reach_every_environment_and_the_evaluation(tmp_path, monkeypatch, capsys):
    (tmp_path / "goal_env.py").write_text(
        "from gymnasium.envs.registration import register\n"
        "from test_vector import Goal\n"
        "register('Goal-v0', entry_point=Goal)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    flags = [
        "--env",
        "goal_env:Goal-v0",
        "--make-kwargs",
        '{"size": 3.5}',
        "--num-envs",
        "2",
        "--steps",
        "60",
    ]
    flags += [
        "--learning-starts",
        "50",
        "--eval-every",
        "0",
        "--no-tensorboard",
        "--out",
        str(tmp_path / "runs"),
    ]
    assert main([*FLAGS, *flags]) == 0
    (run,) = (tmp_path / "runs" / "goal_env-Goal-v0").iterdir()
    assert set(replay_of(run)[0]["reward"]) == {3.5}
    agent, config, _ = load_agent(run)
    assert config.make_kwargs == {"size": 3.5}
    assert evaluate(agent, config.env, 1, **config.make_kwargs).mean == 70
    assert main(["--resume", str(run), "--make-kwargs", '{"size": 1}']) == 2
    assert """--make-kwargs '{"size": 1}' contradicts the run""" in capsys.readouterr().err
    assert main(["--resume", str(run), "--steps", "70"]) == 0


def test_bad_settings_of_environments_are_one_line(tmp_path, capsys):
    for flags, words in (
        (["--num-envs", "0"], "num_envs=0 must be"),
        (["--vector", "threads"], "vector='threads' must be one of sync, async, envpool"),
        (["--env", "Pendulum-v1", "--make-kwargs", '{"nonsense": 1}'], "'Pendulum-v1' could not be made"),
        (["--env", "no_such_module:X-v0", "--num-envs", "2"], "could not be made"),
        (["--reward-scale", "0"], "reward_scale=0.0 must be"),
        (["--obs-epsilon", "0"], "obs_epsilon=0.0 must be"),
    ):
        assert main(["--out", str(tmp_path), *FLAGS, *flags]) == 2
        error = capsys.readouterr().err
        assert_one_error_line(error)
        assert words in error
    with pytest.raises(SACError, match="dictionary that JSON can hold"):
        small(tmp_path, make_kwargs={"f": print})
    with pytest.raises(SACError, match="pass a function that makes it"):
        train(small(tmp_path, num_envs=2), env=gymnasium.make("Pendulum-v1"))
    with pytest.raises(SACError, match="or eval_env as well"):
        train(small(tmp_path), env=SyncVectorEnv(makers(2)))
    with pytest.raises(SystemExit):
        parse(["--make-kwargs", "[1]"])


def test_evaluation_of_a_vector_takes_the_first_episode_of_each_environment():
    envs = vectorise(lambda: gymnasium.make("Pendulum-v1"), 3, "sync")
    single = gymnasium.make("Pendulum-v1")
    policy = zero_policy(check_spaces(single).bounds)
    alone, together = evaluate(policy, single, 5, seed=9), evaluate(policy, envs, 5, seed=9)
    assert alone.returns == pytest.approx(together.returns)
    assert together.lengths == (200,) * 5
    lengths = evaluate(policy, SyncVectorEnv(makers(3)), 3).lengths
    assert lengths == (2, 4, 2)  # though the third environment ends two while the second is in its first


def test_what_make_vec_made_is_evaluated_on_its_environment(tmp_path):
    envs = RecordEpisodeStatistics(gymnasium.make_vec("Pendulum-v1", num_envs=2))
    run = train(small(tmp_path, steps=60, eval_every=0), env=envs)
    assert run.parent.name == "Pendulum-v1"
    assert len(replay_of(run)[0]["obs"]) == 60


@pytest.mark.parametrize("wrapper", [NormalizeObservation, NormalizeReward])
def test_what_is_around_a_vector_is_not_left_out_of_the_evaluation(tmp_path, capsys, wrapper):
    def make():
        return wrapper(gymnasium.make_vec("Pendulum-v1", num_envs=2))

    config = small(tmp_path, steps=60, eval_every=0)
    with pytest.raises(SACError, match="no second one can be made for evaluation; pass a function"):
        train(config, env=make())
    train(config, env=make(), eval_env=gymnasium.make("Pendulum-v1"))
    assert f"{wrapper.__name__} has statistics of its own" in capsys.readouterr().out


class OtherState(Exact):
    """What get_state and set_state mean is nobody's to prescribe."""

    def get_state(self, body):
        return body

    def set_state(self, qpos, qvel):
        pass


def test_a_get_state_of_another_meaning_is_no_state(tmp_path, capsys):
    run = train(small(tmp_path, steps=60, eval_every=0), env=SyncVectorEnv([OtherState] * 2), eval_env=Exact)
    assert "get_state() missing 1 required" in described(run)["state"]["environments"]["obstacle"]


def test_envpool_missing_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    assert main(["--vector", "envpool", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert_one_error_line(error)
    assert "pip install 'sacfast[envpool]'" in error


@pytest.mark.skipif(MISSING_ENVPOOL, reason="envpool is not installed")
def test_envpool_is_seeded_and_its_reset_rows_stay_out(tmp_path):
    config = small(
        tmp_path,
        env="Pendulum-v1",
        num_envs=3,
        vector="envpool",
        steps=700,
        eval_every=0,
        utd=0.1,
    )
    first, second = train(config), train(config)
    assert_same_run(first, second)
    replay, _ = replay_of(first)
    # A pendulum's next observation follows from its last one and its action: a reset would not.
    cos, sin, speed = replay["obs"].T
    torque = 2 * replay["action"][:, 0]
    follows = np.clip(speed + (15 * sin + 3 * torque) * 0.05, -8, 8)
    np.testing.assert_allclose(replay["next_obs"][:, 2], follows, atol=1e-4)
    angle = np.arctan2(sin, cos) + follows * 0.05
    slow = abs(follows) < 8  # EnvPool turns the angle before it clips the speed
    np.testing.assert_allclose(replay["next_obs"][slow, 0], np.cos(angle[slow]), atol=1e-4)
    assert (replay["reward"] < 0).all()
    assert [row["length"] for row in read_csv(first / "episodes.csv")] == [200] * 3
    with pytest.raises(SACError, match="EnvPool cannot make 'Nonsense-v0'"):
        EnvPool("Nonsense-v0", 2)
