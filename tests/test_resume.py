"""A run that stopped anywhere, or was killed, ends with the same bytes as one that never did."""

import dataclasses
import json
import os
import random
import signal

import gymnasium
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from kill import compare
from training_runs import (
    FLAGS,
    SMALL,
    Clockwork,
    WithState,
    assert_same_run,
    counters_of,
    small,
    start,
    wait_until_training,
)

from sacfast.config import SCHEDULES
from sacfast.learner import Learner
from sacfast.logger import read_csv
from sacfast.run_folder import RunFolder, complete
from sacfast.stop import StopRequest
from sacfast.train import main, parse, train
from sacfast.trainer import TrainingInterrupted


@pytest.fixture
def stop_at(monkeypatch):
    """stop_at(step): the next run hears SIGTERM in the first step that reaches it."""
    steps, real = [], Learner.learn

    def learn(self, step):
        real(self, step)
        if steps and step >= steps[0]:
            steps.pop()
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Learner, "learn", learn)
    return steps.append


def interrupted(config, stops, stop_at, env=None):
    """The folder of a run of `config` that was stopped at each of `stops`, and resumed by a trainer of its own."""
    run = None
    for step in [*stops, None]:
        if run is not None:
            config = dataclasses.replace(parse(["--resume", str(run)]), resume=str(run))
        if step is None:
            return train(config, env=env)
        stop_at(step)
        with pytest.raises(TrainingInterrupted) as caught:
            train(config, env=env)
        run = caught.value.run
        assert step <= counters_of(run)["step"] < step + 4


ENVS = ("Pusher-v5", "HalfCheetah-v5", "Hopper-v5")
# Within random actions, at an update, between updates, at a row of the log, at an evaluation, before the last step.
STOPS = [17, 50, 83, 91, 120, 239]


# Under overlap the reference engine does what it does under strict, only later: once is enough.
@pytest.mark.parametrize(
    ("env", "engine", "schedule"),
    [
        *((env, "reference", "strict") for env in ENVS),
        ("Hopper-v5", "reference", "overlap"),
        *(
            pytest.param(env, "native", schedule, marks=pytest.mark.native)
            for env in ENVS
            for schedule in SCHEDULES
        ),
    ],
)
def test_stopping_anywhere_changes_no_byte(tmp_path, env, engine, schedule, stop_at):
    sac = dataclasses.replace(SMALL, actor_update_period=3, buffer_capacity=130)
    changes = {"eval_every": 120, "checkpoint_every": 60, "log_every": 13, "utd": 0.7, "schedule": schedule}
    config = small(tmp_path, env=env, steps=240, engine=engine, sac=sac, **changes)
    assert_same_run(train(config), interrupted(config, STOPS, stop_at))


def test_stopping_in_a_classic_episode_or_in_the_last_step_changes_no_byte(tmp_path, stop_at):
    config = small(tmp_path, steps=130)
    assert_same_run(train(config), interrupted(config, [71, 130], stop_at))


@pytest.mark.parametrize("vector", ["sync", "async"])
def test_stopping_several_environments_in_mid_episode_changes_no_byte(tmp_path, vector, stop_at):
    sac = dataclasses.replace(SMALL, normalize_obs=True)
    changes = {"num_envs": 3, "vector": vector, "utd": 0.5, "checkpoint_every": 30}
    config = small(tmp_path, env="Hopper-v5", steps=150, sac=sac, **changes)
    assert_same_run(train(config), interrupted(config, [33, 108], stop_at))


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_a_vector_of_the_callers_own_goes_on_exactly_in_every_autoreset_mode(tmp_path, mode, stop_at):
    def make():
        return SyncVectorEnv([lambda: gymnasium.make("Hopper-v5")] * 4, autoreset_mode=mode)

    config = small(tmp_path, steps=600, utd=0.1, learning_starts=400, eval_every=0)
    whole = train(config, env=make)
    lengths = [row["length"] for row in read_csv(whole / "episodes.csv")]
    assert len(lengths) > 12  # Hopper falls early, so that every mode has had its turn
    assert_same_run(whole, interrupted(config, [37, 200, 450], stop_at, env=make))


def test_an_environment_of_ones_own_goes_on_exactly_with_get_state_and_set_state(tmp_path, stop_at):
    config = small(tmp_path, steps=120, checkpoint_every=25, eval_every=0)
    assert_same_run(train(config, env=WithState), interrupted(config, [3, 64, 101], stop_at, env=WithState))


def test_without_them_it_goes_on_with_the_next_episode_or_exactly_between_two(tmp_path, stop_at, capsys):
    config = small(tmp_path, steps=120, eval_every=0)
    assert_same_run(train(config, env=Stateless), interrupted(config, [40, 80], stop_at, env=Stateless))
    assert "left behind" not in capsys.readouterr().out
    run = interrupted(config, [43], stop_at, env=Stateless)
    reason = "the episode that was interrupted is left behind (Stateless has no get_state() and set_state())"
    assert capsys.readouterr().out.count(reason) == 1
    assert counters_of(run)["episode"] == (120 - 3) // 4 + 1


class Stateless(Clockwork):
    """Episodes of four steps, all alike."""

    def reset(self, **options):
        self.episode = -1
        return super().reset(**options)

    def step(self, action):
        observation, reward, *_ = super().step(action)
        return observation, reward, self.t == 4, False, {}


@pytest.mark.native
def test_what_a_resumed_run_may_change_it_changes(tmp_path, stop_at, capsys):
    config = small(tmp_path, steps=120, eval_every=0)
    stop_at(80)
    with pytest.raises(TrainingInterrupted) as stopped:
        train(config)
    run = stopped.value.run
    changes = {
        "steps": 200,
        "engine": "native",
        "threads": 2,
        "device": "auto",
        "storage": "host",
        "checkpoint_every": 30,
        "keep_checkpoints": 1,
        "log_every": 40,
        "tensorboard": True,
    }
    half = dataclasses.replace(config.sac, obs_dtype="float16")
    assert train(dataclasses.replace(config, resume=str(run), sac=half, **changes)) == run
    told = capsys.readouterr().out
    assert "engine native" in told and ", 2 threads, seed 7" in told
    saved = json.loads((run / "config.json").read_text())
    assert {name: saved[name] for name in changes} == changes and saved["sac"]["obs_dtype"] == "float16"
    assert [folder.name for folder in complete(run)] == ["000000200"]
    assert [row["step"] for row in read_csv(run / "progress.csv")] == [50, 120, 160, 200]
    assert list(run.glob("events.out.tfevents*"))


def test_an_interrupt_between_a_step_and_its_updates_makes_them_up(tmp_path, monkeypatch):
    config = small(tmp_path, steps=120, eval_every=0)
    whole = train(config)
    real, calls = Learner.learn, []

    def insist(self, step):
        if step == 83 and not calls:
            calls.append(1)
            for _ in range(StopRequest.INSISTENCE):
                signal.raise_signal(signal.SIGINT)
        real(self, step)

    monkeypatch.setattr(Learner, "learn", insist)
    with pytest.raises(TrainingInterrupted):
        train(dataclasses.replace(config, out=str(tmp_path / "other")))
    (run,) = (tmp_path / "other" / "Pendulum-v1").iterdir()
    assert counters_of(run)["step"] == 83
    assert main(["--resume", str(run)]) == 0
    assert_same_run(whole, run)


def test_killed_at_random_moments_a_run_ends_with_the_same_bytes(tmp_path):
    generator = random.Random(5)
    steps = compare("reference", 400, [generator.uniform(0, 0.4) for _ in range(6)], tmp_path)
    assert steps


def test_two_processes_on_one_run(tmp_path, capsys):
    flags = ["--env", "Pendulum-v1", "--steps", "1000000", "--learning-starts", "50", "--no-tensorboard"]
    first = start(*FLAGS, *flags, "--out", str(tmp_path))
    wait_until_training(first)
    (run,) = (tmp_path / "Pendulum-v1").iterdir()
    before = {path: path.read_bytes() for path in run.glob("*.json")}
    assert main(["--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"is being trained by process {first.pid} on {os.uname().nodename} since 2" in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in run.glob("*.json")} == before
    first.kill()
    first.communicate()
    with RunFolder(run).locked():  # it is free again, though nobody gave it back
        pass
    assert not (run / "run.lock.json").exists()
