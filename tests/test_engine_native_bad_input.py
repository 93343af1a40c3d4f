"""The native engine: what it refuses, and what is left then."""

import dataclasses

import numpy as np
import pytest
import torch
from agents import draw, make_agent, state_bytes

from sacfast import Batch, NativeEngine, SACError
from sacfast.normalizer import ObservationNormalizer
from sacfast.ops import Stream
from sacfast.state import SACState

pytestmark = pytest.mark.native


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_observation_that_is_not_finite_is_refused(value, rows):
    agent = make_agent(engine="native")
    obs = np.zeros(5 if rows is None else (rows, 5))
    obs.flat[-1] = value
    with pytest.raises(SACError, match=f"observation holds {value}"):
        agent.select_action(obs)
    assert agent.state.action_step == 0


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Batch)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_is_reported_and_not_applied(field, value):
    agent = make_agent(engine="native")
    agent.train(2, 40)
    batch, noise = draw(agent, agent.state, 40)
    getattr(batch, field).view(-1)[-1] = value
    before, counters = state_bytes(agent.state), agent.state.counters()
    with pytest.raises(SACError, match="update 2 holds a NaN or an infinity, so the update was not applied"):
        agent.engine.update(agent.state, batch, noise)
    assert (state_bytes(agent.state), agent.state.counters()) == (before, counters)
    agent.train(1, 40)
    assert agent.training_steps == 3


def test_updates_before_a_bad_batch_count():
    agent, twin = make_agent(engine="native", rows=60), make_agent(engine="native", rows=60)
    agent.replay_buffer.ring_to_sample(1).reward[7] = float("nan")
    applied = 0
    while True:
        indices = agent.replay_buffer.sample_batch(20, twin.state.key(Stream.BATCH)).reward
        if indices.isnan().any():
            break
        twin.train(1, 20)
        applied += 1
        assert applied < 50
    with pytest.raises(SACError, match=rf"\({applied} of 60 before it were\)"):
        agent.train(60, 20)
    assert agent.training_steps == applied
    assert state_bytes(agent.state) == state_bytes(twin.state)


def test_other_bad_input_is_refused():
    agent = make_agent(engine="native", rows=50)
    with pytest.raises(SACError, match="51 is above the 50 transitions"):
        agent.train(1, 51)
    for updates in (0, 1.5, "2", True):
        for begin in (agent.train, agent.start):
            with pytest.raises(SACError, match=f"updates={updates!r} must be a whole number of at least 1"):
                begin(updates, 40)
    other = make_agent((6, 3, (8,), 4))
    with pytest.raises(SACError, match=r"observations \[6\]"):
        agent.engine.train(agent.state, other.replay_buffer, 4)
    batch, noise = draw(agent, agent.state, 40)
    with pytest.raises(SACError, match="batch.obs has shape"):
        agent.engine.update(agent.state, dataclasses.replace(batch, obs=batch.obs[:, :2]), noise)


def test_a_precision_or_path_that_is_missing_is_named(engine_library):
    agent = make_agent()
    with pytest.raises(SACError, match="path 'portable' is not available on this CPU, which has"):
        config = dataclasses.replace(agent.config, precision="bf16")
        NativeEngine(config, path="portable", library=engine_library)
    with pytest.raises(SACError, match="path 'sse9'"):
        NativeEngine(agent.config, path="sse9", library=engine_library)


def test_networks_of_different_widths_are_refused():
    agent = make_agent()
    agent.state.actor_layers = make_agent((5, 3, (32, 16), 1)).state.actor_layers
    with pytest.raises(
        SACError, match=r"actor's hidden layers are \[32, 16\] wide and the critics' \[32, 24\]"
    ):
        NativeEngine(agent.config).train(agent.state, agent.replay_buffer, 40)


def test_a_critic_of_other_inputs_is_refused():
    agent = make_agent(engine="native")
    actor, critic = agent.actor, make_agent((8, 3, (32, 24), 1)).critic
    with pytest.raises(SACError, match="the critics do not take 5 observations and 3 actions"):
        agent.engine.train(SACState(actor, critic, torch.zeros(1), 0), agent.replay_buffer, 40)


def test_parameters_that_moved_away_are_refused():
    agent = make_agent(engine="native")
    agent.train(1, 40)
    agent.actor.double()
    with pytest.raises(SACError, match=r"actor are no longer the float32 numbers of state.actor_params"):
        agent.train(1, 40)


@pytest.mark.parametrize("name", ["fc1", "mean"])
def test_a_layer_that_took_anothers_place_is_refused(name):
    agent = make_agent(engine="native")
    old = getattr(agent.actor, name)
    setattr(agent.actor, name, torch.nn.Linear(old.in_features, old.out_features))
    with pytest.raises(SACError, match=r"or a new layer took their place"):
        agent.train(1, 40)


def test_a_bias_or_a_temperature_that_was_replaced_is_refused():
    agent = make_agent(engine="native")
    agent.actor.mean.bias = torch.nn.Parameter(torch.zeros(agent.action_dim))
    with pytest.raises(SACError, match=r"actor are no longer the float32 numbers"):
        agent.train(1, 40)
    agent = make_agent(engine="native")
    agent.state.log_alpha = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(
        SACError, match=r"state.log_alpha has been given torch.float64 \[1\] on cpu; write into"
    ):
        agent.train(1, 40)


REPLACEMENTS = {
    "shorter": lambda moment: torch.cat([moment, moment]),
    "float16": lambda moment: moment.half(),
    "strided": lambda moment: moment.repeat_interleave(2)[::2],
}


@pytest.mark.parametrize("replace", REPLACEMENTS.values(), ids=REPLACEMENTS)
@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("adam", ["actor_adam", "critic_adam"])
def test_moments_that_were_replaced_are_refused(adam, moment, replace):
    agent = make_agent(engine="native")
    moments = getattr(agent.state, adam)
    setattr(moments, moment, replace(getattr(moments, moment)))
    with pytest.raises(SACError, match=rf"state.{adam} has been given torch.float.* on cpu; write into"):
        agent.train(1, 40)


def test_an_actor_without_one_of_its_layers_is_refused():
    agent = make_agent(engine="native")
    del agent.actor.fc1
    for use in (lambda: agent.train(1, 40), lambda: agent.select_action(np.zeros(5))):
        with pytest.raises(SACError, match=r"actor are no longer the float32 numbers"):
            use()


def test_a_parametrised_layer_is_refused_in_one_sentence():
    agent = make_agent(engine="native")
    torch.nn.utils.parametrizations.weight_norm(agent.critic.fc1)
    with pytest.raises(SACError, match=r"critic are no longer the float32 numbers of state.critic_params"):
        agent.train(1, 40)


@pytest.mark.parametrize("rows", [None, 3])
def test_an_actor_that_moved_away_does_not_act_with_the_old_weights(rows):
    agent, other = make_agent(engine="native"), make_agent(engine="native")
    agent.actor.load_state_dict(other.actor.state_dict(), assign=True)
    with pytest.raises(SACError, match=r"actor are no longer the float32 numbers of state.actor_params"):
        agent.select_action(np.zeros(5 if rows is None else (rows, 5)), evaluate=True)


def test_a_normalizer_of_other_observations_is_refused():
    agent = make_agent(engine="native", normalize_obs=True)
    agent.state.normalizer = ObservationNormalizer(agent.state_dim + 1)
    wanted = (
        r"state.normalizer is for 6 numbers on cpu; this agent needs ObservationNormalizer\(5, device='cpu'\)"
    )
    for use in (lambda: agent.select_action(np.zeros(5)), lambda: agent.train(1, 8)):
        with pytest.raises(SACError, match=wanted):
            use()
