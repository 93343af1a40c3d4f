"""`--seeds`: one run per seed, one after another, and their comparison."""

import json
import signal
from pathlib import Path

import pytest
from training_runs import (
    FLAGS,
    assert_one_error_line,
)

import sacfast.train as module
from sacfast.errors import SACError
from sacfast.train import main, parse
from sacfast.trainer import DivergedError, TrainingInterrupted


def test_one_run_per_seed_and_their_comparison(tmp_path, capsys):
    flags = ["--env", "Pendulum-v1", "--steps", "60", "--learning-starts", "50", "--no-tensorboard", *FLAGS]
    assert main([*flags, "--seeds", "4", "2", "--eval-every", "30", "--out", str(tmp_path)]) == 0
    runs = sorted(tmp_path.glob("Pendulum-v1/*"), key=lambda path: path.stat().st_mtime_ns)
    assert [json.loads((run / "config.json").read_text())["seed"] for run in runs] == [4, 2]
    pictures = [
        tmp_path / f"comparison-{runs[0].parent.name}-{runs[0].name}.{suffix}" for suffix in ("png", "svg")
    ]
    assert sorted(path for path in tmp_path.iterdir() if path.is_file()) == pictures
    assert f"comparison of the runs: {pictures[0]} {pictures[1]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--seeds", "1", "2", "1"], "--seeds 1 2 1 names a seed twice"),
        (["--seeds", "1", "-2"], "seed=-2 must be"),
        (["--seeds", "1", "2", "--seed", "3"], "leave out --seed and --resume"),
    ],
)
def test_seeds_that_make_no_sense(tmp_path, capsys, flags, words):
    assert main([*flags, "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert_one_error_line(error)
    assert words in error
    assert not (tmp_path / "runs").exists()


def test_python_asks_for_one_run_at_a_time():
    assert parse(["--seeds", "3"]).seed == 3
    with pytest.raises(SACError, match="only one can be made here"):
        parse(["--seeds", "3", "4"])


def test_a_seed_that_diverges_costs_the_others_nothing(tmp_path, capsys, monkeypatch):
    def diverging(config):
        if config.seed == 1:
            raise DivergedError("the actor holds NaN")
        return tmp_path / str(config.seed)

    compared = []
    monkeypatch.setattr(module, "train", diverging)
    monkeypatch.setattr(module, "plot_comparison", lambda runs, *_: (compared.extend(runs) or runs, []))
    assert main(["--seeds", "0", "1", "2"]) == 2
    assert compared == [tmp_path / "0", tmp_path / "2"]
    assert capsys.readouterr().err == "error: seed 1: the actor holds NaN\n"
    assert main(["--seeds", "1"]) == 2
    assert capsys.readouterr().err == "error: the actor holds NaN\n"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (TrainingInterrupted(Path(), signal.SIGINT, "..."), 128 + signal.SIGINT, ""),
        (SACError("the disk is full"), 2, "error: the disk is full\n"),
    ],
)
def test_an_interruption_names_the_seeds_that_were_not_begun(
    tmp_path, capsys, monkeypatch, error, code, words
):
    def interrupted(config):
        if config.seed == 1:
            raise error
        return tmp_path / str(config.seed)

    monkeypatch.setattr(module, "train", interrupted)
    assert main(["--seeds", "0", "1", "2", "3"]) == code
    assert capsys.readouterr().err == "not begun: --seeds 2 3\n" + words
