"""Times the update on an NVIDIA GPU beside fast PyTorch, and the operators beside a copy, into results/gpu.json.

    python benchmarks/gpu.py            # on the GPU machine
    python benchmarks/render.py

Contestants take turns in rounds, as in race.py; a round of ours is one call of `train` with 32 updates, of the others,
and of ours as "single", as many calls of one, and the GPU is awaited inside what is timed. Every contestant is checked
against the reference engine first. The million updates of `--endurance` are run twice, and must give the same bytes and
not need more memory.
"""

import argparse
import hashlib
import re
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import ACTION_DIM, GraphedSAC
from bench_update import (
    PUSHER,
    Shape,
    check_losses,
    flop_per_update,
    hand_written,
    make_transitions,
    our_agent,
)
from race import OURS, quartiles, summary
from records import describe_machine, read_results, write_results

from sacfast import native
from sacfast.engines import cuda
from sacfast.ops import normal, polyak_update_, random_key, replay_sample, squashed_gaussian

RESULTS = Path(__file__).resolve().parent / "results" / "gpu.json"
UPDATES = 32  # per call of ours
ROUNDS = 20
SHAPES = [
    Shape(*PUSHER, batch, hidden, 0, ())
    for batch, hidden in ((256, 256), (1024, 256), (8192, 256), (32768, 256), (256, 1024))
]
COPY_BYTES = 2**30
ONLY = "shapes to measure; those recorded of others, and the endurance, stay"


gpu_agent = partial(our_agent, device="cuda")


def seconds(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def repeated(call: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            call()

    return run


def contestants(shape: Shape, transitions) -> dict[str, Callable[[], Any]]:
    """By role: UPDATES updates, what they compute checked."""
    reference = gpu_agent(shape, transitions, "reference")
    calls: dict[str, Callable[[], Any]] = {}
    for precision in cuda.PRECISIONS:
        agent = gpu_agent(shape, transitions, "native", precision)
        check_losses(reference, agent, shape.batch)
        calls[OURS if precision == "float32" else precision] = partial(agent.train, UPDATES, shape.batch)
        if precision == "float32":
            calls["single"] = repeated(partial(agent.train, 1, shape.batch), UPDATES)
    for compiled in (False, True):
        torch._dynamo.reset()
        rival = hand_written(reference, transitions, compiled=compiled)
        check_losses(reference, rival, shape.batch)
        if compiled:
            calls["graph"] = repeated(GraphedSAC(rival, shape.batch).train, UPDATES)
        else:
            calls["eager"] = repeated(partial(rival.train, shape.batch), UPDATES)
    calls["reference"] = repeated(partial(reference.train, 1, shape.batch), UPDATES)
    return calls


def take_turns(calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """What race.summary says of each, by role."""
    for call in calls.values():
        seconds(call)
    samples: dict[str, list[float]] = {role: [] for role in calls}
    for _ in range(ROUNDS):
        for role, call in calls.items():
            samples[role].append(seconds(call) / UPDATES)
    return {role: summary(role, samples) for role in samples}


def operators() -> dict[str, dict[str, Any]]:
    """Time and GB/s of each operator at a size beyond the caches, and of a copy on the same card."""
    one, other = torch.empty(2, COPY_BYTES // 4, device="cuda").unbind()
    rows, action = 2**22, torch.zeros(2**22, ACTION_DIM, device="cuda")
    noise, key = torch.randn_like(action), random_key(0, 2, 0, "cuda")
    storage = [torch.zeros(2**20, 64, device="cuda")]
    cases = {
        "copy_ of 1 GiB": (lambda: one.copy_(other), 2 * COPY_BYTES),
        "polyak_update_ of 1 GiB": (lambda: polyak_update_(one, other, 0.005), 3 * COPY_BYTES),
        "squashed_gaussian [4194304, 7]": (
            lambda: squashed_gaussian(action, noise, noise=noise),
            4 * rows * (4 * ACTION_DIM + 1),
        ),
        "normal of 1 GiB": (lambda: normal((2**28,), key), 4 * 2**28),
        "replay_sample of 1048576 rows of 256 bytes": (
            lambda: replay_sample(storage, 2**20, 2**20, key),
            2 * 2**20 * 256 + 8 * 2**20,
        ),
    }
    found = {}
    for name, (call, moved) in cases.items():
        seconds(call)
        times = [seconds(call) for _ in range(ROUNDS)]
        found[name] = {
            "us": quartiles([t * 1e6 for t in times]),
            "gb_per_s": moved / statistics.median(times) / 1e9,
        }
    return found


def endurance(updates: int) -> dict[str, Any]:
    """The same million updates twice: their bytes, and memory before and after."""
    digests, memory = [], []
    for _ in range(2):
        agent = gpu_agent(SHAPES[0], make_transitions(SHAPES[0]), "native")
        agent.train(UPDATES, 256)
        torch.cuda.synchronize()
        before = torch.cuda.mem_get_info()[0]
        for _ in range(updates // UPDATES):
            agent.train(UPDATES, 256)
        agent.engine.settle(agent.state)
        memory.append(before - torch.cuda.mem_get_info()[0])
        flat = torch.cat([agent.state.actor_params, agent.state.critic_params]).cpu().numpy()
        assert np.isfinite(flat).all()
        digests.append(hashlib.sha256(flat.tobytes()).hexdigest())
    return {"updates": updates, "same_bytes": digests[0] == digests[1], "memory_grown_bytes": max(memory)}


class Results:
    """gpu.json, written after each entry: what comes next may fail, or need more time than there is."""

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self.entries = {self._place(entry): entry for entry in entries}

    def add(self, **entry: Any) -> None:
        """In the place of an older one of the same table and shape."""
        self.entries[self._place(entry)] = entry
        write_results(RESULTS, list(self.entries.values()))
        print(RESULTS.name, *self._place(entry), flush=True)

    @staticmethod
    def _place(entry: dict[str, Any]) -> tuple[str, str]:
        return entry["table"], entry.get("shape", "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--endurance", type=int, default=0, metavar="UPDATES")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), metavar="REGEX", help=ONLY)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no NVIDIA GPU here, so there is nothing to measure", file=sys.stderr)
        return 1
    if not native.available("cuda"):
        print(f"no CUDA kernels: {native.status().cuda_reason}", file=sys.stderr)
        return 1
    machine = describe_machine() | {"gpu": torch.cuda.get_device_name(0)}
    results = Results(read_results(RESULTS) if arguments.only.pattern else [])
    results.add(table="gpu_operators", machine=machine, operators=operators())
    for shape in SHAPES:
        name = f"{shape.env}, batch {shape.batch}, 2 x {shape.hidden}"
        if arguments.only.search(name):
            results.add(
                table="gpu_update",
                shape=name,
                machine=machine,
                flop=flop_per_update(shape),
                contestants=take_turns(contestants(shape, make_transitions(shape))),
            )
    if arguments.endurance:
        results.add(table="gpu_endurance", machine=machine, **endurance(arguments.endurance))
    return 0


if __name__ == "__main__":
    sys.exit(main())
