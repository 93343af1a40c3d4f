"""The batched pendulum: Gymnasium's dynamics, its resets, and a run on it that learns without leaving torch."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from training_runs import replay_of, small

from sacfast.agent import SACAgent
from sacfast.config import SACConfig
from sacfast.logger import read_csv
from sacfast.replay import ReplayBuffer
from sacfast.tensor_pendulum import TensorPendulum
from sacfast.train import train
from sacfast.trainer import DivergedError


def test_the_dynamics_are_gymnasiums():
    envs, single = TensorPendulum(5), gymnasium.make("Pendulum-v1").unwrapped
    envs.reset(seed=1)
    single.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        action = 6 * torch.rand((5, 1), generator=generator) - 3  # beyond the bounds as well
        states = torch.stack([envs.angle, envs.speed], dim=1).double().numpy()
        obs, reward, terminated, truncated, _ = envs.step(action)
        for i in range(5):
            single.state = states[i]
            expected, value = single.step(action[i].numpy())[:2]
            np.testing.assert_allclose(obs[i], expected, atol=1e-5)
            np.testing.assert_allclose(reward[i], value, atol=1e-4)
        assert not (terminated | truncated).any()


def test_episodes_end_after_their_time_and_the_last_observation_is_kept():
    envs = TensorPendulum(4, time_limit=3)
    first, _ = envs.reset(seed=2)
    for step in range(1, 7):
        obs, _, terminated, truncated, info = envs.step(torch.ones(4, 1))
        assert not terminated.any()
        assert truncated.all() if step % 3 == 0 else not truncated.any()
        assert torch.equal(info["_final_obs"], truncated)
        assert torch.equal(info["final_obs"], obs) == (step % 3 != 0)
    assert len(torch.unique(torch.cat([first, obs]), dim=0)) == 8  # new starts, all different
    assert torch.equal(envs.reset(seed=2)[0], first)


def test_act_gives_select_actions_numbers_as_tensors():
    bounds = {"action_low": np.array([-2.0, 0.0]), "action_high": np.array([2.0, 10.0])}
    for kwargs in ({}, {"normalize_obs": True}):
        agents = [SACAgent(3, 2, 8, engine="reference", seed=0, **bounds, **kwargs) for _ in range(2)]
        obs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
        for evaluate in (False, True, False):
            action = agents[0].act(obs, evaluate)
            assert isinstance(action, torch.Tensor)
            np.testing.assert_array_equal(action.numpy(), agents[1].select_action(obs.numpy(), evaluate))
        assert agents[0].state.action_step == agents[1].state.action_step == 2
    with pytest.raises(ValueError, match=r"shape \[3\]; this agent needs \[n, 3\]"):
        agents[0].act(obs[0])


def test_observations_actions_and_transitions_stay_tensors_and_are_right(tmp_path, monkeypatch):
    seen = []
    for owner, name in ((SACAgent, "act"), (ReplayBuffer, "push_batch"), (TensorPendulum, "step")):
        real = getattr(owner, name)

        def spy(self, *values, real=real, name=name):
            seen.append((name, {type(value) for value in values} - {bool}))
            return real(self, *values)

        monkeypatch.setattr(owner, name, spy)
    config = small(tmp_path, steps=2000, learning_starts=1000, utd=0.02, eval_every=0)
    run = train(config, env=lambda: TensorPendulum(8))
    assert {name for name, _ in seen} == {"act", "push_batch", "step"}
    assert all(types == {torch.Tensor} for _, types in seen)
    replay, _ = replay_of(run)
    cos, sin, speed = replay["obs"].T
    follows = np.clip(speed + (15 * sin + 6 * replay["action"][:, 0]) * 0.05, -8, 8)
    np.testing.assert_allclose(replay["next_obs"][:, 2], follows, atol=1e-4)
    angle = np.arctan2(sin, cos) + follows * 0.05
    np.testing.assert_allclose(replay["next_obs"][:, 1], np.sin(angle), atol=1e-4)
    assert not replay["terminated"].any()
    assert [row["length"] for row in read_csv(run / "episodes.csv")] == [200] * 8


@pytest.mark.native
def test_the_pendulum_is_learned(tmp_path):
    rates = {"lr": 2e-3, "critic_lr": 2e-3, "alpha_lr": 2e-3, "actor_update_period": 1}  # for so few steps
    sac = SACConfig(hidden_dim=64, normalize_obs=False, **rates)
    settings = {"steps": 9600, "learning_starts": 800, "utd": 0.25, "engine": "native", "eval_episodes": 8}
    run = train(small(tmp_path, eval_every=0, sac=sac, **settings), env=lambda: TensorPendulum(16))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["baselines"]["random"]["mean"] < -900
    assert summary["score"]["mean"] > -400


def test_an_action_of_nan_ends_the_run_before_it_is_stored(tmp_path, monkeypatch):
    """A pendulum clamps what it is given, so that nothing that comes back would show it."""

    class Clamping(TensorPendulum):
        def step(self, actions):
            return super().step(torch.nan_to_num(actions))

    real, acted = SACAgent.act, []

    def failing(self, obs, evaluate=False):
        action = real(self, obs, evaluate)
        acted.append(evaluate)
        return action * float("nan") if acted.count(False) == 10 and not evaluate else action

    monkeypatch.setattr(SACAgent, "act", failing)
    config = small(tmp_path, steps=400, eval_every=0, sac=SACConfig(hidden_dim=8, batch_size=16))
    with pytest.raises(DivergedError, match=r"action at step \d+ is \[nan\]: training diverged; start again"):
        train(config, env=lambda: Clamping(4))
    assert acted.count(False) == 10
