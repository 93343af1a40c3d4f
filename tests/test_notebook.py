"""The notebook's contract: its cells run on our classes, and its classes are what ours compute."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import sacfast
from sacfast import Batch, CheckpointError, Noise, SACAgent, SACConfig

HERE = Path(__file__).parent / "notebook"
DIMS = {"state_dim": 5, "action_dim": 3, "hidden_dim": 32}


@pytest.fixture(scope="module")
def notebook() -> dict:
    """The notebook's own classes, by name."""
    return runpy.run_path(str(HERE / "original.py"))


def test_cells_run_and_pass(capsys):
    runpy.run_path(str(HERE / "cells.py"))
    printed = capsys.readouterr().out
    assert "Buffer size: 1000" in printed
    assert "Log prob: torch.Size([10, 1])" in printed
    assert "All tests passed! SAC agent is ready for training." in printed


@pytest.mark.parametrize(("name", "args"), [("ActorNetwork", (23, 7)), ("CriticNetwork", (23, 7, 64))])
def test_same_keys_and_same_initial_weights(notebook, name, args):
    torch.manual_seed(3)
    theirs = notebook[name](*args).state_dict()
    torch.manual_seed(3)
    ours = getattr(sacfast, name)(*args).state_dict()
    assert list(ours) == list(theirs)
    for key in theirs:
        assert torch.equal(ours[key], theirs[key])


def test_the_notebooks_settings_are_kept(notebook):
    """SACConfig.notebook() says what the notebook's agent has, down to its first weights."""
    settings = SACConfig.notebook()
    torch.manual_seed(3)
    theirs = notebook["SACAgent"](5, 3)
    ours = SACAgent(5, 3, seed=3, **settings.to_dict())
    groups = [
        optimizer.param_groups[0]
        for optimizer in (theirs.actor_optimizer, theirs.critic_optimizer, theirs.alpha_optimizer)
    ]
    assert {group["lr"] for group in groups} == {settings.lr}
    assert {group["weight_decay"] for group in groups} == {0}
    assert theirs.actor.fc1.out_features == theirs.actor.fc2.out_features == settings.hidden_dim
    assert (theirs.actor.log_std_min, theirs.actor.log_std_max) == (
        settings.log_std_min,
        settings.log_std_max,
    )
    for name in ("gamma", "tau", "automatic_entropy_tuning"):
        assert getattr(theirs, name) == getattr(settings, name)
    assert notebook["SACAgent"](5, 3, automatic_entropy_tuning=False).alpha.item() == pytest.approx(
        settings.alpha
    )
    assert ours.config.target_entropy == theirs.target_entropy
    assert theirs.replay_buffer.buffer.maxlen == settings.buffer_capacity
    for name in ("actor", "critic", "critic_target"):
        for key, value in getattr(theirs, name).state_dict().items():
            assert torch.equal(getattr(ours, name).state_dict()[key], value)


def fill(theirs, ours, rows: int = 300) -> None:
    rng = np.random.default_rng(0)
    for i in range(rows):
        transition = (
            rng.normal(size=5),
            rng.uniform(-1, 1, 3),
            float(rng.normal()),
            rng.normal(size=5),
            i % 50 == 49,
        )
        theirs.replay_buffer.push(*transition)
        ours.replay_buffer.push(*transition)


def trained_notebook_agent(notebook, tmp_path, updates: int = 5):
    torch.manual_seed(0)
    theirs = notebook["SACAgent"](**DIMS)
    ours = SACAgent(**DIMS, seed=1, engine="reference")
    fill(theirs, ours)
    for _ in range(updates):
        theirs.update(32)
    path = tmp_path / "notebook.pt"
    theirs.save(path)
    return theirs, ours, path


def test_loads_the_notebooks_checkpoint_with_its_moments(notebook, tmp_path):
    theirs, ours, path = trained_notebook_agent(notebook, tmp_path)
    ours.load(path)
    for name in ("actor", "critic", "critic_target"):
        for key, value in getattr(theirs, name).state_dict().items():
            assert torch.equal(getattr(ours, name).state_dict()[key], value)
    assert torch.equal(ours.log_alpha, theirs.log_alpha.detach())
    assert ours.training_steps == 5 and ours.state.critic_adam.step == 5
    expected = torch.cat(
        [theirs.actor_optimizer.state[p]["exp_avg"].flatten() for p in theirs.actor.parameters()]
    )
    assert torch.equal(ours.state.actor_adam.exp_avg, expected)


def test_an_untrained_notebook_checkpoint_loads(notebook, tmp_path):
    _, ours, path = trained_notebook_agent(notebook, tmp_path, updates=0)
    ours.load(path)
    assert ours.training_steps == 0 and ours.state.actor_adam.step == 0


@pytest.mark.parametrize("damage", ["layers", "moments", "not a network"])
def test_a_foreign_checkpoint_of_the_notebooks_layout_changes_nothing(notebook, tmp_path, damage):
    _, ours, path = trained_notebook_agent(notebook, tmp_path)
    content = torch.load(path, weights_only=True)
    if damage == "layers":
        content["actor"] = {f"net.{name}": tensor for name, tensor in content["actor"].items()}
    elif damage == "moments":
        del content["critic_optimizer"]["state"][3]
    else:
        content["critic"] = [1, 2]
    torch.save(content, path)
    before = ours.state.actor_params.clone()
    with pytest.raises(CheckpointError, match="not laid out as the notebook's"):
        ours.load(path)
    assert torch.equal(ours.state.actor_params, before) and ours.training_steps == 0


@pytest.mark.parametrize("other", [{"normalize_obs": True}, {"log_std_min": -5.0}, {"reward_scale": 2.0}])
def test_an_agent_whose_weights_mean_something_else_refuses_the_notebooks_file(notebook, tmp_path, other):
    _, _, path = trained_notebook_agent(notebook, tmp_path)
    with pytest.raises(CheckpointError, match=f"was saved with {next(iter(other))}="):
        SACAgent(**DIMS, **other).load(path)


def test_an_agent_cannot_be_made_of_the_notebooks_file_alone(notebook, tmp_path):
    _, _, path = trained_notebook_agent(notebook, tmp_path)
    with pytest.raises(CheckpointError, match="make a SACAgent and load"):
        SACAgent.from_checkpoint(path)


def test_one_update_equals_the_notebooks(notebook, tmp_path, monkeypatch):
    """Same weights, moments, batch and noise: the same seven metrics and the same new weights.

    At initialisation |u| is small, where the notebook's 1e-6 in the log-density still changes little.
    """
    theirs, ours, path = trained_notebook_agent(notebook, tmp_path)
    ours.load(path)
    batch = theirs.replay_buffer.sample(64)
    obs, action, reward, next_obs, done = (torch.as_tensor(x, dtype=torch.float32) for x in batch)
    noise = Noise(torch.randn(64, 3), torch.randn(64, 3))

    drawn = iter([noise.next_action, noise.action])
    monkeypatch.setattr(theirs.replay_buffer, "sample", lambda _: batch)
    monkeypatch.setattr(
        torch.distributions.Normal, "rsample", lambda self: self.loc + self.scale * next(drawn)
    )
    expected = theirs.update(64)
    metrics = ours.engine.update(
        ours.state, Batch(obs, action, reward.squeeze(1), next_obs, done.float().squeeze(1)), noise
    ).as_dict()

    assert list(metrics) == list(expected)
    assert metrics == pytest.approx(expected, rel=1e-3, abs=1e-5)
    for name in ("actor", "critic", "critic_target"):
        for key, value in getattr(theirs, name).state_dict().items():
            torch.testing.assert_close(getattr(ours, name).state_dict()[key], value, rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(ours.log_alpha, theirs.log_alpha.detach(), rtol=1e-4, atol=1e-6)


def test_the_loaded_temperature_is_still_learned(notebook, tmp_path):
    """The notebook replaced log_alpha at load and left its optimizer with the old tensor."""
    _, ours, path = trained_notebook_agent(notebook, tmp_path)
    ours.load(path)
    before = ours.alpha.item()
    for _ in range(5):
        ours.update(32)
    assert ours.alpha.item() != before
