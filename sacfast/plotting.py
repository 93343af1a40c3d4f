"""Pictures of a run: the notebook's two plots, and the learning curve of the evaluations.

matplotlib is imported when something is drawn, not before. A figure that goes to a file does not pass
through pyplot, so nothing stays open and no display is needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sacfast.display import Row, in_ipython, started_by_notebook
from sacfast.errors import SACError
from sacfast.logger import read_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# key of metrics_history, title of its panel, unit or meaning on the y axis, colour
PANELS = (
    ("critic_loss", "Critic Loss", "summed squared error", "tab:blue"),
    ("actor_loss", "Actor Loss", r"mean of $\alpha \log \pi - Q$", "tab:red"),
    ("alpha", "Alpha (Temperature)", r"$\alpha$", "tab:green"),
    ("q1_mean", "Q1 Mean", "return", "tab:purple"),
    ("q2_mean", "Q2 Mean", "return", "tab:orange"),
    ("log_prob_mean", "Log Prob Mean", "nats", "tab:brown"),
)
LOGARITHMIC = ("critic_loss", "alpha")  # fall by orders of magnitude in the first updates
TEXT_STYLE: dict[Any, Any] = {
    "font.size": 13,
    "axes.titlesize": 15,
    "axes.labelsize": 13,
    "legend.fontsize": 12,
    "figure.constrained_layout.w_pad": 0.15,
    "figure.constrained_layout.h_pad": 0.15,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 150,
}

SavePath = str | os.PathLike | None


def moving_average(values: Sequence[float] | np.ndarray, window: int) -> np.ndarray:
    """Mean of each `window` consecutive values, [n - window + 1]; NaN values are left out of their means."""
    array = np.asarray(values, np.float64)
    known = np.isfinite(array)
    kernel = np.ones(window)
    total = np.convolve(np.where(known, array, 0.0), kernel, "valid")
    count = np.convolve(known.astype(np.float64), kernel, "valid")
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / count


def plot_training_metrics(metrics_history: Mapping[str, Sequence[float]], save_path: SavePath = None) -> None:
    """Plot critic and actor loss, temperature, both Q means and the log-probability, one panel each, critic loss and
    temperature on a logarithmic scale.

    metrics_history: lists by metric name, one entry per update as SACAgent.update returns them; a metric
        that is missing or empty leaves its panel empty. A list "step" of the same length, where given, is
        the x axis.
    save_path: where to write the picture (any suffix matplotlib knows). Without it, or in a Jupyter notebook,
        the figure is shown.

    Raises SACError when the picture cannot be written.
    """
    steps = metrics_history.get("step")
    label = "Update Step" if steps is None else "Environment Step"

    def draw(figure: Figure) -> None:
        for axes, (key, title, unit, color) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
            _decorate(axes, title, label, unit)
            values = np.asarray(metrics_history.get(key, ()), np.float64)
            if values.size:
                _curve(axes, values, steps, color, color, "step" if steps is None else "point")
            if key in LOGARITHMIC and values.size and not (values <= 0).any():
                axes.set_yscale("log")

    render(draw, (18, 10), [save_path])


def plot_episode_rewards(episode_rewards: Sequence[float], save_path: SavePath = None) -> None:
    """Plot the return of every episode with its moving average; save_path as in plot_training_metrics."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _decorate(axes, "Episode Rewards Over Time", "Episode", "Total Reward")
        values = np.asarray(episode_rewards, np.float64)
        if values.size:
            _curve(axes, values, None, "tab:blue", "tab:red", "episode")

    render(draw, (14, 6), [save_path])


def plot_learning_curve(
    evaluations: Sequence[Row],
    baselines: Mapping[str, float] | None = None,
    save_path: SavePath = None,
    title: str = "Learning Curve",
) -> None:
    """Plot mean ± standard deviation of the evaluation returns against environment steps.

    evaluations: rows of evaluation.csv (step, mean, std). baselines: scores by name, drawn as dashed lines.
    save_path and errors: plot_training_metrics.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _decorate(axes, title, "Environment Step", "Evaluation Return")
        step, mean, std = (
            np.array([row[name] for row in evaluations], np.float64) for name in ("step", "mean", "std")
        )
        axes.fill_between(step, mean - std, mean + std, color="tab:blue", alpha=0.2, linewidth=0)
        axes.plot(step, mean, color="tab:blue", linewidth=2, marker="o", label="policy (mean ± std)")
        styles = (("tab:red", "--"), ("tab:green", ":"), ("tab:orange", "-."), ("tab:purple", "--"))
        for (name, score), (color, line) in zip((baselines or {}).items(), styles, strict=False):
            axes.axhline(score, color=color, linewidth=1.5, linestyle=line, label=f"{name} ({score:.1f})")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="best")

    render(draw, (10, 6), [save_path])


def plot_run(
    run: str | os.PathLike, folder: str | os.PathLike | None = None, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Draw training_metrics, episode_rewards and learning_curve of a run from its logs, in each of `formats`.

    They go to `folder`, or beside the logs. Pictures without data are left out. Returns the files written. Raises
    SACError when the run's folder holds no logs or damaged ones, or the pictures cannot be written.
    """
    run, names = Path(run), ("step", *(key for key, *_ in PANELS))
    progress = [row for row in read_csv(run / "progress.csv", names) if row["critic_loss"] is not None]
    episodes = read_csv(run / "episodes.csv", ("return",))
    evaluations = read_csv(run / "evaluation.csv", ("step", "mean", "std"))
    pictures: dict[str, Callable[[Path], None]] = {}
    if progress:
        history = {name: [_known(row[name]) for row in progress] for name in names}
        pictures["training_metrics"] = lambda path: plot_training_metrics(history, path)
    if episodes:
        returns = [_known(row["return"]) for row in episodes]
        pictures["episode_rewards"] = lambda path: plot_episode_rewards(returns, path)
    if evaluations:
        title, scores = _summary(run)
        pictures["learning_curve"] = lambda path: plot_learning_curve(evaluations, scores, path, title)
    if not pictures:
        raise SACError(f"{run} holds no logs to draw; give the folder that training printed.")
    folder, written = run if folder is None else pictures_folder(folder), []
    for name, draw in pictures.items():
        for suffix in formats:
            written.append(folder / f"{name}.{suffix}")
            draw(written[-1])
    return written


def pictures_folder(path: str | os.PathLike) -> Path:
    """The folder `path`, made where it was not there. Raises SACError where it cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SACError(
            f"cannot make the folder {folder} ({error.strerror}); choose another --out."
        ) from error
    return folder


def _known(value: float | int | None) -> float:
    return float("nan") if value is None else float(value)


def _summary(run: Path) -> tuple[str, dict[str, float]]:
    """Environment and baseline scores at the end of the run; a general title while there are none."""
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        scores = {f"{name} actions": float(score["mean"]) for name, score in summary["baselines"].items()}
        return str(summary["env"]), scores
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return "Learning Curve", {}


def _decorate(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)


def _curve(
    axes: Axes, values: np.ndarray, steps: Sequence[float] | None, raw: str, smooth: str, unit: str
) -> None:
    """The values, faint, with their moving average over a tenth of them (at most 100)."""
    x = np.arange(len(values)) if steps is None else np.asarray(steps, np.float64)
    window = min(100, len(values) // 10)
    if window < 2:
        axes.plot(x, values, color=raw, linewidth=2, marker="o" if len(values) == 1 else "")
    else:
        axes.plot(x, values, color=raw, alpha=0.35, linewidth=1.0 if len(values) <= 1000 else 0.5)
        # In the middle of what it is the mean of: at the end it would lag behind.
        middle, average = moving_average(x, window), moving_average(values, window)
        axes.plot(middle, average, color=smooth, linewidth=2, label=f"{window}-{unit} moving average")
        axes.legend()
    axes.locator_params(axis="x", nbins=6)  # more labels of five digits would touch
    if x[-1] >= 1000:
        axes.xaxis.set_major_formatter("{x:,.0f}")


def render(
    draw: Callable[[Figure], None],
    size: tuple[float, float],
    save_paths: Sequence[SavePath],
    style: Mapping[Any, Any] = TEXT_STYLE,
) -> None:
    """Run `draw` on a new figure of `size` in inches, under `style` (matplotlib's rcParams); write it to each path that
    is not None, and show it where somebody is looking.
    """
    matplotlib, paths = _import_matplotlib(), [path for path in save_paths if path is not None]
    with matplotlib.rc_context(dict(style)):
        backend = matplotlib.get_backend().lower()
        # Inside a document showing one never blocks.
        inside = in_ipython() and any(name in backend for name in ("inline", "ipympl", "nbagg", "widget"))
        if inside or not paths:
            from matplotlib import pyplot

            figure = pyplot.figure(figsize=size, layout="constrained")
        else:
            from matplotlib.figure import Figure

            figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        for path in paths:
            _save(figure, path)
        if inside or not paths:
            if inside and "inline" in backend:  # where pyplot.show() shows and closes the user's own too
                import_module("IPython.display").display(figure)
            elif backend != "agg":  # Agg cannot show, and warns when asked to
                pyplot.show()
            pyplot.close(figure)


def _import_matplotlib() -> Any:
    """With the backend of a kernel that is not ours it could not be imported where matplotlib_inline is missing."""
    inherited = os.environ.pop("MPLBACKEND") if started_by_notebook() else None
    try:
        import matplotlib
    finally:
        if inherited is not None:
            os.environ["MPLBACKEND"] = inherited
    return matplotlib


def _save(figure: Figure, save_path: str | os.PathLike) -> None:
    try:
        # An SVG's date would make each drawing of the same run another file.
        figure.savefig(save_path, metadata={"Date": None} if os.fspath(save_path).endswith(".svg") else None)
    except (OSError, ValueError) as error:
        raise SACError(
            f"cannot write the picture {os.fspath(save_path)} ({error}); choose another file."
        ) from error
