"""The training loop: what is stored, what is repeated exactly, what a resumed run continues."""

import dataclasses
import json
import multiprocessing
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.wrappers import TimeLimit
from training_runs import (
    SMALL,
    Clockwork,
    assert_same_run,
    counters_of,
    described,
    replay_of,
    small,
)

from sacfast import checkpoint, native, trainer
from sacfast.collector import episode_seed
from sacfast.config import SACConfig, TrainConfig
from sacfast.envs import ActionBounds
from sacfast.evaluate import evaluate, load_agent
from sacfast.judge import SELECTION_SEED
from sacfast.logger import PROGRESS_FIELDS, read_csv
from sacfast.plotting import plot_run
from sacfast.run_folder import resume_command
from sacfast.train import main, parse, train


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
    bounds = ActionBounds(Clockwork.action_space.low, Clockwork.action_space.high)
    np.testing.assert_allclose(replay["action"], bounds.to_unit(np.array(env.actions)), atol=1e-6)
    assert np.ptp(env.actions, axis=0)[1] > 3  # the environment gets its own units, not [-1, 1]
    assert env.seeds[:3] == [episode_seed(7, i) for i in range(3)]
    rows = read_csv(run / "episodes.csv")
    assert [row["length"] for row in rows] == [3, 5] * 10
    assert [row["return"] for row in rows[:2]] == [6, 15]
    assert json.loads((run / "config.json").read_text())["env"] == "Clockwork"


def test_a_run_leaves_everything_behind_and_repeats_itself(tmp_path, capsys, monkeypatch):
    config = small(tmp_path, env="Pusher-v5", tensorboard=True)
    with monkeypatch.context() as context:
        context.setattr(trainer, "plot_run", plot_run)
        first = train(config)
    lines = capsys.readouterr().out.strip().splitlines()
    names = {path.name.split(".tfevents")[0] for path in first.iterdir()}
    assert names == {
        "config.json", "summary.json", "progress.csv", "episodes.csv", "evaluation.csv", "events.out",
        "best.safetensors", "checkpoints", "replay", "run.lock",
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
    agent, _, extra = load_agent(first, engine="reference")
    assert evaluate(agent, "Pusher-v5", 1).mean == summary["score"]["mean"]
    assert extra["step"] == summary["best_step"]
    assert_same_run(first, train(config))


def test_a_row_of_the_log_has_the_mean_return_of_its_own_episodes(tmp_path):
    run = train(small(tmp_path, steps=150, eval_every=0, make_kwargs={"max_episode_steps": 20}))
    episodes = read_csv(run / "episodes.csv")
    rows = read_csv(run / "progress.csv")
    for row in rows:
        own = [each["return"] for each in episodes if row["step"] - 50 < each["step"] <= row["step"]]
        assert row["episode_return"] == pytest.approx(np.mean(own))
    assert [row["step"] for row in rows] == [50, 100, 150]


def test_a_run_keeps_its_transitions_where_it_is_told(tmp_path, monkeypatch):
    seen, run = [], trainer.Trainer.run
    monkeypatch.setattr(trainer.Trainer, "run", lambda self: seen.append(self.agent) or run(self))
    train(small(tmp_path, steps=60, eval_every=0, storage="host"))
    assert seen[0].replay_buffer.storage == "host"


def test_best_is_the_best_of_the_evaluations(tmp_path):
    run = train(small(tmp_path, steps=400))
    rows = read_csv(run / "evaluation.csv")
    best = max(rows, key=lambda row: row["mean"])
    meta = checkpoint.read_meta(run / "best.safetensors")["extra"]
    assert meta["step"] == best["step"]
    assert meta["best"] == pytest.approx(best["mean"])
    assert [row["step"] for row in rows] == [100, 200, 300, 400]
    agent, config, _ = load_agent(run, engine="reference")
    assert agent.config == dataclasses.replace(config.sac, target_entropy=agent.target_entropy)
    score = evaluate(agent, config.env, config.eval_episodes, SELECTION_SEED)
    assert score.mean == pytest.approx(best["mean"])  # on other starts than the report's


@pytest.mark.parametrize("engine", ["reference", pytest.param("native", marks=pytest.mark.native)])
def test_resume_equals_never_having_stopped(tmp_path, engine):
    # Pendulum's episodes take 200 steps, so the first part ends between two of them.
    whole = train(small(tmp_path, engine=engine, steps=400))
    part = train(small(tmp_path, engine=engine, steps=200))
    for name, row in (
        ("progress", "250" + "," * (len(PROGRESS_FIELDS) - 1)),
        ("episodes", "9,300,1,1"),
        ("evaluation", "300,1,1,1,1,1,1"),
    ):
        with (part / f"{name}.csv").open("a") as file:
            file.write(row + "\n")  # as if it had been killed some time after its last checkpoint
    assert main(["--resume", str(part), "--steps", "400"]) == 0
    assert_same_run(whole, part)
    assert json.loads((part / "config.json").read_text())["steps"] == 400
    assert json.loads((part / "config.json").read_text())["resume"] is None


@pytest.mark.parametrize(("utd", "updates"), [(0.3, 105), (2.5, 877)])
def test_a_fraction_of_an_update_per_step_adds_up_and_resumes_exactly(tmp_path, utd, updates):
    config = small(tmp_path, steps=400, eval_every=200, utd=utd)
    whole = train(config)
    part = train(dataclasses.replace(config, steps=200))
    assert main(["--resume", str(part), "--steps", "400"]) == 0
    assert_same_run(whole, part)
    assert (
        replay_of(whole)[1]["counters"]["step"] == updates
    )  # floor(351 utd): the first one is due at step 50
    rows = read_csv(whole / "progress.csv")
    assert [row["updates"] for row in rows] == [int((row["step"] - 49) * utd) for row in rows]


@pytest.mark.native
def test_where_the_time_went_is_said_on_request(tmp_path, capsys, monkeypatch):
    config = small(tmp_path, steps=60, engine="native")
    train(config)
    assert "critic backward" not in capsys.readouterr().out
    monkeypatch.setenv("SACFAST_PROFILE", "1")
    train(config)
    assert "of all threads: gather" in capsys.readouterr().out


def test_hidden_layers_of_a_run_come_from_the_command_line_and_are_kept(tmp_path):
    flags = ["--env", "Pendulum-v1", "--steps", "60", "--learning-starts", "50", "--batch-size", "16"]
    flags += ["--eval-every", "0", "--eval-episodes", "1", "--no-tensorboard", "--out", str(tmp_path)]
    assert main([*flags, "--hidden-dim", "9", "7", "5", "--engine", "reference", "--threads", "1"]) == 0
    (run,) = (tmp_path / "Pendulum-v1").iterdir()
    agent, config, _ = load_agent(run, "last")
    assert config.sac.hidden_dim == (9, 7, 5)
    assert [layer.outputs for layer in agent.state.actor_layers] == [9, 7, 5, 1, 1]
    assert main(["--resume", str(run), "--steps", "80", "--threads", "1"]) == 0
    assert load_agent(run, "last")[1].sac.hidden_dim == (9, 7, 5)


def test_resume_in_the_middle_of_an_episode_begins_the_next_one_where_its_state_cannot_be_had(
    tmp_path, capsys
):
    config = small(tmp_path, steps=84, eval_every=0)
    run = train(config, env=Clockwork)  # 10 pairs of episodes take 80 steps, and the next one 3
    assert counters_of(run)["episode"] == 21
    capsys.readouterr()
    train(dataclasses.replace(config, resume=str(run), steps=92), env=Clockwork)
    reason = "Clockwork has no get_state() and set_state()"
    assert f"the episode that was interrupted is left behind ({reason})" in capsys.readouterr().out
    rows = [(row["episode"], row["step"], row["length"]) for row in read_csv(run / "episodes.csv")]
    # Clockwork counts its episodes itself, and a new one begins with a terminating one again.
    assert rows[20:] == [(21, 83, 3), (23, 87, 3), (24, 92, 5)]


def test_a_custom_environments_run_goes_on_as_the_trainer_says(tmp_path, capsys):
    def make():
        return TimeLimit(PendulumEnv(), 100)  # which has no spec, so gymnasium.make does not know it

    config = small(tmp_path, steps=100)
    whole, part = train(dataclasses.replace(config, steps=200), env=make), train(config, env=make)
    imports, call = resume_command(part, ["env"]).split("; ")
    assert call == f"train(parse(['--resume', '{part}']), env=...)"
    names: dict = {}
    exec(imports, names)
    assert names["train"](names["parse"](["--resume", str(part), "--steps", "200"]), env=make) == part
    assert_same_run(whole, part)
    assert json.loads((part / "config.json").read_text())["env"] == "PendulumEnv"
    # The settings' own `env` counts for as little as in a new run.
    assert train(dataclasses.replace(config, steps=250, resume=str(part)), env=make) == part
    assert replay_of(part)[1]["extra"]["step"] == 250
    assert main(["--resume", str(part)]) == 2
    assert "was trained with env=, which only your program can make" in capsys.readouterr().err


def test_a_buffer_smaller_than_the_random_phase_keeps_the_newest(tmp_path):
    sac = dataclasses.replace(SMALL, buffer_capacity=30)
    run = train(small(tmp_path, steps=121, learning_starts=50, eval_every=0, sac=sac), env=Clockwork)
    replay, meta = replay_of(run)
    assert meta["counters"]["step"] == 72  # an update per step from step 50 on
    t, episode = replay["next_obs"].T
    # Steps 92 to 121 in order: two episodes take 8 steps.
    kept = [(1 + s % 8, 2 * (s // 8)) if s % 8 < 3 else (s % 8 - 2, 2 * (s // 8) + 1) for s in range(91, 121)]
    assert list(zip(t, episode, strict=True)) == kept
    assert described(run)["replay"]["counters"]["pushed"] == 121


def test_the_native_build_comes_before_the_display_with_any_engine(tmp_path, monkeypatch):
    calls: list = []
    available, make_display = native.available, trainer.make_display
    monkeypatch.setattr(native, "available", lambda *device: calls.append(device) or available(*device))
    monkeypatch.setattr(trainer, "make_display", lambda *a: calls.append("display") or make_display(*a))
    train(small(tmp_path, steps=60, eval_every=0))
    assert "display" in calls[1:]
    assert calls[0] == ("cpu",)


def test_resuming_a_finished_run_scores_it_again(tmp_path, capsys):
    run = train(small(tmp_path, steps=60))
    line = [x for x in capsys.readouterr().out.splitlines() if " after 60 steps" in x]
    assert main(["--resume", str(run)]) == 0
    output = capsys.readouterr().out
    assert "has reached its 60 steps; give a larger --steps" in output
    assert line[0] in output


def test_every_field_is_a_flag_of_its_own_name(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for f in [*dataclasses.fields(TrainConfig), *dataclasses.fields(SACConfig)]:
        if f.name != "sac":
            assert re.search(rf"--{f.name.replace('_', '-')}(?![\w-])", text), f.name
    assert parse(["--hidden-dim", "128"]).sac.hidden_dim == 128
    assert parse(["--hidden-dim", "400", "300"]).sac.hidden_dim == (400, 300)
    assert parse(["--utd", "0.25", "--precision", "bf16", "--actor-update-period", "2"]).utd == 0.25
    config = parse(["--batch-size", "64", "--lr", "1e-3", "--no-tensorboard", "--target-entropy", "-3"])
    assert config.sac == SACConfig(batch_size=64, lr=1e-3, target_entropy=-3.0)
    assert config.tensorboard is False


README = Path(__file__).parent.parent / "README.md"


@pytest.mark.skipif(not README.exists(), reason="README.md is not beside tests/")
def test_readmes_settings_of_stable_baselines3():
    (flags,) = re.findall(r"settings are `(--[^`]*)`", README.read_text(encoding="utf-8"))
    config = parse(flags.split())
    usual = dataclasses.replace(SACConfig.notebook(), initialization="pytorch")
    assert dataclasses.replace(config.sac, obs_epsilon=usual.obs_epsilon) == usual
    assert config.learning_starts == 100


def test_two_runs_in_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    import sacfast.train

    class Stopped(sacfast.train.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2030, 1, 2, 3, 4, 5)

    monkeypatch.setattr(sacfast.train, "datetime", Stopped)
    config = small(tmp_path, steps=60, eval_every=0)
    assert [train(config).name for _ in range(2)] == ["20300102-030405-s7", "20300102-030405-s7-2"]


def _train_in_child(config):
    train(config)
    os._exit(0)


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_trains_though_pytorchs_threads_are_not_there(tmp_path):
    torch.set_num_threads(2)
    torch.isfinite(torch.zeros(2_000_000)).all()  # on both
    config = small(tmp_path, steps=60, threads=2, sac=SACConfig(batch_size=16))
    child = multiprocessing.get_context("fork").Process(target=_train_in_child, args=(config,))
    child.start()
    child.join(60)
    child.kill()
    child.join()
    assert child.exitcode == 0


def test_pytorch_has_its_threads_back_after_a_run(tmp_path):
    torch.set_num_threads(2)
    train(small(tmp_path, steps=60, threads=1))
    assert torch.get_num_threads() == 2


def test_an_unfinished_log_interval_is_logged_at_the_end(tmp_path):
    run = train(small(tmp_path, steps=130, eval_every=0))
    assert [row["step"] for row in read_csv(run / "progress.csv")] == [50, 100, 130]
