"""Settings: checked when made, refused in one sentence, and the same after a trip through JSON."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from sacfast.config import SACConfig, TrainConfig, hidden_widths
from sacfast.cores import physical_cores, thread_count
from sacfast.errors import SACError
from sacfast.runs import check_resume

BAD_SAC = [
    ("hidden_dim", 0),
    ("hidden_dim", 2.5),
    ("hidden_dim", True),
    ("hidden_dim", ()),
    ("hidden_dim", (64,) * 5),
    ("hidden_dim", (64, 0)),
    ("hidden_dim", (64, 2.5)),
    ("hidden_dim", (64, (32, 16))),
    ("hidden_dim", "64"),
    ("hidden_dim", None),
    ("lr", 0.0),
    ("lr", 1.5),
    ("lr", float("nan")),
    ("lr", "fast"),
    ("critic_lr", 0.0),
    ("alpha_lr", 2.0),
    ("initial_alpha", 0.0),
    ("gamma", 1.1),
    ("gamma", -0.1),
    ("tau", 0.0),
    ("tau", 1.5),
    ("alpha", -1.0),
    ("automatic_entropy_tuning", 1),
    ("target_entropy", float("inf")),
    ("target_entropy_per_dim", float("nan")),
    ("target_entropy_per_dim", None),
    ("buffer_capacity", -5),
    ("batch_size", 0),
    ("log_std_min", float("-inf")),
    ("log_std_bound", "sigmoid"),
    ("initialization", "xavier"),
    ("initialization", None),
    ("actor_update_period", 0),
    ("actor_update_period", 1.5),
    ("precision", "float16"),
    ("precision", None),
    ("obs_dtype", "float64"),
]
BAD_TRAIN = [
    ("env", ""),
    ("steps", 0),
    ("seed", -1),
    ("seed", 2**31),
    ("engine", "warp"),
    ("storage", "disk"),
    ("learning_starts", -1),
    ("utd", 0.0),
    ("utd", -1.0),
    ("utd", float("nan")),
    ("utd", "often"),
    ("utd", 1e7),
    ("utd", 1e-5),
    ("eval_every", -1),
    ("eval_episodes", 0),
    ("checkpoint_every", -1),
    ("log_every", 0),
    ("threads", -2),
    ("tensorboard", "yes"),
    ("baselines", 1),
    ("discard_checkpoints", None),
    ("resume", ""),
    *(("name", bad) for bad in ("a/b", "a\\b", "..", ".", " ", "a\0", "C:", None)),
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
    with pytest.raises(SACError, match="steps=4000 must be above 5000, the step of the first update"):
        TrainConfig(steps=4000)
    with pytest.raises(SACError, match="above 128, the step of the first update .* or lower --batch-size"):
        TrainConfig(steps=100, learning_starts=10)


def test_numpy_numbers_become_plain_ones():
    config = SACConfig(hidden_dim=np.int64(64), lr=np.float32(0.5))
    assert type(config.hidden_dim) is int
    assert type(config.lr) is float


@pytest.mark.parametrize(
    ("hidden_dim", "stored", "widths"),
    [
        (64, 64, (64, 64)),
        ((64, 64), 64, (64, 64)),
        ([400, 300], (400, 300), (400, 300)),
        (np.array([7]), (7,), (7,)),
        (range(1, 5), (1, 2, 3, 4), (1, 2, 3, 4)),
    ],
)
def test_hidden_layers_have_one_form_each(hidden_dim, stored, widths):
    config = SACConfig(hidden_dim=hidden_dim)
    assert config.hidden_dim == stored
    assert config.widths == hidden_widths(hidden_dim) == widths
    assert {type(width) for width in config.widths} == {int}
    again = SACConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config)


@pytest.mark.parametrize("utd", [1.0, 0.5, 0.7, 1 / 3, 0.001, 2.5, 20.0, 1e-3 / 3])
def test_updates_follow_the_steps_without_drift(utd):
    config = TrainConfig(steps=10**7, learning_starts=1000, utd=utd)
    assert [config.updates_by(step) for step in (0, 999)] == [0, 0]
    for n in (1, 2, 3, 10, 999, 3000, 9_000_000):
        # 1e-9 is below every distance of n utd from the next whole number here, and above the rounding of n utd.
        assert config.updates_by(999 + n) == int(n * utd + 1e-9)


def test_threads_follow_the_machine(recwarn, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = physical_cores()
    assert 1 <= cores <= (os.cpu_count() or 1)
    assert thread_count(None) == thread_count(0) == cores
    assert thread_count(np.int64(1)) == 1
    assert not recwarn
    with pytest.warns(UserWarning, match=rf"^threads={cores + 1} is above the {cores} physical cores[^\n]*$"):
        assert thread_count(cores + 1) == cores + 1
    for bad in (-1, 1.5, "two", True):
        with pytest.raises(SACError, match="threads="):
            thread_count(bad)


@pytest.fixture
def six_processors(monkeypatch):
    """A machine of six processors, two to a core. Returns its files, by path."""
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("the system does not say")
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    files = {topology.format(cpu): f"{cpu % 3},{cpu % 3 + 3}\n" for cpu in range(6)}

    def read_text(self, **_):
        if str(self) not in files:
            raise FileNotFoundError(self)
        return files[str(self)]

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(Path, "read_text", read_text)
    return files


def test_hyper_threads_count_once(six_processors):
    assert physical_cores() == 3


@pytest.mark.parametrize(
    ("cgroup", "quotas", "cores"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 3),
        ("0::/", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/", {"cpu.max": "900000 100000"}, 3),
        ("0::/", {"cpu.max": "nonsense"}, 3),
        ("0::/job/step", {"job/step/cpu.max": "max 100000", "job/cpu.max": "100000 100000"}, 1),
        ("0::/job/step", {"job/step/cpu.max": "50000 50000", "job/cpu.max": "200000 100000"}, 1),
        ("0::/the/host's/path", {"cpu.max": "200000 100000"}, 2),
        ("2:cpu:/job", {"cpu/job/cpu.cfs_quota_us": "-1\n", "cpu/job/cpu.cfs_period_us": "100000\n"}, 3),
        ("2:cpu:/job", {"cpu/job/cpu.cfs_quota_us": "200000\n", "cpu/job/cpu.cfs_period_us": "100000\n"}, 2),
        ("5:a,b:/\n2:cpuacct,cpu:/x", {"cpu/cpu.cfs_quota_us": "9000", "cpu/cpu.cfs_period_us": "10000"}, 1),
        ("2:cpuset:/", {"cpu/cpu.cfs_quota_us": "9000", "cpu/cpu.cfs_period_us": "10000"}, 3),
    ],
)
def test_a_quota_counts_wherever_it_is_set(six_processors, cgroup, quotas, cores):
    six_processors["/proc/self/cgroup"] = f"7:memory:/job\n{cgroup}\n"
    six_processors.update({f"/sys/fs/cgroup/{name}": text for name, text in quotas.items()})
    assert physical_cores() == cores


@pytest.mark.parametrize(
    ("value", "cores"), [("1", 1), ("2,4", 2), ("9", 3), ("", 3), ("0", 3), ("-1", 3), ("many", 3)]
)
def test_omp_num_threads_limits_what_is_taken_by_default(six_processors, monkeypatch, recwarn, value, cores):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert physical_cores() == thread_count(0) == cores
    assert thread_count(3) == 3 and not recwarn
    with pytest.warns(UserWarning, match="threads=4 is above the 3 physical cores"):
        thread_count(4)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not say")
def test_without_a_topology_the_processors_that_may_be_used_count(monkeypatch):
    def unreadable(*_, **__):
        raise OSError

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(Path, "read_text", unreadable)
    for cpus in ({0}, {0, 3, 4}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cpus=cpus: cpus)
        assert physical_cores() == len(cpus)


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


def test_resume_may_raise_steps_and_nothing_that_changes_learning():
    saved = TrainConfig(steps=7000)
    check_resume(saved, dataclasses.replace(saved, steps=8000, threads=1, log_every=7, resume="runs/x"))
    with pytest.raises(SACError, match="--steps 6000 is below the 7000"):
        check_resume(saved, dataclasses.replace(saved, steps=6000))
    with pytest.raises(SACError, match="--seed 1 contradicts the run being resumed, which has 0"):
        check_resume(saved, dataclasses.replace(saved, seed=1))
    with pytest.raises(SACError, match="--hidden-dim 64 contradicts"):
        check_resume(saved, dataclasses.replace(saved, sac=SACConfig(hidden_dim=64)))
    with pytest.raises(
        SACError, match="--hidden-dim 400 300 contradicts the run being resumed, which has 256"
    ):
        check_resume(saved, dataclasses.replace(saved, sac=SACConfig(hidden_dim=(400, 300))))
    with pytest.raises(SACError, match="--utd 2.0 contradicts"):
        check_resume(saved, dataclasses.replace(saved, utd=2))
    check_resume(saved, dataclasses.replace(saved, sac=SACConfig(hidden_dim=(256, 256))))
