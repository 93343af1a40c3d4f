"""results/learning_curves.png: returns against environment steps, and against minutes beside Stable-Baselines3."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from learning_run import EPISODES
from learning_tables import beside_peers, implementation, mean_curve, published, shown, sources
from tables import Entry

from sacfast.comparison import PRINT_STYLE, STYLES
from sacfast.plotting import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_POINTS = 3  # of a curve
COLUMNS = 3
PUBLISHED_MARKERS = "s^PXDv<>"  # by the order of published.json


def draw(entries: list[Entry], path: Path) -> None:
    """A panel by steps for every environment and device, of what the learning tables show; then one by minutes for
    every environment that Stable-Baselines3 learned on the same machine.

    Thin lines are seeds, of those that were evaluated often enough for a curve; thick ones their mean, where all seeds
    were evaluated. Beside them what others have published after as many steps.
    """
    curves = [entry for entry in shown(entries) if len(mean_curve(entry)) >= LEAST_POINTS]
    if not curves:
        return
    by_step: dict[str, list[Entry]] = {}
    by_minute: dict[str, list[Entry]] = {}
    for entry in curves:
        title = entry["env"] if entry["device"] == "cpu" else f"{entry['env']}, GPU"
        by_step.setdefault(title, []).append(entry)
    for entry in beside_peers(curves):
        by_minute.setdefault(entry["env"], []).append(entry)
    styles = dict(zip(dict.fromkeys(map(implementation, curves)), itertools.cycle(STYLES)))
    rows = math.ceil(len(by_step) / COLUMNS)
    first_by_minute = rows * COLUMNS  # in a row of their own
    rows += math.ceil(len(by_minute) / COLUMNS)

    def fill(figure: Figure) -> None:
        every = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
        for axes, (title, here) in zip(every, by_step.items(), strict=False):
            _panel(axes, title, here, styles, lambda run: run[:, 0] / 1000)
            last = max(run["evaluations"][-1][0] for entry in here for run in entry["runs"])
            _published_points(axes, here[0]["env"], last)
            axes.set_xlabel("thousand steps")
        for axes, (title, here) in zip(every[first_by_minute:], by_minute.items(), strict=False):
            _panel(axes, title, here, styles, lambda run: run[:, 3])
            axes.set_xlabel("minutes, on one thread")
        for axes in every:
            if not axes.has_data():
                axes.set_axis_off()
        named = dict(
            pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels()[::-1], strict=True)
        )
        figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=2, frameon=False)
        figure.supxlabel(
            f"Return of the deterministic policy, mean of {EPISODES} episodes. Thin: each seed; thick: their mean.",
            fontsize=9,
            x=0.02,
            ha="left",
        )

    render(fill, (6.5, 1.2 + 1.75 * rows), [path], PRINT_STYLE)


def _panel(
    axes: Axes,
    title: str,
    entries: list[Entry],
    styles: dict[str, tuple[Any, Any, str]],
    x: Callable[[np.ndarray], np.ndarray],
) -> None:
    for entry in entries:
        name = implementation(entry)
        color, line, marker = styles[name]
        for run in entry["runs"]:
            each = np.array(run["evaluations"])
            axes.plot(x(each), each[:, 1], color=color, linestyle=line, alpha=0.4, linewidth=0.6)
        mean = np.array(mean_curve(entry))
        every = max(1, len(mean) // 6)
        axes.plot(
            x(mean),
            mean[:, 1],
            color=color,
            linestyle=line,
            linewidth=1.6,
            marker=marker,
            markevery=every,
            label=name,
        )
    axes.set_title(title, loc="right", fontsize=9)  # a long name has room to its left
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.yaxis.set_major_formatter("{x:,g}")


def _published_points(axes: Axes, env: str, last: int) -> None:
    markers = dict(zip(sources(), PUBLISHED_MARKERS, strict=False))
    for reference, scores in published(env):
        points = {int(step): score for step, score in scores.items() if int(step) <= last}
        if points:
            means, deviations = zip(*points.values(), strict=True)
            axes.errorbar(
                [step / 1000 for step in points],
                means,
                yerr=None if None in deviations else deviations,
                fmt=markers[reference["who"]],
                color="0.45",
                capsize=2,
                linewidth=0.8,
                label=f"{reference['who']}, published",
                zorder=3,
            )
