"""The training loop of a robot, whose steps take the time that they take: what `--schedule overlap` is for."""

import loops
import peers
import pytest
import robot
from bench_train import compare


@pytest.mark.timeout(3600)  # a round takes about three minutes
def test_robot_loop(benchmark):
    if benchmark.disabled:
        pytest.skip("bench_train.py sees that the loops run")
    roles = [*loops.OURS, *(["sb3"] if peers.installed("sb3") else [])]
    compare(benchmark, roles, "robot:Robot-v0", f"Pusher-v5, waiting {robot.STEP_S * 1e3:g} ms a step")
