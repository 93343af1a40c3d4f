"""SACState: parameters that view flat buffers, and Adam on them."""

import copy

import torch

from sacfast import SACAgent
from sacfast.state import Adam


def views_its_buffer(state) -> bool:
    """Whether a write to each flat buffer shows in the module's parameters."""
    for name in ("actor", "critic", "critic_target"):
        flat = getattr(state, f"{name}_params")
        flat.fill_(0.25)
        if not all((p == 0.25).all() for p in getattr(state, name).parameters()):
            return False
    return True


def test_parameters_view_the_flat_buffers():
    state = SACAgent(4, 2, 8, seed=0).state
    assert state.actor_params.numel() == sum(p.numel() for p in state.actor.parameters())
    assert views_its_buffer(state)


def test_load_state_dict_keeps_the_views():
    agent, other = SACAgent(4, 2, 8, seed=0), SACAgent(4, 2, 8, seed=1)
    agent.actor.load_state_dict(other.actor.state_dict())
    assert torch.equal(agent.state.actor_params, other.state.actor_params)
    assert views_its_buffer(agent.state)


def test_a_deep_copy_is_independent_and_whole():
    state = SACAgent(4, 2, 8, seed=0).state
    state.step, state.critic_adam.step = 7, 7
    state.critic_adam.exp_avg.fill_(0.5)
    twin = copy.deepcopy(state)
    assert twin.counters() == state.counters()
    for (name, a), (_, b) in zip(state.named_tensors(), twin.named_tensors(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr(), name
    before = state.actor_params.clone()
    assert views_its_buffer(twin)
    assert torch.equal(state.actor_params, before)


def test_adam_equals_torchs():
    torch.manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(50))
    ours = theirs.detach().clone()
    optimizer, adam = torch.optim.Adam([theirs], lr=0.01), Adam.zeros(ours)
    for _ in range(30):
        theirs.grad = torch.randn(50)
        adam.update_(ours, theirs.grad, 0.01)
        optimizer.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-7)
    assert adam.step == 30
