"""What users bring along: one robot for everything, episodes without end, wrappers, constructors that fail."""

import dataclasses
import json
import os
import signal

import gymnasium
import numpy as np
import pytest
from exact_env import makers
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, TimeLimit
from training_runs import (
    SMALL,
    Clockwork,
    WithState,
    counters_of,
    described,
    only_run,
    replay_of,
    small,
)

from sacfast import SACAgent, evaluate, trainer
from sacfast.config import SACConfig
from sacfast.errors import SACError
from sacfast.logger import read_csv
from sacfast.train import main, parse, train
from sacfast.trainer import TrainingInterrupted


@pytest.mark.parametrize("source", ["one object", "a function that gives one object"])
def test_one_environment_serves_training_and_evaluation(tmp_path, capsys, source):
    robot = Clockwork()
    given = {"env": robot, "eval_env": robot} if source == "one object" else {"env": lambda: robot}
    run = train(small(tmp_path, steps=150, eval_every=50, eval_episodes=2), **given)
    assert "training and evaluation share one environment" in capsys.readouterr().out
    replay, _ = replay_of(run)
    (t, episode), (after, same) = replay["obs"].T, replay["next_obs"].T
    np.testing.assert_array_equal(after, t + 1)  # no step leads from training's episode into an evaluation's
    np.testing.assert_array_equal(same, episode)
    np.testing.assert_array_equal(replay["reward"], after)
    assert len(t) == 150
    cut = [row["step"] for row in read_csv(run / "evaluation.csv")]
    assert cut == [50, 100, 150]
    begun = len(set(episode.tolist()))
    assert counters_of(run)["episode"] == begun
    assert described(run)["state"]["environments"]["next_episodes"] == [begun]


@pytest.mark.parametrize("mode", AutoresetMode, ids=lambda mode: mode.value)
def test_one_vector_serves_training_and_evaluation(tmp_path, mode):
    envs = SyncVectorEnv(makers(3), autoreset_mode=mode)
    run = train(small(tmp_path, steps=150, eval_every=30, utd=0.1), env=envs, eval_env=envs)
    replay, _ = replay_of(run)
    np.testing.assert_array_equal(replay["next_obs"][:, :2], replay["obs"][:, :2])  # environment and episode
    np.testing.assert_array_equal(replay["next_obs"][:, 2], replay["obs"][:, 2] + 1)
    assert len(read_csv(run / "evaluation.csv")) == 5


def test_a_robot_within_a_vector_is_known_to_be_the_one_of_the_evaluation(tmp_path):
    robot = Clockwork()
    envs = SyncVectorEnv([lambda: robot], autoreset_mode=AutoresetMode.DISABLED)
    run = train(small(tmp_path, steps=100, eval_every=50), env=envs, eval_env=robot)
    replay, _ = replay_of(run)
    np.testing.assert_array_equal(replay["next_obs"], replay["obs"] + [1, 0])


def test_a_robot_need_not_play_at_random_when_all_is_learned(tmp_path, capsys):
    played = []
    for baselines in (True, False):
        robot = Clockwork()
        run = train(
            small(tmp_path, steps=60, eval_every=0, eval_episodes=2, baselines=baselines),
            env=robot,
            eval_env=robot,
        )
        played.append(robot.episode)
        assert bool(json.loads((run / "summary.json").read_text())["baselines"]) == baselines
        assert ("random actions" in capsys.readouterr().out) == baselines
    assert played[0] == played[1] + 2 * 2


class Stopped(WithState):
    """Asks the run to stop in its step number `last`, whoever takes it."""

    last = 10**9

    def step(self, action):
        if len(self.actions) + 1 == self.last:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(action)


def test_a_run_stopped_in_an_evaluation_that_shares_its_environment_goes_on_with_the_next_episode(tmp_path):
    robot = Stopped()
    robot.last = 63  # the second of the evaluation at the end
    with pytest.raises(TrainingInterrupted) as stopped:
        train(small(tmp_path, steps=61, eval_every=0), env=robot, eval_env=robot)
    run, other = stopped.value.run, Stopped()
    train(parse(["--resume", str(run), "--steps", "90"]), env=other, eval_env=other)
    replay, _ = replay_of(run)
    assert len(replay["obs"]) == 90
    np.testing.assert_array_equal(replay["next_obs"][:, 0], replay["obs"][:, 0] + 1)
    np.testing.assert_array_equal(replay["next_obs"][:, 1], replay["obs"][:, 1])


def test_a_robot_that_cannot_begin_anew_after_an_evaluation_is_told_with_the_step(tmp_path):
    class Stuck(Clockwork):
        def reset(self, **kwargs):
            if len(self.actions) > 100:  # the evaluation's episode is over
                raise RuntimeError("no way back")
            return super().reset(**kwargs)

    robot = Stuck()
    with pytest.raises(SACError, match=r"Stuck, at step 100, raised RuntimeError: no way back .* in reset"):
        train(small(tmp_path, steps=150, eval_every=100), env=robot, eval_env=robot)


def test_an_episode_that_cannot_begin_is_told_with_the_steps_before_it(tmp_path):
    class Stuck(Clockwork):
        def reset(self, **kwargs):
            if len(self.actions) == 59:  # seven episodes of three steps and of five, and one more of three
                raise RuntimeError("no way back")
            return super().reset(**kwargs)

    with pytest.raises(SACError, match="Stuck, at step 59, raised RuntimeError: no way back"):
        train(small(tmp_path, steps=70, eval_every=0), env=Stuck)


def test_one_environment_cannot_be_several(tmp_path):
    robot = Clockwork()
    with pytest.raises(SACError, match="returned the same Clockwork twice"):
        train(small(tmp_path, num_envs=2), env=lambda: robot)


class Spike(Clockwork):
    """Its hundredth observation is more than float16 holds."""

    def step(self, action):
        observation, *rest = super().step(action)
        return np.where(len(self.actions) == 100, 7e4, observation), *rest


def test_what_a_small_type_cannot_hold_ends_the_run_which_goes_on_in_a_larger_one(tmp_path):
    config = small(tmp_path, steps=120, eval_every=0, sac=dataclasses.replace(SMALL, obs_dtype="float16"))
    with pytest.raises(SACError, match="^Spike, at step 100: next_obs holds 70000, which float16 cannot"):
        train(config, env=Spike)
    run = only_run(config)
    again = parse(["--resume", str(run), "--obs-dtype", "float32"])
    assert train(again, env=Spike) == run
    assert counters_of(run)["step"] == 120
    assert (
        train(parse(["--resume", str(run), "--steps", "130"]), env=Spike) == run
    )  # of segments in either type


def test_a_class_of_vectors_is_a_function_that_makes_one(tmp_path):
    class Bare:
        """What README says that a vector needs, and no more."""

        num_envs, metadata = 2, {"autoreset_mode": AutoresetMode.SAME_STEP}
        single_observation_space, single_action_space = Clockwork.observation_space, Clockwork.action_space

        def reset(self, *, seed=None, options=None):
            self.t = 0
            return np.zeros((2, 2)), {}

        def step(self, action):
            self.t += 1
            done = np.full(2, self.t % 4 == 0)
            return (
                np.full((2, 2), self.t % 4),
                np.ones(2),
                done,
                ~done & False,
                {"final_obs": np.ones((2, 2))},
            )

    run = train(small(tmp_path, steps=60, eval_every=0), env=Bare)
    assert counters_of(run)["step"] == 60


def test_a_name_is_no_environment(tmp_path):
    for argument in ("env", "eval_env"):
        with pytest.raises(SACError, match=r"'Pusher-v5' is a name .* in TrainConfig\(env=...\)"):
            train(small(tmp_path), **{argument: "Pusher-v5"})
    with pytest.raises(SACError, match=r"pass gymnasium.make\('Pusher-v5'\)"):
        SACAgent.from_env("Pusher-v5")


class Endless(Clockwork):
    def step(self, action):
        observation, reward, *_ = super().step(action)
        return observation, reward, False, False, {}


def test_episodes_without_end_are_told_once(tmp_path, capsys, monkeypatch):
    for module in (trainer, evaluate):
        monkeypatch.setattr(module, "MAX_EPISODE_STEPS", 30)
    train(small(tmp_path, steps=250), env=Endless)
    told = capsys.readouterr().out
    assert told.count("cut at 30 steps: has Endless no time limit? gymnasium.wrappers.TimeLimit around") == 1
    assert "--make-kwargs" not in told
    train(small(tmp_path, steps=250))  # by name, for which --make-kwargs serve
    assert "cut at 30 steps: has Pendulum-v1 no time limit? gymnasium.make's" in capsys.readouterr().out
    train(small(tmp_path, steps=250), env=lambda: TimeLimit(Endless(), 20))
    assert "no time limit?" not in capsys.readouterr().out


def test_normalising_wrappers_are_advised_against(tmp_path, capsys):
    train(small(tmp_path), env=lambda: NormalizeReward(NormalizeObservation(Clockwork())))
    lines = capsys.readouterr().out.splitlines()
    told = [line.split()[1] for line in lines if "has statistics of its own" in line]
    assert told == ["NormalizeReward", "NormalizeObservation"]


class Strong(Clockwork):
    action_space = Box(-1e30, 1e30, (2,), np.float32)


def test_actions_whose_squares_overflow_are_still_numbers(tmp_path):
    run = train(small(tmp_path, steps=100), env=Strong)
    assert counters_of(run)["step"] == 100


def test_a_temperature_that_nothing_reads_is_told(tmp_path, capsys):
    sac = {"hidden_dim": 8, "batch_size": 16, "buffer_capacity": 2000, "alpha": 0.05}
    train(small(tmp_path, sac=SACConfig(**sac)))
    assert "alpha=0.05 is not used, since the temperature is learned" in capsys.readouterr().out
    fixed = SACConfig(**sac, automatic_entropy_tuning=False)
    train(small(tmp_path, sac=fixed))
    assert "is not used" not in capsys.readouterr().out
    train(small(tmp_path, sac=dataclasses.replace(fixed, initial_alpha=0.05)))
    told = capsys.readouterr().out
    assert "initial_alpha=0.05 is not used, since the temperature is fixed, at --alpha" in told


def test_a_target_entropy_without_its_minus_sign_is_told(tmp_path, capsys):
    sac = {"hidden_dim": 8, "batch_size": 16, "buffer_capacity": 2000}
    train(small(tmp_path, sac=SACConfig(**sac, target_entropy_per_dim=1.0)))
    assert "target entropy 1 cannot be reached: 1 actions have 0.693 at the most" in capsys.readouterr().out
    train(small(tmp_path, sac=SACConfig(**sac, target_entropy=0.5)))
    assert "cannot be reached" not in capsys.readouterr().out


@pytest.mark.parametrize("engine", ["reference", pytest.param("native", marks=pytest.mark.native)])
def test_a_temperature_of_zero_can_be_learned_with(tmp_path, engine):
    sac = SACConfig(
        hidden_dim=8, batch_size=16, buffer_capacity=2000, alpha=0.0, automatic_entropy_tuning=False
    )
    run = train(small(tmp_path, sac=sac, engine=engine))
    assert read_csv(run / "progress.csv")[-1]["alpha"] == 0
    assert counters_of(run)["step"] == 300


def test_what_a_resumed_run_will_lose_is_told_at_the_start(tmp_path, capsys):
    train(small(tmp_path, steps=60, eval_every=0), env=Clockwork)
    line = "a resumed run will begin with the next episode: Clockwork has no get_state() and set_state()"
    assert capsys.readouterr().out.count(line) == 1
    train(small(tmp_path, steps=60, eval_every=0))
    assert "a resumed run" not in capsys.readouterr().out


class Stubborn(Clockwork):
    def close(self):
        raise RuntimeError("the gripper is stuck")


def test_an_environment_that_cannot_be_closed_costs_nothing(tmp_path, capsys):
    run = train(small(tmp_path, steps=60, eval_every=0), env=Stubborn)
    assert counters_of(run)["step"] == 60
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("closing ")]
    assert len(told) == 2  # training's and evaluation's
    assert "closing Stubborn: it raised RuntimeError: the gripper is stuck" in told[0]
    assert f"{__file__}:" in told[0]


class Choosy(gymnasium.Env):
    """Takes `seed` as an argument of its own, and refuses others."""

    observation_space = Box(-1.0, 1.0, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, seed=None, files=None):
        self.number = seed
        if files is not None:
            files["xml_file"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.full(2, self.number / 10, np.float32), {}

    def step(self, action):
        return np.full(2, self.number / 10, np.float32), 0.0, False, False, {}


@pytest.fixture
def choosy():
    gymnasium.register("Choosy-v0", entry_point=Choosy, max_episode_steps=10)
    yield
    del gymnasium.registry["Choosy-v0"]


def test_make_kwargs_all_go_to_the_constructor(tmp_path, choosy):
    run = train(small(tmp_path, env="Choosy-v0", steps=60, make_kwargs={"seed": 7}))
    np.testing.assert_array_equal(replay_of(run)[0]["obs"], np.float32(0.7))
    assert evaluate.main([str(run), "--episodes", "1"]) == 0


def test_a_constructor_that_fails_is_told_with_its_place(tmp_path, capsys, choosy):
    flags = ["--env", "Choosy-v0", "--out", str(tmp_path), "--make-kwargs"]
    assert main([*flags, '{"files": {}}']) == 2
    error = capsys.readouterr().err
    assert "environment 'Choosy-v0' could not be made: it raised KeyError: 'xml_file'" in error
    assert f"({__file__}:" in error
    assert main([*flags, '{"num_envs": 4}']) == 2
    error = capsys.readouterr().err
    assert "unexpected keyword argument 'num_envs'" in error
    assert "did you mean" not in error
