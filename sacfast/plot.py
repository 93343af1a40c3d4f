"""`python -m sacfast.plot RUN [RUN ...]`: draw a run, finished or not, from its logs, or compare several."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from sacfast.comparison import plot_comparison
from sacfast.errors import SACError
from sacfast.plotting import plot_run


@dataclass(frozen=True)
class PlotConfig:
    """Draw one run (training_metrics, episode_rewards, learning_curve), or the evaluations of several in one picture
    (comparison): the mean over runs of the same environment and settings, with a 95 % bootstrap band.

    Every picture is written as PNG and as SVG.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, as printed by training."""

    out: Path | None = None
    """Folder for the pictures; without it the run's own, or for several runs the current one."""


def main(arguments: list[str] | None = None) -> int:
    config = tyro.cli(PlotConfig, args=arguments, prog="python -m sacfast.plot")
    notes: list[str] = []
    try:
        runs = [found for run in config.runs for found in _expanded(run)]
        if not runs:
            raise SACError("no run to draw; give the folder that training printed, or several.")
        if len(runs) == 1:
            files = plot_run(runs[0], config.out, ("png", "svg"))
        else:
            files, notes = plot_comparison(runs, config.out or Path())
    except SACError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in notes:
        print(note, file=sys.stderr)
    for file in files:
        print(file)
    return 0


def _expanded(run: Path) -> list[Path]:
    """The folders that a path with a * names, for shells that leave it to the program, as those of Windows do."""
    if "*" not in run.name or run.exists():
        return [run]
    return sorted(run.parent.glob(run.name)) or [run]


if __name__ == "__main__":
    sys.exit(main())
