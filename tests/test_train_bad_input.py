"""Whatever is wrong with the settings is one sentence, and neither leaves nor changes a file."""

import json
import sys

import gymnasium
import pytest
from gymnasium.spaces import Discrete
from gymnasium.wrappers import RescaleAction, TimeLimit, TransformReward
from training_runs import (
    Clockwork,
    assert_one_error_line,
    small,
    start,
)

from sacfast import native
from sacfast.errors import NativeUnavailable, SACError
from sacfast.evaluate import main as evaluate_main
from sacfast.logger import read_csv
from sacfast.replay import buffer
from sacfast.run_folder import latest
from sacfast.train import main, parse, train

WAY = "from sacfast.train import parse, train; train(parse("


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--env", "Pushr-v5"], ["'Pushr-v5'", "did you mean Pusher-v5?"]),
        (["--env", "CartPole-v1"], ["Discrete(2)", "continuous"]),
        (["--batch-size", "300", "--buffer-capacity", "200"], ["batch_size=300", "buffer_capacity=200"]),
        (["--buffer-capacity", "-1"], ["buffer_capacity=-1", "at least 1"]),
        (["--gamma", "2"], ["gamma=2.0", "at most 1"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--device", "toaster"], ["toaster"]),
        (["--engine", "warp"], ["warp", "reference"]),
        (["--steps", "10"], ["steps=10", "--learning-starts"]),
        (["--hidden-dim", "0"], ["hidden_dim=0", "1 to 4 widths"]),
        (["--hidden-dim", "64", "0"], ["hidden_dim=(64, 0)"]),
        (["--hidden-dim", "1", "2", "3", "4", "5"], ["hidden_dim=(1, 2, 3, 4, 5)"]),
        (["--utd", "0"], ["utd=0.0", "above 0"]),
        (["--utd", "1e-6"], ["utd=1e-06 makes no update", "--utd"]),
        (["--actor-update-period", "0"], ["actor_update_period=0"]),
        (["--precision", "bf8"], ["precision='bf8'", "bf16x3"]),
        (["--precision", "bf16"], ["precision='bf16' needs engine='native'"]),
        (["--out", "{file}"], ["--out", "cannot be written to", "choose another folder"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path, capsys, monkeypatch, flags, words):
    builds: list = []
    monkeypatch.setattr(native, "available", lambda *_: builds.append(flags))
    file = tmp_path / "file"
    file.touch()
    flags = [flag.format(file=file) for flag in flags]
    assert main(["--out", str(tmp_path / "runs"), "--threads", "1", "--engine", "reference", *flags]) == 2
    error = capsys.readouterr().err
    assert_one_error_line(error)
    for word in words:
        assert word in error
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert not builds  # half a minute of compiling, only to be told this


def test_an_engine_that_cannot_be_built_is_one_line(tmp_path, capsys, monkeypatch):
    def unavailable():
        raise NativeUnavailable("nothing is compiled here; engine='auto' does without")

    monkeypatch.setattr(native, "engine_library", unavailable, raising=False)
    assert main(["--engine", "native", "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert_one_error_line(error)
    assert "engine='auto'" in error
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_a_buffer_that_does_not_fit_is_told_before_the_first_step(tmp_path, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(buffer, "Ring", full)
    with pytest.raises(SACError, match=r"2,000 transitions needs .* lower the capacity"):
        train(small(tmp_path))
    assert not list((tmp_path / "runs").iterdir())


def test_a_tracker_that_refuses_leaves_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SACError, match="--wandb needs wandb"):
        train(small(tmp_path, wandb="robots"))
    assert not list((tmp_path / "runs" / "Pendulum-v1").iterdir())
    run = train(small(tmp_path, steps=60, eval_every=0))
    before = contents(run)
    assert main(["--resume", str(run), "--steps", "90", "--wandb", "robots"]) == 2
    assert contents(run) == before


def test_unknown_flags_end_with_status_two(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--batchsize", "3"])
    assert caught.value.code == 2
    assert "--batch-size" in capsys.readouterr().err


def contents(run):
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_resume_refuses_contradictions_and_needs_a_run(tmp_path, capsys):
    run = train(small(tmp_path, steps=60, eval_every=0))
    before = contents(run)
    for flags, words in (
        (["--lr", "0.1"], "--lr 0.1 contradicts the run being resumed, which has 0.0003"),
        (["--env", "Pusher-v5"], "--env Pusher-v5 contradicts"),
        (["--steps", "55"], "--steps 55 is below the 60"),
    ):
        assert main(["--resume", str(run), *flags]) == 2
        assert words in capsys.readouterr().err
    assert contents(run) == before
    assert main([f"--resume={tmp_path}"]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    for name in ("agent.safetensors", "arrays.safetensors", "state.json"):
        path = latest(run) / name
        whole = path.read_bytes()
        path.write_bytes(whole[:100])
        assert main(["--resume", str(run), "--steps", "90"]) == 2
        error = capsys.readouterr().err
        assert_one_error_line(error)
        assert f"{path} is damaged" in error
        path.write_bytes(whole)
    assert contents(run) == before


def test_settings_of_another_version_are_named(tmp_path, capsys):
    run = train(small(tmp_path, steps=60, eval_every=0))
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"foresight": 3}))
    capsys.readouterr()
    assert main(["--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert_one_error_line(error)
    assert f"{path} was written by another version of sacfast, or by hand: " in error and "foresight" in error


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (b"\xff\xfe\x00step", "cannot be read"),
        (b"time,mean\n1,2\n", "it has no column step"),
        (None, "Is a directory"),
    ],
)
def test_a_damaged_log_is_one_sentence_on_resuming(tmp_path, capsys, damage, words):
    run = train(small(tmp_path, steps=60, eval_every=0))
    log = run / "evaluation.csv"
    log.unlink()
    if damage is None:
        log.mkdir()
    else:
        log.write_bytes(damage)
    capsys.readouterr()
    assert main(["--resume", str(run), "--steps", "90"]) == 2
    error = capsys.readouterr().err
    assert_one_error_line(error)
    assert f"the log {log}" in error
    assert words in error
    assert json.loads((run / "config.json").read_text())["steps"] == 60  # what was refused leaves nothing


def test_unregistered_environments_and_their_mistakes(tmp_path):
    with pytest.raises(SACError, match="pass a function that makes it"):
        train(small(tmp_path), env=Clockwork())
    env = gymnasium.make("Pendulum-v1")
    run = train(small(tmp_path, env="Pusher-v5", steps=60, eval_every=0), env=env)
    assert run.parent.name == "Pendulum-v1"
    env.reset()  # still open

    class Buttons(Clockwork):
        action_space = Discrete(3)

    with pytest.raises(SACError, match=r"Buttons has actions Discrete\(3\)"):
        train(small(tmp_path), env=Buttons)


def test_a_robot_that_is_no_environment(tmp_path, capsys):
    class Robot:
        def reset(self): ...
        def step(self, action): ...

    for source in (Robot(), Robot):
        with pytest.raises(
            SACError, match=r"env= gave a Robot, which is no gymnasium\.Env; derive its class"
        ):
            train(small(tmp_path), env=source)
    with pytest.raises(SACError, match="env= gave a NoneType"):
        train(small(tmp_path), env=lambda: None)
    assert not list(tmp_path.rglob("config.json"))
    assert capsys.readouterr().err == ""


def test_settings_that_an_environment_given_in_python_does_not_have_are_told(tmp_path, capsys):
    options = {"num_envs": 3, "make_kwargs": {"render_mode": None}, "steps": 60, "eval_every": 0}
    train(small(tmp_path, **options), env=gymnasium.make_vec("Pendulum-v1", 2))
    said = capsys.readouterr().out
    assert "make_kwargs is not used" in said
    assert "num_envs=3 is not used: env= gives a vector of 2" in said


def test_a_wrapper_that_keeps_its_arguments_to_itself(tmp_path):
    class Doubled(gymnasium.RewardWrapper):
        def reward(self, reward):
            return 2 * reward

    with pytest.raises(SACError, match=r"no second Pendulum-v1 .*pass a function that makes it"):
        train(small(tmp_path), env=Doubled(gymnasium.make("Pendulum-v1")))


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda: TimeLimit(
            gymnasium.make("Pendulum-v1"), 1000
        ),  # of which Gymnasium's record keeps the outermost
        lambda: TimeLimit(RescaleAction(gymnasium.make("Pendulum-v1", max_episode_steps=-1), -1.0, 1.0), 100),
        lambda: gymnasium.make_vec("Pendulum-v1", 2, vectorization_mode="sync", wrappers=[TransformReward]),
    ],
)
def test_another_task_is_no_evaluation(tmp_path, monkeypatch, wrapped):
    monkeypatch.setattr(TransformReward, "__init__", lambda self, env: gymnasium.Wrapper.__init__(self, env))
    monkeypatch.setattr(TransformReward, "func", staticmethod(float), raising=False)
    with pytest.raises(
        SACError, match="no second Pendulum-v1 can be made for evaluation .*or eval_env as well"
    ):
        train(small(tmp_path), env=wrapped())


def test_a_vectors_own_time_limit_is_its_evaluations(tmp_path):
    envs = gymnasium.make_vec("Pendulum-v1", 2, vectorization_mode="sync", max_episode_steps=25)
    run = train(small(tmp_path, steps=60, eval_every=0), env=envs)
    assert {row["mean_length"] for row in read_csv(run / "evaluation.csv")} == {25}


def test_an_evaluation_that_does_not_fit_is_refused(tmp_path):
    config = small(tmp_path)
    with pytest.raises(SACError, match=r"actions in .* and evaluation in .*same wrappers"):
        train(config, eval_env=lambda: RescaleAction(gymnasium.make("Pendulum-v1"), -1.0, 1.0))
    with pytest.raises(SACError, match="training observes 3 numbers and evaluation 2"):
        train(config, eval_env=Clockwork)
    assert not list(tmp_path.rglob("config.json"))


def test_a_run_goes_on_in_the_environment_that_it_was_begun_in(tmp_path, capsys):
    def make():
        return TransformReward(gymnasium.make("Pendulum-v1"), lambda reward: reward / 10)

    run = train(small(tmp_path, steps=120), env=make, eval_env=make)
    capsys.readouterr()
    assert main(["--resume", str(run), "--steps", "150"]) == 2
    error = capsys.readouterr().err
    assert_one_error_line(error)
    assert f"was trained with env= and eval_env=, which only your program can make; to go on: {WAY}" in error
    assert "env=..., eval_env=...)" in error
    with pytest.raises(SACError, match=r"was trained with eval_env=,"):
        train(parse(["--resume", str(run), "--steps", "150"]), env=make)
    assert train(parse(["--resume", run, "--steps", "150"]), env=make, eval_env=make) == run
    capsys.readouterr()
    assert evaluate_main([str(run), "--episodes", "1"]) == 0
    assert "environment given in Python; now a plain Pendulum-v1 takes its place" in capsys.readouterr().err


def test_a_mistake_on_the_real_command_line(tmp_path):
    process = start("--env", "Pushr-v5", "--out", str(tmp_path))
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (2, "")
    assert_one_error_line(errors)
