"""Training survives what goes wrong: faults of the environment, a full disk, weights of NaN."""

import dataclasses
import errno
import json
import os
import signal
import sys

import numpy as np
import pytest
import torch
from training_runs import (
    FLAGS,
    SMALL,
    Clockwork,
    Faulty,
    WithState,
    assert_one_error_line,
    assert_same_run,
    counters_of,
    described,
    only_run,
    replay_of,
    small,
    start,
)

from sacfast import SACAgent, checkpoint, judge, trainer
from sacfast.config import TrainConfig
from sacfast.errors import SACError
from sacfast.logger import read_csv
from sacfast.pilot import Pilot
from sacfast.run_folder import RunFolder, latest, resume_command
from sacfast.train import main, train
from sacfast.trainer import TrainingInterrupted


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
    run = only_run(config)
    replay, meta = replay_of(run)
    assert len(replay["obs"]) == counters_of(run)["step"] == 99
    assert np.isfinite(replay["obs"]).all()
    assert meta["counters"]["step"] == 50  # an update per step from step 50 to 99
    assert f"to go on: {resume_command(run, ['env'])}" in capsys.readouterr().out


def test_an_environments_own_exception_is_one_sentence_after_saving(tmp_path):
    def crash(*_):
        raise RuntimeError("simulator crashed")

    config = small(tmp_path, eval_every=0)
    words = (
        r"Faulty, at step 100, raised RuntimeError: simulator crashed \(.*test_train_interruptions.py:\d+\)\."
    )
    with pytest.raises(SACError, match=words) as caught:
        train(config, env=lambda: Faulty(crash))
    assert isinstance(caught.value.__cause__, RuntimeError)  # a Python caller sees where
    run = only_run(config)
    assert counters_of(run)["step"] == 99
    assert described(run)["state"]["environments"]["obstacle"] == "the run ended within a step"


@pytest.mark.parametrize("kind", [WithState, Clockwork])  # goes on in mid-episode, and with the next episode
def test_a_fault_as_a_run_resumes_leaves_its_checkpoint(tmp_path, capsys, monkeypatch, kind):
    def absent(self, **options):
        raise ConnectionError("no simulator")

    config = small(tmp_path, steps=84, eval_every=0)
    run = train(config, env=kind)
    before = described(run)
    monkeypatch.setattr(kind, "reset", absent)
    with pytest.raises(SACError, match=f"{kind.__name__}, at step 84, raised ConnectionError: no simulator"):
        train(dataclasses.replace(config, resume=str(run), steps=92), env=kind)
    assert "nothing is lost; to go on: " in capsys.readouterr().out
    assert described(run) == before


def test_a_rescue_that_fails_does_not_hide_the_error(tmp_path, monkeypatch, capsys):
    def crash(*_):
        raise RuntimeError("simulator crashed")

    def broken(*_, **__):
        raise MemoryError("no room for a copy")

    real, calls = RunFolder.save, []
    monkeypatch.setattr(
        RunFolder, "save", lambda *a: broken() if calls else calls.append(1) or real(*a)
    )  # the first one succeeds
    with pytest.raises(SACError, match="simulator crashed"):
        train(small(tmp_path, eval_every=0), env=lambda: Faulty(crash))
    assert "could not be saved: no room for a copy" in capsys.readouterr().out


def test_a_fault_while_scoring_does_not_put_the_best_policy_in_the_last_ones_place(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no baselines today")  # by now the agent holds the best policy

    monkeypatch.setattr(judge, "baseline_policies", broken)
    config = small(tmp_path, env="Pendulum-v1", steps=200)
    saves, real = [], RunFolder.save
    monkeypatch.setattr(
        RunFolder, "save", lambda self, a, step, s: saves.append(step) or real(self, a, step, s)
    )
    with pytest.raises(RuntimeError, match="no baselines today"):
        train(config)
    assert saves == [0, 200]


class WhileRandom(Clockwork):
    """Does something as the random actions' score begins: the reset after that of the second policy's last episode."""

    def __init__(self, do, after):
        super().__init__()
        self.do, self.resets, self.after = do, 0, after

    def reset(self, **kwargs):
        self.resets += 1
        if self.resets > self.after:
            self.do()
        return super().reset(**kwargs)


def scored_then(tmp_path, do) -> tuple[TrainConfig, WhileRandom]:
    """A run of one evaluation, whose environment misbehaves once the trained policy has its scores."""
    config = small(tmp_path, steps=200, eval_every=0, eval_episodes=2)
    return config, WhileRandom(do, after=2 * config.eval_episodes)


def test_ctrl_c_while_random_actions_are_scored_is_heard(tmp_path):
    config, environment = scored_then(tmp_path, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(TrainingInterrupted) as caught:
        train(config, env=Clockwork, eval_env=environment)
    run = caught.value.run
    assert environment.resets == environment.after + 1
    assert not (run / "summary.json").exists()
    resumed = dataclasses.replace(config, resume=str(run))
    assert train(resumed, env=Clockwork, eval_env=Clockwork) == run
    assert (run / "summary.json").exists()


def test_a_fault_while_random_actions_are_scored_is_one_sentence(tmp_path):
    def crash():
        raise RuntimeError("the arm is stuck")

    config, environment = scored_then(tmp_path, crash)
    with pytest.raises(SACError, match=r"evaluated at step 200, raised RuntimeError: the arm is stuck \("):
        train(config, env=Clockwork, eval_env=environment)


def test_a_best_policy_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, capsys):
    save, refused = trainer.SACAgent.save, []

    def save_but_once(self, path, **options):
        if path.name == "best.safetensors" and not refused:
            refused.append(path)
            raise checkpoint.CheckpointError("cannot write best.safetensors (access is denied)")
        save(self, path, **options)

    monkeypatch.setattr(trainer.SACAgent, "save", save_but_once)
    run = train(small(tmp_path, eval_every=120))
    assert (
        "(access is denied); training goes on, without this policy as its best\n" in capsys.readouterr().out
    )
    assert [row["step"] for row in read_csv(run / "evaluation.csv")] == [120, 240, 300]
    kept = {row["mean"]: row["step"] for row in read_csv(run / "evaluation.csv") if row["step"] > 120}
    assert checkpoint.read_meta(run / "best.safetensors")["extra"]["step"] == kept[max(kept)]


def test_a_reader_that_goes_away_costs_nothing(tmp_path):
    """As in `python -m sacfast.train | head`."""
    flags = ["--env", "Pendulum-v1", "--steps", "300", "--learning-starts", "50", "--log-every", "10", *FLAGS]
    process = start(*flags, "--out", str(tmp_path))
    assert process.stdout is not None and "Pendulum-v1" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0, process.stderr.read()
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["step"] == 300


def test_a_better_policy_found_after_the_checkpoint_is_kept(tmp_path, monkeypatch):
    """As after SIGKILL: the run goes on from an older checkpoint, and what it finds then is worse."""
    config = small(tmp_path, steps=200, eval_every=50, checkpoint_every=0)
    scores = iter([-3.0, -1.0, -2.0, -4.0, -5.0, -6.0, -7.0])
    real = judge.evaluate

    def scored(*arguments):
        return dataclasses.replace(real(*arguments), mean=next(scores, -9.0))

    monkeypatch.setattr(judge, "evaluate", scored)
    monkeypatch.setattr(trainer.Trainer, "_rescue", lambda self: False)
    steps = iter(range(120))
    with pytest.raises(SACError, match="killed"):
        train(config, env=lambda: KilledAfter(steps), eval_env=Clockwork)
    run = only_run(config)
    assert counters_of(run)["step"] == 0
    best = (run / "best.safetensors").read_bytes()
    resumed = dataclasses.replace(config, resume=str(run))
    train(resumed, env=lambda: KilledAfter(iter(range(1000))), eval_env=Clockwork)
    assert (run / "best.safetensors").read_bytes() == best
    assert json.loads((run / "summary.json").read_text())["best_step"] == 100


def test_an_evaluation_that_was_cut_off_is_recorded_once(tmp_path, monkeypatch):
    """A signal in it, then SIGKILL after it was made: the checkpoint of its step has yet to see it."""
    config = small(tmp_path, steps=200, eval_every=100, checkpoint_every=0)
    scores, real = iter([None, -1.0, -5.0, -6.0]), judge.evaluate

    def scored(*arguments):
        if (score := next(scores, -9.0)) is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return dataclasses.replace(real(*arguments), mean=score)

    monkeypatch.setattr(judge, "evaluate", scored)
    monkeypatch.setattr(trainer.Trainer, "_rescue", lambda self: False)
    with pytest.raises(TrainingInterrupted):
        train(config, env=lambda: KilledAfter(iter(range(1000))), eval_env=Clockwork)
    run = only_run(config)
    assert counters_of(run)["step"] == 100
    config = dataclasses.replace(config, resume=str(run))
    with pytest.raises(SACError, match="killed"):
        train(config, env=lambda: KilledAfter(iter(range(20))), eval_env=Clockwork)
    best = (run / "best.safetensors").read_bytes()
    train(config, env=lambda: KilledAfter(iter(range(1000))), eval_env=Clockwork)
    assert [row["step"] for row in read_csv(run / "evaluation.csv")] == [100, 200]
    assert (run / "best.safetensors").read_bytes() == best


class KilledAfter(Clockwork):
    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def step(self, action):
        if next(self.left, None) is None:
            raise RuntimeError("killed")
        return super().step(action)


def test_an_environment_that_exits_costs_nothing(tmp_path):
    def leave(*_):
        sys.exit("the window was closed")

    config = small(tmp_path, eval_every=0)
    with pytest.raises(SACError, match=r"at step 100, raised SystemExit: the window was closed \("):
        train(config, env=lambda: Faulty(leave))
    assert counters_of(only_run(config))["step"] == 99


class Enormous(Clockwork):
    """Rewards that fit into float32, with squares that do not: the first update makes the weights NaN."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward * 1e37, *rest


@pytest.mark.parametrize(
    ("name", "value"), [("critic_adam.exp_avg_sq", torch.inf), ("log_alpha", -torch.inf), ("log_alpha", 100)]
)
def test_moments_and_temperatures_without_end_are_no_checkpoint(tmp_path, name, value):
    """With an infinite second moment the weights stay finite, and never change any more."""
    agent = SACAgent(3, 1, hidden_dim=8, automatic_entropy_tuning=True)
    pilot = Pilot(small(tmp_path), agent, tmp_path)
    pilot.check(5)
    dict(agent.state.named_tensors())[name].view(-1)[0] = value
    with pytest.raises(SACError, match="at step 5 holds NaN or an infinity: training diverged"):
        pilot.check(5)


@pytest.mark.parametrize(
    ("critic_lr", "period", "remedy"),
    [
        (None, 1, r"a lower --lr than 0\.0003 or"),
        (0.002, 1, r"a lower --lr than 0\.0003, a lower --critic-lr than 0\.002 or"),
        (None, 1000, "a lower --lr"),  # the actor has no turn, so that the policy is as it was
    ],
)
def test_a_policy_of_nan_never_replaces_a_checkpoint(tmp_path, critic_lr, period, remedy):
    raw = dataclasses.replace(SMALL, normalize_obs=False, critic_lr=critic_lr, actor_update_period=period)
    config = small(tmp_path, learning_starts=100, checkpoint_every=90, sac=raw)
    with pytest.raises(SACError, match=f"training diverged; start again with {remedy}"):
        train(config, env=Enormous)
    tensors, meta = checkpoint.read(latest(only_run(config)) / "agent.safetensors")
    assert meta["extra"]["step"] == 90
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


class Disk:
    """`checkpoint.save_file`, for a disk that is full in the given writes."""

    def __init__(self, full):
        self.full, self.writes, self.save_file = full, 0, checkpoint.save_file

    def __call__(self, *arguments, **kwargs):
        self.writes += 1
        if self.writes in self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.save_file(*arguments, **kwargs)


# Writes number 5, 6, 7: the first after the checkpoints of steps 0 (two, without a segment of nothing) and 100 (three).
def test_a_checkpoint_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, capsys):
    undisturbed = train(small(tmp_path, eval_every=0, checkpoint_every=100))
    monkeypatch.setattr(checkpoint, "save_file", Disk(full=[6]))
    run = train(small(tmp_path, eval_every=0, checkpoint_every=100))
    assert (
        "cannot write the checkpoint of step 200" in (said := capsys.readouterr().out)
        and "No space left on device); the one of step 100 is intact: free some space; training goes on"
        in said
    )
    assert_same_run(undisturbed, run)


def test_the_last_checkpoint_that_cannot_be_written_is_an_error_after_the_score(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(checkpoint, "save_file", Disk(full=range(6, 100)))
    flags = ["--env", "Pendulum-v1", "--steps", "300", "--learning-starts", "50", "--eval-every", "0"]
    assert main([*FLAGS, *flags, "--checkpoint-every", "100", "--out", str(tmp_path / "runs")]) == 2
    output = capsys.readouterr()
    assert_one_error_line(output.err)
    (run,) = (tmp_path / "runs" / "Pendulum-v1").iterdir()
    assert "No space left on device); the one of step 100 is intact" in output.err
    assert output.err.endswith(f"free some space, then go on: {resume_command(run)}\n")
    assert "Pendulum-v1 after 300 steps: " in output.out and "saved step" not in output.out
    assert counters_of(run)["step"] == 100
    monkeypatch.undo()
    assert main(["--resume", str(run)]) == 0
    assert counters_of(run)["step"] == 300


def test_a_summary_that_cannot_be_written_is_an_error_after_the_score(tmp_path, monkeypatch, capsys):
    def full_disk(path, values):
        raise SACError(f"cannot write {path}")

    monkeypatch.setattr(trainer, "write_json", full_disk)
    with pytest.raises(SACError, match=r"cannot write .*summary\.json"):
        train(small(tmp_path, steps=60, eval_every=0))
    assert "Pendulum-v1 after 60 steps: " in capsys.readouterr().out


def test_a_picture_that_fails_costs_nothing(tmp_path, monkeypatch, capsys):
    def broken(_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(trainer, "plot_run", broken)
    run = train(small(tmp_path, steps=60, eval_every=0))
    output = capsys.readouterr().out
    assert f"no pictures (no fonts); python -m sacfast.plot {run} tries again" in output
    assert "Pendulum-v1 after 60 steps" in output


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("stopped_at", [None, 175])
def test_time_is_of_training_alone_and_none_is_lost_by_stopping(tmp_path, monkeypatch, stopped_at):
    """A step takes a second, one of an evaluation a hundred, a checkpoint ten thousand."""
    clock = Clock()

    class Timed(Clockwork):
        def __init__(self, seconds):
            super().__init__()
            self.seconds, self.steps = seconds, 0

        def step(self, action):
            clock.now += self.seconds
            self.steps += 1
            if self.seconds == 1 and self.steps == stopped_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().step(action)

    save = RunFolder.save

    def slow(*arguments):
        clock.now += 10_000
        return save(*arguments)

    monkeypatch.setattr("sacfast.diagnostics.perf_counter", clock)
    monkeypatch.setattr(RunFolder, "save", slow)
    config = small(tmp_path, checkpoint_every=120)
    environments = {"env": lambda: Timed(1), "eval_env": lambda: Timed(100)}
    if stopped_at is None:
        run = train(config, **environments)
    else:
        with pytest.raises(TrainingInterrupted) as stopped:
            train(config, **environments)
        run = stopped.value.run
        train(dataclasses.replace(config, resume=str(run)), **environments)
    rows = read_csv(run / "progress.csv")
    assert [row["elapsed_s"] for row in rows] == [row["step"] for row in rows]
    found = checkpoint.read_meta(run / "best.safetensors")["extra"]
    assert found["elapsed_s"] == found["step"] > 0
    assert {row["steps_per_s"] for row in rows} == {1.0}


def test_a_checkpoint_between_two_rows_leaves_their_rates_and_shares_of_the_same_time(tmp_path, monkeypatch):
    """The nth step takes n seconds, an update two."""
    clock = Clock()

    class Slowing(Clockwork):
        steps = 0

        def step(self, action):
            self.steps += 1
            clock.now += self.steps
            return super().step(action)

    learn = SACAgent.train

    def slow(agent, updates):
        clock.now += 2 * updates
        return learn(agent, updates)

    monkeypatch.setattr("sacfast.diagnostics.perf_counter", clock)
    monkeypatch.setattr(SACAgent, "train", slow)
    run = train(small(tmp_path, eval_every=0, checkpoint_every=120), env=Slowing, eval_env=Clockwork)
    before = {"step": 0, "updates": 0, "elapsed_s": 0.0}
    for row in read_csv(run / "progress.csv"):
        steps, updates = row["step"] - before["step"], row["updates"] - before["updates"]
        env = sum(range(before["step"] + 1, row["step"] + 1))
        seconds = env + 2 * updates
        assert row["elapsed_s"] - before["elapsed_s"] == seconds
        assert (row["steps_per_s"], row["updates_per_s"]) == pytest.approx(
            (steps / seconds, updates / seconds)
        )
        assert (row["time_env"], row["time_update"]) == pytest.approx((env / seconds, 2 * updates / seconds))
        before = row
    assert before["step"] == 300
