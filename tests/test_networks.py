"""The networks: one to four hidden layers of any width, under the notebook's names."""

import pytest
import torch
from torch.nn import functional as F

from sacfast import ActorNetwork, CriticNetwork, SACError

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
