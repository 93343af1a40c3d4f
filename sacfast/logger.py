"""Logs of a run: CSV files, and TensorBoard or Weights & Biases beside them.

Metrics become Python numbers once per logged row and as checkpoints are written; beside these only acting waits for an
update to end.

progress.csv     one row per log interval     (PROGRESS_FIELDS)
episodes.csv     one row per finished episode (EPISODE_FIELDS)
evaluation.csv   one row per evaluation       (EVALUATION_FIELDS)
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256
from io import FileIO, StringIO
from pathlib import Path
from typing import Any, Protocol

from sacfast import checkpoint
from sacfast.diagnostics import STAGES, GradientNorms
from sacfast.display import Display, Row
from sacfast.engines import Metrics
from sacfast.errors import CheckpointError, SACError, first_line

PROGRESS_FIELDS = (
    "step",
    "episode",
    "updates",
    "episode_return",
    *Metrics.names,
    "entropy",
    "saturation",
    *GradientNorms.names,
    "buffer_fill",
    "steps_per_s",
    "updates_per_s",
    "elapsed_s",
    *(f"time_{stage}" for stage in STAGES),
)
EPISODE_FIELDS = ("episode", "step", "return", "length")
EVALUATION_FIELDS = ("step", "mean", "std", "min", "max", "episodes", "mean_length")
TIMING_FIELDS = PROGRESS_FIELDS[PROGRESS_FIELDS.index("steps_per_s") :]

_MOVE_AWAY = "restore it, or move it away to go on without it."


class CSVLog:
    """One CSV file, appended to row by row, so that it can be read while the run goes on.

    An existing file is continued: rows whose `step` is above `resume_step` are dropped first, because the
    steps after the checkpoint are taken again. Numbers have 9 significant digits, enough for float32. Rows that the
    disk refuses wait, and are written with the next one.
    """

    def __init__(self, path: Path, fields: Iterable[str], resume_step: int | None = None) -> None:
        self.path, self.fields = path, tuple(fields)
        self._file: FileIO | None = None
        self._waiting = b""
        kept: list[Row] = []
        if resume_step is not None:
            kept = [row for row in read_csv(path, ("step",)) if (row["step"] or 0) <= resume_step]
        rows = [self.fields, *([_cell(row.get(name)) for name in self.fields] for row in kept)]
        try:
            checkpoint.write_text(path, _as_csv(rows))
            self._file = FileIO(path, "a")
        except OSError as error:
            raise _cannot_log(path, error) from error

    def write(self, row: Row) -> None:
        """Append a row. Raises SACError while the disk refuses."""
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        self._waiting += _as_csv([[_cell(row.get(name)) for name in self.fields]]).encode()
        try:
            self._push(self._file)
        except OSError as error:
            raise _cannot_log(self.path, error) from error

    def _push(self, file: FileIO) -> None:
        while self._waiting:  # a disk that becomes full may take a part
            self._waiting = self._waiting[file.write(self._waiting) :]

    def flush(self) -> None:
        """Bring all rows to the disk: a checkpoint must not survive a power cut that its log does not.

        Raises CheckpointError where it refuses.
        """
        if self._file is not None:
            try:
                self._push(self._file)
                os.fsync(self._file.fileno())
            except OSError as error:
                raise CheckpointError(str(_cannot_log(self.path, error))) from error

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk was reported when the row was written
                self._push(self._file)
            with suppress(OSError):
                self._file.close()
            self._file = None


def _as_csv(rows: Iterable[Iterable[str]]) -> str:
    text = StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def _cannot_log(path: Path, error: OSError) -> SACError:
    return SACError(f"cannot write the log {path} ({error.strerror or error}): free some space")


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
    """Writes what a run reports to its CSV files, to TensorBoard and Weights & Biases when asked, and to its display.

    `wandb` is a project there, `settings` what it shows of the run. `resume_step` continues the logs of an earlier part
    of the run after that step, whose last evaluation was at `evaluated_step`
    (TensorBoard shows one of `resume_step` that came later twice).
    """

    def __init__(
        self,
        run: Path,
        display: Display,
        *,
        tensorboard: bool = True,
        wandb: str = "",
        settings: dict[str, Any] | None = None,
        resume_step: int | None = None,
        evaluated_step: int | None = None,
    ) -> None:
        self.display = display
        self._trackers: list[Tracker] = []
        self._refused: set[CSVLog] = set()
        if wandb:  # first, because it may refuse
            self._trackers.append(WandbTracker(wandb, run, settings or {}))
        self._progress = CSVLog(run / "progress.csv", PROGRESS_FIELDS, resume_step)
        self._episodes = CSVLog(run / "episodes.csv", EPISODE_FIELDS, resume_step)
        evaluated_step = resume_step if evaluated_step is None else evaluated_step
        self._evaluations = CSVLog(run / "evaluation.csv", EVALUATION_FIELDS, evaluated_step)
        if tensorboard:
            self._trackers.append(TensorBoardTracker(run, resume_step))

    def progress(self, row: Row, metrics: Metrics | None) -> None:
        """One interval: `row` holds PROGRESS_FIELDS but for the numbers of the last update, `metrics`."""
        if metrics is not None:
            numbers = metrics.as_dict()
            row = {**row, **numbers, "entropy": -numbers["log_prob_mean"]}
        self._write(self._progress, row)
        self.display.row(row)
        self._track(row, _PROGRESS_TAGS)

    def episode(self, episode: int, step: int, total: float, length: int) -> None:
        row: Row = {"episode": episode, "step": step, "return": total, "length": length}
        self._write(self._episodes, row)
        self._track(row, {"return": "episode/return", "length": "episode/length"})

    def evaluation(self, row: Row, is_best: bool) -> None:
        """One deterministic evaluation: `row` holds EVALUATION_FIELDS."""
        self._write(self._evaluations, row)
        self.display.evaluation(row, is_best)
        self._track(row, {"mean": "evaluation/mean", "std": "evaluation/std"})

    def _write(self, log: CSVLog, row: Row) -> None:
        """A row that the disk refuses ends no run; it is told once, until the disk takes the rows that wait."""
        try:
            log.write(row)
        except SACError as error:
            if log not in self._refused:
                self.display.message(f"{error}; training goes on, and its rows wait")
            self._refused.add(log)
        else:
            self._refused.discard(log)

    def _track(self, row: Row, tags: dict[str, str]) -> None:
        values = {tag: row[name] for name, tag in tags.items() if row.get(name) is not None}
        self._with_trackers(lambda tracker: tracker.track(values, int(row["step"] or 0)))  # type: ignore[arg-type]

    def _with_trackers(self, use: Callable[[Tracker], None]) -> None:
        """`use` each; one that fails, its disk being full say, is left out from then on: what is learned goes first."""
        for tracker in list(self._trackers):
            try:
                use(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                with suppress(Exception):
                    self.display.message(
                        f"{type(tracker).__name__} is left out from now on: {first_line(error)}"
                    )

    def flush(self) -> None:
        for log in (self._progress, self._episodes, self._evaluations):
            log.flush()
        self._with_trackers(lambda tracker: tracker.flush())

    def close(self) -> None:
        for log in (self._progress, self._episodes, self._evaluations):
            log.close()
        self._with_trackers(lambda tracker: tracker.close())


def _tag(name: str) -> str:
    if name.startswith("time_"):
        return f"time/{name.removeprefix('time_')}"
    return f"speed/{name}" if name in TIMING_FIELDS else f"train/{name}"


_PROGRESS_TAGS = {
    name: _tag(name)
    for name in PROGRESS_FIELDS
    if name not in ("step", "episode", "updates", "episode_return", "elapsed_s")
}


class Tracker(Protocol):
    """A place that shows numbers by name and step."""

    def track(self, values: dict[str, float], step: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class TensorBoardTracker:
    """Event files in the run's folder."""

    def __init__(self, run: Path, resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        purge = None if resume_step is None else resume_step + 1
        self._events = SummaryWriter(str(run), purge_step=purge, flush_secs=30)
        self.flush, self.close = self._events.flush, self._events.close

    def track(self, values: dict[str, float], step: int) -> None:
        for tag, value in values.items():
            self._events.add_scalar(tag, value, step)


class WandbTracker:
    """A run of Weights & Biases, in `project`, named after the run's folder; a resumed one is continued there.

    Raises SACError where the package is missing or refuses.
    """

    def __init__(self, project: str, run: Path, settings: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise SACError(
                "--wandb needs wandb, which is not installed; pip install 'sacfast[wandb]', or leave --wandb out."
            ) from None
        name = f"{run.parent.name}-{run.name}"
        place = sha256(str(run.resolve()).encode()).hexdigest()  # two folders may have runs of one second
        identity = {"name": name, "id": f"{name}-{place[:8]}", "resume": "allow"}
        try:
            self._run = wandb.init(project=project, dir=str(run), config=settings, **identity)
        except Exception as error:
            reason = first_line(error)
            raise SACError(
                f"Weights & Biases refused project {project!r}: {reason}; log in with `wandb login`, set "
                "WANDB_MODE=offline, or leave --wandb out."
            ) from error
        self._run.define_metric("*", step_metric="step")

    def track(self, values: dict[str, float], step: int) -> None:
        # By a metric of our own: its own count of steps never goes back, as a resumed run does.
        self._run.log({"step": step, **values})

    def flush(self) -> None:
        """It sends what it has by itself."""

    def close(self) -> None:
        self._run.finish()
