"""Several runs in one picture: evaluation return against environment steps, mean and 95 % band, by environment.

Runs of one environment whose settings agree are one curve; where they differ, in the engine say, the curves are named
after what differs. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sacfast.config import TrainConfig
from sacfast.errors import SACError
from sacfast.logger import read_csv
from sacfast.plotting import pictures_folder, render
from sacfast.runs import RESUMABLE_FIELDS, read_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What neither changes what is learned nor how it is scored does not set curves apart, but for what is compared.
COMPARED = {"engine", "device", "obs_dtype"}
UNIMPORTANT = RESUMABLE_FIELDS - COMPARED | {"env", "seed", "out", "name", "eval_every"}
CONFIDENCE, RESAMPLES = 0.95, 2000
MOST_NAMES = 3  # of runs in one note

# Okabe and Ito's colours, for all kinds of colour vision, in an order whose greys differ too; then line and marker.
# From the seventh curve on the colours come again, with other lines and markers: `_style`.
STYLES = (
    ("#000000", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#0072B2", "-.", "^"),
    ("#E69F00", ":", "D"),
    ("#56B4E9", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("#CC79A7", (0, (1, 1)), "P"),
)
STEP_UNITS = ((1_000_000, " (millions)"), (1000, " (thousands)"))
# The figure is as wide as a page's text, so that its letters are printed in their own size.
PRINT_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "lines.markersize": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 300,
    "svg.hashsalt": "sacfast",  # the same bytes for the same runs
}


@dataclass(frozen=True)
class Curve:
    """Evaluations of R runs of the same environment and settings at the same T steps.

    settings: those that set it apart from the environment's other curves, as text.
    steps [T], returns [R, T]. note: which steps those are, where the runs' own ranges differ.
    """

    env: str
    settings: tuple[str, ...]
    steps: np.ndarray
    returns: np.ndarray
    note: str


@dataclass(frozen=True)
class Run:
    """A run folder's settings in effect, and the evaluations that are numbers: steps [T], mean returns [T]."""

    folder: Path
    settings: dict[str, Any]
    steps: np.ndarray
    returns: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Raises SACError, naming the folder, for one that is no run, or has no evaluations."""
        settings = settings_in_effect(read_config(folder))
        rows = read_csv(folder / "evaluation.csv", ("step", "mean"))
        known = sorted(
            (step, mean)
            for step, mean in ((row["step"], row["mean"]) for row in rows)
            if step is not None and mean is not None and math.isfinite(mean)
        )
        if not known:
            raise SACError(
                f"{folder} has no evaluations yet; let it train up to its first (--eval-every), or leave it out."
            )
        return cls(folder, settings, *np.array(known, np.float64).T)


def read_runs(folders: Sequence[str | os.PathLike]) -> tuple[list[Run], list[str]]:
    """The runs that can be drawn, and a note per reason that names the others: those of a sweep that have yet to be
    evaluated, say.

    Raises SACError for a run that is given twice, and where none can be drawn.
    """
    paths = [Path(folder) for folder in folders]
    counts = Counter(path.resolve() for path in paths)
    repeated = [path for path in paths if counts[path.resolve()] > 1]
    if repeated:
        raise SACError(f"{min(repeated)} is given more than once; a run counts once.")
    runs: list[Run] = []
    others: dict[str, list[Path]] = {}
    for path in paths:
        try:
            runs.append(Run.read(path))
        except SACError as error:
            reason = str(error).removeprefix(f"{path} ")
            others.setdefault(reason, [])
            if reason != str(error):
                others[reason].append(path)
    notes = [_left_out(reason, those) for reason, those in others.items()]
    if not runs:
        raise SACError(" ".join(notes))
    return runs, notes


def _left_out(reason: str, runs: list[Path]) -> str:
    """A sentence; `reason` follows the names of the runs, or names one already, where there are no `runs`."""
    if not runs:
        return reason
    names = ", ".join(map(str, runs[:MOST_NAMES]))
    if len(runs) > MOST_NAMES:
        names += f" and {len(runs) - MOST_NAMES} more"
    return f"{names}{': each' if len(runs) > 1 else ''} {reason}"


def curves_of(runs: Sequence[Run]) -> list[Curve]:
    """Runs whose settings agree as one curve, in the order of their first runs.

    They are compared over the steps that all of them cover, interpolated linearly where they were not evaluated at the
    same steps. Raises SACError for a run that shares no steps with the others of its curve.
    """
    envs: dict[str, list[Run]] = {}
    for run in runs:
        envs.setdefault(run.settings["env"], []).append(run)
    differing = {env: _differing(members) for env, members in envs.items()}
    groups: dict[tuple[str, tuple[str, ...]], list[Run]] = {}
    for run in runs:
        env = run.settings["env"]
        apart = tuple(
            f"{name.replace('_', ' ')} {value}"
            for name, value in run.settings.items()
            if name in differing[env]
        )
        groups.setdefault((env, apart), []).append(run)
    return [_curve(env, apart, members) for (env, apart), members in groups.items()]


def _differing(runs: list[Run]) -> set[str]:
    """The settings in which those runs differ that have them in effect."""
    first: dict[str, Any] = {}
    for run in runs:
        first = run.settings | first
    return {
        name
        for run in runs
        for name, value in run.settings.items()
        if value != first[name] and name not in UNIMPORTANT
    }


def settings_in_effect(config: TrainConfig) -> dict[str, Any]:
    """By name, those of TrainConfig and SACConfig: a learning rate that is not given is `lr`, and what nothing reads,
    a fixed temperature where it is learned, say, is left out.
    """
    values = config.to_dict()
    rates = config.sac.learning_rates
    values |= values.pop("sac") | {"critic_lr": rates.critic, "alpha_lr": rates.alpha}
    return {name: value for name, value in values.items() if name not in config.sac.unread}


def _curve(env: str, settings: tuple[str, ...], runs: list[Run]) -> Curve:
    first = max(float(run.steps[0]) for run in runs)
    last = min(float(run.steps[-1]) for run in runs)
    if first > last:
        early = min(runs, key=lambda run: run.steps[-1])
        raise SACError(
            f"{early.folder} was last evaluated at step {last:,.0f}, before another run of {env} was first, at "
            f"{first:,.0f}; leave one of them out, or evaluate more often."
        )
    steps = np.unique(np.concatenate([run.steps for run in runs]))
    steps = steps[(steps >= first) & (steps <= last)]
    name = ", ".join((env, *settings))
    differ = any((run.steps[0], run.steps[-1]) != (first, last) for run in runs)
    note = (
        f"{name}: the steps {first:,.0f} to {last:,.0f}, which its {len(runs)} runs share." if differ else ""
    )
    returns = np.stack([np.interp(steps, run.steps, run.returns) for run in runs])
    return Curve(env, settings, steps, returns, note)


def bootstrap_band(returns: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end [T] of the 95 % percentile bootstrap interval (Efron, 1979) of the mean of `returns` [R, T].

    Whole runs are drawn with replacement, the same draws for the same seed and R. With few runs it is too narrow:
    of three, a draw has only ten different means. One run has no band: both ends are its own returns.
    """
    runs = len(returns)
    counts = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), RESAMPLES)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(counts @ returns / runs, (tail, 1 - tail), axis=0)
    return low, high


def plot_comparison(
    runs: Sequence[str | os.PathLike], folder: str | os.PathLike, name: str = "comparison"
) -> tuple[list[Path], list[str]]:
    """Draw NAME.png and NAME.svg in `folder`: a panel per environment. Returns the files, and notes: on runs that
    were left out, and on curves that were cut to a common range, which the picture says too.

    Raises SACError as read_runs and curves_of do, and when the pictures cannot be written.
    """
    usable, left_out = read_runs(runs)
    curves = curves_of(usable)
    panels: dict[str, list[Curve]] = {}
    for curve in curves:
        panels.setdefault(curve.env, []).append(curve)
    heights = [_height(shown) for shown in panels.values()]

    def draw(figure: Figure) -> None:
        every = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        for axes, (env, shown) in zip(every, panels.items(), strict=True):
            _draw_panel(axes, env, shown)
        figure.supxlabel(_caption(panels), fontsize=9, x=0.02, ha="left")

    files = [pictures_folder(folder) / f"{name}.{suffix}" for suffix in ("png", "svg")]
    render(draw, (6.5, 0.6 + sum(heights)), files, PRINT_STYLE)
    notes = [f"left out: {note}" for note in left_out]
    return files, notes + [f"drawn over common steps: {curve.note}" for curve in curves if curve.note]


def _height(curves: list[Curve]) -> float:
    """Of a panel, in inches: more where its legend would not fit beside it. Title, ticks and label take up to 0.7."""
    lines = sum(text.count("\n") + 1 for text in _legend(curves))
    size = PRINT_STYLE["legend.fontsize"]
    return max(2.7, 0.7 + (1.25 * size * lines + 0.5 * size * (len(curves) + 2)) / 72)


def _style(i: int) -> tuple[Any, Any, Any]:
    """Colour, line and marker of curve i: of the first 36, no two have the same colour and line."""
    count = len(STYLES)
    _, line, marker = STYLES[(i + i // count) % count]
    return STYLES[i % count][0], line, marker


def _draw_panel(axes: Axes, env: str, curves: list[Curve]) -> None:
    last = max(curve.steps[-1] for curve in curves)
    unit, name = next((unit for unit in STEP_UNITS if last >= 2 * unit[0]), (1, ""))
    axes.set_title(env)
    axes.set_xlabel(f"environment steps{name}")
    axes.set_ylabel("evaluation return")
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step / unit:,g}")
    axes.locator_params(axis="x", nbins=6)
    for i, (curve, text) in enumerate(zip(curves, _legend(curves), strict=True)):
        color, line, marker = _style(i)
        low, high = bootstrap_band(curve.returns)
        axes.fill_between(curve.steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(
            curve.steps,
            curve.returns.mean(axis=0),
            color=color,
            linestyle=line,
            marker=marker,
            markevery=max(1, len(curve.steps) // 10),
            linewidth=1.5,
            label=text,
        )
    if max(abs(limit) for limit in axes.get_ylim()) >= 1000:
        axes.yaxis.set_major_formatter("{x:,.0f}")
    # Beside the curves, where it hides none of them.
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3.5, frameon=False)


def _usual(curves: list[Curve]) -> list[str]:
    """Settings that more than half of many curves have: the caption names them once, instead of every legend."""
    counts = Counter(setting for curve in curves for setting in curve.settings)
    many = len(curves) > len(STYLES)
    return [setting for setting, count in counts.items() if many and count > len(curves) / 2]


def _legend(curves: list[Curve]) -> list[str]:
    texts, usual = [], _usual(curves)
    for curve in curves:
        runs = len(curve.returns)
        own = [setting for setting in curve.settings if setting not in usual]
        parts = [*(own or ["as most"] * bool(usual)), f"{runs} run{'s' if runs > 1 else ''}"]
        if curve.note:
            parts.append(f"steps {curve.steps[0]:,.0f} to {curve.steps[-1]:,.0f}")
        text = ", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)
        texts.append(textwrap.fill(text, 26, break_long_words=False))
    return texts


def _caption(panels: dict[str, list[Curve]]) -> str:
    curves = [curve for shown in panels.values() for curve in shown]
    text = "Return: sum of the rewards of an episode, mean over the episodes of an evaluation."
    if any(len(curve.returns) > 1 for curve in curves):
        text += " Lines and bands: mean over runs and its 95 % bootstrap interval."
    if any(curve.note for curve in curves):
        text += " Where steps are named, the runs differ in length, and these are what they share."
    for env, shown in panels.items():
        if usual := _usual(shown):
            text += f" {env}, unless named: {', '.join(usual)}."
    return textwrap.fill(text, 90)
