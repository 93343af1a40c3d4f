"""The native engine, on every arithmetic path and precision that runs here: the same update as the reference.

Accuracy is measured against the reference engine in float64. For float32 the bar is derived: twice the error of the
float32 reference; the precisions with fewer bits have theirs in tolerances.py.
"""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from agents import SMALL, draw, make_agent, state_bytes
from engine_checks import (
    check_action_bounds,
    check_actions,
    check_actor_period,
    check_gradients,
    check_log_std_bounds,
    check_normalizer,
    check_settings,
    check_threads,
    check_trajectory,
    check_whole_gradients,
)
from float64 import relative_error

from sacfast import Batch, NativeEngine, Noise, SACAgent, make_engine
from sacfast.engines.native import available
from sacfast.normalizer import ObservationNormalizer
from sacfast.ops import Stream

pytestmark = pytest.mark.native

# obs, action, hidden widths, batch
SHAPES = [
    (23, 7, (256, 256), 256),
    (1, 1, (1,), 1),
    (3, 1, (33,), 5),
    (17, 6, (64, 48, 40), 100),
    (5, 17, (20, 31, 7, 65), 33),
    (30, 2, (16, 400), 257),
]
ARITHMETIC = [
    ("avx512", "float32"),
    ("avx2", "float32"),
    ("portable", "float32"),
    ("amx", "float32"),
    ("amx", "bf16x3"),
    ("amx", "bf16"),
]


@pytest.fixture(params=ARITHMETIC, ids=lambda pair: "-".join(pair))
def arithmetic(request, engine_library):
    """Keyword arguments of native_engine for one path and precision."""
    path, precision = request.param
    for name in (path, f"{path}-emulated"):
        if precision in available(engine_library).get(name, ()):
            return {"precision": precision, "path": name, "library": engine_library}
    pytest.skip(f"{path} does not run here; there are {available(engine_library)}")


def native_engine(agent: SACAgent, *, precision="float32", **kwargs) -> NativeEngine:
    config = dataclasses.replace(agent.config, precision=precision)
    return NativeEngine(config, **{"threads": 2, **kwargs})


def native_agent(arithmetic: dict, shape: tuple) -> SACAgent:
    agent = make_agent(shape)
    agent.engine = native_engine(agent, **arithmetic)
    return agent


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_and_metrics_against_float64(arithmetic, shape):
    check_gradients(native_agent(arithmetic, shape), shape[3], arithmetic["precision"])


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3], SHAPES[5]], ids=str)
def test_whole_gradients_against_float64(arithmetic, shape):
    check_whole_gradients(native_agent(arithmetic, shape), shape[3], arithmetic["precision"])


@pytest.mark.parametrize("shape", [SMALL, SHAPES[3], SHAPES[5]], ids=str)
def test_ten_updates_follow_float64(arithmetic, shape):
    check_trajectory(native_agent(arithmetic, shape), shape[3], arithmetic["precision"])


@pytest.mark.filterwarnings("ignore:threads=")
def test_same_bytes_twice_in_one_call_or_many_on_any_number_of_threads(arithmetic):
    results = []
    for threads, calls in ((1, 6), (1, 6), (1, 1), (2, 6), (2, 1), (3, 2), (5, 3)):
        agent = make_agent()
        engine = native_engine(agent, threads=threads, **arithmetic)
        for _ in range(calls):
            metrics = engine.train(agent.state, agent.replay_buffer, 40, 6 // calls)
        results.append((state_bytes(agent.state), agent.state.counters(), metrics.tensor.tolist()))
    assert all(result == results[0] for result in results)


def test_a_second_moment_that_overflowed_stops_its_parameter_alone(arithmetic):
    agent = make_agent()
    agent.state.critic_adam.exp_avg_sq[3] = torch.inf
    before = agent.state.critic_params.clone()
    native_engine(agent, **arithmetic).train(agent.state, agent.replay_buffer, 40)
    moved = (agent.state.critic_params - before).abs()
    assert torch.isfinite(moved).all() and moved[3] < 1e-12 < moved[2]


def test_a_large_batch_and_wide_layers():
    """Beyond the sizes that the paths block for; against float32, since float64 would take long."""
    ours, theirs = (
        make_agent((23, 7, (1024, 520), 8192), rows=9000, engine=e) for e in ("native", "reference")
    )
    metrics = [agent.train(1, 8192).tensor for agent in (ours, theirs)]
    torch.testing.assert_close(*metrics, rtol=1e-4, atol=1e-5)
    for name in ("actor_adam", "critic_adam"):
        gradients = [getattr(agent.state, name).exp_avg for agent in (ours, theirs)]
        assert relative_error(gradients[0], gradients[1].double()) < 1e-5


def test_batches_come_from_the_memory_that_is_there(engine_library):
    """After the ring's table of last observations has moved, and from another buffer of the same size."""
    agent = make_agent(engine="native", threads=1, rows=50, buffer_capacity=3000)

    def grow():
        before, more = agent.replay_buffer._ring.side, make_agent(rows=1500, seed=4).replay_buffer
        agent.replay_buffer.push_batch(*(column.squeeze() for column in more.sample(1500)))
        assert agent.replay_buffer._ring.side is not before  # that had room for 1,024

    def swap():
        agent.replay_buffer = make_agent(rows=300, seed=5).replay_buffer

    for change in (lambda: None, grow, swap):
        change()
        twin = copy.deepcopy(agent)  # whose engine has seen no memory yet
        agent.train(3, 40), twin.train(3, 40)
        assert torch.equal(agent.state.critic_params, twin.state.critic_params)


@pytest.mark.parametrize("obs_dtype", ["float32", "float16", "bfloat16"])
def test_the_replay_memory_is_read_in_place(obs_dtype):
    """Episodes of all lengths in a ring that has gone round: the same bytes as from batches drawn beforehand.

    One entry is of numbers that are subnormal in float16.
    """
    agent = make_agent(rows=64, obs_dtype=obs_dtype, normalize_obs=True, obs_epsilon=1e-16)
    rng, obs = np.random.default_rng(0), np.zeros(5)
    for _ in range(150):
        next_obs = rng.normal(size=5) * [1e-5, 1, 1, 1, 1]
        terminated, truncated = rng.random(2) < 0.1
        agent.replay_buffer.push(obs, rng.uniform(-1, 1, 3), rng.normal(), next_obs, terminated)
        obs = rng.normal(size=5) if terminated or truncated else next_obs
    twin, engine = copy.deepcopy(agent.state), native_engine(agent)
    engine.train(agent.state, agent.replay_buffer, 40, 6)
    for _ in range(6):
        engine.update(twin, agent.replay_buffer.sample_batch(40, twin.key(Stream.BATCH)))
    assert state_bytes(agent.state) == state_bytes(twin)


def test_draws_the_batch_and_noise_of_the_reference(engine_library):
    agent, twin = make_agent(), make_agent()
    engine = native_engine(agent, library=engine_library, path="portable")
    metrics = engine.train(agent.state, agent.replay_buffer, 40).tensor
    expected = twin.engine.train(twin.state, twin.replay_buffer, 40).tensor
    torch.testing.assert_close(metrics, expected, rtol=1e-5, atol=1e-6)


def test_switching_engines_in_mid_run_continues_the_same_run():
    switched, steady = make_agent(), make_agent()
    for name in ("native", "reference", "native", "auto"):
        switched.use_engine(name)
        switched.train(3, 40)
        steady.train(3, 40)
    assert switched.state.counters() == steady.state.counters()
    for (name, ours), (_, theirs) in zip(
        switched.state.named_tensors(), steady.state.named_tensors(), strict=True
    ):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("alpha", [0.3, 0.0])
def test_actor_update_period_and_fixed_temperature(alpha):
    check_actor_period(alpha, functools.partial(make_agent, engine="native"), make_agent)


@pytest.mark.parametrize("bound", ["clamp", "tanh"])
def test_log_std_is_kept_in_its_bounds(bound):
    check_log_std_bounds(bound, functools.partial(make_agent, engine="native"), make_agent)


@pytest.mark.parametrize("obs_dtype", ["float32", "bfloat16"])
def test_networks_see_normalised_observations(obs_dtype):
    theirs = functools.partial(make_agent, obs_dtype=obs_dtype)
    check_normalizer(functools.partial(theirs, engine="native"), theirs)


def test_a_batch_in_any_layout():
    """Columns of a larger tensor, and one that is stored by columns."""
    ours, twin = make_agent(engine="native"), make_agent(engine="native")
    batch, noise = draw(twin, twin.state, 40)
    wide = torch.cat([batch.obs, batch.next_obs], 1)
    strided = Batch(
        wide[:, :5],
        batch.action.T.contiguous().T,
        torch.stack([batch.reward] * 2, 1)[:, 0],
        wide[:, 5:],
        batch.terminated,
    )
    assert strided.action.stride() == (1, 40) and strided.reward.stride() == (2,)
    turned = Noise(noise.next_action.T.contiguous().T, noise.action.T.contiguous().T)
    ours.engine.update(ours.state, strided, turned)
    twin.engine.update(twin.state, batch, noise)
    assert state_bytes(ours.state) == state_bytes(twin.state)


def test_the_update_has_the_agents_settings():
    check_settings(functools.partial(make_agent, engine="native"), make_agent)


def test_auto_is_native_on_the_cpu_and_names_its_arithmetic():
    agent = make_agent(engine="auto", threads=1)
    assert isinstance(agent.engine, NativeEngine)
    assert agent.engine.name == f"native {agent.engine.path} float32"
    assert make_engine("reference", agent.config).name == "reference"


def test_profile_counts_every_phase():
    agent = make_agent(engine="native", threads=2)
    agent.engine.profile()
    agent.train(5, 40)
    phases = agent.engine.profile(False)
    assert all(seconds > 0 for seconds in phases.values())
    agent.train(5, 40)
    assert sum(agent.engine.profile().values()) == 0


def test_a_single_thread_waits_for_nobody():
    agent = make_agent((23, 7, (256, 256), 8), engine="native", threads=1)
    shares = []
    for _ in range(3):  # the system may suspend it in the little that counts as waiting
        agent.engine.profile()
        agent.train(20, 8)
        phases = agent.engine.profile(False)
        shares.append(phases["waiting"] / sum(phases.values()))
    assert min(shares) < 0.03


# ---- the state stays the user's


def after_write(write) -> tuple[SACAgent, SACAgent]:
    """Two agents of equal state; one has an engine that knew the weights before `write` changed them in both."""
    known, fresh = make_agent(engine="native"), make_agent(engine="native")
    for agent in (known, fresh):
        agent.train(2, 40)
    fresh.use_engine("native")
    for agent in (known, fresh):
        write(agent)
    for agent in (known, fresh):
        agent.train(2, 40)
    return known, fresh


def scale_through_torch(agent):
    with torch.no_grad():
        agent.critic.fc1.weight.mul_(1.5)
        agent.actor.mean.bias.add_(0.25)


def load_modules(agent):
    other = make_agent(seed=9)
    for name in ("actor", "critic", "critic_target"):
        getattr(agent, name).load_state_dict(getattr(other, name).state_dict())


def scale_target(agent):
    agent.state.critic_target_params.mul_(0.5)


@pytest.mark.parametrize("write", [scale_through_torch, load_modules, scale_target])
def test_writes_from_outside_are_followed(write):
    known, fresh = after_write(write)
    assert state_bytes(known.state) == state_bytes(fresh.state)


def test_update_counts_as_a_write_for_autograd():
    agent = make_agent(engine="native")
    batch, _ = draw(agent, agent.state, 40)
    q1, _ = agent.critic(batch.obs, batch.action)
    agent.train(1, 40)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        q1.sum().backward()


def test_one_engine_serves_several_states_and_batch_sizes():
    first, second = make_agent(engine="native"), make_agent(engine="native", seed=5)
    alone = copy.deepcopy(first), copy.deepcopy(second)
    for size in (40, 64, 40):
        for agent in (first, second):
            first.engine.train(agent.state, agent.replay_buffer, size)
    for agent, expected in zip((first, second), alone, strict=True):
        for size in (40, 64, 40):
            expected.train(1, size)
        assert state_bytes(agent.state) == state_bytes(expected.state)


# ---- acting


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], SHAPES[3], SHAPES[4]], ids=str)
def test_actions_are_those_of_the_reference(shape):
    check_actions(shape, functools.partial(make_agent, engine="native"), make_agent)


def test_an_action_is_the_callers_own():
    agent = make_agent(engine="native")
    first = agent.select_action(np.zeros(5))
    kept = first.copy()
    agent.select_action(np.ones(5))
    np.testing.assert_array_equal(first, kept)


def test_a_policy_acts_by_the_normalizer_of_today():
    agent = make_agent(engine="native", normalize_obs=True)
    obs = np.full(agent.state_dim, 0.5, np.float32)
    agent.select_action(obs, evaluate=True)
    other = ObservationNormalizer(agent.state_dim)
    other.update(np.random.default_rng(1).normal(3.0, 2.0, (50, agent.state_dim)))
    agent.state.normalizer = other
    expected = agent.act(torch.from_numpy(obs)[None], evaluate=True)[0]
    np.testing.assert_allclose(agent.select_action(obs, evaluate=True), expected, atol=1e-6)


def test_threads_get_actions_for_their_own_observations():
    check_threads(make_agent(engine="native"), calls=3000)


def test_actions_stay_within_bounds_that_float32_has_not():
    check_action_bounds(functools.partial(make_agent, engine="native"))
