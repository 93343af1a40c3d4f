"""Logs of a run: CSV files, TensorBoard events, and the progress display.

Metrics become Python numbers here and nowhere else, once per logged row: that is the only place where
training waits for the device.

progress.csv     one row per log interval     (PROGRESS_FIELDS)
episodes.csv     one row per finished episode (EPISODE_FIELDS)
evaluation.csv   one row per evaluation       (EVALUATION_FIELDS)
"""

from __future__ import annotations

import csv
import os
import warnings
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import IO, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from sacfast.engines import Metrics
from sacfast.errors import SACError

PROGRESS_FIELDS = (
    "step",
    "episode",
    "updates",
    "episode_return",
    *Metrics.names,
    "steps_per_s",
    "updates_per_s",
    "elapsed_s",
)
EPISODE_FIELDS = ("episode", "step", "return", "length")
EVALUATION_FIELDS = ("step", "mean", "std", "min", "max", "episodes", "mean_length")
TIMING_FIELDS = ("steps_per_s", "updates_per_s", "elapsed_s")

Row = dict[str, float | int | None]

_MOVE_AWAY = "restore it, or move it away to go on without it."


class CSVLog:
    """One CSV file, appended to row by row and flushed, so that it can be read while the run goes on.

    An existing file is continued: rows whose `step` is above `resume_step` are dropped first, because the
    steps after the checkpoint are taken again. Numbers have 9 significant digits, enough for float32.
    """

    def __init__(self, path: Path, fields: Iterable[str], resume_step: int | None = None) -> None:
        self.path, self.fields = path, tuple(fields)
        self._file: IO[str] | None = None
        kept = []
        if resume_step is not None:
            kept = [row for row in read_csv(path, ("step",)) if (row["step"] or 0) <= resume_step]
        # Written beside and moved into place: a crash here must not cost the log of the steps before.
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(self.fields)
                csv.writer(file).writerows([_cell(row.get(name)) for name in self.fields] for row in kept)
            os.replace(temporary, path)
            self._file = path.open("a", newline="", encoding="utf-8")
        except OSError as error:
            raise _cannot_log(path, error) from error
        self._writer = csv.writer(self._file)

    def write(self, row: Row) -> None:
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        try:
            self._writer.writerow([_cell(row.get(name)) for name in self.fields])
            self._file.flush()
        except OSError as error:
            raise _cannot_log(self.path, error) from error

    def flush(self) -> None:
        """Bring what was written to the disk: a checkpoint must not survive a power cut that its log does not."""
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise _cannot_log(self.path, error) from error

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk was reported when the row was written
                self._file.close()
            self._file = None


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def _cannot_log(path: Path, error: OSError) -> SACError:
    return SACError(
        f"cannot write the log {path} ({error.strerror or error}); free some space and resume the run."
    )


def read_csv(path: Path, needed: Iterable[str] = ()) -> list[Row]:
    """Rows of a log file with numbers as numbers and empty cells as None; a torn last line is left out.

    No file, no rows. Raises SACError for a file that cannot be read, is no CSV, or lacks a column in `needed`.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SACError(f"the log {path} cannot be read ({reason}); {_MOVE_AWAY}") from error
    if not rows:
        return []
    header, parsed = rows[0], []
    missing = [name for name in needed if name not in header]
    if missing:
        raise SACError(f"the log {path} is damaged (it has no column {', '.join(missing)}); {_MOVE_AWAY}")
    for row in rows[1:]:
        if len(row) == len(header):
            with suppress(ValueError):
                parsed.append({name: _number(cell) for name, cell in zip(header, row, strict=True)})
    return parsed


def _number(cell: str) -> float | int | None:
    if cell == "":
        return None
    try:
        return int(cell)
    except ValueError:
        return float(cell)


class RunLogger:
    """Writes what a run reports to its CSV files, to TensorBoard when asked, and to its display.

    `resume_step` continues the logs of an earlier part of the run after that step.
    """

    def __init__(
        self, run: Path, display: Display, *, tensorboard: bool = True, resume_step: int | None = None
    ) -> None:
        self.display = display
        self._progress = CSVLog(run / "progress.csv", PROGRESS_FIELDS, resume_step)
        self._episodes = CSVLog(run / "episodes.csv", EPISODE_FIELDS, resume_step)
        self._evaluations = CSVLog(run / "evaluation.csv", EVALUATION_FIELDS, resume_step)
        self._events = _event_writer(run, resume_step) if tensorboard else None

    def progress(self, row: Row, metrics: Metrics | None) -> None:
        """One interval: `row` holds counters and rates (PROGRESS_FIELDS), `metrics` are the last update's."""
        row = {**row, **(metrics.as_dict() if metrics is not None else {})}
        self._progress.write(row)
        self.display.row(row)
        rates = {name: f"speed/{name}" for name in ("steps_per_s", "updates_per_s")}
        self._scalars(row, {name: f"train/{name}" for name in Metrics.names} | rates)

    def episode(self, episode: int, step: int, total: float, length: int) -> None:
        row: Row = {"episode": episode, "step": step, "return": total, "length": length}
        self._episodes.write(row)
        self._scalars(row, {"return": "episode/return", "length": "episode/length"})

    def evaluation(self, row: Row, is_best: bool) -> None:
        """One deterministic evaluation: `row` holds EVALUATION_FIELDS."""
        self._evaluations.write(row)
        self.display.evaluation(row, is_best)
        self._scalars(row, {"mean": "evaluation/mean", "std": "evaluation/std"})

    def _scalars(self, row: Row, tags: dict[str, str]) -> None:
        if self._events is None:
            return
        for name, tag in tags.items():
            value = row.get(name)
            if value is not None:
                self._events.add_scalar(tag, value, row["step"])

    def flush(self) -> None:
        for log in (self._progress, self._episodes, self._evaluations):
            log.flush()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        for log in (self._progress, self._episodes, self._evaluations):
            log.close()
        if self._events is not None:
            self._events.close()


def _event_writer(run: Path, resume_step: int | None) -> Any:
    """TensorBoard's SummaryWriter, or None with one line of warning where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        warnings.warn(f"no TensorBoard events: {error}; pip install tensorboard", stacklevel=3)
        return None
    purge = None if resume_step is None else resume_step + 1
    return SummaryWriter(str(run), purge_step=purge, flush_secs=30)


class Display:
    """Plain lines, one per log interval: for a pipe, a log file, a notebook.

    `LiveDisplay` draws on a terminal.
    """

    def __init__(self, name: str, total_steps: int, console: Console | None = None) -> None:
        self.name, self.total = name, total_steps
        self.console = console or Console(highlight=False)
        self._last: Row = {}
        self._evaluation: float | None = None
        self._window: deque[tuple[float, int]] = deque(maxlen=20)

    def start(self, step: int) -> None:
        self._window.append((perf_counter(), step))

    def step(self, step: int) -> None:
        """Called at every step; must cost next to nothing."""

    def phase(self, text: str) -> None:
        """What is going on, in a word or two."""

    def pause(self, seconds: float) -> None:
        """Leave `seconds` out of the rates: no environment steps were taken."""
        self._window = deque(((t + seconds, s) for t, s in self._window), maxlen=self._window.maxlen)

    def row(self, row: Row) -> None:
        self._last = row
        step = int(row["step"] or 0)
        self._window.append((perf_counter(), step))
        left = f"  {self.time_left()}" if self.time_left() else ""
        self.message(f"step {step:,}/{self.total:,} ({step / self.total:.0%})  {self.numbers('  ')}{left}")

    def evaluation(self, row: Row, is_best: bool) -> None:
        self._evaluation = row["mean"]
        best = " (best so far)" if is_best else ""
        self.message(
            f"step {row['step']:,}  evaluation {row['mean']:.2f} ± {row['std']:.2f} "
            f"over {row['episodes']} episodes{best}"
        )

    def message(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)  # long lines are the terminal's to break

    def close(self) -> None:
        """Give the terminal back."""

    def numbers(self, separator: str) -> str:
        """The latest rates, returns and temperature, as far as they are known."""
        last, parts = self._last, []
        for name, label, form in (
            ("steps_per_s", "{} steps/s", ",.0f"),
            ("updates_per_s", "{} updates/s", ",.0f"),
            ("episode_return", "return {}", ".2f"),
        ):
            value = last.get(name)
            if value is not None:
                parts.append(label.format(format(value, form)))
        if self._evaluation is not None:
            parts.append(f"eval {self._evaluation:.2f}")
        alpha = last.get("alpha")
        if alpha is not None:
            parts.append(f"alpha {alpha:.4f}")
        return separator.join(parts)

    def time_left(self) -> str:
        """'2:05 left' at the pace of the last few reports; empty before there is one."""
        if len(self._window) < 2:
            return ""
        (begin, first), (end, last) = self._window[0], self._window[-1]
        if last == first:
            return ""
        return f"{duration((self.total - last) * (end - begin) / (last - first))} left"


class LiveDisplay(Display):
    """A progress bar with a line of numbers below it, redrawn twice a second; messages scroll above."""

    REFRESH_S = 0.5

    def __init__(self, name: str, total_steps: int, console: Console | None = None) -> None:
        super().__init__(name, total_steps, console or Console(highlight=False))
        self._bar = _TwoLineProgress(self, self.console)
        self._task: TaskID = self._bar.add_task("starting", total=total_steps, left="")
        self._next, self._step = 0.0, 0

    def start(self, step: int) -> None:
        super().start(step)
        self._step = step
        self._bar.update(self._task, completed=step)
        self._bar.start()

    def step(self, step: int) -> None:
        self._step, now = step, perf_counter()
        if now >= self._next:
            self._next = now + self.REFRESH_S
            self._window.append((now, step))
            self._bar.update(self._task, completed=step, left=self.time_left(), refresh=True)

    def phase(self, text: str) -> None:
        # The pace changes with the phase (random steps are far cheaper than learning), so estimate anew.
        if self._window:
            self._window = deque([self._window[-1]], maxlen=self._window.maxlen)
        self._bar.update(self._task, completed=self._step, description=text, refresh=True)

    def row(self, row: Row) -> None:
        self._last = row

    def message(self, text: str) -> None:
        self._bar.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.refresh()
        self._bar.stop()


class _TwoLineProgress(Progress):
    def __init__(self, display: Display, console: Console) -> None:
        self._display = display
        super().__init__(
            TextColumn("[bold]" + display.name.replace("[", r"\[")),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("[dim]{task.description}"),
            TextColumn("{task.fields[left]}"),
            console=console,
            auto_refresh=False,
            expand=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text("  " + self._display.numbers(" · "), no_wrap=True, overflow="ellipsis")


def make_display(name: str, total_steps: int) -> Display:
    """A live display on a terminal, plain lines anywhere else."""
    console = Console(highlight=False)
    return LiveDisplay(name, total_steps, console) if console.is_terminal else Display(name, total_steps)


def duration(seconds: float) -> str:
    """75 -> '1:15', 3675 -> '1:01:15'."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
