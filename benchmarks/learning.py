"""Measures how our SAC learns, beside Stable-Baselines3's: results/learning.json, .csv and learning_curves.png.

    python benchmarks/learning.py --list                    # every run of every table, and how far it is
    python benchmarks/learning.py main peers                # one run per core, one thread each; goes on where it was
    python benchmarks/learning.py ablation --only Pusher    # those whose name the expression finds
    python benchmarks/learning.py gpu --jobs 4              # four runs share the GPU
    python benchmarks/learning.py                           # runs nothing, gathers what there is

Runs of sacfast have the native engine unless their settings name another; peers needs `pip install '.[peers]'`. It may
be stopped in any way at any time: runs save themselves, and the same command goes on. What is gathered is every
evaluation made so far, of all tables; a run that is longer in one table than in another is one run.

The ablation has a row for every setting there is. None for how log_std is kept in its bounds (ours is clamped; CleanRL
rescales a tanh), nor for learning rates of their own for critics and temperature (CleanRL's critics take 1e-3): the
kernels of every engine would need them. None for one step of critics and actor together either: the actor's update is
by the critics just updated, everywhere.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from learning_run import EPISODES, Job
from race import child_environment

from sacfast import checkpoint
from sacfast.comparison import PRINT_STYLE, STYLES
from sacfast.config import physical_cores
from sacfast.plotting import render
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
LARGE = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5")
ABLATED = {"Pusher-v5": 7, "HalfCheetah-v5": 6}  # environments with their action dimensions
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def variants(action_dim: int) -> dict[str, dict[str, Any]]:
    """The ablation's rows: a name, and the settings in which it departs from the defaults."""
    return {
        "default": {},
        "100 random steps": {"learning_starts": 100},
        "5,000 random steps": {"learning_starts": 5_000},
        "10,000 random steps": {"learning_starts": 10_000},
        "PyTorch's initialisation": {"initialization": "pytorch"},
        "log_std from -5": {"log_std_min": -5.0},
        "target entropy -A/2": {"target_entropy": -action_dim / 2},
        "target entropy -2A": {"target_entropy": -2.0 * action_dim},
        "learning rate 1e-4": {"lr": 1e-4},
        "learning rate 1e-3": {"lr": 1e-3},
        "tau 0.01": {"tau": 0.01},
        "actor every 2nd update": {"actor_update_period": 2},
    }


TABLES: dict[str, list[Job]] = {
    "main": [Job(env, 100_000, seed) for env in SMALL for seed in SEEDS],
    "long": [
        Job(env, 300_000, seed) for env in ("Hopper-v5", "HalfCheetah-v5", "Pusher-v5") for seed in SEEDS
    ],
    "peers": [Job(env, 100_000, seed, "sb3") for env in ("HalfCheetah-v5", "Pusher-v5") for seed in SEEDS],
    "gpu": [Job(env, 1_000_000, seed, device="cuda") for env in LARGE for seed in range(5)],
    "ablation": [
        Job(env, 50_000, seed, variant=name, settings=settings)
        for env, action_dim in ABLATED.items()
        for name, settings in variants(action_dim).items()
        for seed in SEEDS
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


def gather(jobs: Iterable[Job], out: Path) -> list[dict[str, Any]]:
    """What has been measured, one entry for the seeds of one environment, implementation, variant and device."""
    entries: dict[tuple, dict[str, Any]] = {}
    for job in jobs:
        folder = out / job.name
        evaluations = job.evaluations(folder)
        if not evaluations:
            continue
        entry = entries.setdefault(
            (job.env, job.implementation, job.variant, job.device),
            {
                "table": "learning",
                "machine": json.loads((folder / "machine.json").read_text()),
                "env": job.env,
                "implementation": job.implementation,
                "variant": job.variant,
                "settings": job.settings,
                "device": job.device,
                "episodes": EPISODES,
                "runs": [],
            },
        )
        entry["runs"].append({"seed": job.seed, "evaluations": evaluations})
    return list(entries.values())


MACHINE_COLUMNS = ("cpu", "cores", "gpu", "side_by_side", "python", "torch", "sacfast", "kernels", "sb3")


def write(entries: list[dict[str, Any]], results: Path) -> None:
    """learning.json, as render.py reads it, and the same row by row as learning.csv."""
    results.mkdir(parents=True, exist_ok=True)
    content = {
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "benchmarks": [{"extra_info": entry} for entry in entries],
    }
    checkpoint.write_text(results / "learning.json", json.dumps(content, indent=1) + "\n")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = ("env", "implementation", "variant", "device")
    table.writerow((*names, "seed", "step", "mean", "std", "minutes", *MACHINE_COLUMNS))
    for entry in entries:
        machine = [entry["machine"].get(name, "") for name in MACHINE_COLUMNS]
        for run in entry["runs"]:
            for step, mean, std, minutes in run["evaluations"]:
                numbers = (f"{mean:.3f}", f"{std:.3f}", f"{minutes:.3f}")
                table.writerow([*(entry[name] for name in names), run["seed"], step, *numbers, *machine])
    checkpoint.write_text(results / "learning.csv", text.getvalue())


LABELS = {"sacfast": "sacfast", "sb3": "Stable-Baselines3"}


def draw(entries: list[dict[str, Any]], path: Path) -> None:
    """Return against steps and against minutes: each seed, and the mean where all seeds were evaluated.

    Of the runs on CPUs with the default settings, and of environments in which there are several implementations;
    where there are none, of all.
    """
    shown = [entry for entry in entries if entry["variant"] == "default" and entry["device"] == "cpu"]
    rivals = {entry["env"] for entry in shown if entry["implementation"] != "sacfast"}
    shown = [entry for entry in shown if not rivals or entry["env"] in rivals]
    environments = list(dict.fromkeys(entry["env"] for entry in shown))
    if not environments:
        return

    def fill(figure) -> None:
        rows = figure.subplots(len(environments), 2, squeeze=False, sharey="row")
        for (by_step, by_minute), env in zip(rows, environments, strict=True):
            for (color, line, marker), entry in zip(
                STYLES, [entry for entry in shown if entry["env"] == env], strict=False
            ):
                style = {"color": color, "linestyle": line}
                _curves(by_step, entry, lambda run: run[:, 0] / 1000, style, marker)
                _curves(by_minute, entry, lambda run: run[:, 3], style, marker)
            by_step.set(title=env, xlabel="environment steps (thousands)", ylabel="return per episode")
            by_minute.set(title=env, xlabel="minutes of training, on one thread")
            by_step.legend(frameon=False)
            for axes in (by_step, by_minute):
                axes.set_xlim(left=0)
                axes.grid(alpha=0.3, linewidth=0.5)
                axes.yaxis.set_major_formatter("{x:,.0f}")
        figure.supxlabel(
            f"Deterministic policy, mean of {EPISODES} episodes. Thin: each seed; thick: their mean.",
            fontsize=9,
            x=0.02,
            ha="left",
        )

    render(fill, (6.5, 0.4 + 2.6 * len(environments)), path, PRINT_STYLE)


def _curves(axes, entry: dict[str, Any], x, style: dict[str, Any], marker: str) -> None:
    runs = [np.array(run["evaluations"]) for run in entry["runs"]]
    for run in runs:
        axes.plot(x(run), run[:, 1], alpha=0.4, linewidth=0.7, **style)
    length = min(map(len, runs))
    mean = np.mean([run[:length] for run in runs], axis=0)
    name = f"{LABELS[entry['implementation']]}, {len(runs)} seed{'s' if len(runs) > 1 else ''}"
    axes.plot(
        x(mean), mean[:, 1], linewidth=2, marker=marker, markevery=max(1, length // 8), label=name, **style
    )


def show(jobs: list[Job], out: Path) -> None:
    for job in jobs:
        rows = job.evaluations(out / job.name)
        last = f"{rows[-1][1]:10.1f} after {rows[-1][3]:6.1f} minutes" if rows else ""
        print(f"{rows[-1][0] if rows else 0:>9,} of {job.steps:>9,}  {job.name:60} {last}".rstrip())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--only", type=re.compile, default=re.compile(""), metavar="REGEX")
    parser.add_argument("--jobs", type=int, default=physical_cores(), help="runs side by side (%(default)s)")
    parser.add_argument("--list", action="store_true", help="print the runs instead of making them")
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
    if args.list:
        show(chosen, args.out)
        return 0
    complete = Scheduler(args.out, args.jobs).run(chosen)
    entries = gather(every, args.out)
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
