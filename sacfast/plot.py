"""`python -m sacfast.plot RUN`: draw the pictures of a run, finished or not, from its logs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from sacfast.errors import SACError
from sacfast.plotting import plot_run


@dataclass(frozen=True)
class PlotConfig:
    """Draw training_metrics.png, episode_rewards.png and learning_curve.png in a run's folder."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, as printed by training."""


def main(arguments: list[str] | None = None) -> int:
    config = tyro.cli(PlotConfig, args=arguments, prog="python -m sacfast.plot")
    try:
        for path in plot_run(config.run):
            print(path)
    except SACError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
