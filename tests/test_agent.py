"""SACAgent: acting, bounds, saving everything, and refusing what does not fit."""

import copy

import gymnasium
import numpy as np
import pytest
import torch

from sacfast import CheckpointError, SACAgent, SACError, checkpoint


def make_agent(rows: int = 200, seed: int = 0, **kwargs) -> SACAgent:
    agent = SACAgent(5, 3, 16, seed=seed, buffer_capacity=500, **kwargs)
    rng = np.random.default_rng(4)
    for _ in range(rows):
        agent.replay_buffer.push(
            rng.normal(size=5), rng.uniform(-1, 1, 3), rng.normal(), rng.normal(size=5), False
        )
    return agent


def same_state(a: SACAgent, b: SACAgent) -> bool:
    pairs = zip(a.state.named_tensors(), b.state.named_tensors(), strict=True)
    return all(torch.equal(x, y) for (_, x), (_, y) in pairs) and a.state.counters() == b.state.counters()


def test_save_load_continue_equals_never_having_stopped(tmp_path):
    whole = make_agent()
    whole.train(4, 32)
    whole.select_action(np.zeros(5))
    whole.save(tmp_path / "a.safetensors", extra={"episode": 9})
    resumed = make_agent(rows=0, seed=99)
    assert resumed.load(tmp_path / "a.safetensors") == {"episode": 9}
    assert same_state(whole, resumed) and len(resumed.replay_buffer) == 200
    for agent in (whole, resumed):
        agent.train(6, 32)
    assert same_state(whole, resumed)
    obs = np.linspace(-1, 1, 5)
    assert np.array_equal(whole.select_action(obs), resumed.select_action(obs))


def test_without_the_buffer_the_agents_own_stays(tmp_path):
    make_agent().save(tmp_path / "small", replay_buffer=False)
    agent = make_agent(rows=7)
    agent.load(tmp_path / "small")
    assert len(agent.replay_buffer) == 7


def test_an_agent_from_its_checkpoint_alone(tmp_path):
    agent = make_agent(action_low=-2 * np.ones(3), action_high=5 * np.ones(3), gamma=0.9)
    agent.train(2, 32)
    agent.save(tmp_path / "a")
    copy_ = SACAgent.from_checkpoint(tmp_path / "a")
    assert same_state(agent, copy_) and copy_.gamma == 0.9
    obs = np.ones(5)
    assert np.array_equal(agent.select_action(obs, evaluate=True), copy_.select_action(obs, evaluate=True))


def test_a_deep_copy_trains_on_its_own():
    agent = make_agent()
    twin = copy.deepcopy(agent)
    agent.train(3, 32)
    assert twin.training_steps == 0 and not same_state(agent, twin)
    twin.train(3, 32)
    assert same_state(agent, twin)


def test_the_seed_decides_everything():
    before = torch.get_rng_state()
    first = make_agent(seed=3)
    assert torch.equal(torch.get_rng_state(), before), (
        "a seeded agent must not touch torch's global generator"
    )
    assert same_state(first, make_agent(seed=3))
    assert not same_state(first, make_agent(seed=4))


def test_without_a_seed_torchs_generator_decides():
    torch.manual_seed(5)
    first = SACAgent(5, 3, 16)
    torch.manual_seed(5)
    assert same_state(first, SACAgent(5, 3, 16))
    assert not same_state(first, SACAgent(5, 3, 16))


def test_from_env_rescales():
    env = gymnasium.make("Pusher-v5")
    agent = SACAgent.from_env(env, hidden_dim=16, seed=0)
    agent.actor.mean.bias.data.fill_(100.0)
    obs, _ = env.reset(seed=0)
    assert agent.select_action(obs, evaluate=True).tolist() == [2.0] * 7
    agent.actor.mean.bias.data.fill_(-100.0)
    assert agent.select_action(obs).tolist() == [-2.0] * 7
    env.close()


def test_actions_for_several_observations_at_once():
    agent = make_agent()
    obs = np.random.default_rng(0).normal(size=(6, 5))
    actions = agent.select_action(obs, evaluate=True)
    assert actions.shape == (6, 3) and actions.dtype == np.float32
    for row, action in zip(obs, actions, strict=True):
        np.testing.assert_allclose(agent.select_action(row, evaluate=True), action, rtol=1e-5, atol=1e-7)


def test_exploration_differs_from_step_to_step_and_evaluation_does_not():
    agent, obs = make_agent(), np.zeros(5)
    assert not np.array_equal(agent.select_action(obs), agent.select_action(obs))
    assert np.array_equal(agent.select_action(obs, evaluate=True), agent.select_action(obs, evaluate=True))


def test_update_returns_the_seven_metrics_as_numbers():
    metrics = make_agent().update(32)
    assert list(metrics) == [
        "critic_loss",
        "actor_loss",
        "alpha_loss",
        "alpha",
        "q1_mean",
        "q2_mean",
        "log_prob_mean",
    ]
    assert all(isinstance(v, float) and np.isfinite(v) for v in metrics.values())


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(4), "shape"),
        (np.zeros((2, 2, 5)), "shape"),
        (np.array([0, 0, np.nan, 0, 0]), "nan"),
        ("north", "not numeric"),
        ({"position": 1.0}, "not numeric"),
    ],
)
def test_bad_observations(obs, message):
    with pytest.raises(SACError, match=message):
        make_agent(rows=0).select_action(obs)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"state_dim": 0}, "state_dim"),
        ({"action_dim": -1}, "action_dim"),
        ({"hidden_dim": 0}, "hidden_dim"),
        ({"lr": -1e-3}, "lr"),
        ({"gamma": 1.5}, "gamma"),
        ({"tau": 0}, "tau"),
        ({"buffer_capacity": -1}, "capacity"),
        ({"device": "nonsense"}, "device 'nonsense'"),
        ({"device": "cuda:99"}, "device 'cuda:99'"),
        ({"action_low": -np.ones(2), "action_high": np.ones(2)}, "action"),
        ({"action_low": -np.ones(3)}, "both action_low and action_high"),
        ({"engine": "warp"}, "unknown engine"),
        ({"device": None}, "device 'None'"),
        ({"seed": -1}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"buffer_capacity": 2**31 - 1, "state_dim": 10**7, "hidden_dim": 1}, "lower the capacity"),
    ],
)
def test_bad_arguments_are_named(change, name):
    with pytest.raises(SACError, match=name):
        SACAgent(**{"state_dim": 5, "action_dim": 3, **change})


@pytest.mark.parametrize(
    "other",
    [
        {"state_dim": 6},
        {"action_dim": 2},
        {"hidden_dim": 8},
        {"action_low": -2 * np.ones(3), "action_high": 2 * np.ones(3)},
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path, other):
    make_agent().save(tmp_path / "a")
    agent = SACAgent(**{"state_dim": 5, "action_dim": 3, "hidden_dim": 16, **other}, seed=7)
    before = copy.deepcopy(agent)
    with pytest.raises(CheckpointError, match="saved with"):
        agent.load(tmp_path / "a")
    assert same_state(agent, before)


def test_a_truncated_checkpoint_changes_nothing(tmp_path):
    path = tmp_path / "a"
    make_agent().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    agent = make_agent(seed=7)
    before = copy.deepcopy(agent)
    with pytest.raises(CheckpointError, match="damaged"):
        agent.load(path)
    assert same_state(agent, before)


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_a_damaged_replay_buffer_changes_nothing(tmp_path, damage):
    source = make_agent()
    source.save(tmp_path / "a")
    tensors, meta = checkpoint.read(tmp_path / "a")
    if damage == "missing":
        del tensors["replay.obs"]
    else:
        tensors["replay.obs"] = tensors["replay.obs"][:, :4]
    checkpoint.write(tmp_path / "a", tensors, meta)
    agent = make_agent(seed=7)
    before = copy.deepcopy(agent)
    with pytest.raises(CheckpointError, match="replay.obs"):
        agent.load(tmp_path / "a")
    assert same_state(agent, before)


def test_an_empty_replay_buffer_is_saved_too(tmp_path):
    make_agent(rows=0).save(tmp_path / "a")
    agent = make_agent(rows=9)
    agent.load(tmp_path / "a")
    assert len(agent.replay_buffer) == 0


def test_a_fixed_temperature_survives_loading(tmp_path):
    make_agent().save(tmp_path / "a")
    agent = make_agent(automatic_entropy_tuning=False, alpha=0.3)
    agent.load(tmp_path / "a")
    assert agent.alpha.item() == pytest.approx(0.3)
