"""benchmarks/learning.py: runs go on where they were stopped, and what was measured is gathered as it is."""

import csv
import dataclasses
import importlib
import json
import os
import signal
import threading
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from agents import make_agent
from matplotlib.figure import Figure

from sacfast import SACConfig
from sacfast.engines import ReferenceEngine

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"

TINY = {
    "sacfast": {"utd": 0.1, "hidden_dim": 8, "batch_size": 8, "learning_starts": 50},
    "sb3": {"policy_kwargs": {"net_arch": [8]}, "batch_size": 8, "learning_starts": 50},
}


@pytest.fixture(scope="module")
def learning(benchmarks):
    return importlib.import_module("learning")


MACHINE = {"cpu": "Test CPU", "date": "2025-11-22", "side_by_side": 2}


def entry(env: str, implementation: str, *runs: list[float], **details) -> dict:
    """Scores by seed, evaluated every 1,000 steps; a minute each, or two of Stable-Baselines3's."""
    pace = 2 if implementation == "sb3" else 1
    return {
        "table": "learning",
        "env": env,
        "implementation": implementation,
        "variant": "default",
        "device": "cpu",
        "settings": {},
        "episodes": 10,
        "runs": [
            {
                "seed": seed,
                "machine": MACHINE | ({"stable-baselines3": "2.9.2"} if implementation == "sb3" else {}),
                "evaluations": [
                    [(i + 1) * 1000, score, 1.0, pace * (i + 1)] for i, score in enumerate(scores)
                ],
            }
            for seed, scores in enumerate(runs)
        ],
    } | details


def test_every_run_of_the_tables_has_a_place_and_settings_that_exist(learning):
    """Different runs have different folders, and a longer run of the same settings is the shorter one continued."""
    jobs = [job for table in learning.TABLES.values() for job in table]
    for job in jobs:
        same = [other for other in jobs if other.name == job.name]
        assert all(dataclasses.replace(other, steps=job.steps) == job for other in same)
        if job.implementation == "sacfast":
            importlib.import_module("learning_run").configuration(job, Path("out"))
    once = {job.name: job.steps for job in learning.longest(jobs)}
    assert once["Pusher-v5/sacfast/default/seed0"] == 300_000
    assert once["HalfCheetah-v5/sacfast-cuda/default/seed4"] == 1_000_000
    assert once["Pusher-v5/sacfast/former-default-temperature-from-0.1/seed1"] == 50_000
    settings = [
        json.dumps([job.env, job.implementation, job.device, job.seed, job.learned_with()])
        for job in learning.longest(jobs)
    ]
    assert len(set(settings)) == len(settings)  # by which recorded runs are known again


@contextmanager
def stopped_once(condition):
    """Sends this process SIGTERM as soon as `condition()` holds within, where somebody is expected to handle it."""
    over = threading.Event()

    def wait() -> None:
        while not over.wait(0.02):
            if condition():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # should it come late
    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("implementation", "steps", "every"),
    [
        pytest.param("sacfast", 10_000, 500, marks=pytest.mark.native),
        pytest.param(
            "sb3",
            600,
            100,
            marks=pytest.mark.skipif(
                find_spec("stable_baselines3") is None, reason="stable-baselines3 is not installed"
            ),
        ),
    ],
)
def test_runs_stop_go_on_and_are_gathered(learning, tmp_path, capsys, implementation, steps, every):
    job = learning.Job(
        "InvertedPendulum-v5", steps, 0, implementation, "tiny", TINY[implementation], every=every
    )
    folder = tmp_path / job.name
    with stopped_once(lambda: job.evaluations(folder)):
        assert not learning.Scheduler(tmp_path, 2).run([job])
    before = job.evaluations(folder)
    assert 1 <= len(before) < steps // every
    assert f"stopped   InvertedPendulum-v5/{implementation}/tiny/seed0" in capsys.readouterr().out

    assert not learning.Scheduler(tmp_path, 3).run([job])
    assert "side_by_side was 2 and is 3): go on there, or remove it" in (folder / "log.txt").read_text()
    assert job.evaluations(folder) == before and "failed    " in capsys.readouterr().out

    wrong = dataclasses.replace(job, env="NoSuch-v5")
    assert not learning.Scheduler(tmp_path, 2).run([job, wrong])
    printed = capsys.readouterr().out
    assert f"finished  {job.name}" in printed and f"failed    {wrong.name}" in printed
    assert "NoSuch" in (tmp_path / wrong.name / "log.txt").read_text()
    rows = job.evaluations(folder)
    assert rows[: len(before)] == before
    assert [row[0] for row in rows] == list(range(every, steps + 1, every))
    assert [row[3] for row in rows] == sorted({row[3] for row in rows})

    assert learning.Scheduler(tmp_path, 2).run([job]) and capsys.readouterr().out == ""
    (gathered,) = learning.gather([job, wrong], tmp_path)
    (run,) = gathered["runs"]
    assert (run["seed"], run["evaluations"], run["machine"]["side_by_side"]) == (0, rows, 2)
    assert gathered["settings"].items() >= TINY[implementation].items()
    if implementation == "sacfast":  # with today's defaults, which are not those of the run
        assert dataclasses.replace(job, settings=job.settings | {"tau": 0.02}).evaluations(folder) == []


def test_what_was_recorded_on_another_day_stays(learning):
    """Run by run the longer one, the new one where they are equal; none of other settings than the tables have."""
    jobs = [learning.Job("Pusher-v5", 2000, seed, "sb3") for seed in range(3)]
    jobs += [learning.Job("Pusher-v5", 2000, 0, "sb3", "slow", {"learning_rate": 1e-5})]
    recorded = [
        entry("Pusher-v5", "sb3", [-9.0, -8.0], [-9.0], [-9.0]),
        entry("Pusher-v5", "sb3", [-7.0], variant="slow", settings={"learning_rate": 1e-4}),
        entry("Swimmer-v5", "sb3", [-7.0]),
    ]
    measured = [entry("Pusher-v5", "sb3", [-1.0], [-1.0, -2.0])]
    (merged,), left_out = learning.merge(jobs, measured, recorded)
    scores = [[row[1] for row in run["evaluations"]] for run in merged["runs"]]
    assert scores == [[-9.0, -8.0], [-1.0, -2.0], [-9.0]]
    assert left_out == ["Pusher-v5/sb3/slow/seed0", "Swimmer-v5/sb3/default/seed0"]

    assert [learning.reached(job, recorded) for job in jobs] == [2000, 1000, 1000, 0]
    (merged,), left_out = learning.merge(jobs[:1], [entry("Pusher-v5", "sb3", [-1.0])], [])
    assert (merged["runs"][0]["evaluations"], left_out) == ([[1000, -1.0, 1.0, 2]], [])
    stale = entry("Pusher-v5", "sb3", [-9.0, -9.0], settings={"learning_rate": 1e-4})
    (merged,), left_out = learning.merge(jobs[:1], [entry("Pusher-v5", "sb3", [-1.0])], [stale])
    assert merged["runs"][0]["evaluations"] == [
        [1000, -1.0, 1.0, 2]
    ]  # shorter, but with the table's settings
    assert left_out == [jobs[0].name]
    equal = entry("Pusher-v5", "sb3", [-1.0]), entry("Pusher-v5", "sb3", [-5.0])
    (merged,), _ = learning.merge(jobs[:1], [equal[0]], [equal[1]])
    assert merged["runs"][0]["evaluations"][0][1] == -1.0


def test_what_was_recorded_under_another_name_of_its_settings_stays(learning):
    """A default that another has taken the place of is a row of the ablation from then on."""
    jobs = [
        learning.Job("Pusher-v5", 2000, 0, "sb3", settings={"learning_rate": 1e-3}),
        learning.Job("Pusher-v5", 2000, 0, "sb3", "the old", {"learning_rate": 3e-4}),
    ]
    old = entry("Pusher-v5", "sb3", [-9.0], settings={"learning_rate": 3e-4})
    new = entry("Pusher-v5", "sb3", [-8.0], variant="faster", settings={"learning_rate": 1e-3})
    merged, left_out = learning.merge(jobs, [], [old, new])
    assert [(each["variant"], each["runs"]) for each in merged] == [
        ("default", new["runs"]),
        ("the old", old["runs"]),
    ]
    assert left_out == []


def test_settings_are_recorded_as_far_as_they_bear_on_learning(learning):
    job = learning.Job("Pusher-v5", 2000, settings={"tau": 0.01, "critic_lr": None, "learning_starts": 7})
    settings = job.learned_with()
    assert (settings["tau"], settings["learning_starts"]) == (0.01, 7)
    assert settings["critic_lr"] == settings["lr"] == 3e-4  # which is what None means
    assert not {"steps", "seed", "out", "threads", "tensorboard"} & settings.keys()
    assert settings == dataclasses.replace(job, seed=1, steps=9000).learned_with()
    assert settings["obs_epsilon"] == SACConfig.obs_epsilon
    raw, same = (
        dataclasses.replace(job, settings=job.settings | {"normalize_obs": False} | more).learned_with()
        for more in ({}, {"obs_epsilon": 1.0})
    )
    assert raw == same  # nothing is divided


def test_a_shared_step_takes_the_actors_gradient_by_the_critics_of_before(learning, monkeypatch):
    """The same as with critics that do not learn, while they do."""
    run = importlib.import_module("learning_run")
    job = learning.Job("Pusher-v5", 20_000, settings={"shared_step": True})
    assert run.configuration(job, Path()).engine == "reference"
    for name in ("_critic_step", "_actor_step"):
        monkeypatch.setattr(ReferenceEngine, name, getattr(ReferenceEngine, name))
    usual, still = make_agent(), make_agent(critic_lr=1e-30)
    usual.train(1, 40), still.train(1, 40)
    run.share_the_step()
    shared = make_agent()
    shared.train(1, 40)
    assert torch.equal(shared.state.actor_params, still.state.actor_params)
    assert not torch.equal(shared.state.actor_params, usual.state.actor_params)
    assert torch.equal(shared.state.critic_params, usual.state.critic_params)


def test_a_recorded_run_is_not_made_once_more(learning, tmp_path, monkeypatch, capsys):
    jobs = [learning.Job("Pusher-v5", 2000, seed, "sb3") for seed in range(2)]
    learning.write([entry("Pusher-v5", "sb3", [-9.0, -8.0], [-9.0])], tmp_path)
    monkeypatch.setitem(learning.TABLES, "peers", jobs)
    made = []
    monkeypatch.setattr(learning.Scheduler, "run", lambda self, chosen: made.append(chosen) or True)
    where = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path)]
    assert learning.main(["peers", "--list", *where]) == 0
    assert "Pusher-v5/sb3/default/seed0" in (printed := capsys.readouterr().out)
    assert printed.count("recorded up to 2,000") == printed.count("recorded up to 1,000") == 1
    assert learning.main(["peers", *where]) == learning.main(["peers", "--again", *where]) == 0
    assert made == [jobs[1:], jobs]


def test_results_are_written_row_by_row(learning, tmp_path):
    entries = [entry("Pusher-v5", "sacfast", [-50.0, -40.0], [-51.0])]
    learning.write(entries, tmp_path)
    assert learning.read_results(tmp_path / "learning.json") == entries
    assert learning.read_results(tmp_path / "none.json") == []
    content = json.loads((tmp_path / "learning.json").read_text())
    assert [each["extra_info"] for each in content["benchmarks"]] == entries
    rows = list(csv.DictReader((tmp_path / "learning.csv").open()))
    assert [(row["seed"], row["step"], row["mean"]) for row in rows] == [
        ("0", "1000", "-50.000"),
        ("0", "2000", "-40.000"),
        ("1", "1000", "-51.000"),
    ]
    assert {(row["env"], row["cpu"], row["gpu"]) for row in rows} == {("Pusher-v5", "Test CPU", "")}


def test_the_picture_has_a_curve_for_each_learner(learning, tmp_path, monkeypatch):
    """By step and by minute, in each environment on each device, up to the step that all seeds reached."""
    figures = []
    picture = importlib.import_module("learning_picture")
    monkeypatch.setattr(picture, "render", lambda fill, *args: figures.append(fill))
    entries = [
        entry("Pusher-v5", "sacfast", [-50.0, -40.0, -35.0, -34.0], [-52.0, -42.0, -37.0]),
        entry("Reacher-v5", "sacfast", [-9.0, -8.0, -7.0]),
        entry("Pusher-v5", "sb3", [-60.0, -50.0, -45.0]),
        entry("Reacher-v5", "sacfast", [-9.5, -9.0, -8.5], variant="notebook's"),
        entry("Pusher-v5", "sacfast", [-99.0, -99.0, -99.0], variant="tau 0.01"),
        entry("Hopper-v5", "sacfast", [10.0, 20.0]),  # no curve yet
        entry("Reacher-v5", "sacfast", [-8.0, -7.0, -6.0], device="cuda"),
        entry("Pusher-v5", "sacfast", [-55.0, -53.0, -52.0], variant="notebook's"),
    ]
    entries[-2]["runs"][0]["machine"] |= {"gpu": "Test GPU"}
    entries[-1]["runs"][0]["machine"] |= {"kernels": "others"}  # whose minutes are not compared
    learning.draw(entries, tmp_path / "picture.png")
    figure = Figure()
    figures[0](figure)
    by_step, reacher, reacher_on_gpu, by_minute, *rest = figure.axes
    assert by_step.get_title(loc="right") == by_minute.get_title(loc="right") == "Pusher-v5" and not any(
        axes.lines for axes in rest
    )
    means, others, minutes = (
        {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        for axes in (by_step, reacher, by_minute)
    )
    assert list(others) == ["sacfast", "sacfast, notebook's settings"]
    assert list(means) == [*minutes, "sacfast, notebook's settings"]
    assert list(minutes) == ["sacfast", "Stable-Baselines3 2.9.2"]
    assert reacher_on_gpu.get_title(loc="right") == "Reacher-v5, GPU"
    assert {line.get_label() for line in reacher_on_gpu.lines} >= {"sacfast"}
    colors = {name: line.get_color() for name, line in (means | others).items()}
    assert len(set(colors.values())) == len(colors) == 3
    assert means["sacfast"].get_color() == others["sacfast"].get_color()
    assert means["sacfast"].get_xydata().tolist() == [[1, -51], [2, -41], [3, -36]]
    assert minutes["Stable-Baselines3 2.9.2"].get_xydata().tolist() == [[2, -60], [4, -50], [6, -45]]
    assert "thousand" in by_step.get_xlabel() and "minutes" in by_minute.get_xlabel()


def test_published_scores_are_drawn_up_to_the_last_step(learning, tmp_path, monkeypatch):
    figures = []
    picture = importlib.import_module("learning_picture")
    monkeypatch.setattr(picture, "render", lambda fill, *args: figures.append(fill))
    long = entry("Hopper-v5", "sacfast", [10.0, 20.0, 30.0])
    for row, step in zip(long["runs"][0]["evaluations"], (100_000, 200_000, 300_000), strict=True):
        row[0] = step
    learning.draw([long], tmp_path / "picture.png")
    figure = Figure()
    figures[0](figure)
    published = {
        container.get_label(): container[0].get_xydata().tolist() for container in figure.axes[0].containers
    }
    assert published == {"SAC of SimbaV2's authors, published": [[100, 1103], [300, 2160]]}


@pytest.mark.skipif(not (RESULTS / "learning.json").exists(), reason="no run is recorded")
def test_the_recorded_csv_is_the_recorded_json(learning, tmp_path):
    results = importlib.import_module("learning_results")
    results.write(learning.read_results(RESULTS / "learning.json"), tmp_path)
    recorded = (RESULTS / "learning.csv").read_bytes()
    assert (tmp_path / "learning.csv").read_bytes() == recorded


def test_runs_made_again_are_as_long_as_they_are_recorded(learning, tmp_path, monkeypatch):
    """A shorter one would not take the recorded one's place, nor one of which only a part is gathered."""
    made, gathered = [], []
    monkeypatch.setattr(learning.Scheduler, "run", lambda self, jobs: made.extend(jobs) or True)
    monkeypatch.setattr(learning, "gather", lambda jobs, out: gathered.extend(jobs) or [])
    results = importlib.import_module("learning_results")
    job = next(job for job in learning.TABLES["main"] if job.env == "Hopper-v5" and job.seed == 0)
    recorded = entry("Hopper-v5", "sacfast", [10.0], settings=job.learned_with())
    recorded["runs"][0]["evaluations"][0][0] = 400_000  # more than in any table
    results.write([recorded], tmp_path)
    monkeypatch.setattr(learning, "draw", lambda *args: None)
    where = ["--out", str(tmp_path / "none"), "--results", str(tmp_path)]
    assert learning.main(["main", "--only", "Hopper", "--again", *where]) == 0
    assert [(job.seed, job.steps) for job in made] == [(0, 400_000), (1, 100_000), (2, 100_000)]
    assert max(each.steps for each in gathered if each.name == job.name) == 400_000


def test_bad_arguments_are_named(learning, tmp_path, capsys):
    with pytest.raises(SystemExit):
        learning.main(["fast"])
    assert (
        "there are main, long, peers, large, million, gpu, ablation, search, fresh, gpu-search"
        in capsys.readouterr().err
    )
    assert learning.main(["--out", str(tmp_path / "none"), "--results", str(tmp_path)]) == 1
    assert "holds no evaluations yet" in capsys.readouterr().err
    where = ["--out", str(tmp_path), "--results", str(tmp_path)]
    assert learning.main(["peers", "--only", "seed2", "--list", *where]) == 0
    assert "0 of   100,000  HalfCheetah-v5/sb3/default/seed2" in capsys.readouterr().out
