"""What the log says beside the losses, against the thing itself."""

import copy

import pytest
import torch
from agents import draw, make_agent

from sacfast.diagnostics import GradientNorms, Stopwatch, saturation
from sacfast.replay import ReplayBuffer

ENGINES = ["reference", pytest.param("native", marks=pytest.mark.native)]


@pytest.mark.parametrize("engine", ENGINES)
def test_gradient_norms_are_those_of_autograd(engine):
    agent = make_agent(engine=engine)
    agent.train(20, 40)
    batch, noise = draw(agent, agent.state, 40)
    expected = autograd_norms(agent, batch, noise)
    norms = GradientNorms(agent.state)
    agent.engine.update(agent.state, batch, noise)
    found = norms.of_the_update_since()
    for name in GradientNorms.names:
        assert float(found[name]) == pytest.approx(expected[name], rel=1e-4)


def autograd_norms(agent, batch, noise):
    """The two gradients of one update of SAC, by torch.autograd (arXiv:1812.05905, equations 5 and 7)."""
    state, alpha = copy.deepcopy(agent.state), agent.alpha
    with torch.no_grad():
        next_action, next_log_prob, _ = state.actor.sample(batch.next_obs, noise=noise.next_action)
        next_q = torch.minimum(*state.critic_target(batch.next_obs, next_action)).flatten()
        future = next_q - alpha * next_log_prob.flatten()
        target = batch.reward + agent.gamma * (1 - batch.terminated) * future
    q1, q2 = state.critic(batch.obs, batch.action)
    loss = ((q1.flatten() - target) ** 2).mean() + ((q2.flatten() - target) ** 2).mean()
    critic = torch.autograd.grad(loss, list(state.critic.parameters()))
    agent = copy.deepcopy(agent)
    agent.use_engine("reference")
    agent.engine.update(agent.state, batch, noise)  # the actor's loss sees the critics after their step
    action, log_prob, _ = state.actor.sample(batch.obs, noise=noise.action)
    q = torch.minimum(*agent.critic(batch.obs, action)).flatten()
    actor = torch.autograd.grad((alpha * log_prob.flatten() - q).mean(), list(state.actor.parameters()))
    return dict(zip(GradientNorms.names, map(norm, (critic, actor)), strict=True))


def norm(gradients):
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


def test_without_the_actors_turn_there_is_no_norm_of_its_gradient():
    agent = make_agent(actor_update_period=2)
    turns = []
    for _ in range(4):
        norms = GradientNorms(agent.state)
        agent.train(1, 40)
        turns.append(tuple(norms.of_the_update_since()))
    both = GradientNorms.names
    assert sorted(turns) == sorted([both, both[:1]] * 2)


def test_the_stopwatch_shares_out_what_it_was_not_told_to_skip(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 104.0, 104.5, 105.0, 106.0])
    monkeypatch.setattr("sacfast.diagnostics.perf_counter", lambda: next(clock))
    watch = Stopwatch(elapsed_s=50.0)
    watch.lap("act")
    watch.lap("env")
    watch.skip()
    watch.lap("env")
    watch.lap("log")
    assert watch.shares() == {
        "time_act": 0.2, "time_env": 0.7, "time_insert": 0.0, "time_update": 0.0, "time_log": 0.1
    }  # fmt: skip
    watch.lap("update")
    assert watch.shares()["time_update"] == 1.0
    assert watch.elapsed_s == 50.0 + 6.0


def test_saturation_is_the_share_near_a_bound():
    assert saturation(torch.tensor([[1.0, -0.995], [0.98, 0.0]])) == 0.5
    assert saturation(torch.empty(0, 3)) is None


def test_the_newest_actions_are_the_newest_across_the_end_of_the_ring():
    buffer = ReplayBuffer(5, obs_dim=1, action_dim=1)
    assert buffer.newest_actions(3).shape == (0, 1)
    for i in range(7):
        buffer.push([i], [i / 10], 0.0, [i + 1], False)
    torch.testing.assert_close(buffer.newest_actions(3).flatten(), torch.tensor([0.4, 0.5, 0.6]))
    assert len(buffer.newest_actions(100)) == 5
    assert ReplayBuffer(5).newest_actions(3).numel() == 0
