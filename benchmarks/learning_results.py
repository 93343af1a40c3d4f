"""What learning.py's runs have found: gathered, put together with what was recorded before, and written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from learning_run import EPISODES, Job
from records import write_results
from tables import Entry

from sacfast import checkpoint

# An Entry is the seeds of one environment, implementation, variant and device, with the settings that they share:
# {"env", "implementation", "variant", "device", "settings", "episodes",
#  "runs": [{"seed", "machine", "evaluations": [[step, mean, std, minutes], ...]}, ...]}
KEYS = ("env", "implementation", "variant", "device")
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
