"""What learning.py's runs have found: gathered, put together with what was recorded before, written and drawn."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from learning_run import EPISODES, Job
from learning_tables import implementation, mean_curve, place, published, shown
from records import write_results
from tables import Entry

from sacfast import checkpoint
from sacfast.comparison import PRINT_STYLE, STYLES
from sacfast.plotting import render

# An Entry is the seeds of one environment, implementation, variant and device, with the settings that they share:
# {"env", "implementation", "variant", "device", "settings", "episodes",
#  "runs": [{"seed", "machine", "evaluations": [[step, mean, std, minutes], ...]}, ...]}
KEYS = ("env", "implementation", "variant", "device")
LEAST_POINTS = 3  # of a curve
MACHINE_COLUMNS = (
    "date",
    "cpu",
    "cores",
    "gpu",
    "side_by_side",
    "python",
    "torch",
    "sacfast",
    "kernels",
    "stable-baselines3",
    "gymnasium",
    "mujoco",
)


def gather(jobs: Iterable[Job], out: Path) -> list[Entry]:
    """What was measured under `out`."""
    entries: dict[tuple, Entry] = {}
    for job in jobs:
        folder = out / job.name
        if evaluations := job.evaluations(folder):
            machine = json.loads((folder / "machine.json").read_text())
            _entry(entries, job)["runs"].append(
                {"seed": job.seed, "machine": machine, "evaluations": evaluations}
            )
    return list(entries.values())


def _entry(entries: dict[tuple, Entry], job: Job) -> Entry:
    keys = {name: getattr(job, name) for name in KEYS}
    fresh = {"table": "learning"} | keys | {"settings": job.learned_with(), "episodes": EPISODES, "runs": []}
    return entries.setdefault(tuple(keys.values()), fresh)


def merge(jobs: Iterable[Job], measured: list[Entry], recorded: list[Entry]) -> tuple[list[Entry], list[str]]:
    """Each run of the tables in the longer of its two forms, the measured one where they are equal, in their order.

    Also the names of recorded runs that had other settings than the tables have now, which are left out.
    """
    entries: dict[tuple, Entry] = {}
    fitting = set()
    for job in jobs:
        runs = _runs_of(job, [*measured, *recorded])
        fitting |= {id(run) for run in runs}
        if runs:
            _entry(entries, job)["runs"].append(max(runs, key=_last_step))
    left_out = [
        Job(
            entry["env"], 0, run["seed"], entry["implementation"], entry["variant"], device=entry["device"]
        ).name
        for entry in recorded
        for run in entry["runs"]
        if id(run) not in fitting
    ]
    return list(entries.values()), left_out


def reached(job: Job, recorded: list[Entry]) -> int:
    """The step up to which `job` is recorded with its settings; 0 where it is not."""
    return max(map(_last_step, _runs_of(job, recorded)), default=0)


def _runs_of(job: Job, entries: list[Entry]) -> list[dict[str, Any]]:
    """Those of `job`'s seed, with its settings: yesterday's default is a variant of today's."""
    wanted = {key: getattr(job, key) for key in KEYS if key != "variant"} | {"settings": job.learned_with()}
    same = [entry for entry in entries if all(entry[key] == value for key, value in wanted.items())]
    return [run for entry in same for run in entry["runs"] if run["seed"] == job.seed]


def _last_step(run: dict[str, Any]) -> int:
    return int(run["evaluations"][-1][0])


def write(entries: list[Entry], results: Path) -> None:
    """learning.json, as render.py reads it, and the same row by row as learning.csv."""
    results.mkdir(parents=True, exist_ok=True)
    write_results(results / "learning.json", entries)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow((*KEYS, "seed", "step", "mean", "std", "minutes", *MACHINE_COLUMNS))
    for entry in entries:
        for run in entry["runs"]:
            machine = [run["machine"].get(name, "") for name in MACHINE_COLUMNS]
            for step, mean, std, minutes in run["evaluations"]:
                numbers = (f"{mean:.3f}", f"{std:.3f}", f"{minutes:.3f}")
                table.writerow([*(entry[key] for key in KEYS), run["seed"], step, *numbers, *machine])
    checkpoint.write_text(results / "learning.csv", text.getvalue())


def draw(entries: list[Entry], path: Path) -> None:
    """Return against steps and against minutes: each seed, and the mean where all seeds were evaluated.

    Of the runs that the learning table shows, as far as they were evaluated often enough for a curve, those on a GPU
    apart; against minutes those of the first one's machine only. Beside them what others have published after as many
    steps.
    """
    curves = [entry for entry in shown(entries) if len(mean_curve(entry)) >= LEAST_POINTS]
    panels: dict[tuple[str, str], list[Entry]] = {}
    for entry in curves:
        panels.setdefault((entry["env"], entry["device"]), []).append(entry)
    if not panels:
        return
    looks = dict(zip(dict.fromkeys(map(implementation, curves)), itertools.cycle(STYLES)))

    def fill(figure) -> None:
        rows = figure.subplots(len(panels), 2, squeeze=False, sharey="row")
        for (by_step, by_minute), ((env, device), here) in zip(rows, panels.items(), strict=True):
            for entry in here:
                color, line, marker = looks[implementation(entry)]
                style = {"color": color, "linestyle": line}
                _curves(by_step, entry, lambda run: run[:, 0] / 1000, style, marker)
                if place(entry) == place(here[0]):  # minutes of another machine do not compare
                    _curves(by_minute, entry, lambda run: run[:, 3], style, marker)
            last = max(run["evaluations"][-1][0] for entry in here for run in entry["runs"])
            _published_points(by_step, env, last)
            title = env if device == "cpu" else f"{env}, on a GPU"
            by_step.set(title=title, xlabel="environment steps (thousands)", ylabel="return per episode")
            where = "on one thread" if device == "cpu" else "seeds sharing the GPU"
            by_minute.set(title=title, xlabel=f"minutes of training, {where}")
            for axes in (by_step, by_minute):
                axes.set_xlim(left=0)
                axes.grid(alpha=0.3, linewidth=0.5)
                axes.yaxis.set_major_formatter("{x:,g}")
        named = dict(
            pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels()[::-1], strict=True)
        )
        figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=2, frameon=False)
        figure.supxlabel(
            f"Deterministic policy, mean of {EPISODES} episodes. Thin: each seed; thick: their mean.",
            fontsize=9,
            x=0.02,
            ha="left",
        )

    render(fill, (6.5, 0.7 + 2.1 * len(panels)), path, PRINT_STYLE)


def _published_points(axes, env: str, last: int) -> None:
    for (reference, scores), marker in zip(published(env), "*XP", strict=False):
        points = {int(step): score for step, score in scores.items() if int(step) <= last}
        if points:
            means, deviations = zip(*points.values(), strict=True)
            axes.errorbar(
                [step / 1000 for step in points],
                means,
                yerr=None if None in deviations else deviations,
                fmt=marker,
                color="0.45",
                capsize=2,
                linewidth=0.8,
                label=f"{reference['who']}, published",
            )


def _curves(axes, entry: Entry, x, style: dict[str, Any], marker: str) -> None:
    for run in entry["runs"]:
        each = np.array(run["evaluations"])
        axes.plot(x(each), each[:, 1], alpha=0.4, linewidth=0.7, **style)
    mean = np.array(mean_curve(entry))
    every = max(1, len(mean) // 8)
    axes.plot(
        x(mean), mean[:, 1], linewidth=2, marker=marker, markevery=every, label=implementation(entry), **style
    )
