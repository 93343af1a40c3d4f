"""SACAgent's checkpoints: everything is saved, and what does not fit or is damaged changes nothing."""

import copy

import numpy as np
import pytest
from agents import same_state
from agents import small_agent as make_agent

from sacfast import CheckpointError, SACAgent, SACError, checkpoint
from sacfast.cores import physical_cores


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


@pytest.mark.parametrize("hidden_dim", [(24,), (16, 8), (12, 8, 4), (9, 7, 5, 3)])
def test_any_hidden_layers_survive_saving_and_copying(tmp_path, hidden_dim):
    agent = make_agent(hidden_dim=hidden_dim)
    agent.train(2, 32)
    agent.save(tmp_path / "a")
    for twin in (SACAgent.from_checkpoint(tmp_path / "a"), copy.deepcopy(agent)):
        assert same_state(agent, twin)
        for one in (agent, twin):
            assert np.isfinite(one.select_action(np.ones((2, 5)))).all()
            one.train(2, 32)
        assert same_state(agent, twin)
        agent.load(tmp_path / "a")


def test_a_checkpoint_carries_the_settings_and_leaves_the_machine_out(tmp_path):
    agent = make_agent(
        actor_update_period=2, threads=1, engine="reference", hidden_dim=(16, 8), batch_size=24
    )
    agent.save(tmp_path / "a")
    meta = checkpoint.read_meta(tmp_path / "a")
    assert not {"threads", "engine", "device"} & {*meta, *meta["config"]}
    twin = SACAgent.from_checkpoint(tmp_path / "a")
    assert twin.config == agent.config and twin.engine.threads == physical_cores()

    tensors, meta = checkpoint.read(tmp_path / "a")
    checkpoint.write(tmp_path / "bf16", tensors, {**meta, "config": {**meta["config"], "precision": "bf16"}})
    with pytest.raises(SACError, match="precision='bf16' needs engine='native'"):
        SACAgent.from_checkpoint(tmp_path / "bf16", engine="reference")
    anywhere = SACAgent.from_checkpoint(tmp_path / "bf16", engine="reference", precision="float32")
    assert same_state(agent, anywhere)


@pytest.mark.parametrize("obs_dtype", ["float16", "bfloat16"])
def test_observations_in_16_bits_are_saved_as_such(tmp_path, obs_dtype):
    agent = make_agent(obs_dtype=obs_dtype)
    agent.train(2, 32)
    agent.save(tmp_path / "a")
    assert str(checkpoint.read(tmp_path / "a")[0]["replay.obs"].dtype) == f"torch.{obs_dtype}"
    twin, wider = SACAgent.from_checkpoint(tmp_path / "a"), make_agent(rows=0)
    assert twin.config.obs_dtype == obs_dtype
    wider.load(tmp_path / "a")
    for other in (twin, wider):
        other.train(3, 32)
    agent.train(3, 32)
    assert same_state(agent, twin) and same_state(agent, wider)


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


def test_a_temperature_of_zero_is_no_start_for_one_that_is_learned(tmp_path):
    make_agent(automatic_entropy_tuning=False, alpha=0.0).save(tmp_path / "a")
    assert_refused(make_agent(), tmp_path / "a", "a fixed temperature of 0, from which none can be learned")
    assert SACAgent.from_checkpoint(tmp_path / "a").alpha.item() == 0


def assert_refused(agent, path, words):
    """Loading the file raises CheckpointError with these words, and leaves the agent as it was."""
    before = copy.deepcopy(agent)
    with pytest.raises(CheckpointError, match=words):
        agent.load(path)
    assert same_state(agent, before)


@pytest.mark.parametrize(
    "other",
    [
        {"state_dim": 6},
        {"action_dim": 2},
        {"hidden_dim": 8},
        {"hidden_dim": (16,)},
        {"hidden_dim": (16, 16, 16)},
        {"action_low": -2 * np.ones(3), "action_high": 2 * np.ones(3)},
        {"log_std_min": -5.0, "log_std_bound": "tanh"},
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path, other):
    make_agent().save(tmp_path / "a")
    agent = SACAgent(**{"state_dim": 5, "action_dim": 3, "hidden_dim": 16, **other}, seed=7)
    assert_refused(agent, tmp_path / "a", "saved with")


def test_a_truncated_checkpoint_changes_nothing(tmp_path):
    path = tmp_path / "a"
    make_agent().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    agent = make_agent(seed=7)
    assert_refused(agent, path, "damaged")


@pytest.mark.parametrize("name", ["obs", "action", "reward", "link", "side"])
@pytest.mark.parametrize("damage", ["missing", "narrow", "flat"])
def test_a_damaged_replay_buffer_changes_nothing(tmp_path, damage, name):
    source = make_agent()
    source.save(tmp_path / "a")
    tensors, meta = checkpoint.read(tmp_path / "a")
    words = f"damaged: {name}"
    if damage == "missing":
        del tensors[f"replay.{name}"]
    elif damage == "narrow":  # or short
        tensors[f"replay.{name}"] = tensors[f"replay.{name}"][..., :2]
        words = {"reward": "in 2", "link": "in 2 transitions"}.get(name, name)
    else:
        tensors[f"replay.{name}"] = tensors[f"replay.{name}"].sum()
    checkpoint.write(tmp_path / "a", tensors, meta)
    agent = make_agent(seed=7)
    assert_refused(agent, tmp_path / "a", rf"a cannot be loaded: .*\b({words})\b")


def test_fewer_transitions_ever_pushed_than_are_held_change_nothing(tmp_path):
    make_agent().save(tmp_path / "a")
    tensors, meta = checkpoint.read(tmp_path / "a")
    meta["replay"]["pushed"] = 0
    checkpoint.write(tmp_path / "a", tensors, meta)
    assert_refused(make_agent(seed=7), tmp_path / "a", "are held of 0 that were ever pushed")


def test_more_transitions_than_are_described_change_nothing(tmp_path):
    make_agent().save(tmp_path / "a")
    tensors, meta = checkpoint.read(tmp_path / "a")
    meta["replay"]["size"] -= 1
    checkpoint.write(tmp_path / "a", tensors, meta)
    agent = make_agent(seed=7)
    assert_refused(agent, tmp_path / "a", r"a cannot be loaded: it holds \d+ transitions, but describes")


def test_a_file_of_other_batches_loads_and_the_agent_keeps_its_own(tmp_path):
    """Every file once said 128, whatever the run's batches were."""
    make_agent(batch_size=128).save(tmp_path / "a")
    agent = make_agent(batch_size=24)
    agent.load(tmp_path / "a")
    assert agent.config.batch_size == 24
    assert SACAgent.from_checkpoint(tmp_path / "a").config.batch_size == 128


def test_observations_that_do_not_fit_change_nothing(tmp_path):
    source = make_agent()
    source.replay_buffer.push(np.full(5, 1e5), np.zeros(3), 0.0, np.zeros(5), False)
    source.save(tmp_path / "a")
    tensors, meta = checkpoint.read(tmp_path / "a")
    tensors["replay.link"][7] = 402
    checkpoint.write(tmp_path / "b", tensors, meta)
    agent = make_agent(rows=3, seed=7, obs_dtype="float16")
    for name, message in (("a", "obs holds 100000, which float16 cannot"), ("b", "lies outside it")):
        assert_refused(agent, tmp_path / name, message)
        assert len(agent.replay_buffer) == 3
