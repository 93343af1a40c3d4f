"""Measures how our SAC learns, beside Stable-Baselines3's: results/learning.json, .csv and learning_curves.png.

    python benchmarks/learning.py --list                    # every run of every table, and how far it is
    python benchmarks/learning.py main peers                # one run per core, one thread each; goes on where it was
    python benchmarks/learning.py ablation --only Pusher    # those whose name the expression finds
    python benchmarks/learning.py gpu --jobs 4              # four runs share the GPU
    python benchmarks/learning.py                           # runs nothing, gathers what there is

Runs of sacfast have the native engine unless their settings name another; peers needs `pip install '.[peers]'`. It may
be stopped in any way at any time: runs save themselves, and the same command goes on. What is gathered is every
evaluation made so far, of all tables; a run that is longer in one table than in another is one run. What results/ holds
from another day or machine stays, as long as the tables still have those settings and nothing longer takes its place.
Such runs are not made once more, but with --again.

Critics and actor in one step are no setting: they are the reference engine with both gradients by the weights of before
the update.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from learning_picture import draw
from learning_results import gather, merge, reached, write
from learning_run import Job
from learning_tables import AS_ANT_V4, FORMER, FRESH
from records import child_environment, read_results
from tables import Entry

from sacfast.config import SACConfig
from sacfast.cores import physical_cores
from sacfast.stop import StopRequest

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
SMALL = (
    "Pusher-v5",
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Reacher-v5",
    "Hopper-v5",
    "HalfCheetah-v5",
)
LONG = ("Hopper-v5", "HalfCheetah-v5", "Pusher-v5")
LARGE = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5")
ABLATED = ("Pusher-v5", "HalfCheetah-v5")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


# What today's default took the place of, and most of the search departs from.
FORMER_SETTINGS = {"target_entropy_per_dim": -1.0}
SMALL_EPSILON: dict[str, dict[str, Any]] = {"obs_epsilon 1e-8": {"obs_epsilon": 1e-8}}
EPSILONS = SMALL_EPSILON | {"obs_epsilon 1": {"obs_epsilon": 1.0}}
OBSERVATIONS = EPSILONS | {"observations as they are": {"normalize_obs": False}}
SMALL_BATCHES: dict[str, dict[str, Any]] = {"batches of 64": {"batch_size": 64}}
BATCHES = SMALL_BATCHES | {"batches of 256": {"batch_size": 256}}
ONE_STEP: dict[str, dict[str, Any]] = {"critics and actor in one step": {"shared_step": True}}
FASTER: dict[str, dict[str, Any]] = {"actor's learning rate 1e-3": {"lr": 1e-3}}
DEPARTURES: dict[str, dict[str, Any]] = {
    "1,000 random steps": {"learning_starts": 1_000},
    "10,000 random steps": {"learning_starts": 10_000},
    "PyTorch's initialisation": {"initialization": "pytorch"},
    "log_std from -5, by tanh": {"log_std_min": -5.0, "log_std_bound": "tanh"},
    "target entropy -2A": {"target_entropy_per_dim": -2.0},
    **FASTER,
    "critics' learning rate 3e-4": {"critic_lr": 3e-4},
    "temperature's learning rate 3e-4": {"alpha_lr": 3e-4},
    "temperature from 0.1": {"initial_alpha": 0.1},
    **SMALL_BATCHES,
    "actor at every update": {"actor_update_period": 1},
    "actor at every update, temperature's learning rate 3e-4": {"actor_update_period": 1, "alpha_lr": 3e-4},
}


def formerly(changes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same departures from the former default."""
    return {f"{FORMER}, {name}": FORMER_SETTINGS | change for name, change in changes.items()}


BEFORE: dict[str, dict[str, Any]] = {FORMER: FORMER_SETTINGS}
DEFAULTS = {"default": {}} | BEFORE
ROWS = DEFAULTS | formerly(OBSERVATIONS | DEPARTURES)  # of the ablation
# What led it, to be tried on fresh seeds: not those that made it lead.
CANDIDATES = DEFAULTS | FASTER | formerly(FASTER) | SMALL_BATCHES
# The default of before the former, beside which two things were tried that were not tried again.
LONG_BEFORE = formerly(SMALL_EPSILON)
TRIED_LONG_BEFORE = {
    f"{name}, {tried}": settings | change
    for name, settings in LONG_BEFORE.items()
    for tried, change in ({"log_std from -5": {"log_std_min": -5.0}} | ONE_STEP).items()
}


# The search for the defaults set out from the notebook's settings.
NOTEBOOKS: dict[str, dict[str, Any]] = {
    "notebook's" + name: asdict(SACConfig.notebook()) | change
    for name, change in {
        "": {},
        ", 10,000 random steps": {"learning_starts": 10_000},
        ", target entropy -A/2": {"target_entropy_per_dim": -0.5},
        ", critics' learning rate 1e-3": {"critic_lr": 1e-3},
        ", normalised observations": {"normalize_obs": True},
        ", 1,000 random steps": {"learning_starts": 1_000},
        ", 1,000 random steps, PyTorch's initialisation": {
            "learning_starts": 1_000,
            "initialization": "pytorch",
        },
        ", 1,000 random steps, learning rate 1e-3": {"learning_starts": 1_000, "lr": 1e-3},
        ", 1,000 random steps, critics' learning rate 1e-3": {"learning_starts": 1_000, "critic_lr": 1e-3},
        ", 1,000 random steps, temperature from 0.1": {"learning_starts": 1_000, "initial_alpha": 0.1},
        ", 1,000 random steps, batches of 64": {"learning_starts": 1_000, "batch_size": 64},
    }.items()
}
IN_BRIEF = {name: NOTEBOOKS[name] for name in ("notebook's", "notebook's, 1,000 random steps")}


# Around today's default, on fresh seeds too.
AROUND = OBSERVATIONS | BATCHES | DEPARTURES | ONE_STEP | {"notebook's": NOTEBOOKS["notebook's"]}


def searched(
    env: str,
    steps: int,
    settings: dict[str, dict[str, Any]],
    seeds: Iterable[int] = SEEDS,
    device: str = "cpu",
    every: int = 10_000,
) -> list[Job]:
    """Runs of every seed with each of the settings, which are named by their keys."""
    return [
        Job(env, steps, seed, variant=name, settings=each, device=device, every=every)
        for name, each in settings.items()
        for seed in seeds
    ]


def freshly(env: str, steps: int, settings: dict[str, dict[str, Any]], seeds: Iterable[int]) -> list[Job]:
    """As `searched`, on seeds that the ablation has not."""
    return searched(env, steps, {name + FRESH: each for name, each in settings.items()}, seeds)


FIVE_SEEDS, FRESH_SEEDS = range(5), range(3, 7)
# Ant-v4 observes no contact forces and charges nothing for them.
ANT_V4 = {"make_kwargs": {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0}}
TABLES: dict[str, list[Job]] = {
    "main": [Job(env, 100_000, seed) for env in SMALL for seed in SEEDS],
    "long": [Job(env, 300_000, seed) for env in LONG for seed in SEEDS],
    "peers": [Job(env, 100_000, seed, "sb3") for env in ("HalfCheetah-v5", "Pusher-v5") for seed in SEEDS],
    "large": [
        *(Job(env, 100_000, seed) for env in LARGE if env not in SMALL for seed in SEEDS),
        *searched("Ant-v5", 300_000, {AS_ANT_V4: ANT_V4}),
    ],
    "million": [Job(env, 1_000_000, seed) for env in LARGE if env not in SMALL for seed in (*SEEDS, 7, 8)],
    "gpu": [Job(env, 1_000_000, seed, device="cuda", every=50_000) for env in LARGE for seed in FIVE_SEEDS],
    "ablation": [job for env in ABLATED for job in searched(env, 50_000, ROWS)],
    "search": [
        *searched("Pusher-v5", 50_000, IN_BRIEF),
        *searched("HalfCheetah-v5", 100_000, IN_BRIEF),
        *searched("HalfCheetah-v5", 50_000, NOTEBOOKS),
        *(
            job
            for env in SMALL
            for job in searched(env, 300_000 if env in LONG else 100_000, BEFORE | LONG_BEFORE)
        ),
        *searched("Walker2d-v5", 100_000, LONG_BEFORE),
        *searched("Hopper-v5", 100_000, formerly(OBSERVATIONS)),
        *searched("Ant-v5", 100_000, formerly(OBSERVATIONS)),
        *searched("Ant-v5", 300_000, formerly({AS_ANT_V4: ANT_V4})),
        *(job for env in LONG for job in searched(env, 100_000, formerly(SMALL_BATCHES))),
        *(job for env in ABLATED for job in searched(env, 50_000, TRIED_LONG_BEFORE)),
    ],
    "fresh": [
        *(
            job
            for env in ("HalfCheetah-v5", "Hopper-v5", "Pusher-v5", "Walker2d-v5")
            for job in freshly(env, 50_000 if env == "Pusher-v5" else 100_000, CANDIDATES, FRESH_SEEDS)
        ),
        *freshly("Hopper-v5", 300_000, DEFAULTS, range(3, 6)),
        *(job for env in ABLATED for job in freshly(env, 50_000, AROUND, range(3, 6))),
    ],
    "gpu-search": [
        *searched(
            "Pusher-v5",
            50_000,
            BEFORE | formerly(EPSILONS),
            FIVE_SEEDS,
            "cuda",
            every=5_000,
        ),
        *(
            job
            for env in LARGE
            for job in searched(
                env,
                1_000_000 if env in ("HalfCheetah-v5", "Hopper-v5") else 100_000,
                BEFORE,
                FIVE_SEEDS,
                "cuda",
                every=50_000,
            )
        ),
        *(
            job
            for env in LARGE
            for job in searched(env, 100_000, formerly(EPSILONS), FIVE_SEEDS, "cuda", every=50_000)
        ),
        *(
            job
            for env in ("Hopper-v5", "Walker2d-v5", "Ant-v5")
            for job in searched(env, 100_000, formerly(BATCHES), SEEDS, "cuda", every=50_000)
        ),
    ],
}


def longest(jobs: Iterable[Job]) -> list[Job]:
    """Each run once, in its greatest length."""
    by_name: dict[str, Job] = {}
    for job in jobs:
        if job.name not in by_name or by_name[job.name].steps < job.steps:
            by_name[job.name] = job
    return list(by_name.values())


class Scheduler:
    """Makes runs side by side, each in a process and on a thread of its own."""

    def __init__(self, out: Path, side_by_side: int) -> None:
        self.out, self.side_by_side = out, side_by_side
        self.running: dict[Job, subprocess.Popen] = {}
        self.failed: list[Job] = []

    def run(self, jobs: list[Job]) -> bool:
        """Whether all are finished: False after a signal, for which they save themselves, and if one failed."""
        waiting = [job for job in jobs if not job.finished(self.out / job.name)]
        with StopRequest() as stop:
            while self.running or (waiting and stop.signum is None):
                if stop.signum is not None:
                    for process in self.running.values():
                        process.terminate()
                while waiting and len(self.running) < self.side_by_side and stop.signum is None:
                    self._start(waiting.pop(0))
                time.sleep(0.2)
                self._collect(stopped=stop.signum is not None)
        return not waiting and not self.failed and stop.signum is None

    def _start(self, job: Job) -> None:
        folder = self.out / job.name
        folder.mkdir(parents=True, exist_ok=True)
        script = str(HERE / "learning_run.py")
        with (folder / "log.txt").open("a") as log:
            self.running[job] = subprocess.Popen(
                [sys.executable, script, str(folder), json.dumps(asdict(job)), str(self.side_by_side)],
                stdin=subprocess.PIPE,  # its end tells the run that we are gone
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment(**ONE_THREAD),
                start_new_session=True,  # a terminal's Ctrl-C comes to us alone
            )
        print(f"begun     {job.name}", flush=True)

    def _collect(self, stopped: bool) -> None:
        for job, process in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[job]
            assert process.stdin is not None
            process.stdin.close()
            folder = self.out / job.name
            if job.finished(folder):
                print(f"finished  {job.name}: {job.evaluations(folder)[-1][1]:.1f}", flush=True)
            elif stopped:
                print(f"stopped   {job.name}", flush=True)
            else:
                self.failed.append(job)
                print(
                    f"failed    {job.name} (exit status {process.returncode}): see {folder / 'log.txt'}",
                    flush=True,
                )


def show(jobs: list[Job], out: Path, recorded: list[Entry]) -> None:
    for job in jobs:
        rows, before = job.evaluations(out / job.name), reached(job, recorded)
        last = f"{rows[-1][1]:10.1f} after {rows[-1][3]:6.1f} minutes" if rows else ""
        last += f"  recorded up to {before:,}" if before else ""
        print(f"{rows[-1][0] if rows else 0:>9,} of {job.steps:>9,}  {job.name:60} {last}".rstrip())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--only", type=re.compile, default=re.compile(""), metavar="REGEX")
    parser.add_argument("--jobs", type=int, default=physical_cores(), help="runs side by side (%(default)s)")
    parser.add_argument("--list", action="store_true", help="print the runs instead of making them")
    parser.add_argument("--again", action="store_true", help="make recorded runs once more")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"), help="work folder (%(default)s)")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.tables) - set(TABLES))
    if unknown:
        parser.error(f"no table {', '.join(unknown)}; there are {', '.join(TABLES)}")
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs} must be at least 1")
    every = longest(job for jobs in TABLES.values() for job in jobs)
    names = args.tables or (TABLES if args.list else ())
    chosen = longest(job for name in names for job in TABLES[name] if args.only.search(job.name))
    recorded = read_results(args.results / "learning.json")
    if args.list:
        show(chosen, args.out, recorded)
        return 0
    if args.again:  # as far as they are recorded, or the recorded runs would stay
        chosen = [replace(job, steps=max(job.steps, reached(job, recorded))) for job in chosen]
        every = longest([*every, *chosen])
    else:
        chosen = [job for job in chosen if reached(job, recorded) < job.steps]
    complete = Scheduler(args.out, args.jobs).run(chosen)
    entries, left_out = merge(every, gather(every, args.out), recorded)
    for name in left_out:
        print(f"left out  {name}: measured with settings that this table no longer has")
    if not entries:
        print(
            f"{args.out} holds no evaluations yet; name a table to run: {', '.join(TABLES)}", file=sys.stderr
        )
        return 1
    write(entries, args.results)
    draw(entries, args.results / "learning_curves.png")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
