"""The training loop: what is stored, what is repeated exactly, what survives interruptions and mistakes."""

import dataclasses
import json
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from sacfast import checkpoint, trainer
from sacfast.config import SACConfig, TrainConfig
from sacfast.envs import ActionBounds
from sacfast.errors import CheckpointError, SACError
from sacfast.evaluate import evaluate, load_agent
from sacfast.logger import TIMING_FIELDS, read_csv
from sacfast.plotting import plot_run
from sacfast.train import main, parse, physical_cores, train
from sacfast.trainer import StopRequest, episode_seed

SMALL = SACConfig(hidden_dim=8, batch_size=16, buffer_capacity=2000)
FLAGS = [
    *("--hidden-dim", "8", "--batch-size", "16", "--buffer-capacity", "2000"),
    *("--engine", "reference", "--threads", "1", "--eval-episodes", "1"),
]


@pytest.fixture(autouse=True)
def quick_and_clean(monkeypatch):
    """No pictures, which take longer than these runs, unless a test asks for them; threads are put back."""
    before = torch.get_num_threads()
    monkeypatch.setattr(trainer, "plot_run", lambda _: [])
    yield
    torch.set_num_threads(before)


def small(tmp_path, **changes):
    values = {
        "env": "Pendulum-v1",
        "steps": 300,
        "engine": "reference",
        "out": str(tmp_path / "runs"),
        "learning_starts": 50,
        "eval_every": 100,
        "eval_episodes": 1,
        "checkpoint_every": 0,
        "log_every": 50,
        "threads": 1,
        "tensorboard": False,
        "sac": SMALL,
    }
    return TrainConfig(**{**values, **changes})


class Clockwork(gymnasium.Env):
    """Observation (t, episode), reward t. Even episodes terminate at t = 3, odd ones are cut off at t = 5."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
    made: list = []  # noqa: RUF012 (every instance, for the test to look into)

    def __init__(self):
        self.episode, self.actions, self.seeds = -1, [], []
        self.made.append(self)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        self.seeds.append(seed)
        return np.array([0.0, self.episode]), {}

    def step(self, action):
        self.actions.append(np.array(action))
        self.t += 1
        even = self.episode % 2 == 0
        observation = np.array([self.t, self.episode], np.float64)
        return observation, float(self.t), even and self.t == 3, not even and self.t == 5, {}


def replay_of(run):
    tensors, meta = checkpoint.read(run / "last.safetensors")
    return {k.removeprefix("replay."): v.numpy() for k, v in tensors.items() if k.startswith("replay.")}, meta


def test_transitions_are_stored_as_they_happened(tmp_path):
    Clockwork.made.clear()
    run = train(small(tmp_path, steps=80, learning_starts=40, eval_every=0), env=Clockwork)
    env, replay = Clockwork.made[0], replay_of(run)[0]
    t, episode = replay["next_obs"].T
    assert len(t) == 80
    ends = np.flatnonzero(replay["terminated"])
    assert set(zip(t[ends], episode[ends] % 2, strict=True)) == {(3.0, 0.0)}
    assert len(ends) == 10  # a terminating and a truncated episode take 8 steps together
    truncated = np.flatnonzero((t == 5) & (episode % 2 == 1))
    assert len(truncated) == 10
    assert not replay["terminated"][truncated].any()
    np.testing.assert_array_equal(
        replay["obs"][:, 0], t - 1
    )  # at a reset too: never the next episode's start
    np.testing.assert_array_equal(replay["obs"][:, 1], episode)
    np.testing.assert_array_equal(replay["reward"], t)
    bounds = ActionBounds.from_space(Clockwork.action_space)
    np.testing.assert_allclose(replay["action"], bounds.to_unit(np.array(env.actions)), atol=1e-6)
    assert np.ptp(env.actions, axis=0)[1] > 3  # the environment gets its own units, not [-1, 1]
    assert env.seeds[:3] == [episode_seed(0, i) for i in range(3)]
    rows = read_csv(run / "episodes.csv")
    assert [row["length"] for row in rows] == [3, 5] * 10
    assert [row["return"] for row in rows[:2]] == [6, 15]
    assert json.loads((run / "config.json").read_text())["env"] == "Clockwork"


def logs_of(run):
    """Every CSV without its timing columns."""
    return {
        path.name: [{k: v for k, v in row.items() if k not in TIMING_FIELDS} for row in read_csv(path)]
        for path in sorted(run.glob("*.csv"))
    }


def tensors_of(run):
    return checkpoint.read(run / "last.safetensors")[0]


def assert_same_run(first, second):
    assert logs_of(first) == logs_of(second)
    a, b = tensors_of(first), tensors_of(second)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_run_leaves_everything_behind_and_repeats_itself(tmp_path, capsys, monkeypatch):
    config = small(tmp_path, env="Pusher-v5", tensorboard=True)
    with monkeypatch.context() as context:
        context.setattr(trainer, "plot_run", plot_run)
        first = train(config)
    lines = capsys.readouterr().out.strip().splitlines()
    names = {path.name.split(".tfevents")[0] for path in first.iterdir()}
    assert names == {
        "config.json", "summary.json", "progress.csv", "episodes.csv", "evaluation.csv", "events.out",
        "best.safetensors", "last.safetensors",
        "training_metrics.png", "episode_rewards.png", "learning_curve.png",
    }  # fmt: skip
    assert TrainConfig.from_dict(json.loads((first / "config.json").read_text())) == config
    assert [row["step"] for row in read_csv(first / "progress.csv")] == [50, 100, 150, 200, 250, 300]
    assert read_csv(first / "progress.csv")[-1]["updates"] == 251  # one per step from step 50 on
    assert "replay.obs" not in checkpoint.read(first / "best.safetensors")[0]
    score = [line for line in lines if line.startswith("Pusher-v5 after 300 steps: ")]
    assert len(score) == 1
    assert "random actions" in score[0]
    assert "zero actions" in score[0]
    assert lines[-1] == f"run folder: {first}"
    summary = json.loads((first / "summary.json").read_text())
    agent, _, extra = load_agent(first)
    assert evaluate(agent, "Pusher-v5", 1).mean == summary["score"]["mean"]
    assert extra["step"] == summary["best_step"]
    assert_same_run(first, train(config))


def test_best_is_the_best_of_the_evaluations(tmp_path):
    run = train(small(tmp_path, steps=400))
    rows = read_csv(run / "evaluation.csv")
    best = max(rows, key=lambda row: row["mean"])
    meta = checkpoint.read_meta(run / "best.safetensors")["extra"]
    assert meta["step"] == best["step"]
    assert meta["best"] == pytest.approx(best["mean"])
    assert [row["step"] for row in rows] == [100, 200, 300, 400]


def test_resume_equals_never_having_stopped(tmp_path):
    # Pendulum's episodes take 200 steps, so the first part ends between two of them.
    whole = train(small(tmp_path, steps=400))
    part = train(small(tmp_path, steps=200))
    for name, row in (
        ("progress", "250" + "," * 13),
        ("episodes", "9,300,1,1"),
        ("evaluation", "300,1,1,1,1,1,1"),
    ):
        with (part / f"{name}.csv").open("a") as file:
            file.write(row + "\n")  # as if it had been killed some time after its last checkpoint
    assert main(["--resume", str(part), "--steps", "400"]) == 0
    assert_same_run(whole, part)
    assert json.loads((part / "config.json").read_text())["steps"] == 400
    assert json.loads((part / "config.json").read_text())["resume"] is None


def test_resume_in_the_middle_of_an_episode_begins_the_next_one(tmp_path):
    run = train(small(tmp_path, steps=130, eval_every=0))
    assert replay_of(run)[1]["extra"]["episode"] == 1
    assert main(["--resume", str(run), "--steps", "330"]) == 0
    (row,) = read_csv(run / "episodes.csv")
    assert (row["episode"], row["step"], row["length"]) == (2, 330, 200)


def test_resume_refuses_contradictions_and_needs_a_run(tmp_path, capsys):
    run = train(small(tmp_path, steps=60, eval_every=0))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for flags, words in (
        (["--lr", "0.1"], "--lr 0.1 contradicts the run being resumed, which has 0.0003"),
        (["--env", "Pusher-v5"], "--env Pusher-v5 contradicts"),
        (["--steps", "55"], "--steps 55 is below the 60"),
    ):
        assert main(["--resume", str(run), *flags]) == 2
        assert words in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert main([f"--resume={tmp_path}"]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    (run / "last.safetensors").write_bytes(before["last.safetensors"][:1000])
    assert main(["--resume", str(run), "--steps", "90"]) == 2
    assert_one_error_line(capsys.readouterr().err)
    assert (run / "progress.csv").read_bytes() == before["progress.csv"]


def test_resuming_a_finished_run_scores_it_again(tmp_path, capsys):
    run = train(small(tmp_path, steps=60))
    line = [x for x in capsys.readouterr().out.splitlines() if " after 60 steps" in x]
    assert main(["--resume", str(run)]) == 0
    output = capsys.readouterr().out
    assert "has reached its 60 steps; give a larger --steps" in output
    assert line[0] in output


def assert_one_error_line(text):
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    assert "Traceback" not in text


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
        (["--out", "{file}"], ["--out", "cannot be written to", "choose another folder"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path, capsys, flags, words):
    file = tmp_path / "file"
    file.touch()
    flags = [flag.format(file=file) for flag in flags]
    assert main(["--out", str(tmp_path / "runs"), "--threads", "1", "--engine", "reference", *flags]) == 2
    error = capsys.readouterr().err
    assert_one_error_line(error)
    for word in words:
        assert word in error
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_unknown_flags_end_with_status_two(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--batchsize", "3"])
    assert caught.value.code == 2
    assert "--batch-size" in capsys.readouterr().err


def test_every_field_is_a_flag_of_its_own_name(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for f in [*dataclasses.fields(TrainConfig), *dataclasses.fields(SACConfig)]:
        if f.name != "sac":
            assert f"--{f.name.replace('_', '-')}" in text
    config = parse(["--batch-size", "64", "--lr", "1e-3", "--no-tensorboard", "--target-entropy", "-3"])
    assert config.sac == SACConfig(batch_size=64, lr=1e-3, target_entropy=-3.0)
    assert config.tensorboard is False


class Faulty(Clockwork):
    """Clockwork whose `fault` (a function of the results of a step) strikes at step 100."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.steps = fault, 0

    def step(self, action):
        self.steps += 1
        results = super().step(action)
        return self.fault(*results) if self.steps == 100 else results


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            lambda o, r, *rest: (np.array([np.nan, 1.0]), r, *rest),
            "step 100 an observation whose entry 0 is nan",
        ),
        (lambda o, r, *rest: (o, np.inf, *rest), "step 100 the reward inf"),
        (lambda o, r, *rest: (np.zeros(3), r, *rest), r"shape \[3\]"),
    ],
)
def test_what_was_learned_is_saved_before_an_environments_fault_is_reported(tmp_path, capsys, fault, words):
    config = small(tmp_path, eval_every=0)
    with pytest.raises(SACError, match=words):
        train(config, env=lambda: Faulty(fault))
    (path,) = Path(config.out).rglob("last.safetensors")
    replay, meta = replay_of(path.parent)
    assert len(replay["obs"]) == 99
    assert np.isfinite(replay["obs"]).all()
    assert meta["counters"]["step"] == 50  # an update per step from step 50 to 99
    assert f"python -m sacfast.train --resume {path.parent}" in capsys.readouterr().out


def test_an_environments_own_exception_passes_through_after_saving(tmp_path):
    def crash(*_):
        raise RuntimeError("simulator crashed")

    config = small(tmp_path, eval_every=0)
    with pytest.raises(RuntimeError, match="simulator crashed"):
        train(config, env=lambda: Faulty(crash))
    assert list(Path(config.out).rglob("last.safetensors"))


class Enormous(Clockwork):
    """Rewards that fit into float32, with squares that do not: the first update makes the weights NaN."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward * 1e37, *rest


def test_a_policy_of_nan_never_replaces_a_checkpoint(tmp_path):
    config = small(tmp_path, learning_starts=100, checkpoint_every=90)
    with pytest.raises(SACError, match=r"training diverged; start again with a lower --lr than 0\.0003"):
        train(config, env=Enormous)
    (path,) = Path(config.out).rglob("last.safetensors")
    tensors, meta = checkpoint.read(path)
    assert meta["extra"]["step"] == 90
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_the_old_one_intact(
    tmp_path, monkeypatch, capsys
):
    real, calls = trainer.SACAgent.save, []

    def full_disk(self, path, **kwargs):
        calls.append(path)
        if len(calls) > 1:
            raise CheckpointError(f"cannot write the checkpoint {path} (no space left)")
        real(self, path, **kwargs)

    monkeypatch.setattr(trainer.SACAgent, "save", full_disk)
    flags = ["--env", "Pendulum-v1", "--steps", "300", "--learning-starts", "50", "--eval-every", "0"]
    assert main([*FLAGS, *flags, "--checkpoint-every", "100", "--out", str(tmp_path / "runs")]) == 2
    assert_one_error_line(capsys.readouterr().err)
    assert [path.name for path in calls] == ["last.safetensors"] * 2  # it did not insist
    assert checkpoint.read_meta(calls[0])["extra"]["step"] == 100


def test_a_picture_that_fails_costs_nothing(tmp_path, monkeypatch, capsys):
    def broken(_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(trainer, "plot_run", broken)
    run = train(small(tmp_path, steps=60, eval_every=0))
    output = capsys.readouterr().out
    assert f"no pictures (no fonts); python -m sacfast.plot {run} tries again" in output
    assert "Pendulum-v1 after 60 steps" in output


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


def test_two_runs_in_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    import sacfast.train

    class Stopped(sacfast.train.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2030, 1, 2, 3, 4, 5)

    monkeypatch.setattr(sacfast.train, "datetime", Stopped)
    config = small(tmp_path, steps=60, eval_every=0)
    assert [train(config).name for _ in range(2)] == ["20300102-030405-s0", "20300102-030405-s0-2"]


def test_an_unfinished_log_interval_is_logged_at_the_end(tmp_path):
    run = train(small(tmp_path, steps=130, eval_every=0))
    assert [row["step"] for row in read_csv(run / "progress.csv")] == [50, 100, 130]


def test_episode_seeds_do_not_repeat():
    seeds = {episode_seed(run, episode) for run in range(20) for episode in range(50)}
    assert len(seeds) == 1000


def test_signals_become_a_flag_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is before


def test_physical_cores_are_no_more_than_the_machine_has():
    import os

    assert 0 <= physical_cores() <= (os.cpu_count() or 1)


def start(*flags):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "sacfast.train", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop(process, *signals):
    """Send the signals once training is under way. Returns status, output and errors."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if "updates/s" in line and "alpha" in line:
            break
    for signum in signals:
        process.send_signal(signum)
    output, errors = process.communicate(timeout=120)
    return process.returncode, "".join(seen) + output, errors


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_interruptions_save_and_say_how_to_go_on(tmp_path):
    flags = ["--env", "Pendulum-v1", "--steps", "1000000", "--learning-starts", "50", "--log-every", "50"]
    first = start(*FLAGS, *flags, "--out", str(tmp_path / "runs"))
    status, output, errors = stop(first, signal.SIGINT, signal.SIGINT)
    assert (status, errors) == (130, "")
    (run,) = (tmp_path / "runs" / "Pendulum-v1").iterdir()
    assert f"to go on: python -m sacfast.train --resume {run}" in output
    saved = checkpoint.read_meta(run / "last.safetensors")["extra"]["step"]
    assert f"stopped by SIGINT at step {saved:,} of 1,000,000" in output
    assert saved >= 50
    assert not list(run.glob(".*"))

    status, output, errors = stop(start("--resume", str(run)), signal.SIGTERM)
    assert (status, errors) == (143, "")
    assert "stopped by SIGTERM" in output
    replay, meta = replay_of(run)
    assert meta["extra"]["step"] > saved
    assert len(replay["obs"]) == min(meta["extra"]["step"], 2000)
    steps = [row["step"] for row in read_csv(run / "progress.csv")]
    assert steps == sorted(set(steps))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_agent(run, "last")


def test_a_mistake_on_the_real_command_line(tmp_path):
    process = start("--env", "Pushr-v5", "--out", str(tmp_path))
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (2, "")
    assert_one_error_line(errors)
