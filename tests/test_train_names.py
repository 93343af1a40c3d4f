"""`--name`: the same command again goes on with the run, or leaves it alone. What is finished may give up the rest."""

import json
import signal

import pytest
from training_runs import (
    FLAGS,
    Clockwork,
    assert_one_error_line,
    assert_same_run,
    counters_of,
    only_run,
    small,
)

import sacfast.trainer as trainer
from sacfast.errors import CheckpointError, SACError
from sacfast.judge import Judge
from sacfast.learner import Learner
from sacfast.run_folder import complete
from sacfast.runs import load_agent
from sacfast.train import main, train
from sacfast.trainer import TrainingInterrupted


def test_the_same_settings_go_on_with_a_run_that_was_stopped(tmp_path, monkeypatch):
    config = small(tmp_path, steps=120, name="first")
    real, calls = Learner.learn, []

    def stopped(self, step):
        real(self, step)
        if step == 83 and not calls:
            calls.append(step)
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", stopped)
        with pytest.raises(TrainingInterrupted):
            train(config)
    run = tmp_path / "runs" / "Pendulum-v1" / "first"
    assert counters_of(run)["step"] == 83
    monkeypatch.chdir(tmp_path)
    assert train(small(tmp_path, steps=120, name="first", out="runs")).resolve() == run
    assert_same_run(train(small(tmp_path, steps=120)), run)


def test_a_finished_run_is_left_alone_until_more_steps_are_asked_for(tmp_path, capsys):
    flags = ["--env", "Pendulum-v1", "--learning-starts", "50", "--no-tensorboard", *FLAGS, "--name", "a"]
    flags += ["--out", str(tmp_path)]
    assert main([*flags, "--steps", "60", "--seeds", "4"]) == 0
    run = tmp_path / "Pendulum-v1" / "a-s4"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    assert main([*flags, "--steps", "60", "--seeds", "4", "2"]) == 0
    assert f"{run} is finished; give more --steps than 60" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert {path.name for path in run.parent.iterdir()} == {"a-s4", "a-s2"}
    assert main([*flags, "--steps", "55", "--seeds", "4"]) == 2
    assert (
        "--steps 55 is below the 60 of the run being resumed; give --steps 60 or more, or another --name"
        in capsys.readouterr().err
    )
    assert main([*flags, "--steps", "90", "--seeds", "4"]) == 0
    assert json.loads((run / "summary.json").read_text())["step"] == counters_of(run)["step"] == 90


def test_other_settings_under_the_same_name_are_refused(tmp_path, capsys):
    run = train(small(tmp_path, steps=60, name="a"))
    with pytest.raises(
        SACError, match=r"--utd 2.0 contradicts the run .* has 1.0; give that, .* another --name"
    ):
        train(small(tmp_path, steps=60, name="a", utd=2.0))
    assert main(["--resume", str(run), "--name", "b"]) == 2
    error = capsys.readouterr().err
    assert_one_error_line(error)
    assert "--name b contradicts the run being resumed, which has a; leave --name out" in error


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_in_its_folder(tmp_path, monkeypatch):
    run = tmp_path / "runs" / "Pendulum-v1" / "a"
    run.mkdir(parents=True)
    (run / "notes.txt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "RunLogger", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(small(tmp_path, steps=60, name="a"))
    assert (run / "notes.txt").exists()  # what was there before is not cleared away
    assert train(small(tmp_path, steps=60, name="a")) == run
    (run.parent / "file").touch()
    with pytest.raises(
        SACError, match=r"cannot make the run folder .*file \(.*choose another --out or --name"
    ):
        train(small(tmp_path, steps=60, name="file"))


def test_an_environment_given_in_python_names_the_folder_above(tmp_path, capsys):
    config = small(tmp_path, steps=60, eval_every=0, name="a")
    assert train(config, env=Clockwork) == only_run(config) == tmp_path / "runs" / "Clockwork" / "a"
    capsys.readouterr()
    assert train(config, env=Clockwork) == only_run(config)
    assert "is finished" in capsys.readouterr().out


def test_a_finished_run_without_its_checkpoints_says_so_and_is_left_alone(tmp_path, capsys, monkeypatch):
    config = small(tmp_path, steps=120, name="a", checkpoint_every=30, discard_checkpoints=True)
    with monkeypatch.context() as patch:
        patch.setattr(Judge, "report", lambda _: signal.raise_signal(signal.SIGTERM) or ({"step": 120}, ""))
        with pytest.raises(TrainingInterrupted):
            train(config)
    (run,) = (tmp_path / "runs" / "Pendulum-v1").iterdir()
    assert len(complete(run)) == 2 and list((run / "replay").iterdir())  # with which to go on
    (run / "summary.json").unlink()
    assert train(config) == run
    assert not (run / "checkpoints").exists() and not (run / "replay").exists()
    agent, _, _ = load_agent(run)
    assert agent.training_steps > 0
    with pytest.raises(
        CheckpointError, match=r"is finished, and has no checkpoint any more .*take its best policy"
    ):
        load_agent(run, "last")
    assert train(config) == run
    assert f"{run} is finished\n" in capsys.readouterr().out
    for flags in (["--resume", str(run)], ["--resume", str(run), "--steps", "200"]):
        assert main(flags) == 2
        error = capsys.readouterr().err
        assert_one_error_line(error)
        assert "has no checkpoint any more (--discard-checkpoints, or deleted by hand)" in error
    with pytest.raises(CheckpointError, match="no checkpoint any more"):
        train(small(tmp_path, steps=200, name="a"))
