"""Training survives being told to stop: Ctrl-C, once or more often, SIGTERM, and a terminal that closes."""

import dataclasses
import os
import signal
import sys
import threading
import time
import warnings

import pytest
from training_runs import (
    FLAGS,
    Clockwork,
    Faulty,
    counters_of,
    only_run,
    replay_of,
    small,
    start,
    wait_until_training,
)

from sacfast import trainer
from sacfast.evaluate import load_agent
from sacfast.logger import read_csv
from sacfast.run_folder import RunFolder, resume_command
from sacfast.stop import StopRequest
from sacfast.train import main, train
from sacfast.trainer import TrainingInterrupted


def test_signals_become_a_flag_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX signals")
@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_terminal_that_closes_stops_a_run_but_not_one_under_nohup(handler):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signum == (signal.SIGHUP if handler is signal.SIG_DFL else None)
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_third_ctrl_c_ends_an_environment_that_hangs_and_what_was_learned_is_saved(
    tmp_path, monkeypatch, capsys
):
    hanging, heard, note = threading.Event(), threading.Semaphore(0), StopRequest._note

    def hear(self, signum, frame):
        heard.release()
        note(self, signum, frame)

    def hang(*_):
        hanging.set()
        for _ in range(600):
            time.sleep(0.05)  # a signal just before a sleep would be heard after it only
        pytest.fail("nothing ended the step")

    def insist():
        hanging.wait(60)
        for _ in range(StopRequest.INSISTENCE):
            os.kill(os.getpid(), signal.SIGINT)
            heard.acquire(timeout=20)  # two that are pending at once would count as one

    monkeypatch.setattr(StopRequest, "_note", hear)

    before = signal.getsignal(signal.SIGINT)
    user = threading.Thread(target=insist)
    user.start()
    with pytest.raises(TrainingInterrupted) as caught:
        train(small(tmp_path, eval_every=0), env=lambda: Faulty(hang))
    user.join()
    assert signal.getsignal(signal.SIGINT) is before
    run = caught.value.run
    assert len(replay_of(run)[0]["obs"]) == 99
    assert f"saved step 99; to go on: {resume_command(run, ['env'])}" in capsys.readouterr().out
    resumed = dataclasses.replace(small(tmp_path, eval_every=0), resume=str(run))
    assert train(resumed, env=lambda: Faulty(lambda *results: results)) == run


def test_insisting_never_cuts_a_save(tmp_path, monkeypatch):
    real = RunFolder.save

    def slow(self, agent, step, state):
        for _ in range(StopRequest.INSISTENCE + 1 if step else 0):
            signal.raise_signal(signal.SIGINT)
        real(self, agent, step, state)

    monkeypatch.setattr(RunFolder, "save", slow)
    with pytest.raises(TrainingInterrupted) as caught:
        train(small(tmp_path, eval_every=0, checkpoint_every=100))
    assert counters_of(caught.value.run)["step"] == 100


def test_insisting_within_an_update_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    real, updates = trainer.SACAgent.train, []

    def torn(self, *arguments):
        updates.append(1)
        for _ in range(StopRequest.INSISTENCE if len(updates) == 100 else 0):
            signal.raise_signal(signal.SIGINT)
        return real(self, *arguments)

    monkeypatch.setattr(trainer.SACAgent, "train", torn)
    config = small(tmp_path, eval_every=0, checkpoint_every=100)
    with pytest.raises(KeyboardInterrupt, match="what was learned since the last checkpoint in .* is lost"):
        train(config)
    assert counters_of(only_run(config))["step"] == 100


def test_an_environments_own_interrupt_is_no_success(tmp_path):
    class Interrupted(Clockwork):
        def step(self, action):
            if len(self.actions) == 129:
                raise KeyboardInterrupt
            return super().step(action)

    config = small(tmp_path, eval_every=0, checkpoint_every=100)
    with pytest.raises(KeyboardInterrupt):
        train(config, env=Interrupted)
    assert counters_of(only_run(config))["step"] == 129  # saved as before any other error


def test_ctrl_c_while_setting_up_says_what_can_be_resumed(tmp_path, monkeypatch, capsys):
    run = train(small(tmp_path, steps=60, eval_every=0))
    capsys.readouterr()

    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.SACAgent, "load", pressed)
    assert main(["--resume", str(run), "--steps", "90"]) == 130
    error = capsys.readouterr().err
    assert error == f"interrupted before the first step; to go on: python -m sacfast.train --resume {run}\n"
    monkeypatch.setattr(trainer.SACAgent, "from_env", pressed)
    assert main(["--env", "Pendulum-v1", "--out", str(tmp_path / "new"), "--threads", "1"]) == 130
    assert capsys.readouterr().err == "interrupted before the first step; there is nothing to resume\n"


def stop(process, *signals):
    """Send the signals once training is under way. Returns status, output and errors."""
    seen = wait_until_training(process)
    for signum in signals:
        process.send_signal(signum)
    output, errors = process.communicate(timeout=120)
    return process.returncode, seen + output, errors


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_interruptions_save_and_say_how_to_go_on(tmp_path):
    flags = ["--env", "Pendulum-v1", "--steps", "1000000", "--learning-starts", "50", "--log-every", "50"]
    first = start(*FLAGS, *flags, "--out", str(tmp_path / "runs"))
    status, output, errors = stop(first, signal.SIGINT, signal.SIGINT)
    assert (status, errors) == (130, "")
    (run,) = (tmp_path / "runs" / "Pendulum-v1").iterdir()
    assert f"to go on: python -m sacfast.train --resume {run}" in output
    saved = counters_of(run)["step"]
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
