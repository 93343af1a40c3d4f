"""The native engine on CUDA: the same update as the reference, on a GPU where there is one, and under the emulator.

The emulator (cuda_emulator/) runs the very kernels on the CPU, in any order of blocks and threads. It says nothing of
speed, of races between blocks, or of how the matrix units round.
"""

import copy
import functools

import numpy as np
import pytest
import torch
from agents import SMALL, make_agent, state_bytes
from cuda_agents import GPU, cuda_agent, engine_for
from cuda_emulation import BACKWARD, FORWARD, SHUFFLED
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
    update_all,
)
from float64 import relative_error
from tolerances import PRECISION_ERROR

from sacfast import SACAgent
from sacfast.engines import cuda, make_engine
from sacfast.engines.cuda import CudaEngine

pytestmark = pytest.mark.native

# obs, action, hidden widths, batch
SHAPES = [
    (23, 7, (64, 64), 64),
    (1, 1, (1,), 1),
    (3, 1, (33,), 5),
    (17, 6, (64, 48, 40), 100),
    (5, 17, (20, 31, 7, 65), 33),
    (30, 2, (16, 130), 257),
    (70, 40, (8,), 5),  # more observations and actions than a warp has lanes
    (3, 100, (64,), 5),  # weights of actions that shared memory has no room for
]


@pytest.fixture(params=cuda.PRECISIONS)
def precision(request) -> str:
    return request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_and_metrics_against_float64(cuda_place, precision, shape):
    check_gradients(cuda_agent(cuda_place, shape, precision), shape[3], precision)


@pytest.mark.parametrize("shape", [SHAPES[3], SHAPES[5]], ids=str)
def test_whole_gradients_against_float64(cuda_place, precision, shape):
    check_whole_gradients(cuda_agent(cuda_place, shape, precision), shape[3], precision)


def test_ten_updates_follow_float64(cuda_place, precision):
    check_trajectory(cuda_agent(cuda_place, SMALL, precision), SMALL[3], precision)


# ---- tiles, splits, orders


@pytest.mark.parametrize(
    ("multiprocessors", "shape"),
    [
        (1, (5, 3, (32, 24), 40)),  # large tiles
        (2, (9, 4, (140, 130), 150)),  # several of them, none of them full
        (132, (5, 3, (16, 8), 1100)),  # gradients in parts, over small tiles
        (6, (5, 3, (24,), 1100)),  # and over large ones
        (6, (5, 3, (100, 100), 1100)),  # with more weights than Adam's step has threads
        (132, (5, 3, (8,), 2049)),  # several rows of the policy to a warp
    ],
    ids=["large", "large-odd", "split", "large-split", "many-weights", "many-rows"],
)
def test_every_division_of_the_work(cuda_emulation, precision, multiprocessors, shape):
    cuda_emulation.emulator_set_multiprocessors(multiprocessors)
    agent = cuda_agent({"device": "cpu", "library": cuda_emulation}, shape, precision, rows=2100)
    states, _ = update_all(agent, shape[3])
    error = PRECISION_ERROR[precision]
    for network, bar in (("actor_adam", error.actor), ("critic_adam", error.critic)):
        ours, theirs, exact = (getattr(state, network).exp_avg for state in states)
        assert relative_error(ours, exact) <= 2 * relative_error(theirs, exact) + bar


def test_gradients_in_parts_are_learned_from_as_from_whole_ones(cuda_emulation):
    cuda_emulation.emulator_set_multiprocessors(132)
    place = {"device": "cpu", "library": cuda_emulation}
    options = {"shape": (5, 3, (16, 8), 1100), "rows": 2000, "lr": 1e-4, "critic_lr": 2e-3}
    agent, twin = (cuda_agent(place, **options) for _ in range(2))
    agent.train(3, 1100)
    for _ in range(3):
        twin.train(1, 1100)
    assert state_bytes(agent.state) == state_bytes(twin.state)
    check_trajectory(cuda_agent(place, **options), 1100, "float32")


def run_for_bytes(place: dict, precision: str, calls: tuple[int, ...], shape=SMALL) -> tuple:
    agent = cuda_agent(place, shape, precision)
    for updates in calls:
        metrics = agent.engine.train(agent.state, agent.replay_buffer, shape[3], updates)
    return state_bytes(agent.state), agent.state.counters(), metrics.tensor.tolist()


def test_same_bytes_twice_and_in_one_call_or_many(cuda_place, precision):
    expected = run_for_bytes(cuda_place, precision, (6,))
    for calls in ((6,), (1, 1, 1, 1, 1, 1), (4, 2)):
        assert run_for_bytes(cuda_place, precision, calls) == expected


@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_same_bytes_in_any_order_of_blocks_and_threads(cuda_emulation, precision, multiprocessors):
    """A barrier too few lets some order read what another thread has not written yet."""
    place = {"device": "cpu", "library": cuda_emulation}
    cuda_emulation.emulator_set_multiprocessors(multiprocessors)
    results = []
    for schedule in (FORWARD, BACKWARD, SHUFFLED, SHUFFLED + 1):
        cuda_emulation.emulator_set_schedule(schedule)
        results.append(run_for_bytes(place, precision, (2,), (17, 6, (48, 40), 50)))
    assert all(result == results[0] for result in results)


def test_more_updates_than_one_graph_has(cuda_place):
    shape = (3, 2, (8,), 16)
    assert run_for_bytes(cuda_place, "float32", (70,), shape) == run_for_bytes(
        cuda_place, "float32", (1, 31, 38), shape
    )


def test_a_graph_is_made_once(cuda_emulation):
    agent = cuda_agent({"device": "cpu", "library": cuda_emulation}, actor_update_period=2)
    made = []
    for updates, batch_size in zip((1, 1, 3, 1, 2, 3, 1, 1, 1), (40,) * 6 + (24,) * 3, strict=True):
        before = cuda_emulation.emulator_graphs_made()
        agent.train(updates, batch_size)
        made.append(cuda_emulation.emulator_graphs_made() - before)
    # Every number of updates has one for those that begin with the actor's, and one for the others.
    assert made == [1, 1, 1, 0, 1, 0, 1, 1, 0]


def test_workspace_is_written_before_it_is_read_and_never_left(cuda_emulation, precision, monkeypatch):
    place = {"device": "cpu", "library": cuda_emulation}
    expected = run_for_bytes(place, precision, (2,))
    guard, blocks = 4096, []

    def room(engine, handle, batch_size):
        size = engine._library.sacfast_cuda_update_workspace_bytes(handle, batch_size)
        blocks.append(torch.full((size + 2 * guard,), 0xFF, dtype=torch.uint8))  # as float32: NaN
        return blocks[-1][guard : guard + size]

    monkeypatch.setattr(CudaEngine, "_room", room)
    assert run_for_bytes(place, precision, (1, 1)) == expected
    for block in blocks:
        assert (block[:guard] == 0xFF).all() and (block[-guard:] == 0xFF).all()


# ---- the update in an agent's life


@pytest.mark.parametrize("capacity", [1000, 5000])
@pytest.mark.parametrize("storage", ["device", pytest.param("host", marks=GPU)])
@pytest.mark.parametrize("obs_dtype", ["float32", "float16", "bfloat16"])
def test_draws_the_batch_and_noise_of_the_reference(cuda_place, obs_dtype, storage, capacity):
    """From a ring that has gone round, or is not full, in which half of the next observations are the following
    row's.
    """
    options = {"obs_dtype": obs_dtype, "storage": storage, "buffer_capacity": capacity}
    agent, twin = cuda_agent(cuda_place, **options), make_agent(device=cuda_place["device"], **options)
    for one in (agent, twin):
        obs = (
            np.random.default_rng(3)
            .normal(size=(300, 5))
            .astype(obs_dtype if obs_dtype == "float16" else "f")
        )
        next_obs = np.where(np.arange(300)[:, None] % 2, obs, np.roll(obs, -1, axis=0))
        one.replay_buffer.push_batch(obs, obs[:, :3].clip(-1, 1), obs[:, 0], next_obs, obs[:, 1] > 1)
    metrics = agent.train(3, 40).tensor
    expected = twin.train(3, 40).tensor
    torch.testing.assert_close(metrics, expected, rtol=1e-4, atol=1e-5)


def makers(place: dict) -> tuple:
    """Functions that make an agent of this engine, and one of the reference beside it."""
    return functools.partial(cuda_agent, place), functools.partial(make_agent, device=place["device"])


@pytest.mark.parametrize("alpha", [0.3, 0.0])
def test_actor_update_period_and_fixed_temperature(cuda_place, alpha):
    check_actor_period(alpha, *makers(cuda_place))


def test_each_network_has_its_learning_rate(cuda_place):
    options = {"lr": 1e-4, "critic_lr": 2e-3, "alpha_lr": 0.03}
    ours, theirs = cuda_agent(cuda_place, **options), make_agent(device=cuda_place["device"], **options)
    for agent in (ours, theirs):
        agent.train(1, 40)
    for name in ("actor_params", "critic_params", "log_alpha"):
        torch.testing.assert_close(
            getattr(ours.state, name), getattr(theirs.state, name), rtol=1e-4, atol=2e-5
        )


@pytest.mark.parametrize("bound", ["clamp", "tanh"])
def test_log_std_is_kept_in_its_bounds(cuda_place, bound):
    check_log_std_bounds(bound, *makers(cuda_place))


def test_networks_see_normalised_observations(cuda_place):
    check_normalizer(*makers(cuda_place))


def test_the_update_has_the_agents_settings(cuda_place):
    check_settings(*makers(cuda_place))


def test_a_lower_precision_is_one(cuda_place):
    """Bars alone are met by float32, whatever was asked for."""
    errors = []
    for precision in cuda.PRECISIONS:
        (ours, _, exact), _ = update_all(cuda_agent(cuda_place, SHAPES[3], precision), SHAPES[3][3])
        errors.append(relative_error(ours.critic_adam.exp_avg, exact.critic_adam.exp_avg))
    assert 30 * errors[0] < errors[1] < errors[2] / 2


def test_writes_from_outside_are_followed(cuda_place):
    known, fresh = cuda_agent(cuda_place), cuda_agent(cuda_place)
    for agent in (known, fresh):
        agent.train(2, 40)
    fresh.engine = engine_for(fresh, cuda_place)
    for agent in (known, fresh):
        agent.critic.fc4.weight.data.mul_(1.5)
        agent.train(2, 40)
    assert state_bytes(known.state) == state_bytes(fresh.state)


def test_copies_and_checkpoints_continue_bit_for_bit(cuda_place, tmp_path):
    agent = cuda_agent(cuda_place)
    agent.train(3, 40)
    agent.save(tmp_path / "agent.safetensors")
    twin = copy.deepcopy(agent)
    loaded = SACAgent.from_checkpoint(
        tmp_path / "agent.safetensors", engine="reference", device=cuda_place["device"]
    )
    loaded.engine = engine_for(loaded, cuda_place)
    for one in (agent, twin, loaded):
        one.train(3, 40)
    assert twin.engine is not agent.engine
    assert state_bytes(agent.state) == state_bytes(twin.state) == state_bytes(loaded.state)


def test_one_engine_serves_several_states_and_batch_sizes(cuda_place):
    first, second = cuda_agent(cuda_place), cuda_agent(cuda_place, seed=5)
    alone = copy.deepcopy(first), copy.deepcopy(second)
    for size in (40, 64, 40):
        for agent in (first, second):
            first.engine.train(agent.state, agent.replay_buffer, size)
    for agent, expected in zip((first, second), alone, strict=True):
        for size in (40, 64, 40):
            expected.train(1, size)
        assert state_bytes(agent.state) == state_bytes(expected.state)


@pytest.mark.parametrize("shape", [SMALL, SHAPES[1], SHAPES[3], SHAPES[4], (600, 40, (8,), 5)], ids=str)
def test_actions_are_those_of_the_reference(cuda_place, shape):
    check_actions(shape, *makers(cuda_place))


def test_actions_stay_within_bounds_that_float32_has_not(cuda_place):
    check_action_bounds(functools.partial(cuda_agent, cuda_place))


def test_threads_get_actions_for_their_own_observations(cuda_place):
    check_threads(cuda_agent(cuda_place), calls=200)


def test_profile_measures_every_phase_and_changes_nothing(cuda_place):
    agent, twin = cuda_agent(cuda_place), cuda_agent(cuda_place)
    agent.engine.profile()
    agent.train(3, 40)
    twin.train(3, 40)
    phases = agent.engine.profile(False)
    assert len(phases) == 12 and all(seconds > 0 for seconds in phases.values())
    assert state_bytes(agent.state) == state_bytes(twin.state)
    assert sum(agent.engine.profile(False).values()) == 0


# ---- on a GPU alone


@GPU
def test_auto_takes_it():
    assert make_engine("auto", make_agent().config, device="cuda").name == "native cuda float32"


@GPU
def test_streams_do_not_disturb_one_another():
    agent, twin = (cuda_agent({"device": "cuda"}) for _ in range(2))
    for _ in range(5):
        with torch.cuda.stream(torch.cuda.Stream()):
            agent.train(3, 40)
        twin.train(3, 40)
    torch.cuda.synchronize()
    assert state_bytes(agent.state) == state_bytes(twin.state)


@GPU
@pytest.mark.parametrize("storage", ["device", "host"])
def test_what_was_started_on_a_stream_may_be_finished_on_another(storage):
    agent, twin = (cuda_agent({"device": "cuda"}, storage=storage) for _ in range(2))
    for _ in range(5):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())  # where transitions were pushed
        with torch.cuda.stream(stream):
            finish = agent.start(20, 40)
        metrics = finish()
        assert metrics.tensor.tolist() == twin.train(20, 40).tensor.tolist()
        for each in (agent, twin):
            each.replay_buffer.push(*(np.full(n, 0.5) for n in (each.state_dim, each.action_dim)), 1.0,
                                    np.zeros(each.state_dim), False)  # fmt: skip
    assert state_bytes(agent.state) == state_bytes(twin.state)


@GPU
@pytest.mark.parametrize("rows", [1, 80])
def test_acting_waits_for_updates_on_another_stream(rows):
    agent = cuda_agent({"device": "cuda"})
    obs = np.ones((rows, agent.state_dim))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        agent.train(300, 40)
    action = agent.select_action(obs, evaluate=True)
    torch.cuda.synchronize()
    np.testing.assert_array_equal(action, agent.select_action(obs, evaluate=True))


@GPU
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two NVIDIA GPUs")
def test_another_device_than_the_current():
    with torch.cuda.device(0):
        here, there = (cuda_agent({"device": f"cuda:{index}"}) for index in range(2))
        for agent in (here, there):
            agent.train(3, 40)
    assert state_bytes(here.state) == state_bytes(there.state)


@GPU
def test_memory_does_not_grow():
    agent = cuda_agent({"device": "cuda"}, (23, 7, (256, 256), 256))
    agent.train(64, 256)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    for _ in range(50):
        agent.train(64, 256)
    agent.engine.settle(agent.state)
    assert (torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]) == before
