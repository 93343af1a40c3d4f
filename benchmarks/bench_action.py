"""One action of the policy, NumPy in and NumPy out: again and again, and straight after an update.

The latter is what a training loop sees: the update has taken the caches.
"""

from collections.abc import Callable

import numpy as np
import peers
import pytest
import torch
from baselines import ACTION_DIM, actor_forward
from bench_update import PUSHER, Shape, hand_written, make_transitions, notebook_agent, our_agent
from race import OURS, Case, race

BATCH = 256
SHAPE = Shape(*PUSHER, BATCH, 256, 2, ())


def eager_action(params, obs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        mean, log_std = actor_forward(params, torch.from_numpy(obs)[None])
        return torch.addcmul(mean, log_std.exp(), torch.randn_like(mean)).tanh()[0].numpy()


def check_action(call) -> None:
    actions = np.stack([call() for _ in range(20)])
    assert actions.shape == (20, ACTION_DIM) and actions.dtype == np.float32
    assert np.abs(actions).max() <= 1 and (actions.std(0) > 0).all()


@pytest.mark.parametrize("when", ["again and again", "straight after an update"])
def test_action(benchmark, when):
    transitions = make_transitions(SHAPE)
    ours, reference = (our_agent(SHAPE, transitions, engine) for engine in ("native", "reference"))
    notebook, eager = notebook_agent(SHAPE, transitions), hand_written(reference, transitions)
    obs = transitions[0][0]
    contestants: dict[str, tuple[Callable, Callable]] = {
        OURS: (lambda: ours.select_action(obs), lambda: ours.train(1, BATCH)),
        "reference": (lambda: reference.select_action(obs), lambda: reference.train(1, BATCH)),
        "notebook": (lambda: notebook.select_action(obs), lambda: notebook.update(BATCH)),
        "eager": (lambda: eager_action(eager.actor, obs), lambda: eager.train(BATCH)),
    }
    if peers.installed("sb3"):
        model = peers.make("sb3", transitions, SHAPE.hidden)
        contestants["sb3"] = (lambda: model.predict(obs)[0], peers.updater(model, BATCH))
    # From the same weights and key.
    np.testing.assert_allclose(ours.select_action(obs), reference.select_action(obs), rtol=1e-4, atol=1e-5)
    race(
        benchmark,
        Case("action", "one action", when),
        {role: act for role, (act, _) in contestants.items()},
        check_action,
        seconds=2.0 if when == "again and again" else 6.0,
        before=None if when == "again and again" else {r: update for r, (_, update) in contestants.items()},
    )
