"""Logs: CSV files that survive a resume and a torn line, and displays that show what they are told."""

import io

import pytest
import torch
from rich.console import Console

from sacfast.engines import Metrics
from sacfast.errors import SACError
from sacfast.logger import CSVLog, Display, LiveDisplay, RunLogger, duration, make_display, read_csv

METRICS = Metrics(torch.arange(7.0) / 3)
ROW = {
    "step": 100,
    "episode": 2,
    "updates": 50,
    "episode_return": -3.25,
    "steps_per_s": 10.0,
    "updates_per_s": 9.0,
}
EVALUATION = {
    "step": 100,
    "mean": -1.5,
    "std": 0.5,
    "min": -2.0,
    "max": -1.0,
    "episodes": 3,
    "mean_length": 7.0,
}


def test_rows_come_back_as_they_went_in(tmp_path):
    log = CSVLog(tmp_path / "x.csv", ("step", "value"))
    log.write({"step": 1, "value": None})
    log.write({"step": 2, "value": 0.1})
    assert read_csv(tmp_path / "x.csv") == [{"step": 1, "value": None}, {"step": 2, "value": 0.1}]
    log.close()
    log.close()
    assert read_csv(tmp_path / "absent.csv") == []


def test_a_log_that_cannot_be_read_is_one_sentence(tmp_path):
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(SACError, match=r"the log .*x.csv cannot be read \(Is a directory\); restore it"):
        read_csv(tmp_path / "x.csv")
    log = tmp_path / "y.csv"
    log.write_bytes(b"step\n\xff\n")
    with pytest.raises(SACError, match=r"y.csv cannot be read \('utf-8' codec"):
        read_csv(log)
    log.write_text("step\n" + "1" * 200_000)
    with pytest.raises(SACError, match=r"y.csv cannot be read \(field larger than"):
        read_csv(log)
    log.write_text("mean,std\n1,2\n")
    assert read_csv(log, ("mean",)) == [{"mean": 1, "std": 2}]
    with pytest.raises(SACError, match=r"y.csv is damaged \(it has no column step, reward\)"):
        read_csv(log, ("step", "mean", "reward"))
    with pytest.raises(SACError, match="no column step"):
        CSVLog(log, ("step",), resume_step=5)
    assert read_csv(log / "below.csv") == []


def test_resuming_drops_later_rows_and_a_torn_line(tmp_path):
    (tmp_path / "x.csv").write_text("step,value\n10,1.5\n20,2.5\n30,3.5\n4")
    log = CSVLog(tmp_path / "x.csv", ("step", "value"), resume_step=20)
    log.write({"step": 30, "value": 9.0})
    log.close()
    assert (tmp_path / "x.csv").read_text().splitlines() == ["step,value", "10,1.5", "20,2.5", "30,9"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(SACError, match=r"cannot write the log .*nowhere.*free some space"):
        CSVLog(tmp_path / "nowhere" / "x.csv", ("step",))


def test_run_logger_writes_every_file_and_the_events(tmp_path):
    output = io.StringIO()
    logger = RunLogger(tmp_path, Display("Toy", 200, Console(file=output)))
    logger.progress(ROW, METRICS)
    logger.episode(2, 90, -3.25, 45)
    logger.evaluation(EVALUATION, True)
    logger.close()
    (progress,) = read_csv(tmp_path / "progress.csv")
    assert progress["alpha"] == pytest.approx(1.0)
    assert progress["log_prob_mean"] == pytest.approx(2.0)
    assert progress["elapsed_s"] is None
    assert read_csv(tmp_path / "episodes.csv") == [{"episode": 2, "step": 90, "return": -3.25, "length": 45}]
    assert read_csv(tmp_path / "evaluation.csv") == [EVALUATION]
    assert scalars(tmp_path)["evaluation/mean"] == [(100, -1.5)]
    assert scalars(tmp_path)["train/alpha"] == [(100, pytest.approx(1.0))]
    text = output.getvalue()
    assert "step 100/200 (50%)" in text
    assert "evaluation -1.50 ± 0.50 over 3 episodes (best so far)" in text


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_before_the_first_update_metrics_are_empty_and_events_are_optional(tmp_path):
    logger = RunLogger(tmp_path, Display("Toy", 200, Console(file=io.StringIO())), tensorboard=False)
    logger.progress(ROW, None)
    logger.close()
    (progress,) = read_csv(tmp_path / "progress.csv")
    assert progress["critic_loss"] is None
    assert not list(tmp_path.glob("events*"))


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


def test_time_left_follows_the_pace_and_leaves_pauses_out(monkeypatch):
    clock = iter([0.0, 10.0, 110.0])
    monkeypatch.setattr("sacfast.logger.perf_counter", lambda: next(clock))
    display = Display("Toy", 1000, Console(file=io.StringIO()))
    display.start(0)
    assert display.time_left() == ""
    display.row({"step": 100})
    assert display.time_left() == "1:30 left"
    display.pause(90.0)
    display.row({"step": 200})
    assert display.time_left() == "1:20 left"


def test_a_pipe_gets_plain_lines():
    assert type(make_display("Toy", 10)) is Display  # pytest captures the output


def test_duration():
    assert [duration(s) for s in (0.4, 75, 3675)] == ["0:00", "1:15", "1:01:15"]
