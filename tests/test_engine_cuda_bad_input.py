"""The native engine on CUDA: what it refuses, and what is left then."""

import copy

import numpy as np
import pytest
import torch
from agents import draw, make_agent, state_bytes
from cuda_agents import cuda_agent, engine_for

from sacfast import SACAgent, SACError
from sacfast.engines import make_engine
from sacfast.engines.base import TorchPolicy
from sacfast.errors import NativeUnavailable
from sacfast.ops import Stream

pytestmark = pytest.mark.native


@pytest.mark.parametrize(
    ("field", "size"),
    [("obs", 40), ("action", 40), ("reward", 40), ("next_obs", 40), ("terminated", 40), ("reward", 1100)],
)
def test_a_batch_that_is_not_finite_is_not_applied(cuda_place, field, size):
    """Of 1,100, the gradients come in parts."""
    agent, twin = (cuda_agent(cuda_place, rows=1200) for _ in range(2))
    for one in (agent, twin):
        one.train(2, 40)
    batch, noise = draw(agent, agent.state, size)
    getattr(batch, field).view(-1)[-1] = float("nan")
    agent.engine.update(agent.state, batch, noise)
    with pytest.raises(SACError, match="update 2 holds a NaN or an infinity, so neither that update nor"):
        agent.train(3, 40)  # reports it, or on a GPU comes before it is known, and is not applied either
        agent.engine.settle(agent.state)
    assert state_bytes(agent.state) == state_bytes(twin.state)
    assert agent.state.counters() == twin.state.counters()
    for one in (agent, twin):
        one.train(2, 40)
    assert state_bytes(agent.state) == state_bytes(twin.state)


def test_updates_before_a_bad_batch_in_the_same_graph_count(cuda_place):
    agent, twin = (cuda_agent(cuda_place, rows=60) for _ in range(2))
    agent.replay_buffer.ring_to_sample(1).reward[7] = float("nan")
    while not agent.replay_buffer.sample_batch(5, twin.state.key(Stream.BATCH)).reward.isnan().any():
        twin.train(1, 5)
    applied = twin.training_steps
    assert 0 < applied < 60 and applied != 32  # a graph has 32
    with pytest.raises(SACError, match=f"update {applied} holds a NaN"):
        agent.train(60, 5)
        agent.engine.settle(agent.state)
    assert state_bytes(agent.state) == state_bytes(twin.state)
    assert agent.state.counters() == twin.state.counters()


def test_the_next_call_reports_it_too(cuda_emulation):
    agent = cuda_agent({"device": "cpu", "library": cuda_emulation}, actor_update_period=2)
    agent.train(1, 40)
    batch, noise = draw(agent, agent.state, 40)
    batch.reward[7] = float("inf")
    agent.engine.update(agent.state, batch, noise)
    with pytest.raises(SACError, match="update 1 holds a NaN or an infinity"):
        agent.train(5, 40)
    counters = agent.state.counters()
    assert (counters["step"], counters["critic_adam_step"], counters["actor_adam_step"]) == (1, 1, 1)
    agent.train(1, 40)


def refused(agent: SACAgent) -> None:
    """Lets the agent's engine make an update on a batch that is not finite, which is yet to be reported."""
    batch, noise = draw(agent, agent.state, 40)
    batch.reward[7] = float("inf")
    agent.engine.update(agent.state, batch, noise)


def test_what_is_refused_is_reported_of_its_own_state(cuda_emulation):
    place = {"device": "cpu", "library": cuda_emulation}
    first, second, twin = (cuda_agent(place, seed=seed) for seed in (1, 2, 2))
    second.engine = first.engine
    first.train(1, 40)
    refused(first)
    assert first.training_steps == 2
    with pytest.raises(SACError, match="update 1 holds a NaN or an infinity"):
        second.train(1, 40)
    assert (first.training_steps, second.training_steps) == (1, 0)
    second.train(2, 40)
    twin.train(2, 40)
    assert state_bytes(second.state) == state_bytes(twin.state)
    first.engine.settle(first.state)


def test_what_is_refused_does_not_outlive_loading_another_checkpoint(cuda_emulation, tmp_path):
    agent = cuda_agent({"device": "cpu", "library": cuda_emulation})
    agent.train(5, 40)
    agent.save(tmp_path / "five.safetensors")
    refused(agent)
    agent.load(tmp_path / "five.safetensors")
    agent.train(1, 40)
    agent.engine.settle(agent.state)
    assert agent.training_steps == 6


def test_a_copy_knows_of_what_is_refused(cuda_emulation):
    agent = cuda_agent({"device": "cpu", "library": cuda_emulation})
    agent.train(1, 40)
    refused(agent)
    with pytest.raises(SACError, match="update 1 holds a NaN or an infinity"):
        copy.deepcopy(agent)
    assert copy.deepcopy(agent).training_steps == 1


def test_what_is_refused_while_profiling_is_reported(cuda_emulation):
    agent = cuda_agent({"device": "cpu", "library": cuda_emulation})
    agent.engine.profile()
    agent.train(1, 40)
    refused(agent)
    with pytest.raises(SACError, match="update 1 holds a NaN or an infinity"):
        agent.train(1, 40)
    assert agent.training_steps == 1


def test_a_graph_that_cannot_be_made_leaves_weights_and_counters_together(cuda_emulation):
    agent = cuda_agent({"device": "cpu", "library": cuda_emulation}, actor_update_period=2)
    agent.train(1, 40)
    before, counters = state_bytes(agent.state), agent.state.counters()
    cuda_emulation.emulator_let_graphs_fail(True)
    try:
        with pytest.raises(SACError, match="the update's graph: out of memory"):
            agent.train(7, 40)
    finally:
        cuda_emulation.emulator_let_graphs_fail(False)
    assert (state_bytes(agent.state), agent.state.counters()) == (before, counters)
    assert cuda_emulation.emulator_last_error() == 0  # PyTorch would fail for it, in saving what was learned
    agent.train(7, 40)


def test_a_graph_gets_the_memory_that_pytorch_keeps(cuda_emulation, monkeypatch):
    agent, twin = (cuda_agent({"device": "cpu", "library": cuda_emulation}) for _ in range(2))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: cuda_emulation.emulator_let_graphs_fail(False))
    cuda_emulation.emulator_let_graphs_fail(True)
    agent.train(3, 40)
    twin.train(3, 40)
    assert state_bytes(agent.state) == state_bytes(twin.state)


def test_what_is_refused_is_reported_before_the_networks_change(cuda_emulation):
    agent = cuda_agent({"device": "cpu", "library": cuda_emulation})
    agent.train(1, 40)
    refused(agent)
    agent.actor.log_std_min = -5.0
    with pytest.raises(SACError, match="update 1 holds a NaN or an infinity"):
        agent.train(1, 40)
    assert agent.training_steps == 1
    agent.train(1, 40)


def test_a_signal_handler_that_settles_while_the_gpu_is_awaited_is_told(cuda_emulation, monkeypatch):
    agent = cuda_agent({"device": "cpu", "library": cuda_emulation})
    agent.train(1, 40)
    settle_last = agent.engine._settle_last

    def interrupted() -> None:
        with pytest.raises(SACError, match="let a signal handler set a flag"):
            agent.engine.settle(agent.state)
        settle_last()

    monkeypatch.setattr(agent.engine, "_settle_last", interrupted)
    agent.engine.settle(agent.state)
    agent.train(1, 40)


def test_divergence_shows_in_the_actions(cuda_place):
    agent = cuda_agent(cuda_place)
    for layer in (agent.actor.fc1, agent.actor.mean):
        with torch.no_grad():
            weight = layer.weight[0, 0].clone()
            layer.weight[0, 0] = torch.nan
        assert np.isnan(agent.select_action(np.ones(5), evaluate=True)).any()
        with torch.no_grad():
            layer.weight[0, 0] = weight


def test_a_critic_that_diverged_takes_the_rest_along(cuda_place):
    agent = cuda_agent(cuda_place)
    with torch.no_grad():
        agent.critic.q2.bias.fill_(torch.nan)
        agent.critic_target.q2.bias.fill_(torch.nan)
    agent.train(1, 40)
    assert agent.critic.q1.bias.isnan().all() and agent.state.actor_params.isnan().any()


def test_what_cuda_has_not_is_named(cuda_emulation):
    agent = make_agent()
    place = {"device": "cpu", "library": cuda_emulation}
    with pytest.raises(SACError, match="'bf16x3' is not available on CUDA, which has float32, tf32, bf16"):
        engine_for(agent, place, "bf16x3")
    wide = SACAgent(3, 1025, 8, engine="reference")
    wide.engine = engine_for(wide, place)
    wide.replay_buffer.push_batch(
        np.zeros((9, 3)), np.zeros((9, 1025)), np.zeros(9), np.zeros((9, 3)), np.zeros(9)
    )
    with pytest.raises(NativeUnavailable, match="takes up to 1024 actions"):
        wide.train(1, 8)


def test_a_state_elsewhere_is_refused(cuda_emulation):
    agent = cuda_agent({"device": "cpu", "library": cuda_emulation})
    agent.engine._metrics = torch.zeros(7, device="meta")
    with pytest.raises(SACError, match="this engine is for states on meta, and this agent is on cpu"):
        agent.train(1, 40)
    assert isinstance(agent.engine.make_policy(agent.state, agent.bounds), TorchPolicy)


def test_more_memory_than_there_is_is_named(cuda_emulation, monkeypatch):
    agent = cuda_agent({"device": "cpu", "library": cuda_emulation})
    agent.train(1, 40)
    before = state_bytes(agent.state)
    with (
        monkeypatch.context() as patch,
        pytest.raises(SACError, match="batch_size=80 need .* GB, which cannot be had"),
    ):
        patch.setattr(
            torch, "empty", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("CUDA out of memory"))
        )
        agent.engine.update(agent.state, *draw(agent, agent.state, 80))
    assert state_bytes(agent.state) == before and agent.training_steps == 1
    agent.train(1, 40)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_reason_is_given():
    with pytest.raises(NativeUnavailable, match="engine='native' on CUDA needs the native CUDA kernels: "):
        make_engine("native", make_agent().config, device="cuda")
