"""The display: a terminal and a pipe show what they are told."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from test_logger import EVALUATION, ROW

from sacfast.display import Display, LiveDisplay, PatientConsole, duration, make_display, say


def test_the_live_display_shows_every_number_in_eighty_columns():
    output = io.StringIO()
    display = LiveDisplay("Toy[v1]", 1000, Console(file=output, force_terminal=True, width=80))
    display.start(0)
    display.phase("training")
    display.row({**ROW, "alpha": 0.1234})
    display.evaluation(EVALUATION, False)
    display.step(500)
    display._next = 0.0
    display.step(501)
    display.close()
    display.close()
    display.message("x" * 100)
    text = output.getvalue()
    for piece in (
        "Toy[v1]",
        "501/1,000",
        "training",
        "10 steps/s",
        "9 updates/s",
        "return -3.25",
        "eval -1.50",
    ):
        assert piece in text
    assert "alpha 0.1234" in text
    assert " left" in text
    assert "x" * 100 in text  # a message is never broken into lines


def test_time_left_follows_the_pace_of_the_phase(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 11.0, 21.0, 22.0, 42.0])
    monkeypatch.setattr("sacfast.display.perf_counter", lambda: next(clock))
    display = Display("Toy", 1000, Console(file=io.StringIO()))
    display.start(0)
    assert display.time_left() == ""
    display.row({"step": 100, "updates": 0})
    assert display.time_left() == ""  # random steps, whose pace says nothing of learning's
    display.step(150)
    display.phase("training")
    assert display.time_left() == ""
    display.row({"step": 250, "updates": 100})
    assert display.time_left() == "1:08 left"  # 9 seconds for 100 steps
    display.row({"step": 350, "updates": 200})
    assert display.time_left() == "1:02 left"  # 19 for 200
    display.phase("training")
    display.row({"step": 450, "updates": 300})
    assert display.time_left() == "1:50 left"  # 20 for the 100 of this phase


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
def test_a_terminal_that_was_closed_costs_nothing():
    """Its writes fail with EIO; what is printed afterwards goes nowhere."""
    program = """
import os, pty
from sacfast.display import Display
ours, theirs = pty.openpty()
os.dup2(theirs, 1), os.close(theirs), os.close(ours)
display = Display("Toy", 1000)
display.message("lost"), display.row({"step": 10, "updates": 0}), display.close()
print("lost too", flush=True)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a file that is always full")
def test_a_full_disk_behind_standard_output_costs_nothing():
    program = """
from sacfast.display import Display
display = Display("Toy", 1000)
display.message("lost"), display.row({"step": 10, "updates": 0}), display.close()
print("lost too", flush=True)
"""
    with open("/dev/full", "w") as full:
        subprocess.run([sys.executable, "-c", program], check=True, timeout=120, stdout=full)


@pytest.mark.parametrize("name", ["", "FORCE_COLOR", "TTY_COMPATIBLE"])
def test_a_pipe_gets_plain_lines(monkeypatch, name):
    if name:
        monkeypatch.setenv(
            name, "1"
        )  # for colours, which a log may have, but no bar that is drawn over itself
    assert type(make_display("Toy", 10)) is Display  # pytest captures the output


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
def test_a_terminal_gets_the_live_display(monkeypatch):
    ours, theirs = os.openpty()
    with open(theirs, "w") as terminal, open(ours):
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("MPLBACKEND", raising=False)
        assert type(make_display("Toy", 10)) is LiveDisplay


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
@pytest.mark.parametrize(
    ("name", "value"), [("TERM", "dumb"), ("MPLBACKEND", "module://matplotlib_inline.backend_inline")]
)
def test_a_terminal_that_cannot_redraw_gets_plain_lines(monkeypatch, name, value):
    """Emacs' shell, and what a notebook's `!` starts."""
    ours, theirs = os.openpty()
    with open(theirs, "w") as terminal, open(ours):
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("MPLBACKEND", raising=False)
        monkeypatch.setenv(name, value)
        assert type(make_display("Toy", 10)) is Display


def test_duration():
    assert [duration(s) for s in (0.4, 75, 3675)] == ["0:00", "1:15", "1:01:15"]


def test_an_encoding_without_the_sign_ends_nothing():
    file = io.TextIOWrapper(io.BytesIO(), "ascii")
    say("-30.8 ± 4.4", PatientConsole(file=file))
    file.seek(0)
    assert file.read() == "-30.8 ? 4.4\n"
