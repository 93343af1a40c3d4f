"""Logs: CSV files that survive a resume and a torn line, and what TensorBoard and Weights & Biases are told."""

import errno
import io
import sys
from io import FileIO

import pytest
import torch
from rich.console import Console

from sacfast import logger as module
from sacfast.display import Display
from sacfast.engines import Metrics
from sacfast.errors import CheckpointError, SACError
from sacfast.logger import CSVLog, RunLogger, read_csv

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


class FullDisk(FileIO):
    """Takes `space` bytes more, and refuses what is beyond."""

    space = 0

    def write(self, data):
        part = data[: self.space]
        if not part:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.space -= len(part)
        return super().write(part)


def test_rows_that_the_disk_refuses_wait_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FileIO", FullDisk)
    output, path = io.StringIO(), tmp_path / "episodes.csv"
    logger = RunLogger(tmp_path, Display("Toy", 200, Console(file=output)), tensorboard=False)
    disk = logger._episodes._file
    disk.space = 20  # one row and a part of the second
    for i in range(4):
        logger.episode(i, 10 * i, -1.5, 10)
    assert output.getvalue().count("training goes on, and its rows wait") == 1
    assert "episodes.csv (No space left on device): free some space" in " ".join(output.getvalue().split())
    with pytest.raises(CheckpointError, match=r"cannot write the log .*No space left"):
        logger.flush()
    disk.space = 1000
    logger.episode(4, 40, -1.5, 10)
    assert [row["episode"] for row in read_csv(path)] == [0, 1, 2, 3, 4]
    disk.space = 0
    logger.episode(5, 50, -1.5, 10)
    assert output.getvalue().count("training goes on, and its rows wait") == 2
    disk.space = 1000
    logger.flush()
    assert [row["episode"] for row in read_csv(path)] == [0, 1, 2, 3, 4, 5]
    logger.close()


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
    assert progress["entropy"] == pytest.approx(-2.0)
    text = output.getvalue()
    assert "step 100/200 (50%)" in text
    assert "evaluation -1.50 ± 0.50 over 3 episodes (best so far)" in text


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_events_of_steps_that_are_taken_again_are_dropped(tmp_path):
    for resume_step, steps in ((None, (100, 200, 300)), (100, (200,))):
        display = Display("Toy", 200, Console(file=io.StringIO()))
        logger = RunLogger(tmp_path, display, resume_step=resume_step)
        for step in steps:
            logger.evaluation({**EVALUATION, "step": step, "mean": step + float(resume_step or 0)}, False)
        logger.close()
    assert scalars(tmp_path)["evaluation/mean"] == [(100, 100), (200, 300)]


def test_an_evaluation_after_the_checkpoint_of_its_step_is_made_again(tmp_path):
    """A signal in an evaluation: the checkpoint is of its step, but has yet to see it."""
    for steps in (None, None), (200, 100):
        display = Display("Toy", 200, Console(file=io.StringIO()))
        logger = RunLogger(tmp_path, display, resume_step=steps[0], evaluated_step=steps[1])
        for step in (200,) if steps[0] else (100, 200):
            logger.evaluation({**EVALUATION, "step": step}, False)
        logger.close()
    assert [row["step"] for row in read_csv(tmp_path / "evaluation.csv")] == [100, 200]


def test_before_the_first_update_metrics_are_empty_and_events_are_optional(tmp_path):
    logger = RunLogger(tmp_path, Display("Toy", 200, Console(file=io.StringIO())), tensorboard=False)
    logger.progress(ROW, None)
    logger.close()
    (progress,) = read_csv(tmp_path / "progress.csv")
    assert progress["critic_loss"] is None
    assert not list(tmp_path.glob("events*"))


class FakeWandb:
    """The part of wandb's interface that is used."""

    def __init__(self):
        self.logged, self.finished, self.settings = [], False, None

    def init(self, **settings):
        self.settings = settings
        return self

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


def wandb_logger(run):
    display = Display("Toy", 200, Console(file=io.StringIO()))
    return RunLogger(run, display, tensorboard=False, wandb="robots", settings={"seed": 3})


def test_weights_and_biases_get_the_same_numbers_and_a_run_that_can_be_continued(tmp_path, monkeypatch):
    fake, run = FakeWandb(), tmp_path / "Toy" / "2026-s3"
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run.mkdir(parents=True)
    logger = wandb_logger(run)
    logger.progress({**ROW, "saturation": 0.25, "time_env": 0.5}, METRICS)
    logger.evaluation(EVALUATION, True)
    logger.flush()
    logger.close()
    assert fake.settings == {
        "project": "robots", "name": "Toy-2026-s3", "id": fake.settings["id"], "resume": "allow", "dir": str(run),
        "config": {"seed": 3},
    }  # fmt: skip
    progress, evaluation = fake.logged
    assert progress["step"] == 100
    assert progress["train/entropy"] == -progress["train/log_prob_mean"] == pytest.approx(-2.0)
    assert (progress["train/saturation"], progress["time/env"], progress["speed/steps_per_s"]) == (
        0.25,
        0.5,
        10,
    )
    assert evaluation == {"step": 100, "evaluation/mean": -1.5, "evaluation/std": 0.5}
    assert fake.finished
    ids = [fake.settings["id"]]
    for folder in (run, tmp_path / "elsewhere" / "Toy" / "2026-s3"):  # continued; begun in the same second
        folder.mkdir(parents=True, exist_ok=True)
        wandb_logger(folder).close()
        ids.append(fake.settings["id"])
    assert ids[0] == ids[1] != ids[2]


def test_a_tracker_that_fails_is_left_out_and_costs_nothing(tmp_path):
    output = io.StringIO()
    logger = RunLogger(tmp_path, Display("Toy", 200, Console(file=output)))

    class Full:
        def track(self, values, step):
            raise OSError("Disk quota exceeded")

        flush = close = track

    logger._trackers.append(Full())
    logger.episode(2, 90, -3.25, 45)
    logger.episode(3, 120, -3.0, 30)
    logger.flush()
    logger.close()
    assert len(read_csv(tmp_path / "episodes.csv")) == 2
    assert output.getvalue().count("Full is left out from now on: Disk quota exceeded") == 1
    assert len(scalars(tmp_path)["episode/return"]) == 2


def test_weights_and_biases_missing_or_refusing_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        SACError, match=r"--wandb needs wandb, which is not installed; pip install 'sacfast\[wandb\]'"
    ):
        wandb_logger(tmp_path)

    class Refusing(FakeWandb):
        def init(self, **settings):
            raise RuntimeError("api_key not configured (no-tty)\nmore")

    monkeypatch.setitem(sys.modules, "wandb", Refusing())
    with pytest.raises(
        SACError, match=r"refused project 'robots': api_key not configured \(no-tty\); log in"
    ):
        wandb_logger(tmp_path)
    assert not list(tmp_path.iterdir())
