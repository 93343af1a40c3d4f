"""Settings: checked when made, refused in one sentence, and the same after a trip through JSON."""

import dataclasses
import json

import numpy as np
import pytest

from sacfast.config import SACConfig, TrainConfig, check_resume
from sacfast.errors import SACError

BAD_SAC = [
    ("hidden_dim", 0),
    ("hidden_dim", 2.5),
    ("hidden_dim", True),
    ("lr", 0.0),
    ("lr", 1.5),
    ("lr", float("nan")),
    ("lr", "fast"),
    ("gamma", 1.1),
    ("gamma", -0.1),
    ("tau", 0.0),
    ("tau", 1.5),
    ("alpha", -1.0),
    ("automatic_entropy_tuning", 1),
    ("target_entropy", float("inf")),
    ("buffer_capacity", -5),
    ("batch_size", 0),
    ("log_std_min", float("-inf")),
]
BAD_TRAIN = [
    ("env", ""),
    ("steps", 0),
    ("seed", -1),
    ("seed", 2**31),
    ("engine", "warp"),
    ("learning_starts", -1),
    ("eval_every", -1),
    ("eval_episodes", 0),
    ("checkpoint_every", -1),
    ("log_every", 0),
    ("threads", -2),
    ("tensorboard", "yes"),
    ("resume", ""),
    ("sac", {}),
]


@pytest.mark.parametrize(
    ("cls", "bad"), [(SACConfig, b) for b in BAD_SAC] + [(TrainConfig, b) for b in BAD_TRAIN]
)
def test_a_bad_value_is_named_with_its_field(cls, bad):
    name, value = bad
    with pytest.raises(SACError) as caught:
        cls(**{name: value})
    message = str(caught.value)
    assert name in message
    assert (str(value) in message) or (repr(value) in message)
    assert "\n" not in message


def test_settings_that_contradict_each_other():
    with pytest.raises(SACError, match="log_std_min=3 must be below log_std_max=2"):
        SACConfig(log_std_min=3)
    with pytest.raises(SACError, match="batch_size=512 is above buffer_capacity=100"):
        TrainConfig(sac=SACConfig(batch_size=512, buffer_capacity=100))
    with pytest.raises(SACError, match="steps=900 ends before the first update at step 1000"):
        TrainConfig(steps=900)
    with pytest.raises(SACError, match="first update at step 256"):
        TrainConfig(steps=200, learning_starts=10)


def test_numpy_numbers_become_plain_ones():
    config = SACConfig(hidden_dim=np.int64(64), lr=np.float32(0.5))
    assert type(config.hidden_dim) is int
    assert type(config.lr) is float


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().steps = 3


def test_json_round_trip():
    config = TrainConfig(env="Ant-v5", steps=7000, sac=SACConfig(lr=1e-3, target_entropy=-2.5, batch_size=64))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_fields_are_refused():
    with pytest.raises(SACError, match="no field speed"):
        TrainConfig.from_dict({"speed": 3})
    with pytest.raises(SACError, match="no field momentum"):
        TrainConfig.from_dict({"sac": {"momentum": 0.9}})


def test_agent_kwargs_are_every_field_but_batch_size():
    names = {f.name for f in dataclasses.fields(SACConfig)}
    assert set(SACConfig().agent_kwargs()) == names - {"batch_size"}


def test_resume_may_raise_steps_and_nothing_that_changes_learning():
    saved = TrainConfig(steps=2000)
    check_resume(saved, dataclasses.replace(saved, steps=3000, threads=1, log_every=7, resume="runs/x"))
    with pytest.raises(SACError, match="--steps 1500 is below the 2000"):
        check_resume(saved, dataclasses.replace(saved, steps=1500))
    with pytest.raises(SACError, match="--seed 1 contradicts the run being resumed, which has 0"):
        check_resume(saved, dataclasses.replace(saved, seed=1))
    with pytest.raises(SACError, match="--hidden-dim 64 contradicts"):
        check_resume(saved, dataclasses.replace(saved, sac=SACConfig(hidden_dim=64)))
