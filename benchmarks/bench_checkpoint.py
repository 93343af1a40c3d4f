"""A checkpoint of a run whose replay buffer is full: what is new since the last one, against everything in one file."""

import numpy as np
from baselines import ACTION_DIM, OBS_DIM
from race import OURS, Case, race

from sacfast import SACAgent
from sacfast.run_folder import RunFolder

NEW = 5_000  # transitions between two checkpoints


def transitions(rows: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """One long episode: each next_obs is the following row's obs."""
    obs = rng.normal(size=(rows + 1, OBS_DIM)).astype(np.float32)
    action = rng.uniform(-1, 1, (rows, ACTION_DIM)).astype(np.float32)
    return obs[:-1], action, rng.normal(size=rows), obs[1:], np.zeros(rows, bool)


def test_checkpoint(benchmark, tmp_path):
    capacity = 20_000 if benchmark.disabled else 1_000_000
    rng = np.random.default_rng(0)
    agent = SACAgent(OBS_DIM, ACTION_DIM, seed=0, buffer_capacity=capacity)
    agent.replay_buffer.push_batch(*transitions(capacity, rng))
    folder, step = RunFolder(tmp_path / "run"), capacity
    folder.path.mkdir()
    folder.save(agent, step, {"counters": {"step": step}})

    def go_on() -> None:
        nonlocal step
        step += NEW
        agent.replay_buffer.push_batch(*transitions(NEW, rng))

    def incremental() -> int:
        folder.save(agent, step, {"counters": {"step": step}})
        return step

    def whole() -> int:
        agent.save(tmp_path / "whole.safetensors")
        return step

    def check(save) -> None:
        go_on()
        assert save() == step
        other = SACAgent(OBS_DIM, ACTION_DIM, seed=1, buffer_capacity=capacity)
        RunFolder(folder.path).load(other) if save is incremental else other.load(
            tmp_path / "whole.safetensors"
        )
        for name, tensor in agent.replay_buffer.segment().items():
            assert (other.replay_buffer.segment()[name] == tensor).all(), name

    race(
        benchmark,
        Case("checkpoint", "checkpoint", f"{capacity:,} transitions, {NEW:,} of them new"),
        {OURS: incremental, "whole": whole},
        check,
        seconds=30.0,
        before={OURS: go_on, "whole": lambda: None},  # which would be called once more, without
        min_rounds=8,
    )
