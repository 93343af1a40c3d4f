"""Evaluation: repeatable scores, baselines, and a video whose failure costs nothing."""

import dataclasses
import json
import os
import subprocess
import sys

import gymnasium
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.spaces import Box, Dict
from gymnasium.wrappers import TimeLimit

from sacfast import evaluate as module
from sacfast.agent import SACAgent
from sacfast.config import SACConfig, TrainConfig
from sacfast.envs import check_spaces
from sacfast.errors import CheckpointError, SACError
from sacfast.evaluate import (
    baselines,
    choose_mujoco_gl,
    evaluate,
    load_agent,
    main,
    random_policy,
    record_video,
    zero_policy,
)
from sacfast.run_folder import RunFolder, write_json
from sacfast.vector import vectorise

TINY = SACConfig(hidden_dim=8, batch_size=16, buffer_capacity=100)


class Sum(gymnasium.Env):
    """Reward: the sum of the action. Episodes of `seed % 10 + 1` steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium's interface)
    observation_space = Box(-1, 1, (3,), np.float32)

    def __init__(self, low=-2.0, high=4.0, render_mode=None):
        self.action_space = Box(low, high, (2,), np.float32)
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = seed % 10 + 1
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(3, np.float32), float(action.sum()), self.left == 0, False, {}

    def render(self):
        return np.full((32, 48, 3), 40 * self.left % 255, np.uint8)


BOUNDS = check_spaces(Sum()).bounds


def untrained_run(folder, env_id):
    """A run folder as training leaves it, with an untrained agent."""
    config = TrainConfig(env=env_id, sac=TINY)
    agent = SACAgent.from_env(gymnasium.make(env_id), seed=1, engine="reference", **TINY.to_dict())
    write_json(folder / "config.json", config.to_dict())
    agent.save(folder / "best.safetensors", replay_buffer=False, extra={"step": 1234})
    return folder


@pytest.fixture
def run(tmp_path):
    return untrained_run(tmp_path, "Pendulum-v1")


def test_statistics_by_hand():
    score = evaluate(lambda _: np.array([1.0, 2.0]), Sum(), episodes=3, seed=10)
    assert score.lengths == (1, 2, 3)
    assert score.returns == (3.0, 6.0, 9.0)
    assert (score.mean, score.min, score.max) == (6.0, 3.0, 9.0)
    assert score.std == pytest.approx(np.sqrt(6.0))
    assert str(score) == "6.00 ± 2.45"


def test_the_same_seed_gives_the_same_returns_and_another_seed_others():
    agent = SACAgent.from_env(gymnasium.make("Pendulum-v1"), seed=1, engine="reference", **TINY.to_dict())
    first, again, other = (evaluate(agent, "Pendulum-v1", 2, seed) for seed in (5, 5, 6))
    assert first == again
    assert first.returns != other.returns
    assert first.returns[1] == other.returns[0]  # episode i starts from seed + i


def test_baselines_use_the_environments_units():
    scores = baselines(Sum(), 10, 0)
    assert scores["zero"].mean == 0.0
    assert scores["random"] == baselines(Sum(), 10, 0)["random"]
    actions = np.stack([policy(None) for policy in [random_policy(BOUNDS, 0)] for _ in range(2000)])
    assert -2 <= actions.min() < -1.9
    assert 3.9 < actions.max() <= 4
    assert actions.mean() == pytest.approx(1.0, abs=0.12)  # 3 standard errors of a uniform of width 6


def test_the_zero_action_respects_bounds_without_zero():
    np.testing.assert_array_equal(zero_policy(check_spaces(Sum(low=1.0)).bounds)(None), [1.0, 1.0])


def test_an_endless_episode_is_cut(monkeypatch):
    monkeypatch.setattr(module, "MAX_EPISODE_STEPS", 7)
    env = Sum()
    env.reset = lambda seed: (setattr(env, "left", 10**9), (np.zeros(3), {}))[1]
    assert evaluate(lambda _: np.zeros(2), env, 1, 0).lengths == (7,)


@pytest.mark.parametrize(
    ("name", "value"), [("episodes", 0), ("episodes", 1.5), ("seed", -1), ("seed", None), ("seed", True)]
)
def test_bad_numbers_are_refused(name, value):
    with pytest.raises(SACError, match=f"{name}={value} must be a whole number of at least"):
        evaluate(lambda _: np.zeros(2), Sum(), **{name: value})


def test_arguments_for_an_environment_that_is_made_already_are_refused():
    env = gymnasium.make("Pendulum-v1")
    with pytest.raises(SACError, match="episode: for an environment that is made by its name"):
        evaluate(lambda obs: np.zeros(1), env, episode=20)


def test_bad_numbers_on_the_command_line_are_one_sentence(run, capsys):
    for flags in (["--seed", "-1"], ["--episodes", "0"]):
        assert main([str(run), *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {flags[0][2:]}={flags[1]} must be")
        assert error.count("\n") == 1


def test_command_line_prints_a_table_or_json(run, capsys):
    assert main([str(run), "--episodes", "2"]) == 0
    table = capsys.readouterr().out
    assert main([str(run), "--episodes", "2", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert "Pendulum-v1, 2 episodes (best policy, step 1,234)" in table
    assert (values["env"], values["checkpoint"], values["step"]) == ("Pendulum-v1", "best", 1234)
    agent, _, _ = load_agent(run, engine="reference")
    assert list(evaluate(agent, "Pendulum-v1", 2).returns) == values["returns"]
    assert values["lengths"] == [200, 200]
    others = baselines(gymnasium.make("Pendulum-v1"), 2, module.REPORT_SEED)
    rows = {"policy": values}
    for name, other in others.items():
        assert values["baselines"][name] == json.loads(json.dumps(dataclasses.asdict(other)))
        rows[f"{name} actions"] = values["baselines"][name]
    for name, row in rows.items():
        (line,) = (line for line in table.splitlines() if line.strip().startswith(name))
        wanted = [f"{row[key]:,.2f}" for key in ("mean", "std", "min", "max")]
        assert line.split()[-5:] == [*wanted, "200.0"]


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (lambda o, r, *rest: (o, np.nan, *rest), "Broken returned at step 3 the reward nan"),
        (lambda o, r, *rest: (o, None, *rest), r"Broken, at step 3, returned the reward None"),
        (lambda o, *rest: (o + [0, np.nan, 0], *rest), "Broken returned at step 3 .* entry 1 is nan"),
        (lambda o, *rest: (o[:2], *rest), r"Broken, at step 3, .* shape \[2\], but announced \[3\]\.$"),
        (lambda *results: results[:4], "Broken, at step 3, returned 4 values from step instead of"),
    ],
)
@pytest.mark.parametrize("vector", [False, True])
def test_what_training_refuses_is_named_with_its_step(spoiled, words, vector):
    class Broken(Sum):
        def step(self, action):
            results = super().step(action)
            return spoiled(*results) if self.left == 7 else results

    env = vectorise(Broken, 2, "sync") if vector else Broken()
    if vector:  # two environments: the step counts both
        words = words.replace("Broken", r"SyncVectorEnv \(environment 0 of 2\)").replace("3", "5", 1)
    with pytest.raises(SACError, match=words):
        evaluate(zero_policy(BOUNDS), env, 1, seed=9)


def test_the_command_line_respects_checkpoint_and_seed(run, capsys):
    last = SACAgent.from_env(gymnasium.make("Pendulum-v1"), seed=2, engine="reference", **TINY.to_dict())
    RunFolder(run).save(last, 7, {"counters": {"step": 7}})
    flags = ["--seed", "5", "--episodes", "1", "--no-baselines", "--json"]
    printed = {}
    for which in ("last", "best"):
        assert main([str(run), "--checkpoint", which, *flags]) == 0
        printed[which] = json.loads(capsys.readouterr().out)
    assert (printed["last"]["step"], printed["last"]["checkpoint"]) == (7, "last")
    assert printed["last"]["returns"] == list(evaluate(last, "Pendulum-v1", 1, 5).returns)
    assert printed["best"]["step"] == 1234
    assert printed["best"]["returns"] != printed["last"]["returns"]


def test_a_reset_that_training_refuses_is_named():
    class Broken(Sum):
        def reset(self, **options):
            return super().reset(**options)[0] * np.inf, {}

    with pytest.raises(SACError, match="Broken returned at step 0 an observation whose entry 0 is -?inf"):
        evaluate(zero_policy(BOUNDS), Broken(), 1)


@pytest.mark.parametrize(
    ("error", "status", "words"), [(ValueError, 2, "raised ValueError: cold"), (KeyboardInterrupt, 130, "")]
)
def test_what_an_environment_raises_is_one_sentence_on_the_command_line(
    run, capsys, monkeypatch, error, status, words
):
    def fail(*_):
        raise error("cold")

    monkeypatch.setattr(PendulumEnv, "step", fail)
    assert main([str(run)]) == status
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == bool(words)


def test_baselines_can_be_left_out(run, capsys, monkeypatch):
    monkeypatch.setattr(module, "baselines", lambda *_: pytest.fail("baselines were run"))
    assert main([str(run), "--episodes", "1", "--no-baselines"]) == 0
    assert "actions" not in capsys.readouterr().out
    assert main([str(run), "--episodes", "1", "--no-baselines", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["baselines"] == {}


class Described(Sum):
    """Sum, with observations by name."""

    observation_space = Dict({"place": Box(-1, 1, (2,)), "age": Box(0, 9, (1,))})

    def reset(self, *, seed=None, options=None):
        return self.named(super().reset(seed=seed)[0]), {}

    def step(self, action):
        obs, *rest = super().step(action)
        return self.named(obs), *rest

    def named(self, obs):
        return {"place": obs[:2], "age": np.abs(obs[2:])}


def test_observations_by_name_are_flattened_as_in_training(tmp_path):
    env = Described()
    seen = []

    def act(observation):
        seen.append(observation)
        return np.ones(2)

    assert evaluate(act, env, 2, seed=1).returns == (4.0, 6.0)
    assert baselines(env, 2, seed=1) == baselines(Sum(), 2, seed=1)
    for row, seed in ((seen[0], 1), (seen[2], 2)):
        start = Sum().reset(seed=seed)[0]
        np.testing.assert_array_equal(row, [abs(start[2]), start[0], start[1]])  # as Dict sorts its names
    env.reset(seed=1)  # still open


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_observations_that_are_no_arrays_are_taken_as_in_training(tmp_path, kind):
    class Loose(Described):
        def named(self, obs):
            return kind(obs)

    env = Loose()
    env.observation_space = Box(-1, 1, (3,), np.float32)
    agent = SACAgent.from_env(env, seed=1, engine="reference", **TINY.to_dict())
    assert evaluate(agent, env, 3) == evaluate(agent, Sum(), 3)


def test_a_runs_policy_takes_no_memory_for_transitions(run):
    agent = load_agent(run)[0]
    assert agent.replay_buffer.nbytes == 0 and agent.replay_buffer.capacity == TINY.buffer_capacity
    agent.replay_buffer.push(np.zeros(3), np.zeros(1), 0.0, np.zeros(3), False)
    assert agent.replay_buffer.nbytes > 0


def test_a_run_may_be_named_by_text(run):
    assert load_agent(str(run))[1] == load_agent(run)[1]


def test_a_file_where_a_run_should_be_brings_up_what_reads_it(run):
    with pytest.raises(SACError, match="is a file, not the folder of a run; SACAgent.from_checkpoint reads"):
        load_agent(run / "best.safetensors")


def test_what_is_not_a_run_is_refused(tmp_path, run, capsys):
    assert main([str(tmp_path / "absent")]) == 2
    assert "absent is not the folder of a run" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"has no checkpoint"):
        load_agent(run, "last")
    (run / "best.safetensors").write_bytes((run / "best.safetensors").read_bytes()[:500])
    assert main([str(run)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    (run / "config.json").write_text("{")
    with pytest.raises(SACError, match=r"config.json cannot be read"):
        load_agent(run)


def test_a_run_of_an_environment_of_ones_own_is_scored_in_python(run, capsys):
    config = json.loads((run / "config.json").read_text()) | {"env": "MyRobot", "given": ["env"]}
    write_json(run / "config.json", config)
    assert main([str(run)]) == 2
    error = capsys.readouterr().err
    assert "takes its place" not in error and error.count("\n") == 1
    assert "'MyRobot' is not registered" in error
    remedy = f"evaluate(load_agent({str(run)!r})[0], env)"
    imports = "from sacfast.evaluate import evaluate; from sacfast.runs import load_agent"
    assert error.endswith(f"score it there: {imports}; {remedy}\n")
    assert eval(
        remedy, {"evaluate": evaluate, "load_agent": load_agent, "env": gymnasium.make("Pendulum-v1")}
    )


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")  # nothing here renders with MuJoCo: no need to look for a backend
    gymnasium.register("SumForVideo-v0", entry_point=Sum, max_episode_steps=5)
    yield "SumForVideo-v0"
    del gymnasium.registry["SumForVideo-v0"]


def decoded(path):
    with imageio.get_reader(path) as reader:
        return [frame for frame in reader]  # list() would ask for a length, which is infinite


def test_a_video_holds_every_frame_of_the_episode(registered, tmp_path):
    path = tmp_path / "episode.mp4"
    module.record_video(lambda _: np.zeros(2, np.float32), registered, path, seed=3)
    frames = decoded(path)
    assert len(frames) == 5  # the first observation's and one per step
    assert frames[0].shape == (32, 48, 3)


def test_an_environment_of_ones_own_is_filmed_and_left_open(tmp_path):
    env, path = TimeLimit(Sum(render_mode="rgb_array"), 4), tmp_path / "episode.mp4"
    env.close = lambda: pytest.fail("it was closed")
    record_video(zero_policy(BOUNDS), env, str(path), seed=9)
    assert len(decoded(path)) == 5
    with pytest.raises(SACError, match=r"no video of Sum .*render_mode is None; make it with"):
        record_video(zero_policy(BOUNDS), Sum(), path)


def test_the_command_line_films_mujoco_without_a_display(tmp_path, monkeypatch):
    """In a process of its own: MUJOCO_GL counts only until mujoco is imported, which scoring does."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", "")
    environment = dict(os.environ)
    try:
        choose_mujoco_gl()
    except SACError as error:
        pytest.skip(str(error))
    run, path = untrained_run(tmp_path, "Pusher-v5"), tmp_path / "pusher.mp4"
    command = [sys.executable, "-W", "ignore", "-m", "sacfast.evaluate", str(run), "--episodes", "1"]
    result = subprocess.run(
        [*command, "--video", str(path)], env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert f"video: {path}" in result.stdout
    frames = decoded(path)
    assert len(frames) == 101  # the first observation's and one per step
    assert min(frame.std() for frame in frames) > 5  # of 255: a scene, not one colour
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50  # something moved


def test_a_failing_renderer_leaves_the_scores_and_one_sentence(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    real = module.make_env

    def broken(env_id, **kwargs):
        if "render_mode" in kwargs:
            raise RuntimeError("no OpenGL\nlong story")
        return real(env_id, **kwargs)

    monkeypatch.setattr(module, "make_env", broken)
    assert main([str(run), "--episodes", "1", "--video", str(tmp_path / "x.mp4")]) == 2
    output = capsys.readouterr()
    assert "1 episodes" in output.out
    assert output.err == f"error: no video of Pendulum-v1 at {tmp_path / 'x.mp4'}: no OpenGL\n"


def test_the_first_backend_that_works_is_chosen(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    tried, works = [], {"osmesa"}

    def attempt(command, *, env, **_):
        tried.append(env["MUJOCO_GL"])
        if env["MUJOCO_GL"] not in works:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", attempt)
    monkeypatch.setenv("MUJOCO_GL", "")
    choose_mujoco_gl()
    assert os.environ["MUJOCO_GL"] == "osmesa"
    choose_mujoco_gl()  # set already: left alone
    assert tried == ["egl", "osmesa"]
    monkeypatch.setenv("MUJOCO_GL", "")
    works.clear()
    with pytest.raises(SACError, match="neither EGL nor OSMesa"):
        choose_mujoco_gl()


@pytest.fixture
def without_opengl(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)

    def fail(command, **_):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fail)


def test_an_environment_with_another_renderer_needs_no_opengl_of_mujoco(registered, without_opengl, tmp_path):
    path = tmp_path / "episode.gif"
    record_video(zero_policy(BOUNDS), registered, path, seed=3)
    assert len(decoded(path)) == 5


@pytest.mark.parametrize("loaded", [True, False])
def test_a_mujoco_that_cannot_render_is_told_with_the_remedy(
    registered, without_opengl, tmp_path, monkeypatch, loaded
):
    def render(env):
        raise RuntimeError("no context")

    monkeypatch.setattr(Sum, "render", render)
    monkeypatch.setitem(sys.modules, "mujoco", module)
    if not loaded:
        monkeypatch.delitem(sys.modules, "mujoco")
    with pytest.raises(SACError) as caught:
        record_video(zero_policy(BOUNDS), registered, tmp_path / "episode.gif")
    assert "no context" in str(caught.value)
    assert ("neither EGL nor OSMesa can render here" in str(caught.value)) == loaded


def test_a_missing_encoder_is_named_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(SACError, match=r"imageio_ffmpeg is not installed; pip install 'sacfast\[video\]'"):
        record_video(lambda obs: np.zeros(7), "Pusher-v5", tmp_path / "v.mp4")


def test_actions_that_would_mean_others_are_refused(tmp_path):
    agent = SACAgent.from_env(Sum(), engine="reference", **TINY.to_dict())
    words = r"the agent has actions in \[\[-2.0, -2.0\], \[4.0, 4.0\]\] and \w+ in \[\[-1.0, .* the wrappers"
    with pytest.raises(SACError, match=words):
        evaluate(agent, Sum(-1, 1))
    with pytest.raises(SACError, match=words):
        evaluate(agent, vectorise(lambda: Sum(-1, 1), 2, "sync"))
    with pytest.raises(SACError, match=words):
        record_video(agent, Sum(-1, 1, render_mode="rgb_array"), tmp_path / "x.gif")


def test_an_environment_that_cannot_be_closed_costs_no_score(run, monkeypatch, capsys):
    def stuck(self):
        raise RuntimeError("the gripper is stuck")

    monkeypatch.setattr(gymnasium.envs.classic_control.PendulumEnv, "close", stuck)
    assert main([str(run), "--episodes", "2"]) == 0
    told = capsys.readouterr()
    assert "random" in told.out and "it raised RuntimeError: the gripper is stuck" in told.err
