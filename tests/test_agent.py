"""SACAgent: acting, bounds, copies, engines, and refusing what does not fit; its files are in test_agent_files.py."""

import copy
import dataclasses
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import gymnasium
import numpy as np
import pytest
import torch
from agents import same_state
from agents import small_agent as make_agent

from sacfast import SACAgent, SACError, make_engine
from sacfast.config import SACConfig
from sacfast.cores import physical_cores


def test_a_deep_copy_trains_on_its_own():
    agent = make_agent()
    twin = copy.deepcopy(agent)
    agent.train(3, 32)
    assert twin.training_steps == 0 and not same_state(agent, twin)
    twin.train(3, 32)
    assert same_state(agent, twin)


@pytest.mark.parametrize("engine", ["reference", "auto"])
def test_a_deep_copy_has_an_engine_and_a_policy_of_its_own(engine):
    agent = make_agent(engine=engine, threads=1, actor_update_period=3)
    obs = np.ones(5)
    before = agent.select_action(obs, evaluate=True)
    twin = copy.deepcopy(agent)
    assert twin.engine is not agent.engine and type(twin.engine) is type(agent.engine)
    assert twin.engine.settings() == agent.engine.settings()
    twin.train(5, 32)
    assert np.array_equal(agent.select_action(obs, evaluate=True), before)
    assert not np.array_equal(twin.select_action(obs, evaluate=True), before)
    twin.select_action(obs)
    assert (twin.state.action_step, agent.state.action_step) == (1, 0)


@pytest.mark.parametrize("engine", ["reference", "auto"])
def test_a_pickled_agent_goes_on_as_the_agent_does(engine):
    agent = make_agent(engine=engine, threads=1, normalize_obs=True)
    agent.train(3, 32)
    twin = pickle.loads(pickle.dumps(agent))
    for one in (agent, twin):
        one.train(3, 32)
        rng = np.random.default_rng(5)
        for _ in range(400):  # round the ring
            one.replay_buffer.push(rng.normal(size=5), np.zeros(3), 1.0, rng.normal(size=5), False)
        one.train(3, 32)
    assert same_state(agent, twin)
    obs = np.ones(5)
    assert np.array_equal(agent.select_action(obs), twin.select_action(obs))


def test_an_engine_is_copied_as_its_settings():
    for name in ("reference", "auto"):
        engine = make_agent(engine=name, threads=1, gamma=0.9).engine
        for twin in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
            assert twin is not engine
            assert (twin.name, twin.settings()) == (engine.name, engine.settings())


def test_an_agent_changes_its_engine_in_mid_run():
    agent, steady = make_agent(engine="auto", threads=1), make_agent(engine="auto", threads=1)
    for one in (agent, steady):
        one.train(3, 32)
    agent.use_engine("reference")
    assert (agent.engine.name, agent.engine.threads) == ("reference", 1)
    with pytest.raises(SACError, match="unknown engine"):
        agent.use_engine("warp")
    assert agent.engine.name == "reference"

    def refused(_):
        raise SACError("the last update was refused")

    before, agent.engine.settle = agent.engine, refused
    with pytest.raises(SACError, match="was refused"):
        agent.use_engine("auto")
    assert agent.engine is before
    del before.settle
    for one in (agent, steady):
        one.train(3, 32)
    torch.testing.assert_close(agent.state.actor_params, steady.state.actor_params, rtol=1e-3, atol=1e-4)
    agent.engine = make_engine("auto", agent.config)
    assert agent.engine.threads == physical_cores()
    np.testing.assert_allclose(
        agent.select_action(np.ones(5)), steady.select_action(np.ones(5)), rtol=1e-3, atol=1e-4
    )


def test_acting_follows_the_engine_the_state_and_the_bounds():
    agent, other, obs = make_agent(), make_agent(seed=9), np.ones(5)
    calls = []

    class Counting(type(agent.engine)):
        def make_policy(self, state, bounds):
            calls.append((state, bounds))
            return super().make_policy(state, bounds)

    agent.select_action(obs)
    agent.engine = Counting(agent.config)
    assert np.array_equal(agent.select_action(obs, evaluate=True), agent.select_action(obs, evaluate=True))
    assert calls == [(agent.state, agent.bounds)]
    agent.state = other.state
    assert np.array_equal(agent.select_action(obs, evaluate=True), other.select_action(obs, evaluate=True))
    agent.bounds = type(agent.bounds)(2 * agent.bounds.low, 2 * agent.bounds.high)
    np.testing.assert_allclose(
        agent.select_action(obs, evaluate=True), 2 * other.select_action(obs, evaluate=True), rtol=1e-6
    )
    assert len(calls) == 3


@pytest.mark.parametrize("engine", ["reference", pytest.param("native", marks=pytest.mark.native)])
def test_bounds_of_another_width_are_refused(engine):
    """Native code would read behind them."""
    agent, one = make_agent(engine=engine, action_low=-np.ones(3), action_high=np.ones(3)), np.ones(1)
    agent.bounds = type(agent.bounds)(-one, one)
    with pytest.raises(SACError, match="the bounds have 1 entries, but this agent has 3 actions"):
        agent.select_action(np.ones(5))


def test_threads_above_the_cores_are_warned_about_and_bad_ones_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_agent().engine.threads == make_agent(threads=0).engine.threads == physical_cores()
        assert make_agent(threads=1).engine.threads == 1
    with pytest.warns(UserWarning, match="threads=10000 is above the"):
        make_agent(threads=10_000)


def test_the_seed_decides_everything():
    before = torch.get_rng_state()
    first = make_agent(seed=3)
    assert torch.equal(torch.get_rng_state(), before), (
        "a seeded agent must not touch torch's global generator"
    )
    assert same_state(first, make_agent(seed=3))
    assert not same_state(first, make_agent(seed=4))


@pytest.mark.parametrize("engine", ["reference", pytest.param("native", marks=pytest.mark.native)])
@pytest.mark.parametrize("normalize_obs", [False, True])
def test_torchs_default_device_changes_nothing(engine, normalize_obs, tmp_path):
    """ "meta" has no numbers: whatever is made there by mistake cannot be used."""
    settings = {"engine": engine, "normalize_obs": normalize_obs}
    transition = np.ones(5), np.zeros(3), 1.0, np.zeros(5), False
    with torch.device("meta"):
        agent = make_agent(**settings)
        agent.replay_buffer.push(*transition)
        agent.train(3, 32)
        agent.select_action(np.zeros(5))
        agent.save(tmp_path / "agent.safetensors")
        loaded = SACAgent.from_checkpoint(tmp_path / "agent.safetensors")
        agent.use_engine("reference")
        agent.train(1, 32)
        assert len(agent.replay_buffer.sample(4)[0]) == 4
    usual = make_agent(**settings)
    usual.replay_buffer.push(*transition)
    usual.train(3, 32)
    usual.select_action(np.zeros(5))
    assert same_state(loaded, usual)


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("engine", ["reference", pytest.param("native", marks=pytest.mark.native)])
def test_torchs_default_dtype_changes_nothing(engine, request, tmp_path):
    """A robot's own module may ask for float64, which native code would read as something else."""
    transition = np.ones(5), np.zeros(3), 1.0, np.zeros(5), False

    def used():
        agent = make_agent(engine=engine, normalize_obs=True)
        agent.replay_buffer.push(*transition)
        metrics = agent.train(3, 32)
        agent.save(tmp_path / "agent.safetensors")
        loaded = SACAgent.from_checkpoint(tmp_path / "agent.safetensors")
        return (
            agent,
            metrics.tensor,
            [each.select_action(np.ones(5), evaluate=True) for each in (agent, loaded)],
        )

    usual, metrics, actions = used()
    request.getfixturevalue("float64_by_default")
    agent, same_metrics, same_actions = used()
    assert same_state(agent, usual) and torch.equal(same_metrics, metrics)
    np.testing.assert_array_equal(same_actions, actions)


def test_agents_made_in_threads_have_the_weights_of_their_seeds():
    with ThreadPoolExecutor(8) as pool:
        agents = list(pool.map(lambda seed: make_agent(seed=seed), range(40)))
    assert all(same_state(agent, make_agent(seed=seed)) for seed, agent in enumerate(agents))


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


def test_from_env_has_the_defaults_that_learn_best():
    env = gymnasium.make("Pusher-v5")
    agent = SACAgent.from_env(env, lr=1e-2, engine="reference")
    env.close()
    entropy = 7 * SACConfig.target_entropy_per_dim
    assert agent.config == dataclasses.replace(SACConfig(), lr=1e-2, target_entropy=entropy)


def test_an_agent_has_every_setting_it_is_given():
    others = {
        "hidden_dim": (16, 8), "lr": 1e-3, "critic_lr": 2e-3, "alpha_lr": 3e-3, "gamma": 0.9, "tau": 0.1, "alpha": 0.5,
        "automatic_entropy_tuning": False, "initial_alpha": 0.3, "target_entropy": -7.0, "target_entropy_per_dim": -0.3,
        "buffer_capacity": 100, "batch_size": 24, "log_std_min": -5.0, "log_std_max": 1.0, "log_std_bound": "tanh",
        "initialization": "pytorch", "actor_update_period": 3, "obs_dtype": "float16", "normalize_obs": True,
        "obs_epsilon": 0.2, "reward_scale": 2.0,
    }  # fmt: skip
    assert {*others, "precision"} == {f.name for f in dataclasses.fields(SACConfig)}
    given = SACConfig(**others)
    assert SACAgent(5, 3, **given.to_dict(), engine="reference").config == given


def test_what_an_agent_is_not_given_is_the_notebooks():
    bare = SACAgent(5, 3, engine="reference")
    assert bare.config == dataclasses.replace(SACConfig.notebook(), target_entropy=-3.0)


def test_a_setting_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(
        SACError, match=r"SACAgent has no argument entropy; .*batch_size.*engine.*target_entropy"
    ):
        SACAgent(5, 3, entropy=-3.0)


def test_batches_have_the_agents_own_size_unless_told_another():
    agent, told = make_agent(batch_size=24), make_agent(batch_size=48)
    agent.train(2)
    agent.start(2)()
    agent.update()
    told.train(2, 24)
    told.start(2, 24)()
    told.update(24)
    assert same_state(agent, told)
    agent.train()
    told.train()
    assert not same_state(agent, told)


def test_actions_for_several_observations_at_once():
    agent = make_agent()
    obs = np.random.default_rng(0).normal(size=(6, 5))
    actions = agent.select_action(obs, evaluate=True)
    assert actions.shape == (6, 3) and actions.dtype == np.float32
    for row, action in zip(obs, actions, strict=True):
        np.testing.assert_allclose(agent.select_action(row, evaluate=True), action, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("obs", [np.linspace(-1, 1, 5), np.ones((2, 5))])
def test_predict_has_the_signature_of_stable_baselines3(obs):
    bounds = {"action_low": np.full(3, 2.0), "action_high": np.full(3, 6.0)}
    agent, twin = make_agent(**bounds), make_agent(**bounds)
    memory = (np.zeros(1),)
    action, state = agent.predict(obs, memory, np.array([True]), deterministic=True)
    assert state is memory
    np.testing.assert_array_equal(action, twin.select_action(obs, evaluate=True))
    action, state = agent.predict(obs)
    assert state is None
    np.testing.assert_array_equal(action, twin.select_action(obs))
    assert action.shape == (*obs.shape[:-1], 3)
    assert action.min() > 2


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
        ({"hidden_dim": ()}, "hidden_dim"),
        ({"hidden_dim": [16] * 5}, "hidden_dim"),
        ({"hidden_dim": [16, -1]}, "hidden_dim"),
        ({"hidden_dim": 16.0}, "hidden_dim"),
        ({"threads": -1}, "threads"),
        ({"threads": 1.5}, "threads=1.5 must be .* of at least 0; 0 means one per core"),
        ({"precision": "double"}, "precision='double' must be one of float32, tf32, bf16x3, bf16"),
        ({"precision": "bf16", "engine": "reference"}, "precision='bf16' needs engine='native'"),
        ({"actor_update_period": 0}, "actor_update_period"),
        ({"obs_dtype": "float64"}, "obs_dtype='float64' must be one of float32, float16, bfloat16"),
        ({"storage": "disk"}, "storage='disk' must be one of device, host"),
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
        ({"seed": 2**64}, f"seed={2**64} must be a whole number of at least 0 and at most {2**63 - 1}"),
    ],
)
def test_bad_arguments_are_named(change, name):
    with pytest.raises(SACError, match=name):
        SACAgent(**{"state_dim": 5, "action_dim": 3, **change})


@pytest.mark.parametrize("engine", ["reference", pytest.param("native", marks=pytest.mark.native)])
def test_an_agent_made_in_inference_mode_learns(engine, tmp_path):
    with torch.inference_mode():
        agent = make_agent(normalize_obs=True, engine=engine)
    agent.train(2, 32)
    agent.save(tmp_path / "a")
    agent.load(tmp_path / "a")
    agent.train(1, 32)
    assert agent.training_steps == 3


def test_storage_on_the_host_learns_the_same():
    first, second = make_agent(), make_agent(storage="host")
    for agent in (first, second):
        agent.train(3, 32)
    assert same_state(first, second)
