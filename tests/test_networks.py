"""The networks: one to four hidden layers of any width, under the notebook's names."""

import pytest
import torch
from torch.nn import functional as F

from sacfast import ActorNetwork, CriticNetwork, SACAgent, SACError

WIDTHS = [(5,), (7, 3), (6, 4, 5), (2, 9, 3, 4)]


def layers_of(network) -> list[str]:
    return [name.removesuffix(".weight") for name in network.state_dict() if name.endswith(".weight")]


@pytest.mark.parametrize("widths", WIDTHS)
def test_layers_are_named_in_order(widths):
    count = len(widths)
    first = [f"fc{i}" for i in range(1, count + 1)]
    second = [f"fc{i}" for i in range(count + 1, 2 * count + 1)]
    assert layers_of(ActorNetwork(4, 2, widths)) == [*first, "mean", "log_std"]
    critic = CriticNetwork(4, 2, list(widths))
    assert layers_of(critic) == [*first, "q1", *second, "q2"]
    assert tuple(getattr(critic, name).out_features for name in second) == widths


@pytest.mark.parametrize("widths", WIDTHS)
def test_every_hidden_layer_is_followed_by_relu(widths):
    obs, action = torch.randn(6, 4), torch.rand(6, 2)
    actor, critic = ActorNetwork(4, 2, widths), CriticNetwork(4, 2, widths)

    def hidden(network, first, x):
        for i in range(first, first + len(widths)):
            x = F.relu(getattr(network, f"fc{i}")(x))
        return x

    x = hidden(actor, 1, obs)
    mean, log_std = actor(obs)
    assert torch.equal(mean, actor.mean(x)) and torch.equal(log_std, actor.log_std(x).clamp(-20, 2))
    both = torch.cat([obs, action], dim=1)
    q1, q2 = critic(obs, action)
    assert torch.equal(q1, critic.q1(hidden(critic, 1, both)))
    assert torch.equal(q2, critic.q2(hidden(critic, len(widths) + 1, both)))


def test_a_number_means_two_layers_of_that_width():
    for network in (ActorNetwork, CriticNetwork):
        torch.manual_seed(0)
        first = network(4, 2, 8).state_dict()
        torch.manual_seed(0)
        second = network(4, 2, (8, 8)).state_dict()
        assert list(first) == list(second)
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("bad", [0, (), (8,) * 5, (8, 0), 2.5, "8"])
def test_bad_widths_are_named(bad):
    for network in (ActorNetwork, CriticNetwork):
        with pytest.raises(SACError, match="hidden_dim="):
            network(4, 2, bad)


@pytest.mark.parametrize("bound", ["clamp", "tanh"])
def test_log_std_stays_in_its_bounds(bound):
    """A head of weight 1 and bias 0 on an observation that passes through, with log_std of -4, 0.5 and 4 before."""
    actor = ActorNetwork(3, 3, (3,), -3.0, 1.0, log_std_bound=bound)
    with torch.no_grad():
        for layer in (actor.fc1, actor.log_std):
            layer.weight.copy_(torch.eye(3))
            layer.bias.zero_()
        actor.log_std.bias.copy_(torch.tensor([-4.0, 0.5, 0.0]))
    _, log_std = actor(torch.tensor([[0.0, 0.0, 4.0]]))
    expected = {"clamp": [-3.0, 0.5, 1.0], "tanh": [-2.998659, -0.075766, 0.998659]}[bound]
    assert log_std[0].tolist() == pytest.approx(expected, abs=1e-5)
    log_std.sum().backward()
    slope = {"clamp": [0.0, 1.0, 0.0], "tanh": [0.002682, 1.572895, 0.002682]}[bound]
    assert actor.log_std.bias.grad.tolist() == pytest.approx(slope, abs=1e-5)


def test_pytorchs_initialisation_is_that_of_linear_layers():
    """The same generator gives the same weights as layers made in the same order."""
    torch.manual_seed(7)
    actor = ActorNetwork(4, 2, (6, 5), initialization="pytorch")
    torch.manual_seed(7)
    for name, (inputs, outputs) in {"fc1": (4, 6), "fc2": (6, 5), "mean": (5, 2), "log_std": (5, 2)}.items():
        layer = torch.nn.Linear(inputs, outputs)
        assert torch.equal(getattr(actor, name).weight, layer.weight)
        assert torch.equal(getattr(actor, name).bias, layer.bias)
    critic = CriticNetwork(4, 2, (6, 5), initialization="pytorch")
    assert all(bias.any() for name, bias in critic.named_parameters() if name.endswith("bias"))


def test_orthogonal_initialisation_starts_with_a_small_policy():
    actor = ActorNetwork(4, 2, (6, 5))
    identity = torch.eye(2)
    torch.testing.assert_close(actor.mean.weight @ actor.mean.weight.T, 1e-4 * identity)
    torch.testing.assert_close(actor.fc1.weight.T @ actor.fc1.weight, 2 * torch.eye(4))
    assert not any(bias.any() for name, bias in actor.named_parameters() if name.endswith("bias"))


def test_an_agents_initialisation_is_its_setting():
    first, second = (SACAgent(4, 2, 8, seed=0, initialization=name) for name in ("orthogonal", "pytorch"))
    for network in ("actor", "critic"):
        assert not getattr(first, network).fc1.bias.any()
        assert getattr(second, network).fc1.bias.any()
    assert torch.equal(second.critic.q2.bias, second.critic_target.q2.bias)


def test_words_that_no_initialisation_or_bound_has_are_refused():
    for make in (
        lambda: ActorNetwork(3, 1, initialization="orthogonl"),
        lambda: CriticNetwork(3, 1, 8, "Pytorch"),
    ):
        with pytest.raises(SACError, match=r"initialization='\w+' must be one of orthogonal, pytorch"):
            make()
    with pytest.raises(SACError, match="log_std_bound='Tanh' must be one of clamp, tanh"):
        ActorNetwork(3, 1, log_std_bound="Tanh")
