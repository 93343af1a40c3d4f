"""benchmarks/render.py: README's tables say what the JSON says."""

import importlib
import json
import runpy
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from recorded_runs import ACCURACY, GPU, LEARNING, MACHINE, RUN, TRAIN, learning_entry

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script(benchmarks) -> dict:
    return runpy.run_path(str(benchmarks / "render.py"))


def readme_for(tables: Iterable[str]) -> str:
    marked = (f"<!-- BEGIN table:{name} -->\nold\n<!-- END table:{name} -->\n" for name in tables)
    return "# Title\n\n" + "between\n".join(marked) + "the end\n"


@pytest.fixture
def files(script, tmp_path) -> list[str]:
    """The arguments that name results and a README in a folder of their own."""
    (tmp_path / "cpu.json").write_text(json.dumps(RUN))
    (tmp_path / "train.json").write_text(json.dumps(TRAIN))
    (tmp_path / "robot.json").write_text(json.dumps(TRAIN | {"benchmarks": []}))
    (tmp_path / "accuracy.json").write_text(json.dumps(ACCURACY))
    (tmp_path / "gpu.json").write_text(json.dumps(GPU))
    (tmp_path / "learning.json").write_text(json.dumps(LEARNING))
    (tmp_path / "README.md").write_text(readme_for(script["TABLES"]))
    return ["--results", str(tmp_path), "--readme", str(tmp_path / "README.md")]


def test_tables(script, files, tmp_path):
    assert script["main"](files) == 0
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert (
        "| polyak_ | 64 MiB | 4,568 (4,500 to 4,700) | 9,100 (1.99x) | 4,600 (1.01x) | - | 44.1 (105%) |"
        in lines
    )
    assert "| normal | [256, 7] | 2.20 (2.10 to 2.30) | - | 12.0 (5.45x) | - | - |" in lines
    assert "| ms per update | GFLOP/s (of peak) | **sacfast** | sacfast, bf16 | notebook |" in lines
    ours = "240 (80%) | 2.50 (2.40 to 2.60) | 0.25 (0.10x)"
    assert f"| Pusher-v5, batch 256 | {ours} | 12.0 (4.80x) |" in lines
    assert f"| Pusher-v5, batch 1024 | {ours} | - |" in lines
    assert "| µs of all threads per update | gather | waiting |" in lines
    assert "| Pusher-v5, batch 1024 | 500 (10%) | 4,500 (90%) |" in lines
    assert "| µs per action | again and again | straight after an update |" in lines
    assert "| by hand, eager | 62.0 (20.0x) | 186 (20.0x) |" in lines
    assert (
        "| training loop | steps/s | of the ideal | overlap's speed | default's speed | act | update |"
        in lines
    )
    assert (
        "| HalfCheetah-v5, **sacfast, strict** | 126 (120 to 130) | 87% | 1.04x | 2.00x | 2.1% | 80.0% |"
        in lines
    )
    assert "| HalfCheetah-v5, SB3 | 21.0 (20.0 to 22.0) | 15% | 6.00x | 12.0x | - | - |" in lines
    assert "| 100 transitions | 16.0 (15.0 to 17.0) | 320 (20.0x) |" in lines
    assert "| `bf16` | amx | 8e-02 | 2e-01 | 0.9971 | 0.9800 |" in lines
    assert "| µs per update | TFLOP/s | **sacfast** | by hand, compiled, as a CUDA graph |" in lines
    assert "| Pusher-v5, batch 256 | 3.00 | 200 (190 to 210) | 420 (2.10x) |" in lines
    assert "| copy_ of 1 GiB | 520 (510 to 530) | 4,130 |" in lines
    captions = [line for line in lines if line.startswith("<sub>")]
    assert len(captions) == 16
    for part in (
        "Test CPU, 2 cores",
        "torch 2.13.0+cpu",
        "Python 3.11.4",
        "sacfast 0.1.0 (avx512)",
    ):
        assert all(part in caption for caption in captions)
    *others, other_settings, minutes, fresh, ablation, gpu_ablation = captions
    assert "2025-11-22: Test GPU" in gpu_ablation and "2025-11-21" not in gpu_ablation
    assert "deviation over 3 seeds, which the other table on CPUs has not" in fresh
    assert ablation.startswith("<sub>As above, of 3 seeds.")
    assert all("2025-11-22" in caption for caption in others)
    for caption in (other_settings, minutes, ablation):
        assert "2025-11-21" in caption and "2025-11-22" not in caption
    assert lines[0] == "# Title" and lines[-1] == "the end" and "between" in lines and "old" not in lines


def test_the_first_table_has_a_line_of_each_of_the_others(script, files, tmp_path):
    assert script["main"](files) == 0
    lines = (tmp_path / "README.md").read_text().splitlines()
    begin = lines.index("<!-- BEGIN table:glance -->")
    graph = "by hand, compiled, as a CUDA graph: 420 (2.10x)"
    assert lines[begin + 3 : begin + 8] == [
        "| minutes to a return of 5,300 on HalfCheetah-v5 | **13.0** | 12.5 (0.96x) | - |",
        "| environment steps per second in training, HalfCheetah-v5 | **252** | 21.0 (12.0x) | - |",
        "| ms per update on the CPU, Pusher-v5, batch 256 | **2.50** | - | notebook: 12.0 (4.80x) |",
        f"| µs per update on the GPU, many to a call, Pusher-v5, batch 256 | **200** | - | {graph} |",
        "| µs per action, straight after an update | **9.30** | - | by hand, eager: 186 (20.0x) |",
    ]
    assert "has after 150,000 steps" in lines[begin + 9]


def test_tables_of_learning(script, files, tmp_path):
    """Scores over seeds where all of them got so far, beside what others have published; and the ablation."""
    assert script["main"](files) == 0
    lines = (tmp_path / "README.md").read_text().splitlines()
    columns = "50,000 steps | 100,000 steps | 300,000 steps | 1,000,000 steps"
    assert f"| return per episode | by | seeds | {columns} | minutes for 50,000 steps |" in lines
    assert "| HalfCheetah-v5 | **sacfast** | 2 | 3,500 ± 707 | 6,500 ± 707 | - | - | 6.50 |" in lines
    sb3 = "5,600 | 5,500 | 5,300, after 150,000 | -"
    assert f"| HalfCheetah-v5 | Stable-Baselines3 2.9.2 | 1 | {sb3} | 12.5 |" in lines
    assert "| HalfCheetah-v5 | **sacfast, Test GPU, 1 at once** | 1 | - | - | - | 11,000 | - |" in lines
    theirs = "- | 6,156 ± 700 | 8,593 ± 964 | 11,321 ± 1,051"
    assert f"| HalfCheetah-v5 | SAC of SimbaV2's authors | 10 | {theirs} | - |" in lines
    assert "| Ant-v5 | **sacfast, on 16 cores** | 3 | 600.0 ± 100.0 | - | - | - | 6.00 |" in lines
    assert "| HalfCheetah-v5 | SLM-Lab v5's SAC | 4 | - | - | - | 9,815, after 4,000,000 | - |" in lines
    assert not any("tau 0.01, Test GPU" in line for line in lines)
    others = lines[lines.index("<!-- BEGIN table:learning_others -->") :]
    notebooks = "sacfast, notebook's settings, on 2 cores with avx512 | 1 | 5,550 | - | - | - | 15.0 |"
    assert f"| HalfCheetah-v5 | {notebooks}" in others and not any("SLM-Lab" in line for line in others)
    early = "- | - | -46.5 ± 11.4, after 200,000 | -"
    assert f"| Pusher-v5 | Stable-Baselines3's TD3 | - | {early} | - |" in lines
    learners = "Stable-Baselines3 2.9.2 | sacfast | sacfast, notebook's settings | sacfast, former default"
    assert f"| minutes | {learners} |" in lines
    score = "HalfCheetah-v5, to a mean return of 5,300, its score after 150,000 steps"
    assert f"| {score} | 12.5 | 13.0 (0.96x) | 15.0 (0.83x) | 2.50 (5.00x) |" in lines
    assert "| HalfCheetah-v5, for 150,000 steps | 37.5 | - | - | 7.50 (5.00x) |" in lines
    assert "| settings | Pusher-v5, 50,000 steps |" in lines
    assert lines.count("| default | -37.2 ± 1.0 |") == 1
    assert lines.count("| tau 0.01 | -40.5 ± 0.5 |") == 1
    assert "| default | -36.0 ± 0.0 |" in lines and "| tau 0.01 | -35.0 ± 0.0 |" in lines  # of fresh seeds
    assert "| settings | Hopper-v5, 50,000 steps |" in lines
    assert "| default | 110.0 ± 10.0 |" in lines and "| tau 0.01 | 200.0 ± 0.0 |" in lines
    caption = next(line for line in lines if line.startswith("<sub>The deterministic policy after"))
    for part in (
        "sac.csv",
        "-v4 environments, of which",
        "side by side: 2, 1 or 16 on the Test GPU, 6 on 16 cores.",
        "on 2025-11-21: Test CPU",
    ):
        assert part in caption
    assert (
        "; on 2025-11-22: Test GPU, Test CPU" in caption and "; on 2025-11-23: Test CPU, 16 cores" in caption
    )
    ablation = next(line for line in lines if line.startswith("<sub>As above, of 3 seeds. "))
    assert "2025-11-23" not in ablation  # where nothing but the default was tried
    beside = next(line for line in lines if line.startswith("<sub>Mean over seeds: when"))
    assert "by evaluations every 50,000 steps" in beside and "with 2 runs side by side" in beside


def test_another_task_is_shown_but_not_an_ablation_and_other_kernels_are_named(script):
    tables = importlib.import_module("learning_tables")
    other = MACHINE | {"date": "2025-11-22", "side_by_side": 2, "kernels": "avx2"}
    runs = [[[100_000, 1.0, 0.0, 1.0], [300_000, 2.0, 0.0, 3.0]]] * 3
    default, longer, as_v4 = (
        learning_entry("Ant-v5", rows, variant=variant, machine=machine)["extra_info"]
        for rows, variant, machine in (
            ([rows[:1] for rows in runs], "default", None),
            (runs, "tau 0.01", None),
            (runs, tables.AS_ANT_V4, other),
        )
    )
    entries = [default, longer, as_v4]
    assert tables.ablated(entries, "cpu") == [default, longer]
    lines = tables.ablation_table([default, longer])
    assert lines[0] == "| settings | Ant-v5, 100,000 steps |"  # as far as both of them went
    assert lines[2:] == ["| default | 1.0 ± 0.0 |", "| tau 0.01 | 1.0 ± 0.0 |"]
    # Most are longer than one, which all have got past, and one is not finished.
    unfinished = learning_entry("Ant-v5", [[[50_000, 0.0, 0.0, 1.0]]] * 3, variant="begun")["extra_info"]
    several = [default, default, longer, longer, longer, unfinished]
    assert tables.ablation_table(several)[0] == "| settings | Ant-v5, 100,000 steps |"
    # Where many end there is a column, which the others have no score in.
    many = tables.ablation_table([default, default, *[longer] * 4])
    assert many[0] == "| settings | Ant-v5, 100,000 steps | Ant-v5, 300,000 steps |"
    assert many[2:] == ["| default | 1.0 ± 0.0 | - |", "| tau 0.01 | 1.0 ± 0.0 | 2.0 ± 0.0 |"]
    assert tables.defaults(entries) == [default]
    others = script["TABLES"]["learning_others"]
    learned = others.lines(others.choose(entries))
    assert others.values(others.choose(entries)) == {"side_by_side": "2 on 2 cores with avx2"}
    name = f"sacfast, {tables.AS_ANT_V4}, on 2 cores with avx2"
    assert any(line.startswith(f"| Ant-v5 | {name} | 3 | - | 1.0 ± 0.0 | 2.0 ± 0.0") for line in learned)


def test_seeds_of_several_machines_have_one_score_and_the_minutes_of_the_first_machine(script):
    tables = importlib.import_module("learning_tables")
    rows = [[[50_000, score, 0.0, minutes]] for score, minutes in ((10.0, 1.0), (20.0, 3.0), (60.0, 30.0))]
    mixed, peer = (
        learning_entry("Ant-v5", rows, implementation=learner)["extra_info"] for learner in ("sacfast", "sb3")
    )
    slower = mixed["runs"][2]["machine"] | {"kernels": "avx2", "side_by_side": 3}
    mixed["runs"][2]["machine"] = slower
    for lines in (tables.learning_table([mixed]), tables.learning_table([peer, mixed])):
        assert any(line.startswith("| Ant-v5 | **sacfast** | 3 | 30.0 ± 26.5 |") for line in lines)
        assert any(line.endswith(" | 2.00 |") for line in lines)
    assert "**sacfast, on 2 cores with avx512** | 3 |" in "".join(tables.others_table([mixed]))
    assert tables.side_by_side([mixed]) == "2, 3 on 2 cores with avx2"
    assert tables.beside_peers([mixed]) == []
    with pytest.raises(ValueError, match="Ant-v5, default: seeds of different machines"):
        tables.beside_peers([mixed, peer])


def test_the_former_default_is_shown_where_it_was_trained_for_longer(script):
    tables = importlib.import_module("learning_tables")
    rows = [[100_000, 1.0, 0.0, 1.0], [300_000, 2.0, 0.0, 3.0]]
    as_v4 = f"{tables.FORMER}, {tables.AS_ANT_V4}"
    entries = [
        learning_entry(env, [rows[:length]], variant=variant, device=device, implementation=learner)[
            "extra_info"
        ]
        for env, device, variant, length, learner in (
            ("Ant-v5", "cpu", "default", 2, "sacfast"),
            ("Ant-v5", "cpu", tables.FORMER, 2, "sacfast"),
            ("Ant-v5", "cpu", as_v4, 2, "sacfast"),
            ("Ant-v5", "cuda", tables.FORMER, 1, "sacfast"),
            ("Ant-v5", "cpu", "default", 1, "sb3"),
            ("Hopper-v5", "cpu", "default", 1, "sacfast"),
            ("Hopper-v5", "cpu", tables.FORMER, 2, "sacfast"),
            ("Hopper-v5", "cpu", f"{tables.FORMER}, tau 0.01", 2, "sacfast"),
        )
    ]
    assert tables.defaults(entries) == [entries[i] for i in (0, 4, 5)]
    assert tables.other_settings(entries) == [entries[i] for i in (2, 3, 6)]


def test_check_sees_a_stale_readme_and_leaves_it(script, files, tmp_path, capsys):
    before = (tmp_path / "README.md").read_text()
    assert script["main"]([*files, "--check"]) == 1
    assert (tmp_path / "README.md").read_text() == before
    assert "is stale; run: python benchmarks/render.py" in capsys.readouterr().err
    assert script["main"](files) == 0
    assert script["main"]([*files, "--check"]) == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("<!-- END table:update -->\n", ""),
        lambda text: text.replace("BEGIN table:update", "BEGIN table:updates"),
        lambda text: text + text,
    ],
)
def test_missing_or_repeated_markers(script, files, tmp_path, capsys, damage):
    readme = tmp_path / "README.md"
    damaged = damage(readme.read_text())
    readme.write_text(damaged)
    assert script["main"](files) == 2
    assert "README needs the lines <!-- BEGIN table:" in capsys.readouterr().err
    assert readme.read_text() == damaged


def test_a_run_of_some_benchmarks_only(script, files, tmp_path, capsys):
    (tmp_path / "cpu.json").write_text(json.dumps(RUN | {"benchmarks": RUN["benchmarks"][:2]}))
    assert script["main"](files) == 2
    assert "no benchmark for table update; run all" in capsys.readouterr().err


def test_no_run_yet(script, files, tmp_path, capsys):
    (tmp_path / "cpu.json").unlink()
    assert script["main"](files) == 2
    assert "render.py --help says how to make it" in capsys.readouterr().err


def test_what_is_written_again_keeps_its_day(files, benchmarks, tmp_path):
    """gpu.py --only measures some entries anew, and writes the others once more."""
    records = importlib.import_module("records")
    days = []
    for _ in range(2):
        entries = records.read_results(tmp_path / "gpu.json")
        days.append([machine["date"] for entry in entries for machine in records.machines(entry)])
        records.write_results(tmp_path / "gpu.json", entries)
    assert days[0] and days[0] == days[1]
    assert datetime.now(timezone.utc).date().isoformat() not in days[0]


RESULT = ROOT / "benchmarks" / "results" / "cpu.json"
RECORDED = [
    RESULT.with_name(f"{name}.json") for name in ("cpu", "train", "robot", "accuracy", "gpu", "learning")
]


@pytest.mark.skipif(
    not all(path.exists() for path in RECORDED), reason="benchmarks/results/ holds no recorded runs"
)
@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="README.md is not beside tests/")
def test_readme_is_up_to_date(script):
    assert script["main"](["--check"]) == 0


@pytest.mark.skipif(not RESULT.exists(), reason="benchmarks/results/cpu.json is absent: no run is recorded")
@pytest.mark.parametrize("path", RECORDED[:3], ids=lambda path: path.name)
def test_the_recorded_run_is_anonymous(script, path):
    content = json.loads(path.read_text())
    assert content["commit_info"] == {}
    assert (
        set(MACHINE)
        <= set(content["machine_info"])
        <= set(MACHINE) | set(importlib.import_module("records").PACKAGES) | {"date"}
    )
    assert all("data" not in benchmark["stats"] for benchmark in content["benchmarks"])
