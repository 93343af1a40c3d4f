"""Times several ways of computing the same thing in turn, so that a noisy machine disturbs all of them alike.

A round times every contestant once, one after the other, each for about a millisecond of back-to-back calls,
or for a single call where something has to happen before each. A ratio is taken within a round, and its median
over the rounds is reported: a slow second slows both sides.
Ours is timed by pytest-benchmark, the others between its rounds by the same clock; they go into `extra_info`.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from records import describe_machine
from tables import OURS

COMPILED = "compiled"  # not called under --benchmark-disable: compiling takes longer than everything else
STREAM = "stream"  # the memory's speed: add_ of 64 MiB to 64 MiB in place, timed beside the others
STREAM_NUMEL = 2**24
ROUND_SECONDS = 1e-3
WARM_UP_SECONDS = 0.05
MIN_ROUNDS, MAX_ROUNDS = 20, 400
SLOW_SECONDS = 20e-3  # a call this long fills its own caches
SETTLE_SECONDS = 3e-3  # after which the threads of the contestant before have gone to sleep

finished: list[dict[str, Any]] = []  # what the terminal summary prints
not_compiled: list[str] = []


@dataclass(frozen=True)
class Case:
    """One line of a README table: which table, which operation, what shape."""

    table: str
    operation: str
    shape: str
    moved_bytes: int | None = None  # read and written by one call, where the memory is the limit
    flop: int | None = None  # of one call, the same for all, where arithmetic is the limit


def race(
    benchmark,
    case: Case,
    contestants: Mapping[str, Callable[[], Any]],
    check: Callable[[Callable], None],
    seconds: float = 2.0,
    *,
    before: Mapping[str, Callable[[], Any]] | None = None,
    threaded: bool = False,
    min_rounds: int = MIN_ROUNDS,
    details: Callable[[], Mapping[str, Any]] = dict,
) -> None:
    """Check what every contestant computes, then time them in turn for about `seconds`.

    contestants  by role; OURS is the one the ratios are about
    check        called with each contestant; raises where the result is wrong
    before       by role, called untimed before each single call
    threaded     contestants have pools of threads, which spin for a while: each waits for the one before
    details      called afterwards: what else to record
    """
    contestants = dict(contestants)
    if benchmark.disabled and contestants.pop(COMPILED, None):
        not_compiled.append(f"{case.operation} {case.shape}")
    for call in contestants.values():
        check(call)
    benchmark.group = f"{case.operation}: {case.shape}"
    if benchmark.disabled:
        benchmark(contestants[OURS])
        return
    if case.moved_bytes is not None:
        one, other = torch.zeros(STREAM_NUMEL), torch.ones(STREAM_NUMEL)
        contestants[STREAM] = lambda: one.add_(other)
    race_on = _Race(contestants, before or {}, SETTLE_SECONDS if threaded else 0.0)
    samples = race_on.measure(benchmark, seconds, min_rounds)
    benchmark.extra_info.update(
        table=case.table,
        operation=case.operation,
        shape=case.shape,
        threads=torch.get_num_threads(),
        contestants={role: summary(role, samples, case.moved_bytes, case.flop) for role in samples},
        machine=describe_machine(),
        **details(),
    )
    finished.append({"group": benchmark.group, **benchmark.extra_info})


@dataclass
class _Race:
    contestants: dict[str, Callable]
    before: Mapping[str, Callable]
    settle_seconds: float

    def measure(self, benchmark, seconds: float, min_rounds: int) -> dict[str, list[float]]:
        """Seconds per call of every contestant, one entry per round."""
        estimates = {role: _warm_up(call) for role, call in self.contestants.items()}
        iterations = {role: max(1, round(ROUND_SECONDS / t)) for role, t in estimates.items()}
        iterations.update(dict.fromkeys(self.before, 1))
        round_seconds = sum((iterations[role] + 1) * t + self.settle_seconds for role, t in estimates.items())
        rounds = int(min(max(seconds / round_seconds, min_rounds), MAX_ROUNDS))
        others: dict[str, list[float]] = {role: [] for role in self.contestants if role != OURS}

        def time_the_others() -> None:
            for role, data in others.items():
                self.prepare(role, estimates[role])
                data.append(_time(self.contestants[role], iterations[role]))
            self.prepare(OURS, estimates[OURS])

        self.prepare(OURS, estimates[OURS])
        benchmark.pedantic(
            self.contestants[OURS], teardown=time_the_others, rounds=rounds, iterations=iterations[OURS]
        )
        # pedantic ends with one call more, for the result, which belongs to no round.
        ours = list(benchmark.stats.stats.data)
        return {OURS: ours, **{role: data[:rounds] for role, data in others.items()}}

    def prepare(self, role: str, estimate: float) -> None:
        """Nobody pays for the caches that the one before has emptied, nor for its threads that still spin."""
        time.sleep(self.settle_seconds)
        if role in self.before:
            self.before[role]()
        elif estimate < SLOW_SECONDS:
            self.contestants[role]()


def _warm_up(call: Callable) -> float:
    """Call for WARM_UP_SECONDS, a growing number of times at once; seconds per call at the end of it."""
    calls, per_call, stop = 1, 0.0, time.perf_counter() + WARM_UP_SECONDS
    while time.perf_counter() < stop:
        per_call = _time(call, calls)
        calls *= 2
    return per_call


def _time(call: Callable, iterations: int) -> float:
    start = time.perf_counter()
    for _ in range(iterations):
        call()
    return (time.perf_counter() - start) / iterations


def summary(
    role: str, samples: dict[str, list[float]], moved_bytes: int | None = None, flop: int | None = None
) -> dict[str, Any]:
    """Of seconds per call in each round: microseconds, how many times ours that is, and rates, of `role`."""
    found: dict[str, Any] = {"us": quartiles([t * 1e6 for t in samples[role]])}
    if role == STREAM:
        moved_bytes = 3 * 4 * STREAM_NUMEL  # reads two, writes one
    elif role != OURS:
        ratios = [theirs / ours for theirs, ours in zip(samples[role], samples[OURS], strict=True)]
        found["ratio"] = quartiles(ratios)
    if flop is not None:
        found["gflop_per_s"] = flop / statistics.median(samples[role]) / 1e9
    if moved_bytes is not None:
        found["gb_per_s"] = moved_bytes / statistics.median(samples[role]) / 1e9
    return found


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median, third quartile."""
    return [float(f"{q:.4g}") for q in statistics.quantiles(values, n=4, method="inclusive")]
