"""benchmarks/bench_train.py: what it makes of its rounds, which --benchmark-disable does not reach."""

import importlib

import pytest


@pytest.fixture(scope="module")
def bench_train(benchmarks):
    return importlib.import_module("bench_train")


def loop(env: float, update: float, more: float) -> dict:
    """Seconds per step: of the environment, of the update, and of the rest, which counts as acting."""
    stages = {"act": more, "env": env, "insert": 0.0, "update": update, "log": 0.0}
    return {"seconds_per_step": env + update + more, "stages": stages}


def test_loops_are_compared_within_their_round(bench_train):
    rounds = [
        {
            "strict": loop(slow * 2.0, slow * 6.0, slow * 2.0),
            "overlap": loop(slow * 6.0, slow * 1.0, slow * 1.0),
            "default settings": loop(slow * 2.0, slow * 2.5, slow * 0.5),
            "sb3": {"seconds_per_step": slow * 40.0},
        }
        for slow in (1.0, 2.0, 4.0)
    ]
    found = {role: bench_train.summary(role, rounds) for role in rounds[0]}
    assert {role: each["ratio"][1] for role, each in found.items()} == {
        "strict": 10 / 8, "overlap": 1.0, "default settings": 5 / 8, "sb3": 5.0,
    }  # fmt: skip
    assert {role: each["default_ratio"][1] for role, each in found.items()} == {
        "strict": 2.0, "overlap": 8 / 5, "default settings": 1.0, "sb3": 8.0,
    }  # fmt: skip
    # The longer of environment and update is 6 of the strict loop's 10, and 2.5 of the 5 with the default settings.
    assert {role: each["of_ideal"][1] for role, each in found.items()} == {
        "strict": 0.6, "overlap": 6 / 8, "default settings": 0.5, "sb3": 6 / 40,
    }  # fmt: skip
    assert found["strict"]["steps_per_s"][1] == 1 / 20
    assert found["strict"]["stages"]["update"] == pytest.approx(0.6)
    assert "stages" not in found["sb3"]
