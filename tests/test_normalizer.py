"""Running statistics of observations: exact, stable, the same in batches of any size, and part of an agent."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from training_runs import SMALL, replay_of, small

from sacfast.agent import SACAgent
from sacfast.errors import CheckpointError, SACError
from sacfast.evaluate import load_agent
from sacfast.logger import read_csv
from sacfast.normalizer import CLIP, ObservationNormalizer
from sacfast.ops import Stream
from sacfast.train import train


def test_by_hand():
    normalizer = ObservationNormalizer(2)
    np.testing.assert_array_equal(normalizer(np.array([3.0, -4.0])), [3, -4])  # nothing seen yet
    normalizer.update(np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert normalizer.mean.tolist() == [2, 5]
    assert (normalizer.squares / normalizer.count).tolist() == [1, 0]
    np.testing.assert_allclose(normalizer(np.array([3.0, 5.0])), [1, 0], atol=1e-6)
    np.testing.assert_array_equal(normalizer(np.array([1e9, 4.0])), [CLIP, -CLIP])


@pytest.mark.parametrize("epsilon", [1e-8, 0.25, 1.0])
def test_what_varies_less_than_epsilons_root_is_not_magnified(epsilon):
    normalizer = ObservationNormalizer(3, epsilon=epsilon)
    normalizer.update(np.array([[-0.001, 5.0, 0.0], [0.001, -5.0, 0.0]]))
    x = np.array([0.001, 5.0, 0.0005])
    scale = normalizer(x) / x
    np.testing.assert_allclose(scale, (np.array([1e-6, 25.0, 0.0]) + epsilon) ** -0.5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mean", "squares", "shift", "scale"])
def test_what_native_code_writes_is_replaced_by_its_like_only(name):
    normalizer, twin = ObservationNormalizer(3), ObservationNormalizer(3)
    x = np.random.default_rng(0).normal(size=(4, 1, 3))
    for each in (normalizer, twin):
        each.update(x[0])
    tensor = getattr(normalizer, name)
    other = torch.float32 if tensor.dtype == torch.float64 else torch.float64
    for value in (tensor.to(other), tensor[:1], torch.zeros(6, dtype=tensor.dtype)[::2], tensor.numpy()):
        with pytest.raises(SACError, match=f"normalizer's {name} is torch.float.* write into it"):
            setattr(normalizer, name, value)
    setattr(normalizer, name, tensor.clone())
    for each in (normalizer, twin):
        for row in x[1:]:
            each.update(row)
    assert torch.equal(normalizer.mean, twin.mean) and torch.equal(normalizer.scale, twin.scale)


@pytest.mark.parametrize("sizes", [[1] * 600, [7, 1, 592], [600], [300, 0, 300]])
def test_batches_of_any_size_merge_into_the_statistics_of_all(sizes):
    # A mean a million times the deviation: in float32, or from sums of squares, no digit would be left.
    x = np.random.default_rng(0).normal(1e6, 1.0, (600, 3))
    normalizer = ObservationNormalizer(3)
    for part in np.split(x, np.cumsum(sizes)[:-1]):
        normalizer.update(part)
    assert normalizer.count == 600
    np.testing.assert_allclose(normalizer.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(normalizer.squares / normalizer.count, x.var(0), rtol=1e-9)
    np.testing.assert_allclose(normalizer.shift, x.mean(0), rtol=1e-7)
    np.testing.assert_allclose(normalizer.scale, (x.var(0) + normalizer.epsilon) ** -0.5, rtol=1e-6)


def test_an_observation_of_another_width_changes_nothing():
    normalizer = ObservationNormalizer(3)
    for wrong in (np.ones((1, 1)), np.ones((1, 4)), torch.ones(2, 4), np.ones(3)):
        with pytest.raises(SACError, match=r"of shape \[.*\]; the normalizer takes \[n, 3\]"):
            normalizer.update(wrong)
    assert normalizer.count == 0 and not normalizer.mean.any()


@pytest.mark.native
def test_a_copy_has_memory_of_its_own():
    x = np.random.default_rng(0).normal(size=(6, 3))
    normalizer = ObservationNormalizer(3)
    normalizer.update(x[:1])
    twin = copy.deepcopy(normalizer)
    for row in x[1:]:
        twin.update(row[None])
    np.testing.assert_array_equal(normalizer.shift, np.float32(x[0]))
    assert normalizer.count == 1
    np.testing.assert_allclose(twin.shift, x.mean(0), rtol=1e-6)


def test_tensors_and_arrays_agree():
    x = np.random.default_rng(1).normal(3, 2, (50, 4)).astype(np.float32)
    arrays, tensors = ObservationNormalizer(4), ObservationNormalizer(4)
    arrays.update(x)
    tensors.update(torch.from_numpy(x))
    assert torch.equal(arrays.squares, tensors.squares)
    np.testing.assert_array_equal(arrays(x), tensors(torch.from_numpy(x)).numpy())


@pytest.mark.cuda
def test_on_a_gpu_they_agree_with_the_cpus_wherever_observations_come_from():
    x = np.random.default_rng(1).normal(3, 2, (50, 4)).astype(np.float32)
    theirs, ours = ObservationNormalizer(4), ObservationNormalizer(4, "cuda")
    for rows, where in ((x[:9], "cpu"), (x[9:10], None), (x[10:30], "cuda"), (x[30:], None)):
        theirs.update(rows)
        ours.update(rows if where is None else torch.from_numpy(rows).to(where))
        np.testing.assert_allclose(ours.shift.cpu(), theirs.shift, rtol=1e-6)
        np.testing.assert_allclose(ours.scale.cpu(), theirs.scale, rtol=1e-6)
    assert copy.deepcopy(ours).count == ours.count == 50


def filled(engine="reference", **kwargs):
    agent = SACAgent(3, 2, 8, engine=engine, seed=0, buffer_capacity=100, normalize_obs=True, **kwargs)
    rng = np.random.default_rng(2)
    obs = rng.normal([100, 0, -3], [10, 0.01, 1], (60, 3)).astype(np.float32)
    action = rng.uniform(-1, 1, (60, 2))
    agent.replay_buffer.push_batch(obs, action, rng.normal(size=60), obs + 1, np.zeros(60, bool))
    return agent, obs


@pytest.mark.parametrize("engine", ["reference", pytest.param("native", marks=pytest.mark.native)])
def test_networks_see_normalised_observations_and_the_buffer_raw_ones(engine):
    agent, obs = filled(engine)
    np.testing.assert_allclose(agent.normalizer.mean, obs.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_array_equal(agent.replay_buffer.segment()["obs"].numpy(), obs)
    plain = SACAgent(3, 2, 8, engine=engine, seed=0, buffer_capacity=100)
    normal = agent.normalizer(obs)
    assert np.abs(normal.mean(0)).max() < 1e-3
    np.testing.assert_array_equal(agent.select_action(obs[0], True), plain.select_action(normal[0], True))
    np.testing.assert_array_equal(agent.select_action(obs), plain.select_action(normal))
    batch = agent.replay_buffer.sample_batch(16, agent.state.key(Stream.BATCH))
    metrics = plain.engine.update(plain.state, agent.normalizer.batch(batch))
    assert torch.equal(agent.train(1, 16).tensor, metrics.tensor)
    assert torch.equal(agent.state.actor_params, plain.state.actor_params)


def test_acting_and_copying_leave_the_statistics_alone(tmp_path):
    agent, obs = filled()
    before = agent.normalizer.mean.clone()
    agent.select_action(obs, evaluate=True)
    agent.select_action(obs * 9)
    assert torch.equal(agent.normalizer.mean, before)
    twin = copy.deepcopy(agent)
    twin.replay_buffer.push(obs[0] * 9, [0, 0], 0.0, obs[0], False)
    assert twin.normalizer.count == 61
    assert agent.normalizer.count == 60


def test_statistics_are_part_of_a_checkpoint(tmp_path):
    agent, obs = filled(reward_scale=0.1)
    agent.save(tmp_path / "a.safetensors", replay_buffer=False)
    loaded = SACAgent.from_checkpoint(tmp_path / "a.safetensors", engine="reference")
    np.testing.assert_array_equal(loaded.select_action(obs, True), agent.select_action(obs, True))
    loaded.normalizer.update(obs * 2)
    agent.normalizer.update(obs * 2)
    assert torch.equal(loaded.normalizer.squares, agent.normalizer.squares)
    other = SACAgent(3, 2, 8, engine="reference", buffer_capacity=100)
    with pytest.raises(
        CheckpointError, match="saved with normalize_obs=True, but this agent has normalize_obs=False"
    ):
        other.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("epsilon", [1e-8, 0.5])
def test_a_checkpoint_is_of_one_epsilon(tmp_path, epsilon):
    agent, obs = filled(obs_epsilon=epsilon)
    agent.save(tmp_path / "a.safetensors")
    other, _ = filled(obs_epsilon=0.25)
    with pytest.raises(CheckpointError, match=f"obs_epsilon={epsilon}, but this agent has obs_epsilon=0.25"):
        other.load(tmp_path / "a.safetensors")
    same = SACAgent(3, 2, 8, engine="reference", buffer_capacity=100, normalize_obs=True, obs_epsilon=epsilon)
    same.load(tmp_path / "a.safetensors")
    loaded = SACAgent.from_checkpoint(tmp_path / "a.safetensors", engine="reference")
    for each in (agent, same, loaded):
        scale = (obs.astype(np.float64).var(0) + epsilon) ** -0.5
        np.testing.assert_allclose(each.normalizer.scale, scale, rtol=1e-5)
        np.testing.assert_array_equal(each.select_action(obs, True), agent.select_action(obs, True))


def test_rewards_are_scaled_for_learning_alone():
    agent = SACAgent(3, 2, 8, engine="reference", seed=0, buffer_capacity=100, reward_scale=0.25)
    for value in (4.0, 8.0):
        agent.replay_buffer.push(np.zeros(3), np.zeros(2), value, np.zeros(3), False)
    assert agent.replay_buffer.segment()["reward"].tolist() == [1, 2]
    assert set(agent.replay_buffer.sample(2)[2].ravel().tolist()) <= {4.0, 8.0}


def test_a_run_normalises_logs_true_returns_and_evaluates_with_its_statistics(tmp_path):
    sac = dataclasses.replace(SMALL, normalize_obs=True, reward_scale=0.01)
    settings = {"steps": 110, "utd": 0.5, "num_envs": 2, "make_kwargs": {"max_episode_steps": 50}}
    run = train(small(tmp_path, eval_every=0, sac=sac, **settings))
    replay, meta = replay_of(run)
    assert meta["normalized"] == 110
    agent, _, _ = load_agent(run, "last")
    np.testing.assert_allclose(agent.normalizer.mean, replay["obs"].mean(0), atol=1e-4)
    assert abs(replay["obs"][:, 2]).max() > 1  # raw
    assert replay["reward"].min() > -0.2
    rows = read_csv(run / "episodes.csv")
    assert len(rows) == 2
    assert all(row["return"] < -30 for row in rows)
