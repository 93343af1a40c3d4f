"""The loop's two schedules: strict is the loop that everybody writes, overlap the same with updates one step late."""

import copy
import dataclasses
import subprocess
import sys
import threading
import time

import pytest
import torch
from agents import make_agent, state_bytes
from training_runs import (
    SMALL,
    Clockwork,
    assert_same_run,
    counters_of,
    small,
)

from sacfast import SACAgent, SACError, checkpoint
from sacfast.collector import episode_seed, of_actions
from sacfast.envs import make_env
from sacfast.logger import read_csv
from sacfast.run_folder import latest
from sacfast.train import train

ENGINES = ["reference", pytest.param("native", marks=pytest.mark.native)]


def plain_loop(config, *, late):
    """The agent after a run of `config` on one environment, in as few lines as it takes; with `late`, updates that are
    due by a step are made after the next action is chosen.
    """
    env = make_env(config.env)
    agent = SACAgent.from_env(env, seed=config.seed, engine=config.engine, threads=1, **config.sac.to_dict())
    space, episode, obs = copy.deepcopy(env.action_space), 0, None
    for step in range(config.steps):
        if obs is None:
            seed = episode_seed(config.seed, episode)
            obs, _ = env.reset(seed=seed)
            space.seed(of_actions(seed))
        action = space.sample() if step < config.learning_starts else agent.select_action(obs)
        due = config.updates_by(step) - agent.training_steps
        if late and due:
            agent.train(due, config.sac.batch_size)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        agent.replay_buffer.push(obs, action, reward, next_obs, terminated)
        obs = next_obs
        if terminated or truncated:
            obs, episode = None, episode + 1
        due = config.updates_by(step + 1) - agent.training_steps
        if not late and due:
            agent.train(due, config.sac.batch_size)
    return agent


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("schedule", ["strict", "overlap"])
def test_a_run_is_the_plain_loop_to_the_bit(tmp_path, schedule, engine):
    config = small(
        tmp_path, env="Hopper-v5", steps=200, engine=engine, schedule=schedule, utd=1.5, eval_every=0
    )
    tensors, meta = checkpoint.read(latest(train(config)) / "agent.safetensors")
    agent = plain_loop(config, late=schedule == "overlap")
    assert meta["counters"] == agent.state.counters()
    for name, saved in state_bytes(agent.state).items():
        assert tensors[name].numpy().tobytes() == saved, name


@pytest.mark.native
@pytest.mark.parametrize("threads", [1, 2])
def test_overlap_repeats_itself_with_several_environments(tmp_path, threads):
    changes = {"num_envs": 3, "utd": 0.5, "log_every": 30, "engine": "native"}
    config = small(tmp_path, env="Hopper-v5", steps=240, schedule="overlap", threads=threads, **changes)
    assert_same_run(train(config), train(config))


@pytest.mark.native
def test_the_environment_is_stepped_between_the_beginning_and_the_end_of_the_updates(tmp_path, monkeypatch):
    seen = []
    start = SACAgent.start

    def watched(self, *arguments):
        seen.append("start")
        finish = start(self, *arguments)

        def end():
            seen.append("finish")
            return finish()

        return end

    class Seen(Clockwork):
        def step(self, action):
            seen.append("step")
            return super().step(action)

    monkeypatch.setattr(SACAgent, "start", watched)
    config = small(tmp_path, steps=80, schedule="overlap", engine="native", threads=2, eval_every=0)
    train(config, env=Seen, eval_env=Clockwork)
    # Those that are due by the last step have no step beside them; those whose gradients are logged are made apart.
    assert seen[:50] == ["step"] * 50
    assert seen.count("start") >= 25
    for i in (i for i, each in enumerate(seen) if each == "start"):
        assert seen[i : i + 3] == ["start", "step", "finish"]


def test_the_schedule_of_a_run_stays(tmp_path):
    run = train(small(tmp_path, steps=60))
    from sacfast.train import parse

    config = parse(["--resume", str(run), "--steps", "80"])
    with pytest.raises(
        SACError, match="--schedule overlap contradicts the run being resumed, which has strict"
    ):
        train(dataclasses.replace(config, schedule="overlap"))
    with pytest.raises(SACError, match="schedule='fast' must be one of strict, overlap"):
        dataclasses.replace(config, schedule="fast")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_environment_that_fails_meanwhile_costs_no_update(tmp_path, engine):
    class Failing(Clockwork):
        steps = 0

        def step(self, action):
            Failing.steps += 1
            if Failing.steps == 120:
                raise ValueError("the motor is on fire")
            return super().step(action)

    config = small(tmp_path, engine=engine, schedule="overlap", eval_every=0)
    with pytest.raises(SACError, match="raised ValueError: the motor is on fire"):
        train(config, env=Failing)
    (run,) = (tmp_path / "runs" / "Failing").iterdir()
    assert counters_of(run)["step"] == 119
    assert checkpoint.read_meta(latest(run) / "agent.safetensors")["counters"]["step"] == 119 - 50 + 1


def test_where_nothing_can_overlap_a_line_says_so(tmp_path, capsys):
    train(small(tmp_path, steps=60, schedule="overlap"))
    said = "overlap: engine reference on 1 thread(s) cannot update while the environments step"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("engine", ENGINES)
def test_starting_is_training(engine):
    ours, other = make_agent(engine=engine), make_agent(engine=engine)
    for updates in (1, 5):
        finish = ours.start(updates, 40)
        expected = other.train(updates, 40)
        torch.testing.assert_close(finish().tensor, expected.tensor, rtol=0, atol=0)
        assert state_bytes(ours.state) == state_bytes(other.state)
        assert ours.training_steps == other.training_steps
    with pytest.raises(SACError, match="updates=0 must be a whole number of at least 1"):
        ours.start(0, 40)()
    ours.train(1, 40)  # the engine is free again


@pytest.mark.native
def test_the_native_engine_works_while_the_caller_does_something_else(tmp_path):
    agent = make_agent((17, 6, (256, 256), 256), engine="native", threads=2)
    before, deadline = agent.state.actor_params.clone(), time.monotonic() + 60
    finish = agent.start(300, 256)
    while torch.equal(before, agent.state.actor_params):
        assert time.monotonic() < deadline
    assert agent.training_steps == 0  # taken over at the end
    with pytest.raises(
        SACError, match="updates that were started are under way; first call what start returned"
    ):
        agent.train(1, 256)
    with pytest.raises(SACError, match="updates that were started are under way"):
        agent.save(tmp_path / "half of an update")
    finish()
    assert agent.training_steps == 300
    agent.train(2, 256)
    with pytest.raises(SACError, match="has ended already; call what `start` returned once"):
        finish()
    assert agent.training_steps == 302


@pytest.mark.native
def test_what_was_started_and_forgotten_ends_in_peace():
    agent = make_agent((17, 6, (256, 256), 256), engine="native", threads=2)
    agent.start(50, 256)
    del agent


@pytest.mark.native
def test_a_process_may_end_in_the_midst_of_what_was_started():
    code = """
import numpy as np, sacfast
agent = sacfast.SACAgent(17, 6, 256, engine="native", threads=2, seed=0, buffer_capacity=500)
agent.replay_buffer.push_batch(*(np.zeros(shape) for shape in ((500, 17), (500, 6), 500, (500, 17), 500)))
finish = agent.start(200, 256)
raise SystemExit(7)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (7, "")


@pytest.mark.native
@pytest.mark.timeout(60)
def test_what_a_thread_that_is_gone_started_may_be_ended_by_another(tmp_path):
    agent, twin, finish = make_agent(engine="native", threads=2), make_agent(engine="native"), []
    thread = threading.Thread(target=lambda: finish.append(agent.start(50, 40)))
    thread.start()
    thread.join()
    with pytest.raises(SACError, match="first call what start returned"):
        agent.save(tmp_path / "a")
    finish[0]()
    twin.train(50, 40)
    assert state_bytes(agent.state) == state_bytes(twin.state)


@pytest.mark.native
def test_nothing_is_loaded_into_updates_under_way(tmp_path):
    agent, twin = make_agent(engine="native", threads=2), make_agent(engine="native")
    twin.train(3, 40)
    twin.save(tmp_path / "a")
    finish = agent.start(50, 40)
    with pytest.raises(SACError, match="first call what start returned"):
        agent.load(tmp_path / "a")
    finish()
    assert agent.training_steps == 50
    agent.load(tmp_path / "a")
    assert state_bytes(agent.state) == state_bytes(twin.state)


@pytest.mark.native
def test_an_interrupt_before_the_end_of_what_was_started_frees_nothing():
    agent, twin = make_agent(engine="native", threads=2), make_agent(engine="native", threads=2)
    library, calls = agent.engine._library, []

    class Interrupted:
        """A library at whose first call to finish Ctrl-C arrives before it."""

        def __getattr__(self, name):
            return getattr(library, name)

        def sacfast_update_finish(self, handle):
            calls.append(handle)
            if len(calls) == 1:
                raise KeyboardInterrupt
            return library.sacfast_update_finish(handle)

    finish = agent.start(50, 40)
    agent.engine._library = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        finish()
    agent.engine._library = library
    assert agent.training_steps == 50
    agent.train(1, 40)
    twin.train(51, 40)
    assert state_bytes(agent.state) == state_bytes(twin.state)


@pytest.mark.native
def test_a_bad_batch_is_reported_by_the_end_of_what_was_started():
    agent = make_agent(engine="native")
    agent.replay_buffer._ring.reward[:] = float("nan")
    finish = agent.start(3, 40)
    with pytest.raises(SACError, match="the batch of update 0 holds a NaN or an infinity"):
        finish()
    with pytest.raises(SACError, match="the batch of update 0 holds a NaN"):
        agent.train(1, 40)


@pytest.mark.native
def test_another_thread_waits_for_its_turn():
    agent = make_agent(engine="native")
    finish, done = agent.start(50, 40), []
    other = threading.Thread(target=lambda: done.append(agent.train(1, 40)))
    other.start()
    other.join(0.2)
    assert not done
    finish()
    other.join(20)
    assert done
    assert agent.training_steps == 51


def test_a_row_of_the_log_says_where_the_time_went_and_how_learning_is(tmp_path):
    run = train(small(tmp_path, schedule="overlap", sac=dataclasses.replace(SMALL, actor_update_period=2)))
    rows = read_csv(run / "progress.csv")
    for row in rows:
        assert sum(
            row[f"time_{stage}"] for stage in ("act", "env", "insert", "update", "log")
        ) == pytest.approx(1)
        assert 0 <= row["saturation"] < 0.2  # a hundredth of random actions is that near a bound
        assert row["buffer_fill"] == row["step"] / 2000
    assert rows[0]["entropy"] is None
    assert rows[0]["actor_grad_norm"] is None
    for row in rows[1:]:
        assert row["entropy"] == -row["log_prob_mean"]
        assert row["critic_grad_norm"] > 0
        assert row["actor_grad_norm"] > 0
    for name in ("critic_grad_norm", "actor_grad_norm"):
        assert len({row[name] for row in rows[1:]}) == len(rows) - 1  # measured anew for each row


@pytest.mark.native
@pytest.mark.timeout(60)
def test_a_start_that_is_refused_leaves_the_engine_free():
    agent = make_agent(engine="native")
    agent.actor.double()
    for use in (agent.start, agent.train):
        with pytest.raises(SACError, match="no longer the float32 numbers"):
            use(1, 40)
