"""What a run shows while it goes on: a progress bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from time import perf_counter
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

Row = dict[str, float | int | None]


class PatientConsole(Console):
    """One whose program goes on, and prints no more, once that fails: `| head`, a closed terminal, a full disk.

    Where the encoding has no "±", a "?" stands in its place.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        if not self.encoding.startswith("utf") and hasattr(self.file, "reconfigure"):
            self.file.reconfigure(errors="replace")

    def on_broken_pipe(self) -> None:
        with suppress(SystemExit):
            super().on_broken_pipe()

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:
            self.on_broken_pipe()


def say(text: str, console: Console | None = None) -> None:
    """`text` on standard output; where nobody reads it any more, nothing happens."""
    console = console or PatientConsole(highlight=False)
    console.print(text, markup=False, soft_wrap=True)  # long lines are the terminal's to break


class Display:
    """Plain lines, one per log interval: for a pipe, a log file, a notebook.

    `LiveDisplay` draws on a terminal.
    """

    def __init__(self, name: str, total_steps: int, console: Console | None = None) -> None:
        self.name, self.total = name, total_steps
        self.console = console or PatientConsole(highlight=False)
        self._last: Row = {}
        self._evaluation: float | None = None
        self._step = 0
        self._window: deque[tuple[float, int]] = deque(maxlen=20)

    def start(self, step: int) -> None:
        self._step = step
        self._window.append((perf_counter(), step))

    def step(self, step: int) -> None:
        """Called at every step; must cost next to nothing."""
        self._step = step

    def phase(self, text: str) -> None:
        """What is going on, in a word or two."""
        # The pace changes with the phase, so estimate anew.
        self._window = deque([(perf_counter(), self._step)], maxlen=self._window.maxlen)

    def row(self, row: Row) -> None:
        self._last = row
        self._step = step = int(row["step"] or 0)
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
        say(text, self.console)

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
        """'2:05 left' at the pace of the last few reports; empty before there is one.

        Empty too before the first update: random steps are so much cheaper that their pace would mislead.
        """
        if len(self._window) < 2 or not self._last.get("updates"):
            return ""
        (begin, first), (end, last) = self._window[0], self._window[-1]
        if last == first:
            return ""
        return f"{duration((self.total - last) * (end - begin) / (last - first))} left"


class LiveDisplay(Display):
    """A progress bar with a line of numbers below it, redrawn twice a second; messages scroll above."""

    REFRESH_S = 0.5

    def __init__(self, name: str, total_steps: int, console: Console | None = None) -> None:
        super().__init__(name, total_steps, console)
        self._bar = _TwoLineProgress(self, self.console)
        self._task: TaskID = self._bar.add_task("starting", total=total_steps, left="")
        self._next = 0.0

    def start(self, step: int) -> None:
        super().start(step)
        self._bar.update(self._task, completed=step)
        self._bar.start()

    def step(self, step: int) -> None:
        super().step(step)
        now = perf_counter()
        if now >= self._next:
            self._next = now + self.REFRESH_S
            self._window.append((now, step))
            self._bar.update(self._task, completed=step, left=self.time_left(), refresh=True)

    def phase(self, text: str) -> None:
        super().phase(text)
        self._bar.update(self._task, completed=self._step, description=text, refresh=True)

    def row(self, row: Row) -> None:
        self._last = row

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


def in_ipython() -> bool:
    """Whether this is a notebook's kernel, or IPython's shell."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def started_by_notebook() -> bool:
    """Whether a cell's `!` started this program: on a terminal whose cursor no notebook moves up, and with the kernel's
    MPLBACKEND, which is of no use here.
    """
    return "inline" in os.environ.get("MPLBACKEND", "") and not in_ipython()


def make_display(name: str, total_steps: int) -> Display:
    """A live display on a terminal that can redraw lines, plain lines anywhere else."""
    console = PatientConsole(highlight=False)
    # rich also takes a file for a terminal where FORCE_COLOR or TTY_COMPATIBLE is set, as batch systems do.
    live = console.is_interactive and getattr(console.file, "isatty", bool)() and not started_by_notebook()
    return (LiveDisplay if live else Display)(name, total_steps, console)


def duration(seconds: float) -> str:
    """75 -> '1:15', 3675 -> '1:01:15'."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
