"""The engines: every term of the update against a separate computation, and what each must do alike."""

import copy
import dataclasses

import agents
import numpy as np
import pytest
import torch
from agents import draw, gradients, same_state

from sacfast import Batch, NativeUnavailable, Noise, SACAgent, SACError, make_engine, native
from sacfast.engines import ReferenceEngine

# "operators": autograd with native operators.
ENGINES = ["reference", "operators", "auto"]


def make_agent(engine="reference", hidden_dim=32, **kwargs) -> SACAgent:
    name = "reference" if engine == "operators" else engine
    agent = agents.make_agent((5, 3, hidden_dim, 16), rows=300, engine=name, **kwargs)
    if engine == "operators":
        agent.engine = ReferenceEngine(agent.config, native_operators=True)
    return agent


def log_density(mean, log_std, noise):
    """log pi in float64, the literal way: log N(u) - log(1 - tanh(u)^2)."""
    mean, log_std, noise = mean.double(), log_std.double(), noise.double()
    u = mean + log_std.exp() * noise
    normal = torch.distributions.Normal(mean, log_std.exp())
    return torch.tanh(u), (normal.log_prob(u) - torch.log1p(-(torch.tanh(u) ** 2))).sum(1)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_written_behind_torchs_back_are_seen_after_sync(engine):
    agent, twin = make_agent(engine), make_agent(engine)
    for each in (agent, twin):
        each.train(1, 16)
    agent.critic.fc1.weight.data.mul_(0.5)
    agent.engine.sync()
    with torch.no_grad():
        twin.critic.fc1.weight.mul_(0.5)
    for each in (agent, twin):
        each.train(1, 16)
    assert torch.equal(agent.state.critic_params, twin.state.critic_params)


def test_target_bootstraps_unless_terminated():
    agent = make_agent()
    batch, noise = draw(agent, agent.state, 64)
    assert 0 < batch.terminated.sum() < 64
    alpha = torch.tensor([0.7])
    target = agent.engine.target(agent.state, batch, noise, alpha)
    with torch.no_grad():
        action, log_prob = log_density(*agent.actor(batch.next_obs), noise.next_action)
        q1, q2 = agent.critic_target(batch.next_obs, action.float())
    value = torch.min(q1, q2).squeeze(1) - 0.7 * log_prob
    expected = torch.where(batch.terminated.bool(), batch.reward, batch.reward + 0.99 * value.float())
    torch.testing.assert_close(target, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "hidden_dim"),
    [*((engine, 32) for engine in ENGINES), ("reference", (9,)), ("auto", (8, 7, 6, 5))],
)
def test_one_update_against_autograd_written_out(engine, hidden_dim):
    """Losses and gradients against a literal float64 computation."""
    agent = make_agent(engine, hidden_dim=hidden_dim)
    batch, noise = draw(agent, agent.state, 16)
    before = copy.deepcopy(agent.state)
    metrics = agent.engine.update(agent.state, batch, noise).as_dict()

    y = ReferenceEngine(agent.config).target(before, batch, noise, torch.ones(1)).double()
    actor, critic = before.actor.double(), before.critic.double()
    batch = Batch(*(getattr(batch, f.name).double() for f in dataclasses.fields(batch)))
    q1, q2 = critic(batch.obs, batch.action)
    critic_loss = ((q1.squeeze(1) - y) ** 2).mean() + ((q2.squeeze(1) - y) ** 2).mean()
    critic_loss.backward()
    check_gradients(agent.state, "critic", critic)
    assert metrics["critic_loss"] == pytest.approx(critic_loss.item(), rel=1e-5)
    assert metrics["q1_mean"] == pytest.approx(q1.mean().item(), rel=1e-4, abs=1e-6)
    assert metrics["q2_mean"] == pytest.approx(q2.mean().item(), rel=1e-4, abs=1e-6)

    action, log_prob = log_density_with_gradient(actor, batch.obs, noise.action)
    q1, q2 = copy.deepcopy(agent.critic).double()(batch.obs, action)
    actor_loss = (log_prob - torch.min(q1, q2).squeeze(1)).mean()
    actor_loss.backward()
    check_gradients(agent.state, "actor", actor)
    assert metrics["actor_loss"] == pytest.approx(actor_loss.item(), rel=1e-5)
    assert metrics["log_prob_mean"] == pytest.approx(log_prob.mean().item(), rel=1e-5)

    alpha_gradient = -(log_prob.mean().item() - 3.0)
    assert gradients(agent.state)["log_alpha"].item() == pytest.approx(alpha_gradient, rel=1e-5)
    assert metrics["alpha"] == pytest.approx(np.exp(-3e-4 * np.sign(alpha_gradient)), rel=1e-6)


def log_density_with_gradient(actor, obs, noise):
    mean, log_std = actor(obs)
    return log_density(mean, log_std, noise)


def check_gradients(state, network, module):
    for name, param in module.named_parameters():
        ours = gradients(state)[f"{network}.{name}"].view_as(param).double()
        torch.testing.assert_close(ours, param.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_targets_follow_slowly():
    agent = make_agent()
    old = agent.state.critic_target_params.clone()
    agent.train(1, 32)
    expected = 0.995 * old + 0.005 * agent.state.critic_params
    torch.testing.assert_close(agent.state.critic_target_params, expected, rtol=1e-6, atol=1e-7)
    assert not torch.equal(agent.state.critic_target_params, old)


@pytest.mark.parametrize(("target_entropy", "falls"), [(-50.0, True), (50.0, False)])
def test_temperature_steers_towards_the_target_entropy(target_entropy, falls):
    """A policy more random than asked for lowers alpha; one less random raises it."""
    agent = make_agent(target_entropy=target_entropy)
    agent.train(5, 32)
    assert (agent.alpha.item() < 1) == falls


@pytest.mark.parametrize("engine", ENGINES)
def test_the_target_entropy_is_per_dimension_unless_it_is_given(engine):
    action_dim = make_agent(engine).action_dim
    assert make_agent(engine).target_entropy == -action_dim
    assert make_agent(engine, target_entropy_per_dim=-0.25).target_entropy == -0.25 * action_dim
    assert make_agent(engine, target_entropy_per_dim=-0.25, target_entropy=-3.5).target_entropy == -3.5


@pytest.mark.parametrize("engine", ENGINES)
def test_each_network_has_its_learning_rate(engine):
    """Adam's first step from zero moments is the learning rate, whatever the gradient."""
    agent = make_agent(engine, lr=1e-4, critic_lr=2e-3, alpha_lr=0.03)
    before = copy.deepcopy(agent.state)
    agent.train(1, 32)
    for name, rate in (("actor_params", 1e-4), ("critic_params", 2e-3), ("log_alpha", 0.03)):
        change = (getattr(agent.state, name) - getattr(before, name)).abs().max().item()
        assert change == pytest.approx(rate, rel=1e-2), name
    assert make_agent(engine, lr=1e-4).config.learning_rates == (1e-4, 1e-4, 1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_learned_temperature_starts_where_it_is_told(engine):
    agent = make_agent(engine, initial_alpha=0.1)
    assert agent.alpha.item() == pytest.approx(0.1)
    agent.train(1, 32)
    assert agent.alpha.item() == pytest.approx(0.1, rel=1e-3) and agent.alpha.item() != pytest.approx(
        0.1, rel=1e-5
    )


def test_fixed_temperature_stays():
    agent = make_agent(automatic_entropy_tuning=False, alpha=0.37)
    metrics = agent.train(3, 32).as_dict()
    assert agent.alpha.item() == pytest.approx(0.37)
    assert metrics["alpha_loss"] == 0 and metrics["alpha"] == pytest.approx(0.37)


@pytest.mark.parametrize("engine", ENGINES)
def test_actor_and_temperature_wait_for_their_turn(engine):
    agent = make_agent(engine, actor_update_period=3)
    state, changed, metrics = agent.state, [], []
    for _ in range(7):
        before = copy.deepcopy(state)
        metrics.append(agent.train(1, 32).as_dict())
        names = ("actor_params", "log_alpha", "critic_params", "critic_target_params")
        changed.append([not torch.equal(getattr(before, name), getattr(state, name)) for name in names])
    turns = [0, 3, 6]
    assert changed == [[i in turns, i in turns, True, True] for i in range(7)]
    assert (state.actor_adam.step, state.alpha_adam.step, state.critic_adam.step) == (3, 3, 7)
    for i, values in enumerate(metrics):
        last = metrics[i - i % 3]
        for name in ("actor_loss", "alpha_loss", "alpha", "log_prob_mean"):
            assert values[name] == last[name]
        assert i in turns or values["critic_loss"] != last["critic_loss"]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_has_not_seen_the_actors_turn_says_nan(engine):
    agent = make_agent(engine, actor_update_period=2)
    agent.train(1, 32)
    agent.engine = copy.deepcopy(agent.engine)
    metrics = agent.train(1, 32).as_dict()
    unknown = {name for name, value in metrics.items() if np.isnan(value)}
    assert unknown == {"actor_loss", "alpha_loss", "log_prob_mean"}
    assert not np.isnan(list(agent.train(1, 32).as_dict().values())).any()


@pytest.mark.parametrize("engine", ENGINES)
def test_metrics_are_never_of_what_a_load_replaced(engine, tmp_path):
    agent = make_agent(engine, actor_update_period=2)
    agent.train(1, 32)
    agent.save(tmp_path / "a")
    agent.train(2, 32)
    agent.load(tmp_path / "a")
    assert np.isnan(agent.train(1, 32).as_dict()["actor_loss"])


@pytest.mark.parametrize("replace", ["a flat vector", "assign", "a new head"])
@pytest.mark.parametrize("engine", ENGINES)
def test_parameters_that_left_the_flat_buffer_are_refused(engine, replace):
    agent = make_agent(engine)
    if replace == "a flat vector":
        vector = torch.nn.utils.parameters_to_vector(agent.actor.parameters()).detach().clone()
        torch.nn.utils.vector_to_parameters(vector, agent.actor.parameters())
    elif replace == "assign":
        agent.critic.load_state_dict(copy.deepcopy(agent.critic).state_dict(), assign=True)
    else:
        agent.actor.log_std = torch.nn.Linear(*agent.actor.log_std.weight.shape[::-1])
    before = agent.state.actor_params.clone()
    with pytest.raises(SACError, match=r"are no longer the float32 numbers of state\.(actor|critic)_params"):
        agent.train(1, 32)
    assert torch.equal(agent.state.actor_params, before)


@pytest.mark.native
def test_a_compiled_network_is_where_it_was():
    agent, twin = make_agent("native"), make_agent("native")
    agent.state.actor = torch.compile(agent.state.actor)  # which compiles nothing until it is called
    for each in (agent, twin):
        each.train(2, 32)
    assert torch.equal(agent.state.actor_params, twin.state.actor_params)
    obs = np.ones(agent.state_dim)
    assert np.array_equal(agent.select_action(obs), twin.select_action(obs))


@pytest.mark.parametrize("engine", ENGINES)
def test_autocast_changes_nothing(engine):
    agent, twin = make_agent(engine), make_agent(engine)
    agent.train(1, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        twin.train(1, 32)
    assert same_state(agent, twin)


def test_the_reference_never_computes_in_a_lower_precision():
    config = dataclasses.replace(make_agent().config, precision="bf16x3")
    with pytest.raises(SACError, match="precision='bf16x3' needs engine='native'"):
        make_engine("reference", config)


@pytest.mark.parametrize("engine", ENGINES)
def test_same_seed_same_bytes(engine):
    first, second = make_agent(engine), make_agent(engine)
    first.train(10, 32)
    for _ in range(10):
        second.train(1, 32)
    for (name, a), (_, b) in zip(first.state.named_tensors(), second.state.named_tensors(), strict=True):
        assert torch.equal(a, b), name


def test_noise_belongs_to_the_step():
    agent = make_agent()
    first = Noise.draw(agent.state, 8)
    assert torch.equal(first.action, Noise.draw(agent.state, 8).action)
    assert not torch.equal(first.action, first.next_action)
    agent.state.step += 1
    assert not torch.equal(first.action, Noise.draw(agent.state, 8).action)


@pytest.mark.parametrize(
    ("field", "shape"),
    [("obs", (16, 4)), ("action", (16, 2)), ("reward", (16, 1)), ("next_obs", (15, 5)), ("terminated", (3,))],
)
def test_wrong_shapes_are_named_and_nothing_changes(field, shape):
    agent = make_agent()
    batch, noise = draw(agent, agent.state, 16)
    before = agent.state.critic_params.clone()
    wrong = dataclasses.replace(batch, **{field: torch.zeros(shape)})
    with pytest.raises(SACError, match="shape"):
        agent.engine.update(agent.state, wrong, noise)
    assert torch.equal(agent.state.critic_params, before) and agent.training_steps == 0


def test_wrong_dtypes_are_named():
    agent = make_agent()
    batch, noise = draw(agent, agent.state, 16)
    with pytest.raises(SACError, match=r"batch.reward is torch.float64.*needs torch.float32"):
        agent.engine.update(agent.state, dataclasses.replace(batch, reward=batch.reward.double()), noise)


def test_metrics_are_tensors_by_name_until_read():
    metrics = make_agent().train(1, 32)
    assert isinstance(metrics["alpha"], torch.Tensor) and metrics["alpha"].ndim == 0
    assert list(metrics) == list(metrics.as_dict()) and len(metrics) == 7
    with pytest.raises(KeyError):
        metrics["entropy"]


def test_engine_names(monkeypatch):
    def unavailable():
        raise NativeUnavailable("nothing is compiled here; engine='auto' does without")

    config = make_agent().config
    with pytest.raises(SACError, match="unknown engine 'fast'"):
        make_engine("fast", config)
    monkeypatch.setattr(native, "engine_library", unavailable, raising=False)
    with pytest.raises(NativeUnavailable, match="engine='auto'"):
        make_engine("native", config)


@pytest.mark.parametrize("updates", [0, 1.5, "2", True])
def test_a_number_of_updates_that_is_none(updates):
    with pytest.raises(SACError, match=f"updates={updates!r} must be a whole number of at least 1"):
        make_agent().train(updates, 32)


def test_actions_are_float32_under_autocast():
    agent = make_agent()
    obs = np.random.default_rng(0).normal(size=(3, agent.state_dim))
    expected = agent.select_action(obs, evaluate=True)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(agent.select_action(obs, evaluate=True), expected)


@pytest.mark.parametrize("engine", ["reference", pytest.param("native", marks=pytest.mark.native)])
@pytest.mark.parametrize("critic", ["q1", "q2"])
def test_a_critic_that_diverged_takes_the_rest_along(engine, critic):
    """min_i Q_i is NaN where either is: an agent that went on with the other critic would hide it."""
    agent = make_agent(engine)
    with torch.no_grad():
        getattr(agent.critic_target, critic).bias.fill_(torch.nan)
        getattr(agent.critic, critic).bias.fill_(torch.nan)
    metrics = agent.train(1, 32).as_dict()
    assert all(np.isnan(metrics[name]) for name in ("critic_loss", "actor_loss", f"{critic}_mean"))
    assert agent.state.actor_params.isnan().any()
    assert agent.critic.q1.bias.isnan().all() and agent.critic.q2.bias.isnan().all()


@pytest.mark.parametrize("engine", ["reference", pytest.param("native", marks=pytest.mark.native)])
def test_noise_that_does_not_fit_is_refused(engine):
    agent = make_agent(engine=engine)
    batch, noise = draw(agent, agent.state, 16)
    for short, name in (
        (Noise(noise.next_action, noise.action[:3]), "noise.action has shape"),
        (Noise(noise.next_action[:3], noise.action), "noise.next_action has shape"),
        (Noise(noise.next_action.double(), noise.action), "noise.next_action is torch.float64"),
    ):
        with pytest.raises(SACError, match=name):
            agent.engine.update(agent.state, batch, short)
