"""SACState: parameters that view flat buffers, and Adam on them."""

import copy
import io

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch.nn import functional as F

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


def evaluated_from(flat, layers, x, heads=1):
    """The network that `layers` describe in `flat`: its last `heads` layers side by side on top of the others."""

    def dense(layer, x):
        weight = flat[layer.weight_offset :][: layer.outputs * layer.inputs].view(layer.outputs, layer.inputs)
        return x @ weight.T + flat[layer.bias_offset :][: layer.outputs]

    for layer in layers[:-heads]:
        x = F.relu(dense(layer, x))
    return [dense(layer, x) for layer in layers[-heads:]]


@pytest.mark.parametrize("hidden_dim", [8, 1, (5,), (7, 3), (6, 4, 5), (2, 9, 3, 4)])
def test_the_layers_say_where_every_number_lies(hidden_dim):
    state = SACAgent(5, 3, hidden_dim, seed=0).state
    for flat in (state.actor_params, state.critic_params, state.critic_target_params):
        flat.uniform_(-0.3, 0.3)  # too little for log_std to meet its clamp
    obs, action = torch.randn(6, 5), torch.rand(6, 3)
    pairs = [(evaluated_from(state.actor_params, state.actor_layers, obs, heads=2), state.actor(obs))]
    for network, flat in (
        (state.critic, state.critic_params),
        (state.critic_target, state.critic_target_params),
    ):
        x = torch.cat([obs, action], dim=1)
        ours = [evaluated_from(flat, layers, x)[0] for layers in state.critic_layers]
        pairs.append((ours, network(obs, action)))
    for ours, theirs in pairs:
        torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=1e-5, atol=1e-5)
    for layers, flat in (
        (state.actor_layers, state.actor_params),
        ([layer for twin in state.critic_layers for layer in twin], state.critic_params),
    ):
        assert sum(layer.outputs * (layer.inputs + 1) for layer in layers) == flat.numel()
    assert (state.obs_dim, state.action_dim) == (5, 3)


def test_a_state_dict_costs_its_own_bytes_and_no_more():
    state = SACAgent(20, 5, (64, 32, 16), seed=0).state
    for name in ("actor", "critic", "critic_target"):
        weights = getattr(state, name).state_dict()
        assert all(tensor.is_contiguous() for tensor in weights.values())
        size = getattr(state, f"{name}_params").nbytes
        file = io.BytesIO()
        torch.save(weights, file)
        per_tensor = 600  # names, shapes and alignment
        assert size <= len(file.getvalue()) < size + per_tensor * len(weights) + 1000
        assert size <= len(save(weights)) < size + per_tensor * len(weights)


def test_the_version_follows_every_write_of_torch():
    agent, other = SACAgent(4, 2, 8, seed=0), SACAgent(4, 2, 8, seed=1)
    state = agent.state
    versions = [state.version()]

    def written() -> bool:
        versions.append(state.version())
        return versions[-1] != versions[-2]

    assert not written()
    for name in ("actor", "critic", "critic_target"):
        getattr(agent, name).load_state_dict(getattr(other, name).state_dict())
        assert written()
        with torch.no_grad():
            next(getattr(agent, name).parameters())[0].zero_()
        assert written()
        getattr(state, f"{name}_params").mul_(0.5)
        assert written()
    state.log_alpha.fill_(0.5)
    assert written()
    agent.select_action(np.zeros(4))
    assert not written()
    assert versions == sorted(versions)


def test_native_code_says_that_it_has_written():
    agent = SACAgent(4, 2, 8, seed=0)
    version, loss = agent.state.version(), agent.critic(torch.ones(3, 4), torch.ones(3, 2))[0].sum()
    agent.state.written()
    assert agent.state.version() > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


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
