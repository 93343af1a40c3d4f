"""What the tests of training share: small runs, an environment that can be predicted, and a look into a run."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from sacfast import checkpoint
from sacfast.config import SACConfig, TrainConfig
from sacfast.logger import TIMING_FIELDS, read_csv
from sacfast.replay import FIELDS, ReplayBuffer
from sacfast.replay.ring import segment_rows
from sacfast.run_folder import Segment, latest

SMALL = SACConfig(hidden_dim=8, batch_size=16, buffer_capacity=2000)


FLAGS = [
    *("--hidden-dim", "8", "--batch-size", "16", "--buffer-capacity", "2000"),
    *("--engine", "reference", "--threads", "1", "--eval-episodes", "1"),
]


def small(tmp_path, **changes):
    values = {
        "env": "Pendulum-v1",
        "steps": 300,
        "seed": 7,  # not the default, which a run might fall back to
        "engine": "reference",
        "out": str(tmp_path / "runs"),
        "learning_starts": 50,
        "eval_every": 100,
        "eval_episodes": 1,
        "checkpoint_every": 0,
        "log_every": 50,
        "threads": 1,
        "tensorboard": False,
        "sac": SMALL,
    }
    return TrainConfig(**{**values, **changes})


class Clockwork(gymnasium.Env):
    """Observation (t, episode), reward t. Even episodes terminate at t = 3, odd ones are cut off at t = 5."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
    made: list = []  # noqa: RUF012 (every instance, for the test to look into)

    def __init__(self):
        self.episode, self.actions, self.seeds = -1, [], []
        self.made.append(self)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        self.seeds.append(seed)
        return np.array([0.0, self.episode]), {}

    def step(self, action):
        self.actions.append(np.array(action))
        self.t += 1
        even = self.episode % 2 == 0
        observation = np.array([self.t, self.episode], np.float64)
        return observation, float(self.t), even and self.t == 3, not even and self.t == 5, {}


class Faulty(Clockwork):
    """Clockwork whose `fault` (a function of the results of a step) strikes at step 100."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.steps = fault, 0

    def step(self, action):
        self.steps += 1
        results = super().step(action)
        return self.fault(*results) if self.steps == 100 else results


class WithState(Clockwork):
    """Clockwork with some chance in it, which can be stopped and continued."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward + self.np_random.normal(), *rest

    def get_state(self):
        return {"t": self.t, "episode": np.array(self.episode)}

    def set_state(self, state):
        self.t, self.episode = state["t"], int(state["episode"])


def only_run(config):
    """The folder of the one run in config.out."""
    (run,) = (path.parent for path in Path(config.out).rglob("config.json"))
    return run


def described(run):
    """state.json of the latest checkpoint."""
    return json.loads((latest(run) / "state.json").read_text())


def counters_of(run):
    return described(run)["state"]["counters"]


def replay_of(run):
    """The latest checkpoint's transitions, oldest first, and what its agent's file says of itself."""
    replay, meta = described(run)["replay"], checkpoint.read_meta(latest(run) / "agent.safetensors")
    buffer = ReplayBuffer(replay["counters"]["capacity"])
    names = [Segment(**values).name for values in replay["segments"]]
    buffer.restore([checkpoint.read(run / "replay" / name)[0] for name in names], replay["counters"])
    rows = segment_rows(buffer.segment())
    return {name: getattr(rows, name).numpy() for name in FIELDS}, meta


def logs_of(run):
    """Every CSV without its timing columns."""
    return {
        path.name: [{k: v for k, v in row.items() if k not in TIMING_FIELDS} for row in read_csv(path)]
        for path in sorted(run.glob("*.csv"))
    }


def assert_same_learning(first, second):
    """Logs, weights, moments, counters of updates and replay buffers are the same to the bit; times may differ."""
    assert logs_of(first) == logs_of(second)
    assert_same_tensors(*(latest(run) / "agent.safetensors" for run in (first, second)))
    assert_same_tensors(*(run / "best.safetensors" for run in (first, second)))
    (a, _), (b, _) = replay_of(first), replay_of(second)
    assert {name: rows.tobytes() for name, rows in a.items()} == {
        name: rows.tobytes() for name, rows in b.items()
    }
    assert described(first)["replay"]["counters"] == described(second)["replay"]["counters"]


def assert_same_run(first, second):
    """Environments and results too."""
    assert_same_learning(first, second)
    assert_same_tensors(*(latest(run) / "arrays.safetensors" for run in (first, second)))
    states = [described(run)["state"] for run in (first, second)]
    for state in states:
        del state["counters"]["elapsed_s"]
    assert states[0] == states[1]
    assert (first / "summary.json").read_text() == (second / "summary.json").read_text()


def assert_same_tensors(first, second):
    (a, _), (b, _) = checkpoint.read(first), checkpoint.read(second)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].numpy().tobytes() == b[name].numpy().tobytes(), (first, name)


def assert_one_error_line(text):
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    assert "Traceback" not in text


def start(*flags, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "sacfast.train", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_until_training(process) -> str:
    """What a process that `start` gave has printed once it has updates to tell of."""
    seen = ""
    for line in process.stdout:
        seen += line
        if "updates/s" in line and "alpha" in line:
            break
    return seen
