"""One SAC update, sampling included, at Pusher-v5's dimensions: our engines, the notebook, fast PyTorch."""

import copy
import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from baselines import ACTION_DIM, OBS_DIM, HandWrittenSAC, notebook_classes
from race import COMPILED, OURS, Case, race

from sacfast import Noise, SACAgent
from sacfast.ops import Stream

ROWS = 100_000  # transitions in every buffer
SEED = 0


@pytest.fixture(scope="module")
def transitions() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(SEED)
    wide = [rng.normal(size=(ROWS, OBS_DIM)).astype(np.float32) for _ in range(2)]
    action = rng.uniform(-1, 1, (ROWS, ACTION_DIM)).astype(np.float32)
    return wide[0], action, rng.normal(size=ROWS), wide[1], rng.random(ROWS) < 0.01


def our_agent(engine: str, transitions) -> SACAgent:
    agent = SACAgent(OBS_DIM, ACTION_DIM, engine=engine, seed=SEED, buffer_capacity=ROWS)
    agent.replay_buffer.push_batch(*transitions)
    return agent


def notebook_agent(transitions):
    agent = notebook_classes()["SACAgent"](OBS_DIM, ACTION_DIM, buffer_capacity=ROWS)
    for transition in zip(*transitions, strict=True):
        agent.replay_buffer.push(*transition)
    return agent


def hand_written(agent: SACAgent, transitions, *, compiled: bool = False) -> HandWrittenSAC:
    storage = [torch.as_tensor(field, dtype=torch.float32) for field in transitions]
    return HandWrittenSAC(agent.state, agent.config, storage, compiled=compiled)


def check_losses(agent: SACAgent, others: list[SACAgent | HandWrittenSAC], batch_size: int) -> None:
    """Three updates from `agent`'s weights, with its batches and noise, give the same losses everywhere."""
    state = copy.deepcopy(agent.state)
    for _ in range(3):
        batch = agent.replay_buffer.sample_batch(batch_size, state.key(Stream.BATCH))
        noise = Noise.draw(state, batch_size)
        expected = agent.engine.update(state, batch, noise).tensor[:2]
        for other in others:
            if isinstance(other, HandWrittenSAC):
                fields = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
                losses = torch.stack(other.update(*fields, noise.next_action, noise.action))
            else:
                losses = other.engine.update(other.state, batch, noise).tensor[:2]
            torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)


def check_metrics(call) -> None:
    """What an update returns is finite, whatever its form."""
    result = call()
    values = result.values() if isinstance(result, Mapping) else result
    assert all(np.isfinite(float(value)) for value in values)


@pytest.mark.parametrize(("batch", "threads"), [(256, 2), (256, 1), (1024, 2)], indirect=["threads"])
def test_update(benchmark, transitions, batch, threads):
    auto, reference = our_agent("auto", transitions), our_agent("reference", transitions)
    notebook = notebook_agent(transitions)
    eager = hand_written(reference, transitions)
    compiled = hand_written(reference, transitions, compiled=True)
    check_losses(reference, [auto, eager], batch)
    if benchmark.enabled:
        check_losses(reference, [compiled], batch)

    race(
        benchmark,
        Case("update", "SAC update", f"batch {batch}, {threads} thread{'s' * (threads > 1)}"),
        {
            OURS: lambda: auto.train(1, batch),
            "reference": lambda: reference.train(1, batch),
            "notebook": lambda: notebook.update(batch),
            "eager": lambda: eager.train(batch),
            COMPILED: lambda: compiled.train(batch),
        },
        check_metrics,
        seconds=5.0,
    )
