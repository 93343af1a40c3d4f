"""Measures each precision's gradients against float64, into results/accuracy.json.

    python benchmarks/accuracy.py
    python benchmarks/render.py

One update of every engine from the same state, batch and noise, at Pusher-v5's dimensions, after UPDATES updates on
random transitions. Arithmetic that this CPU lacks is emulated, which gives the same numbers, slowly.
"""

import copy
import ctypes
import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from baselines import ACTION_DIM, OBS_DIM
from records import describe_machine, write_results

from sacfast import NativeEngine, Noise, SACAgent
from sacfast.engines import Engine, ReferenceEngine
from sacfast.engines.native import available
from sacfast.native.builder import Builder
from sacfast.ops import Stream
from sacfast.state import Adam, SACState

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
from float64 import exact_update, in_float64, relative_error  # noqa: E402

UPDATES, BATCH_SIZE, ROWS = 2000, 256, 20_000


def trained_agent() -> SACAgent:
    agent = SACAgent(OBS_DIM, ACTION_DIM, seed=0, buffer_capacity=ROWS)
    rng = np.random.default_rng(0)
    agent.replay_buffer.push_batch(
        rng.normal(size=(ROWS, OBS_DIM)),
        rng.uniform(-1, 1, (ROWS, ACTION_DIM)),
        rng.normal(size=ROWS),
        rng.normal(size=(ROWS, OBS_DIM)),
        rng.random(ROWS) < 0.01,
    )
    agent.train(UPDATES, BATCH_SIZE)
    for name in ("actor", "critic"):  # so that a first moment is a gradient, up to a factor
        setattr(agent.state, f"{name}_adam", Adam.zeros(getattr(agent.state, f"{name}_params")))
    return agent


def engines(agent: SACAgent, library: ctypes.CDLL) -> dict[tuple[str, str], Engine]:
    """By path and precision."""
    found: dict[tuple[str, str], Engine] = {("PyTorch", "float32"): ReferenceEngine(agent.config)}
    for path, precisions in available(library).items():
        for precision in precisions:
            config = dataclasses.replace(agent.config, precision=precision)
            found[path, precision] = NativeEngine(config, path=path, library=library)
    return found


def gradients(state: SACState) -> dict[str, torch.Tensor]:
    return {name: getattr(state, f"{name}_adam").exp_avg for name in ("critic", "actor")}


def cosine(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return (ours.double() @ exact / (ours.double().norm() * exact.norm())).item()


def main() -> int:
    agent = trained_agent()
    state = agent.state
    batch = agent.replay_buffer.sample_batch(BATCH_SIZE, state.key(Stream.BATCH))
    noise = Noise.draw(state, BATCH_SIZE)
    double = in_float64(state)
    exact_update(agent.config, double, batch, noise)
    exact = gradients(double)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        library = ctypes.CDLL(str(Builder().compile_engine(Path(folder))))
        for (path, precision), engine in engines(agent, library).items():
            twin = copy.deepcopy(state)
            engine.update(twin, batch, noise)
            found = gradients(twin)
            error = {name: relative_error(found[name], exact[name]) for name in exact}
            angle = {name: cosine(found[name], exact[name]) for name in exact}
            rows.append({"path": path, "precision": precision, "error": error, "cosine": angle})
    info = {"table": "precision", "machine": describe_machine(), "updates": UPDATES, "rows": rows}
    write_results(HERE / "results" / "accuracy.json", [info])
    return 0


if __name__ == "__main__":
    sys.exit(main())
