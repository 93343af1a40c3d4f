"""Whole training loops, one update per step: ours strict, overlapped and with its default settings, Stable-Baselines3
and SBX.

Each in a process of its own, in turn; ratios are taken within a round. The ideal is a loop that costs no more than the
longer of the environment's step and the update, each as long as in the strict loop of the same round (with the default
settings, in that loop itself).
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import loops
import peers
import pytest
from race import finished, quartiles
from records import child_environment, describe_machine

from sacfast.diagnostics import STAGES

ENVS = ("HalfCheetah-v5", "Pusher-v5")
THREADS, STEPS, ROUNDS = 2, 3000, 3
ON_ONE_THREAD = "sb3 1 thread"  # PyTorch is not always faster with more
CHECK_STEPS = loops.WARM_UP + 500  # under --benchmark-disable: each of ours once, and briefly


def run(role: str, env: str, steps: int) -> dict:
    """One loop in a process of its own: what loops.py prints last."""
    threads = 1 if role == ON_ONE_THREAD else THREADS
    name = "sb3" if role == ON_ONE_THREAD else role
    command = [sys.executable, "-W", "ignore", str(Path(loops.__file__)), name, env, str(steps), str(threads)]
    result = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def ideal(strict: dict) -> float:
    """Seconds per step if only the longer of the two took time."""
    return max(strict["stages"]["env"], strict["stages"]["update"])


def summary(role: str, rounds: list[dict[str, dict]]) -> dict:
    """Of one role, over the rounds."""
    results = [each[role] for each in rounds]
    seconds = [result["seconds_per_step"] for result in results]
    alike = loops.DEFAULT if role == loops.DEFAULT else "strict"  # the loop with an update of the same size

    def times_as_long_as(other: str) -> list[float]:
        rivals = [each[other]["seconds_per_step"] for each in rounds]
        return quartiles([each / rival for each, rival in zip(seconds, rivals, strict=True)])

    found = {
        "steps_per_s": quartiles([1 / each for each in seconds]),
        "ratio": times_as_long_as("overlap"),
        "default_ratio": times_as_long_as(loops.DEFAULT),
        "of_ideal": quartiles([ideal(r[alike]) / each for r, each in zip(rounds, seconds, strict=True)]),
    }
    if "stages" in results[0]:
        found["stages"] = {
            stage: statistics.median(r["stages"][stage] / r["seconds_per_step"] for r in results)
            for stage in STAGES
        }
    return found


@pytest.mark.timeout(3600)  # a round takes about three minutes
@pytest.mark.parametrize("env", ENVS)
def test_training_loop(benchmark, env):
    roles = list(loops.OURS)
    for role in peers.PACKAGES:
        if peers.installed(role):
            roles += [role, ON_ONE_THREAD] if role == "sb3" else [role]
    if benchmark.disabled:
        if env != ENVS[0]:
            pytest.skip("one environment is enough to see that it runs")
        results = {role: run(role, env, CHECK_STEPS) for role in loops.OURS}
        benchmark(lambda: None)
        assert all(
            sum(r["stages"].values()) == pytest.approx(r["seconds_per_step"]) for r in results.values()
        )
        return
    compare(benchmark, roles, env, env)


def compare(benchmark, roles: list[str], env: str, shape: str) -> None:
    """Time the loops in turn; `shape` is the environment's name in the table."""
    rounds: list[dict[str, dict]] = []
    benchmark.pedantic(lambda: rounds.append({role: run(role, env, STEPS) for role in roles}), rounds=ROUNDS)
    benchmark.group = f"training loop: {shape}"
    benchmark.extra_info.update(
        table="loop",
        operation="training loop",
        shape=shape,
        threads=THREADS,
        steps=STEPS - loops.WARM_UP,
        rounds=len(rounds),
        loops={role: summary(role, rounds) for role in roles},
        machine=describe_machine(),
    )
    finished.append({"group": benchmark.group, **benchmark.extra_info})
