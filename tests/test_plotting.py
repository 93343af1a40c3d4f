"""Pictures: the notebook's two functions and the learning curve write real images and leave nothing open."""

import os
import subprocess
import sys
import types

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from sacfast import plot, plotting
from sacfast.errors import SACError
from sacfast.plotting import (
    PANELS,
    moving_average,
    plot_episode_rewards,
    plot_learning_curve,
    plot_run,
    plot_training_metrics,
)


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    matplotlib.use("Agg")


def ink(picture):
    """Fraction of the pixels that are not white: of a file, or of an array [height, width, colours]."""
    pixels = picture if isinstance(picture, np.ndarray) else matplotlib.image.imread(picture)
    return float((pixels[..., :3].min(axis=-1) < 0.95).mean())


def test_moving_average_by_hand():
    np.testing.assert_allclose(moving_average([1, 2, 3, 4], 2), [1.5, 2.5, 3.5])
    np.testing.assert_allclose(moving_average([1, np.nan, 3, np.nan, np.nan], 2), [1, 3, 3, np.nan])


def test_a_moving_average_of_a_straight_line_lies_on_it(monkeypatch):
    drawn = []
    monkeypatch.setattr(plotting, "render", lambda draw, *_: drawn.append(draw))
    steps = [500 * i for i in range(50)]
    plot_training_metrics({"alpha": [3.0 * step for step in steps], "step": steps})
    drawn[0](figure := Figure())
    (axes,) = (axes for axes in figure.axes if axes.lines)
    line, average = (each.get_xydata() for each in axes.lines)
    assert len(line) == 50 and len(average) == 46
    np.testing.assert_allclose(average[:, 1], 3 * average[:, 0])


def test_training_metrics_draw_every_panel(tmp_path):
    rng = np.random.default_rng(0)
    history = {key: rng.normal(size=300).tolist() for key, *_ in PANELS}
    assert len(history) == 6
    plot_training_metrics({}, save_path=tmp_path / "empty.png")
    plot_training_metrics(history, save_path=tmp_path / "full.png")
    empty, full = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("empty", "full"))
    for before, after in zip(np.array_split(empty, 2), np.array_split(full, 2), strict=True):
        for blank, panel in zip(np.array_split(before, 3, 1), np.array_split(after, 3, 1), strict=True):
            assert ink(panel) > ink(blank) + 0.02


def test_what_falls_by_orders_of_magnitude_is_drawn_on_a_logarithmic_scale(monkeypatch):
    drawn = []
    monkeypatch.setattr(plotting, "render", lambda draw, *_: drawn.append(draw))
    falling = {key: [20.0, 0.02, np.nan, 0.01] for key, *_ in PANELS}
    for history in (falling, falling | {"alpha": [0.0] * 4}):  # a fixed temperature of zero
        plot_training_metrics(history)
    scales = []
    for draw in drawn:
        draw(figure := Figure())
        scales.append([axes.get_yscale() for axes in figure.axes])
    assert scales == [["log", "linear", "log", *["linear"] * 3], ["log", *["linear"] * 5]]


def test_episode_rewards(tmp_path):
    plot_episode_rewards([], str(tmp_path / "none.png"))
    plot_episode_rewards(np.sin(np.arange(200)), str(tmp_path / "many.png"))
    assert ink(tmp_path / "many.png") > ink(tmp_path / "none.png") + 0.01


def test_learning_curve_with_baselines(tmp_path):
    rows = [{"step": s, "mean": s / 10, "std": 5.0} for s in range(0, 1000, 100)]
    plot_learning_curve(rows, None, tmp_path / "alone.png")
    plot_learning_curve(rows, {"random": -20.0, "zero": 10.0}, tmp_path / "with.png")
    alone, both = (matplotlib.image.imread(tmp_path / f"{n}.png") for n in ("alone", "with"))
    assert ink(tmp_path / "alone.png") > 0.01
    assert not np.array_equal(alone, both)


def test_without_a_path_nothing_is_shown_on_a_headless_backend_and_nothing_leaks(recwarn):
    from matplotlib import pyplot

    plot_training_metrics({"alpha": [1.0, 0.5]})
    plot_episode_rewards([1.0, 2.0])
    assert pyplot.get_fignums() == []
    assert not recwarn.list


def test_an_interactive_backend_is_shown_the_figure(monkeypatch):
    from matplotlib import pyplot

    shown = []
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "QtAgg")
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(len(pyplot.get_fignums())))
    plot_episode_rewards([1.0, 2.0])
    assert shown == [1]


def test_in_a_notebook_a_saved_figure_is_shown_too(monkeypatch, tmp_path):
    """And no other: pyplot.show() would show and close the user's own."""
    from matplotlib import pyplot

    shown = []
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: "a shell"))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=shown.append))
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    monkeypatch.setattr(pyplot, "show", lambda: shown.append("all"))
    theirs = pyplot.figure()
    plot_episode_rewards([1.0, 2.0], tmp_path / "x.png")
    assert [type(each) for each in shown] == [Figure]
    assert (tmp_path / "x.png").exists()
    assert pyplot.get_fignums() == [theirs.number]
    pyplot.close(theirs)


def test_a_notebooks_child_draws_without_its_backend(tmp_path):
    """`!python -m sacfast.plot`, where matplotlib_inline is the kernel's alone."""
    (tmp_path / "episodes.csv").write_text("episode,step,return,length\n1,100,-3.5,100\n2,200,-2.5,100\n")
    environment = os.environ | {"MPLBACKEND": "module://missing.backend_inline"}
    command = [sys.executable, "-m", "sacfast.plot", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == [str(tmp_path / f"episode_rewards.{kind}") for kind in ("png", "svg")]
    assert not done.stderr


def test_a_picture_that_cannot_be_written(tmp_path):
    with pytest.raises(SACError, match=r"cannot write the picture .*nowhere"):
        plot_episode_rewards([1.0], tmp_path / "nowhere" / "x.png")
    with pytest.raises(SACError, match=r"cannot write the picture .*x.nonsense"):
        plot_episode_rewards([1.0], tmp_path / "x.nonsense")


def test_plot_run_needs_logs_and_tolerates_part_of_them(tmp_path, capsys):
    with pytest.raises(SACError, match="holds no logs"):
        plot_run(tmp_path)
    assert plot.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    (tmp_path / "episodes.csv").write_text("episode,step,return,length\n1,100,-3.5,100\n2,200,-2.5,10")
    assert [p.name for p in plot_run(tmp_path)] == ["episode_rewards.png"]


@pytest.mark.parametrize("name", ["progress.csv", "episodes.csv", "evaluation.csv"])
@pytest.mark.parametrize("content", [b"\xff\xfe", b"nothing,of,this\n1,2,3\n"])
def test_plot_names_the_log_that_is_damaged(tmp_path, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    assert plot.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: the log {tmp_path / name} ")
    assert error.count("\n") == 1


def test_plot_of_a_file_that_is_no_run(tmp_path, capsys):
    (tmp_path / "README.md").touch()
    assert plot.main([str(tmp_path / "README.md")]) == 2
    assert "README.md holds no logs to draw; give the folder" in capsys.readouterr().err


@pytest.mark.parametrize("summary", ["[]", "{}", '{"env": 1, "baselines": {"zero": 3}}', "{"])
def test_a_damaged_summary_costs_the_baselines_only(tmp_path, summary):
    (tmp_path / "evaluation.csv").write_text("step,mean,std\n1,2,3\n2,3,4\n")
    (tmp_path / "summary.json").write_text(summary)
    assert [path.name for path in plot_run(tmp_path)] == ["learning_curve.png"]
