"""What every native engine is held to, on CPU and CUDA: the reference's numbers, in float32 and in float64."""

import copy
import sys
import threading

import numpy as np
import pytest
import torch
from agents import draw, gradients
from float64 import exact_update, in_float64, relative_error
from tolerances import PRECISION_ERROR

from sacfast import SACAgent
from sacfast.engines import ReferenceEngine


def update_all(agent: SACAgent, batch_size: int, updates: int = 1) -> tuple:
    """`updates` of the agent's own engine, of the reference in float32 and in float64: states and last metrics."""
    states = agent.state, copy.deepcopy(agent.state), in_float64(agent.state)
    reference = ReferenceEngine(agent.config)
    for _ in range(updates):
        batch, noise = draw(agent, states[0], batch_size)
        metrics = (
            agent.engine.update(states[0], batch, noise).tensor,
            reference.update(states[1], batch, noise).tensor,
            exact_update(agent.config, states[2], batch, noise).tensor,
        )
    return states, metrics


def check_gradients(agent: SACAgent, batch_size: int, precision: str) -> None:
    """Each layer's gradient and the metrics: twice the error of the float32 reference, and what a precision may."""
    states, (metrics, reference, exact) = update_all(agent, batch_size)
    error = PRECISION_ERROR[precision]
    ours, own, expected = map(gradients, states)
    for name, gradient in ours.items():
        found = relative_error(gradient, expected[name])
        bar = 2 * relative_error(own[name], expected[name])
        bar += error.critic if name.startswith("critic") else error.actor
        assert found <= bar, f"{name}: error {found:.2e} above {bar:.2e}"
    scale = 1 + exact.abs()
    bar = 2 * ((reference - exact) / scale).abs().max() + error.metrics
    assert ((metrics - exact) / scale).abs().max() <= bar


def check_whole_gradients(agent: SACAgent, batch_size: int, precision: str) -> None:
    """Each network's whole gradient: float32's at most twice the error of PyTorch's, with no floor to speak of.

    With fewer bits: its length and direction.
    """
    states, _ = update_all(agent, batch_size)
    for network in ("actor_adam", "critic_adam"):
        ours, theirs, exact = (getattr(state, network).exp_avg for state in states)
        if precision == "float32":
            assert relative_error(ours, exact) <= 2 * relative_error(theirs, exact) + 5e-8
        else:
            error = PRECISION_ERROR[precision]
            assert (ours.norm() / exact.norm()).item() == pytest.approx(1, abs=error.whole)
            assert torch.cosine_similarity(ours.double(), exact, dim=0) >= 1 - error.whole


def check_trajectory(agent: SACAgent, batch_size: int, precision: str) -> None:
    """Weights after ten updates: root-mean-square error, relative to how far the weights moved."""
    start = copy.deepcopy(agent.state)
    (ours, float32, float64), (metrics, _, exact) = update_all(agent, batch_size, updates=10)
    floor = PRECISION_ERROR[precision].trajectory
    for name in ("actor_params", "critic_params", "critic_target_params", "log_alpha"):
        moved = (getattr(float64, name) - getattr(start, name)).norm()
        error, own = (
            ((getattr(state, name) - getattr(float64, name)).norm() / moved).item()
            for state in (ours, float32)
        )
        assert error <= 2 * own + floor, f"{name}: {error:.2e} against {own:.2e}"
    assert ((metrics - exact) / (1 + exact.abs())).abs().max() <= 10 * floor
    assert ours.counters() == float32.counters()


def check_actor_period(alpha: float, make_ours, make_theirs) -> None:
    """Calls that end with the actor's turn, and calls that do not, at a fixed temperature."""
    options = {"actor_update_period": 3, "automatic_entropy_tuning": False, "alpha": alpha}
    ours, theirs = make_ours(**options), make_theirs(**options)
    for updates in (1, 1, 1, 4, 2, 5):
        before = ours.state.actor_params.clone()
        expected_change = any((ours.state.step + k) % 3 == 0 for k in range(updates))
        metrics = [agent.train(updates, 40).tensor for agent in (ours, theirs)]
        torch.testing.assert_close(*metrics, rtol=1e-4, atol=1e-5)
        assert torch.equal(before, ours.state.actor_params) is not expected_change
    assert ours.alpha.item() == pytest.approx(alpha)
    assert ours.state.counters() == theirs.state.counters()


def check_actions(shape: tuple, make_ours, make_theirs) -> None:
    """One observation and many, in either type, exploring and not, in the environment's units."""
    obs_dim, action_dim, *_ = shape
    bounds = {"action_low": -2 * np.ones(action_dim), "action_high": np.linspace(0.5, 3, action_dim)}
    ours, theirs = make_ours(shape, **bounds), make_theirs(shape, **bounds)
    for agent in (ours, theirs):
        with torch.no_grad():
            agent.actor.mean.weight.mul_(100)
    rng = np.random.default_rng(0)
    sizes = [(obs_dim,), (6, obs_dim), (1, obs_dim), (100, obs_dim), (0, obs_dim)]
    for size, dtype in zip(sizes, [np.float64, np.float32, np.float64, np.float32, np.float32], strict=True):
        obs = rng.normal(size=size).astype(dtype)
        for evaluate in (False, True, False):
            action = ours.select_action(obs, evaluate)
            assert action.dtype == np.float32
            np.testing.assert_allclose(action, theirs.select_action(obs, evaluate), rtol=1e-4, atol=1e-5)
    assert ours.state.action_step == theirs.state.action_step == 10


def check_log_std_bounds(bound: str, make_ours, make_theirs) -> None:
    """Agents whose policy has log_std at its bounds, or near them by tanh, and between: equal gradients and actions."""
    options = {"log_std_min": -1.0, "log_std_max": 0.5, "log_std_bound": bound}
    ours, theirs = make_ours(**options), make_theirs(**options)
    for agent in (ours, theirs):
        with torch.no_grad():
            agent.actor.log_std.weight.mul_(300)
    low, high = (-1.0, 0.5) if bound == "clamp" else (-0.7, 0.2)
    _, log_std = theirs.actor(theirs.replay_buffer.sample_batch(100, (0, 0, 0)).obs)
    for place in (log_std <= low, log_std >= high, (log_std > low) & (log_std < high)):
        assert place.float().mean() > 0.1
    check_same(ours, theirs)


def check_settings(make_ours, make_theirs) -> None:
    """What other checks leave at its default: the discount, the step of the targets, and the target entropy."""
    options = {"gamma": 0.5, "tau": 0.75, "target_entropy": -0.25}
    ours, theirs = make_ours(**options), make_theirs(**options)
    check_same(ours, theirs)
    torch.testing.assert_close(ours.state.critic_target_params, theirs.state.critic_target_params)


def check_normalizer(make_ours, make_theirs) -> None:
    """Agents that see observations of mean 5 and deviation 3 normalised: equal gradients and actions."""
    ours, theirs = (make(normalize_obs=True, rows=1000) for make in (make_ours, make_theirs))
    rng = np.random.default_rng(2)
    obs = rng.normal(5, 3, (2000, 5))
    obs[0] = 1e6  # far beyond what is let through
    for agent in (ours, theirs):
        agent.replay_buffer.push_batch(
            obs[:1000], np.zeros((1000, 3)), np.zeros(1000), obs[1000:], np.zeros(1000, bool)
        )
    assert theirs.normalizer.scale.max() < 0.9
    check_same(ours, theirs)
    np.testing.assert_allclose(
        ours.select_action(obs[0], evaluate=True),
        theirs.select_action(obs[0], evaluate=True),
        rtol=1e-4,
        atol=1e-5,
    )


def check_same(ours: SACAgent, theirs: SACAgent) -> None:
    """Equal gradients in an update, and then equal actions, of agents of the same seed."""
    for agent in (ours, theirs):
        agent.train(1, 40)
    for name, expected in gradients(theirs.state).items():
        torch.testing.assert_close(gradients(ours.state)[name], expected, rtol=1e-4, atol=1e-6, msg=name)
    for obs in np.random.default_rng(0).normal(size=(20, 5)):
        np.testing.assert_allclose(ours.select_action(obs), theirs.select_action(obs), rtol=1e-4, atol=1e-5)


def check_action_bounds(make) -> None:
    """Saturated actions, where centre and half width are not float32's and may leave the bounds by a digit."""
    for low, high in ((-0.1, 0.7), (-2.0, 0.9)):
        agent = make(action_low=np.full(3, low), action_high=np.full(3, high))
        for bias in (-100.0, 100.0):
            with torch.no_grad():
                agent.actor.mean.bias.fill_(bias)
            action = agent.select_action(np.zeros(5), evaluate=True)
            assert (agent.bounds.low <= action).all() and (action <= agent.bounds.high).all()


def check_threads(agent: SACAgent, calls: int) -> None:
    """Threads that act at the same time get the actions for their own observations."""
    observations = np.random.default_rng(0).normal(size=(4, 5))
    expected = [agent.select_action(obs, evaluate=True).tobytes() for obs in observations]
    found: list[set[bytes]] = [set() for _ in observations]

    def act(index: int) -> None:
        for _ in range(calls):
            found[index].add(agent.select_action(observations[index], evaluate=True).tobytes())

    threads = [threading.Thread(target=act, args=(index,)) for index in range(len(observations))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert found == [{action} for action in expected]
