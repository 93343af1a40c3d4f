"""Several runs in one picture: grouping, common steps, the bootstrap band, and files that can be printed."""

import itertools
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from sacfast import comparison, plot
from sacfast.comparison import PRINT_STYLE, STYLES, bootstrap_band, curves_of, plot_comparison, read_runs
from sacfast.config import SACConfig, TrainConfig
from sacfast.errors import SACError
from sacfast.run_folder import write_json


@pytest.fixture
def make_run(tmp_path):
    """A run's folder with settings and evaluations: make_run([(step, mean), ...], env=..., seed=...)."""
    count = itertools.count()

    def make(evaluations, **settings):
        folder = tmp_path / f"run{next(count)}"
        folder.mkdir()
        write_json(folder / "config.json", TrainConfig(**{"env": "Pendulum-v1", **settings}).to_dict())
        rows = "".join(f"{step},{mean},0\n" for step, mean in evaluations)
        (folder / "evaluation.csv").write_text(f"step,mean,std\n{rows}")
        return folder

    return make


def read_curves(folders):
    return curves_of(read_runs(folders)[0])


def test_runs_of_the_same_settings_are_one_curve(make_run):
    runs = [
        make_run([(100, i), (200, 10 * i)], seed=i, threads=i, steps=60_000 + i, name=f"s{i}")
        for i in range(3)
    ]
    (curve,) = read_curves(runs)
    assert (curve.env, curve.settings, curve.note) == ("Pendulum-v1", (), "")
    np.testing.assert_array_equal(curve.steps, [100, 200])
    np.testing.assert_array_equal(curve.returns, [[0, 0], [1, 10], [2, 20]])


def test_curves_are_named_after_what_differs_within_an_environment(make_run):
    points = [(100, 1.0)]
    curves = read_curves(
        [
            make_run(points, engine="native"),
            make_run(points, engine="reference", seed=1),
            make_run(points, engine="native", seed=2, sac=SACConfig(hidden_dim=(400, 300))),
            make_run(points, engine="native", seed=3),
            make_run(points, env="Pusher-v5", engine="reference", utd=4.0),
        ]
    )
    assert [(curve.env, curve.settings, len(curve.returns)) for curve in curves] == [
        ("Pendulum-v1", ("engine native", "hidden dim 256"), 2),
        ("Pendulum-v1", ("engine reference", "hidden dim 256"), 1),
        ("Pendulum-v1", ("engine native", "hidden dim (400, 300)"), 1),
        ("Pusher-v5", (), 1),
    ]


def test_settings_that_come_to_the_same_are_one_curve(make_run):
    points = [(100, 1.0)]
    raw = SACConfig(normalize_obs=False)
    same = make_run(points, sac=raw), make_run(points, sac=replace(raw, obs_epsilon=1.0))
    (curve,) = read_curves([*same, make_run(points, sac=replace(raw, critic_lr=1e-3, alpha_lr=1e-3))])
    assert (curve.settings, len(curve.returns)) == ((), 3)
    curves = read_curves([*same, make_run(points), make_run(points, sac=SACConfig(obs_epsilon=1.0))])
    assert [curve.settings for curve in curves] == [
        ("normalize obs False",),
        ("normalize obs True", f"obs epsilon {SACConfig.obs_epsilon}"),
        ("normalize obs True", "obs epsilon 1.0"),
    ]
    lr = [make_run(points, sac=SACConfig(lr=1e-3, critic_lr=rate, alpha_lr=rate)) for rate in (None, 1e-3)]
    assert len(read_curves(lr)) == 1
    for given, count in ((None, 2), (-3.0, 1)):
        sacs = [SACConfig(target_entropy=given, target_entropy_per_dim=value) for value in (-0.5, -1.0)]
        assert len(read_curves([make_run(points, sac=sac) for sac in sacs])) == count
    for learned, unread, read in ((True, "alpha", "initial_alpha"), (False, "initial_alpha", "alpha")):
        for name, count in ((unread, 1), (read, 2)):
            sacs = [SACConfig(automatic_entropy_tuning=learned, **{name: value}) for value in (0.3, 0.4)]
            assert len(read_curves([make_run(points, sac=sac) for sac in sacs])) == count


def test_the_common_range_is_used_and_said(make_run, tmp_path, capsys):
    runs = [
        make_run([(100, 0.0), (200, 1.0), (300, 2.0), (4000, 9.0)]),
        make_run([(150, 5.0), (250, 7.0), (300, 8.0)], seed=1),
    ]
    (curve,) = read_curves(runs)
    np.testing.assert_array_equal(curve.steps, [150, 200, 250, 300])
    np.testing.assert_allclose(curve.returns, [[0.5, 1.0, 1.5, 2.0], [5.0, 6.0, 7.0, 8.0]])
    assert plot.main([*map(str, runs), "--out", str(tmp_path / "pictures")]) == 0
    output = capsys.readouterr()
    note = "Pendulum-v1: the steps 150 to 300, which its 2 runs share."
    assert output.err == f"drawn over common steps: {note}\n"
    together = str(runs[0].parent / runs[0].name[:-1]) + "*"  # as shells of Windows leave it
    assert [run.match(together) for run in runs] == [True, True]
    assert plot.main([together, "--out", str(tmp_path / "pictures")]) == 0
    assert capsys.readouterr() == output
    names = [str(tmp_path / "pictures" / f"comparison.{suffix}") for suffix in ("png", "svg")]
    assert output.out.split() == names


def test_runs_without_common_steps(make_run):
    early, late = make_run([(100, 0.0)]), make_run([(200, 0.0)], seed=1)
    with pytest.raises(
        SACError, match=rf"{early} was last evaluated at step 100, before another run .* at 200"
    ):
        read_curves([late, early])


def test_evaluations_that_are_no_number_are_left_out(make_run):
    (curve,) = read_curves([make_run([(100, 1.0), (200, "nan"), (300, ""), (400, "inf"), (500, 2.0)])])
    np.testing.assert_array_equal(curve.steps, [100, 500])


def test_the_band_of_two_runs_by_hand():
    """Of two runs a resample's mean is 0, 5 or 10, with probabilities 1/4, 1/2, 1/4: the 95 % interval is [0, 10]."""
    low, high = bootstrap_band(np.array([[0.0, 1.0], [10.0, 1.0]]))
    np.testing.assert_array_equal(low, [0, 1])
    np.testing.assert_array_equal(high, [10, 1])


def test_the_band_is_that_of_the_normal_where_runs_are_many():
    returns = np.random.default_rng(1).normal(size=(400, 3))
    low, high = bootstrap_band(returns)
    error = 1.96 * returns.std(axis=0) / np.sqrt(400)
    np.testing.assert_allclose(high - low, 2 * error, rtol=0.1)
    np.testing.assert_allclose((high + low) / 2, returns.mean(axis=0), atol=0.02)


def test_the_band_is_the_same_every_time_and_none_for_one_run():
    returns = np.random.default_rng(0).normal(size=(5, 7))
    np.testing.assert_array_equal(bootstrap_band(returns), bootstrap_band(returns))
    assert not np.array_equal(bootstrap_band(returns), bootstrap_band(returns, seed=1))
    np.testing.assert_array_equal(bootstrap_band(returns[:1]), [returns[0], returns[0]])


def test_pictures_are_the_same_every_time_and_large_enough_to_print(make_run, tmp_path):
    rng = np.random.default_rng(0)
    runs = [
        make_run(
            [(step, step + rng.normal()) for step in range(0, 1000, 100)], seed=seed, engine=engine, env=env
        )
        for env in ("Pendulum-v1", "Pusher-v5", "HalfCheetah-v5")
        for engine in ("native", "reference")
        for seed in range(2)
    ]
    (png, svg), notes = plot_comparison(runs, tmp_path / "a")
    again, _ = plot_comparison(runs, tmp_path / "b")
    assert notes == []
    assert [path.read_bytes() for path in (png, svg)] == [path.read_bytes() for path in again]
    picture = matplotlib.image.imread(png)
    assert picture.shape[1] == 6.5 * 300
    for panel in np.array_split(picture[..., :3], 3):  # one for each environment
        assert float((panel.min(axis=-1) < 0.95).mean()) > 0.02
    assert svg.read_text().startswith("<?xml")


def test_a_line_is_the_mean_of_its_runs_within_their_band(make_run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison, "render", lambda draw, *_: drawn.append(draw))
    plot_comparison(
        [make_run([(100, 0.0), (200, 4.0)]), make_run([(100, 2.0), (200, 8.0)], seed=1)], tmp_path
    )
    figure = Figure()
    drawn[0](figure)
    (axes,) = figure.axes
    ((line,), (band,)) = axes.lines, axes.collections
    np.testing.assert_array_equal(line.get_xydata(), [[100, 1], [200, 6]])
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0, 8)


def test_many_curves_differ_and_their_legend_fits(make_run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison, "render", lambda draw, size, *_: drawn.append((draw, size)))
    runs = [
        make_run([(100, i), (200, 2 * i)], utd=1.0 + i, sac=SACConfig(lr=1e-4 * (i + 1))) for i in range(36)
    ]
    plot_comparison([*runs, make_run([(100, 1.0)], env="Pusher-v5")], tmp_path)
    draw, size = drawn[0]
    with matplotlib.rc_context(PRINT_STYLE):
        figure = Figure(size, layout="constrained")
        draw(figure)
        figure.draw_without_rendering()
        many, one = figure.axes
        assert len({(line.get_color(), str(line._dash_pattern)) for line in many.lines}) == 36
        assert len({(line.get_color(), line.get_marker()) for line in many.lines}) == 36
        box, panel = many.get_legend().get_window_extent(), many.get_tightbbox()
        assert figure.bbox.y0 < box.y0 and box.y1 < figure.bbox.y1
        assert panel.y0 > one.get_tightbbox().y1
        assert one.get_window_extent().height / figure.dpi > 1.5


def test_what_most_of_many_settings_share_is_said_once(make_run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison, "render", lambda draw, *_: drawn.append(draw))
    settings = [{"batch_size": 64}, {"batch_size": 64, "lr": 0.5}, {"lr": 0.25}, {"tau": 0.5}, {"tau": 0.25}]
    settings += [{}, {"gamma": 0.5}]
    runs = [make_run([(100, 1.0)], sac=SACConfig(**each)) for each in settings]
    plot_comparison(runs, tmp_path)
    figure = Figure()
    drawn[0](figure)
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    named = [" ".join(text.replace("\N{NO-BREAK SPACE}", " ").split()) for text in texts]
    assert named[1] == "lr 0.5, batch size 64, 1 run" and named[5] == "as most, 1 run"
    assert named[6] == "gamma 0.5, 1 run"
    said = " ".join(figure.get_supxlabel().split())
    assert said.endswith("Pendulum-v1, unless named: lr 0.0003, gamma 0.99, tau 0.005, batch size 128.")


def test_letters_are_at_least_nine_points_and_colours_differ_in_grey():
    sizes = [
        value
        for name, value in PRINT_STYLE.items()
        if name.endswith(("size", "font.size")) and "line" not in name
    ]
    assert min(sizes) >= 9
    greys = [
        float(np.dot(matplotlib.colors.to_rgb(color), (0.2126, 0.7152, 0.0722))) for color, _, _ in STYLES[:4]
    ]
    assert min(abs(a - b) for a, b in itertools.combinations(greys, 2)) > 0.05
    assert len({str(line) for _, line, _ in STYLES}) == len({marker for *_, marker in STYLES}) == len(STYLES)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "is not the folder of a run"),
        (lambda run: (run / "evaluation.csv").unlink(), "has no evaluations yet"),
        (lambda run: (run / "evaluation.csv").write_text("step,mean,std\n100,,\n"), "has no evaluations yet"),
        (lambda run: (run / "evaluation.csv").write_text("a,b\n1,2\n"), "is damaged"),
    ],
)
def test_folders_that_cannot_be_compared_are_named_and_left_out(make_run, tmp_path, capsys, spoil, message):
    runs = [make_run([(100, 1.0)], seed=seed) for seed in range(3)]
    for run, status, beginning in (
        (runs[1], 0, "left out: "),
        (runs[0], 0, "left out: "),
        (runs[2], 2, "error: "),
    ):
        spoil(run)
        assert plot.main([*map(str, runs), "--out", str(tmp_path)]) == status
        told = capsys.readouterr().err
        assert told.startswith(beginning)
        assert str(run) in told
        assert message in told
        for picture in tmp_path.glob("comparison.*"):
            picture.unlink()
    assert told.count("\n") == 1
    with pytest.raises(SACError, match=message):
        read_curves(runs)


def test_a_sweep_is_drawn_while_it_goes_on(make_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(9):
        make_run([(100, 1.0)] if i in (3, 4) else [], seed=i)
    (make_run([]) / "evaluation.csv").write_text("a\n1\n")
    (tmp_path / "run10").mkdir()  # killed before it had its settings
    assert plot.main(["run*"]) == 0
    output = capsys.readouterr()
    assert output.err == (
        "left out: run0, run1, run2 and 4 more: each has no evaluations yet; let it train up to its first "
        "(--eval-every), or leave it out.\n"
        "left out: run10 is not the folder of a run (it has no config.json); give the folder that training printed.\n"
        "left out: the log run9/evaluation.csv is damaged (it has no column step, mean); restore it, or move it away "
        "to go on without it.\n"
    )
    assert output.out.split() == ["comparison.png", "comparison.svg"]
    (curve,) = read_curves(sorted(tmp_path.glob("run*")))
    assert len(curve.returns) == 2


def test_a_run_counts_once_and_none_is_too_few(make_run, tmp_path, capsys):
    run = make_run([(100, 1.0)])
    with pytest.raises(SACError, match="is given more than once"):
        plot_comparison([run, run / ".." / run.name], tmp_path)
    assert plot.main([]) == 2
    assert capsys.readouterr().err.startswith("error: no run to draw")


def test_a_folder_that_cannot_be_made(make_run, tmp_path):
    (tmp_path / "file").touch()
    runs = [make_run([(100, 1.0)]), make_run([(100, 1.0)], seed=1)]
    with pytest.raises(SACError, match=r"cannot make the folder .*file/x"):
        plot_comparison(runs, tmp_path / "file" / "x")


def test_one_run_is_drawn_in_both_formats_where_it_is_told(make_run, tmp_path, capsys):
    run = make_run([(100, 1.0), (200, 2.0)])
    assert plot.main([str(run)]) == 0
    assert plot.main([str(run), "--out", str(tmp_path / "elsewhere")]) == 0
    for folder in (run, tmp_path / "elsewhere"):
        names = {path.name for path in folder.iterdir()} - {"config.json", "evaluation.csv"}
        assert names == {"learning_curve.png", "learning_curve.svg"}
    assert capsys.readouterr().out.count("learning_curve") == 4
