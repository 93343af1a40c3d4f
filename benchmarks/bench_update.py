"""One SAC update, sampling included: our engine in each precision, the notebook, fast PyTorch, and pip's peers.

Beside the times: GFLOP/s by one count of the operations for all, this machine's own peak, and where the native
update spends its time.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import peers
import pytest
import torch
from baselines import ACTION_DIM, OBS_DIM, HandWrittenSAC, notebook_classes
from peak import peak_gflops
from race import COMPILED, OURS, Case, race

from sacfast import Noise, SACAgent, native
from sacfast.engines.native import NativeEngine, available
from sacfast.ops import Stream

ROWS = 100_000  # transitions in every buffer
SEED = 0
PROFILED_SECONDS = 0.5
# By precision, rtol and atol of losses.
TOLERANCE = {"float32": (1e-3, 1e-4), "bf16x3": (1e-2, 1e-3), "tf32": (1e-2, 1e-3), "bf16": (0.1, 0.1)}


@dataclass(frozen=True)
class Shape:
    env: str
    obs_dim: int
    action_dim: int
    batch: int
    hidden: int
    threads: int
    rivals: tuple[str, ...]
    seconds: float = 8.0
    min_rounds: int = 20

    def __str__(self) -> str:
        plural = "s" * (self.threads > 1)
        return f"{self.env}, batch {self.batch}, 2 x {self.hidden}, {self.threads} thread{plural}"


PUSHER, CHEETAH = ("Pusher-v5", OBS_DIM, ACTION_DIM), ("HalfCheetah-v5", 17, 6)
PYTORCH = ("eager", COMPILED)
ALL = ("reference", "notebook", *PYTORCH, "sb3", "sbx")
# Every rival at the main job's shape; elsewhere the strongest ones, and one thing varied at a time: the whole cross
# product would take an hour, most of it in rivals that need seconds for an update.
SHAPES = [
    Shape(*PUSHER, 128, 256, 2, ALL),
    Shape(*PUSHER, 256, 256, 2, ALL),
    Shape(*PUSHER, 256, 256, 1, ALL),
    Shape(*CHEETAH, 256, 256, 2, (*PYTORCH, "sb3")),
    Shape(*CHEETAH, 256, 256, 1, (*PYTORCH, "sb3")),
    Shape(*PUSHER, 1024, 256, 2, (*PYTORCH, "sb3", "sbx")),
    Shape(*PUSHER, 1024, 256, 1, PYTORCH),
    Shape(*PUSHER, 8192, 256, 2, PYTORCH, min_rounds=10),
    Shape(*PUSHER, 256, 1024, 2, PYTORCH, min_rounds=10),
    Shape(*PUSHER, 256, 1024, 1, PYTORCH, min_rounds=10),
    Shape(*PUSHER, 1024, 1024, 2, PYTORCH, min_rounds=10),
    Shape(*PUSHER, 8192, 1024, 2, ("eager",), min_rounds=3),
]


def flop_per_update(shape: Shape) -> int:
    """Multiplications and additions of the matrix products in one update.

    A layer [in, out] takes 2 B in out forward, as much for its weights' gradient and as much for its inputs'.
    The actor runs forward on s' and s, and backward once: 2 + 2 of these. Both critics run forward as targets (1),
    forward and backward for their own loss (1 + 2), forward and back to their inputs for the actor's (1 + 1).
    Some of it nobody has to do: gradients of observations, and of the critic that is not the smaller one.
    """
    hidden, outputs = shape.hidden, 2 * shape.action_dim
    actor = shape.obs_dim * hidden + hidden * hidden + hidden * outputs
    critic = (shape.obs_dim + shape.action_dim) * hidden + hidden * hidden + hidden
    return 2 * shape.batch * (4 * actor + 6 * 2 * critic)


def make_transitions(shape: Shape) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(SEED)
    wide = [rng.normal(size=(ROWS, shape.obs_dim)).astype(np.float32) for _ in range(2)]
    action = rng.uniform(-1, 1, (ROWS, shape.action_dim)).astype(np.float32)
    return wide[0], action, rng.normal(size=ROWS), wide[1], rng.random(ROWS) < 0.01


def our_agent(
    shape: Shape, transitions, engine: str, precision: str = "float32", device: str = "cpu"
) -> SACAgent:
    agent = SACAgent(
        shape.obs_dim,
        shape.action_dim,
        shape.hidden,
        engine=engine,
        seed=SEED,
        buffer_capacity=ROWS,
        device=device,
        threads=shape.threads,
        precision=precision,
    )
    agent.replay_buffer.push_batch(*transitions)
    return agent


def native_agents(shape: Shape, transitions) -> dict[str, SACAgent]:
    """By role: float32 on the fastest path, and on AVX-512 where that is not it; the lower precisions there are."""
    agents = {OURS: our_agent(shape, transitions, "native")}
    for path, precisions in available(native.engine_library()).items():
        for precision in precisions:
            if precision != "float32" and precision not in agents:
                agents[precision] = our_agent(shape, transitions, "native", precision)
        if path == "avx512" and agents[OURS].engine.path == "amx":
            agent = agents["avx512"] = our_agent(shape, transitions, "native")
            agent.engine = NativeEngine(agent.config, threads=shape.threads, path=path)
    return agents


def notebook_agent(shape: Shape, transitions):
    agent = notebook_classes()["SACAgent"](
        shape.obs_dim, shape.action_dim, shape.hidden, buffer_capacity=ROWS
    )
    for transition in zip(*transitions, strict=True):
        agent.replay_buffer.push(*transition)
    return agent


def hand_written(agent: SACAgent, transitions, *, compiled: bool = False) -> HandWrittenSAC:
    storage = [torch.as_tensor(field, dtype=torch.float32, device=agent.device) for field in transitions]
    return HandWrittenSAC(agent.state, agent.config, storage, compiled=compiled)


def check_losses(agent: SACAgent, other: SACAgent | HandWrittenSAC, batch_size: int) -> None:
    """Three updates from `agent`'s weights, with its batches and noise, give the same losses."""
    precision = "float32" if isinstance(other, HandWrittenSAC) else other.config.precision
    rtol, atol = TOLERANCE[precision]
    state = copy.deepcopy(agent.state)
    for _ in range(3):
        batch = agent.replay_buffer.sample_batch(batch_size, state.key(Stream.BATCH))
        noise = Noise.draw(state, batch_size)
        expected = agent.engine.update(state, batch, noise).tensor[:2]
        if isinstance(other, HandWrittenSAC):
            fields = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
            losses = torch.stack(other.update(*fields, noise.next_action, noise.action))
        else:
            losses = other.engine.update(other.state, batch, noise).tensor[:2]
        torch.testing.assert_close(losses, expected, rtol=rtol, atol=atol)


def check_metrics(call) -> None:
    """What an update returns is finite, whatever its form."""
    result = call()
    values = result.values() if isinstance(result, Mapping) else result
    assert all(np.isfinite(float(value)) for value in values)


def rivals_of(shape: Shape, transitions, reference: SACAgent, *, compiling: bool) -> dict[str, Callable]:
    """Each of `shape.rivals` that is installed, by role; those of which we know the losses are checked."""
    calls: dict[str, Callable] = {}
    for role in shape.rivals:
        if role == "reference":
            calls[role] = partial(reference.train, 1, shape.batch)
        elif role == "notebook":
            calls[role] = partial(notebook_agent(shape, transitions).update, shape.batch)
        elif role in PYTORCH:
            rival = hand_written(reference, transitions, compiled=role == COMPILED)
            if role != COMPILED or compiling:
                check_losses(reference, rival, shape.batch)
            calls[role] = partial(rival.train, shape.batch)
        elif peers.installed(role) and (role != "sbx" or shape.threads > 1):  # XLA takes every core
            calls[role] = peers.updater(peers.make(role, transitions, shape.hidden), shape.batch)
    return calls


def profile(agent: SACAgent, batch: int, us_per_update: float) -> dict[str, float]:
    """Microseconds per update in each phase, summed over the threads."""
    updates = max(3, round(PROFILED_SECONDS * 1e6 / us_per_update))
    agent.engine.profile(True)
    for _ in range(updates):
        agent.train(1, batch)
    return {name: seconds * 1e6 / updates for name, seconds in agent.engine.profile(False).items()}


@pytest.mark.parametrize(
    ("shape", "threads"), [(shape, shape.threads) for shape in SHAPES], ids=str, indirect=["threads"]
)
def test_update(benchmark, shape, threads):
    if benchmark.disabled and shape.batch > 256:
        pytest.skip("the checks alone, at batch 256")
    torch._dynamo.reset()  # else another shape, or number of threads, makes the compiled code a general one
    transitions = make_transitions(shape)
    reference = our_agent(shape, transitions, "reference")
    ours = native_agents(shape, transitions)
    for agent in ours.values():
        check_losses(reference, agent, shape.batch)
    rivals = rivals_of(shape, transitions, reference, compiling=not benchmark.disabled)
    native_calls = {role: partial(agent.train, 1, shape.batch) for role, agent in ours.items()}

    def details() -> dict:
        us_per_update = benchmark.stats.stats.median * 1e6
        return {
            "paths": {role: agent.engine.path for role, agent in ours.items()},
            "peak_gflop_per_s": peak_gflops(threads),
            "phases_us": profile(ours[OURS], shape.batch, us_per_update),
        }

    race(
        benchmark,
        Case("update", "SAC update", str(shape), flop=flop_per_update(shape)),
        native_calls | rivals,
        check_metrics,
        shape.seconds,
        threaded=True,
        min_rounds=shape.min_rounds,
        details=details,
    )
