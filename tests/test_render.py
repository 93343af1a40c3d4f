"""benchmarks/render.py: README's tables say what the JSON says."""

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "render.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks/ is not beside tests/")


@pytest.fixture(scope="module")
def script() -> Iterator[dict]:
    sys.path.insert(0, str(SCRIPT.parent))
    yield runpy.run_path(str(SCRIPT))
    sys.path.remove(str(SCRIPT.parent))


MACHINE = {
    "cpu": "Test CPU",
    "cores": 2,
    "system": "Linux x86_64",
    "python": "3.11.4",
    "torch": "2.13.0+cpu",
    "compiler": "c++ 12.2.0",
    "sacfast": "0.1.0",
    "kernels": "avx512",
}


def entry(table: str, operation: str, shape: str, contestants: dict, **details: dict) -> dict:
    info = {
        "table": table,
        "operation": operation,
        "shape": shape,
        "threads": 2,
        "machine": MACHINE,
        **details,
    }
    return {"name": "test", "stats": {"median": 1e-6}, "extra_info": info | {"contestants": contestants}}


RUN = {
    "datetime": "2025-11-22T17:00:00+00:00",
    "benchmarks": [
        entry(
            "operators",
            "polyak_",
            "64 MiB",
            {
                "sacfast": {"us": [4500.0, 4567.8, 4700.0], "gb_per_s": 44.1},
                "usual": {"us": [9000.0, 9100.0, 9200.0], "ratio": [1.9, 1.99, 2.1], "gb_per_s": 22.0},
                "eager": {"us": [4400.0, 4600.0, 4700.0], "ratio": [0.9, 1.01, 1.1], "gb_per_s": 43.0},
                "stream": {"us": [3000.0, 3050.0, 3100.0], "gb_per_s": 42.0},
            },
        ),
        entry(
            "operators",
            "normal",
            "[256, 7]",
            {
                "sacfast": {"us": [2.1, 2.2, 2.3]},
                "eager": {"us": [11.0, 12.0, 13.0], "ratio": [5.1, 5.454, 5.6]},
            },
        ),
        *(
            entry(
                "update",
                "SAC update",
                shape,
                {
                    "sacfast": {"us": [2400.0, 2500.0, 2600.0], "gflop_per_s": 240.0},
                    "bf16": {"us": [240.0, 250.0, 260.0], "ratio": [0.09, 0.1, 0.11], "gflop_per_s": 2400.0},
                    **rivals,
                },
                peak_gflop_per_s={"float32": 300.0},
                phases_us={"gather": 500.0, "waiting": 4500.0},
            )
            for shape, rivals in {
                "Pusher-v5, batch 256": {
                    "notebook": {"us": [11e3, 12e3, 13e3], "ratio": [4.7, 4.8, 4.9], "gflop_per_s": 50.0}
                },
                "Pusher-v5, batch 1024": {},
            }.items()
        ),
        entry(
            "action",
            "one action",
            "again and again",
            {
                "sacfast": {"us": [3.0, 3.1, 3.2]},
                "eager": {"us": [60.0, 62.0, 64.0], "ratio": [19.0, 20.0, 21.0]},
            },
        ),
    ],
}


ACCURACY = {
    "datetime": "2025-11-22T18:00:00+00:00",
    "benchmarks": [
        {
            "extra_info": {
                "table": "precision",
                "machine": MACHINE,
                "updates": 2000,
                "rows": [
                    {
                        "path": "amx",
                        "precision": "bf16",
                        "error": {"critic": 0.0812, "actor": 0.2},
                        "cosine": {"critic": 0.99712, "actor": 0.98},
                    }
                ],
            }
        }
    ],
}

GPU = {
    "datetime": "2025-11-22T18:00:00+00:00",
    "benchmarks": [
        {
            "extra_info": {
                "table": "gpu_operators",
                "machine": MACHINE | {"gpu": "Test GPU"},
                "operators": {"copy_ of 1 GiB": {"us": [510.0, 520.0, 530.0], "gb_per_s": 4130.0}},
            }
        },
        entry(
            "gpu_update",
            "SAC update",
            "Pusher-v5, batch 256",
            {
                "sacfast": {"us": [190.0, 200.0, 210.0]},
                "graph": {"us": [400.0, 420.0, 440.0], "ratio": [2.0, 2.1, 2.2]},
            },
            flop=600_000_000,
        ),
    ],
}

LOOP = {
    "steps_per_s": [120.0, 125.5, 130.0],
    "ratio": [1.01, 1.04, 1.1],
    "default_ratio": [1.9, 2.0, 2.1],
    "of_ideal": [0.8, 0.87, 0.9],
    "stages": {"act": 0.021, "update": 0.8},
}
TRAIN = {
    "datetime": "2025-11-22T18:00:00+00:00",
    "benchmarks": [
        {
            "extra_info": {
                "table": "loop",
                "shape": "HalfCheetah-v5",
                "machine": MACHINE,
                "threads": 2,
                "steps": 1500,
                "rounds": 4,
                "loops": {
                    "strict": LOOP,
                    "sb3": {
                        "steps_per_s": [20.0, 21.0, 22.0],
                        "ratio": [5.9, 6.0, 6.2],
                        "default_ratio": [11.0, 12.0, 13.0],
                        "of_ideal": [0.1, 0.15, 0.2],
                    },
                },
            }
        },
        entry(
            "checkpoint",
            "checkpoint",
            "100 transitions",
            {
                "sacfast": {"us": [15_000.0, 16_000.0, 17_000.0]},
                "whole": {"us": [300_000.0, 320_000.0, 340_000.0], "ratio": [18.0, 20.0, 22.0]},
            },
        ),
    ],
}


def learning_entry(
    env: str, runs: list[list[list[float]]], *, machine: dict | None = None, **details
) -> dict:
    machine = machine or MACHINE | {"date": "2025-11-21", "side_by_side": 2, "sb3": "2.9.2"}
    info = {
        "table": "learning",
        "env": env,
        "implementation": "sacfast",
        "variant": "default",
        "device": "cpu",
        "episodes": 10,
        "runs": [{"seed": seed, "machine": machine, "evaluations": rows} for seed, rows in enumerate(runs)],
    }
    return {"extra_info": info | details}


# step, mean, deviation over episodes, minutes
LEARNING = {
    "datetime": "2025-11-22T18:00:00+00:00",
    "benchmarks": [
        learning_entry(
            "HalfCheetah-v5",
            [
                [[50_000, 3000.0, 50.0, 6.0], [100_000, 6000.0, 50.0, 12.0], [300_000, 8000.0, 60.0, 36.0]],
                [[50_000, 4000.0, 50.0, 7.0], [100_000, 7000.0, 50.0, 14.0]],
            ],
        ),
        learning_entry(
            "HalfCheetah-v5",
            [[[50_000, 5600.0, 50.0, 12.5], [100_000, 5500.5, 50.0, 25.0], [150_000, 5300.0, 50.0, 37.5]]],
            implementation="sb3",
        ),
        learning_entry("HalfCheetah-v5", [[[50_000, 5550.0, 9.0, 15.0]]], variant="notebook's"),
        learning_entry("HalfCheetah-v5", [[[50_000, 5650.0, 9.0, 2.5]]], variant="batches of 64"),
        learning_entry(
            "HalfCheetah-v5",
            [[[1_000_000, 11000.0, 50.0, 50.0]]],
            device="cuda",
            machine=MACHINE | {"date": "2025-11-22", "side_by_side": 1, "gpu": "Test GPU"},
        ),
        *(
            learning_entry(
                "HalfCheetah-v5",
                [[[step, 5000.0, 50.0, 50.0]]],
                device="cuda",
                variant=variant,
                machine=MACHINE | {"date": "2025-11-22", "side_by_side": 5, "gpu": "Test GPU"},
            )
            for variant, step in (("obs_epsilon 1e-8", 2_000_000), ("tau 0.01", 3_000_000))
        ),
        learning_entry("Hopper-v5", [[[50_000, 70.0, 5.0, 6.0]]], variant="obs_epsilon 1e-8"),
        learning_entry("Pusher-v5", [[[50_000, score, 5.0, 6.0]] for score in (-38.25, -36.25, -37.25)]),
        learning_entry(
            "Pusher-v5", [[[50_000, score, 5.0, 6.0]] for score in (-40.0, -41.0, -40.5)], variant="tau 0.01"
        ),
        learning_entry("HalfCheetah-v5", [[[50_000, 2000.0, 5.0, 6.0]]] * 2, variant="tau 0.01"),
        *(
            learning_entry(
                "Hopper-v5",
                [[[50_000, score, 5.0, 1.0]] for score in scores],
                device="cuda",
                variant=variant,
                machine=MACHINE | {"date": "2025-11-22", "side_by_side": 16, "gpu": "Test GPU"},
            )
            for variant, scores in (("default", (100.0, 110.0, 120.0)), ("tau 0.01", (200.0, 200.0, 200.0)))
        ),
        learning_entry(
            "Ant-v5",
            [
                [[10_000, 100.0, 5.0, 1.0], [50_000, 500.0, 5.0, 5.0]],
                [[50_000, 700.0, 5.0, 7.0], [100_000, 900.0, 5.0, 9.0]],
                [[25_000, 1.0, 5.0, 2.0], [50_000, 600.0, 5.0, 6.0], [75_000, 1.0, 5.0, 9.0]],
            ],
            machine=MACHINE | {"date": "2025-11-23", "side_by_side": 6, "cores": 16},
        ),
    ],
}

README = """# Title

<!-- BEGIN table:operators -->
old
<!-- END table:operators -->
between
<!-- BEGIN table:update -->
<!-- END table:update -->
<!-- BEGIN table:phases -->
<!-- END table:phases -->
<!-- BEGIN table:action -->
<!-- END table:action -->
<!-- BEGIN table:loop -->
<!-- END table:loop -->
<!-- BEGIN table:checkpoint -->
<!-- END table:checkpoint -->
<!-- BEGIN table:precision -->
<!-- END table:precision -->
<!-- BEGIN table:gpu_update -->
<!-- END table:gpu_update -->
<!-- BEGIN table:gpu_operators -->
<!-- END table:gpu_operators -->
<!-- BEGIN table:learning -->
<!-- END table:learning -->
<!-- BEGIN table:learning_minutes -->
<!-- END table:learning_minutes -->
<!-- BEGIN table:ablation -->
<!-- END table:ablation -->
<!-- BEGIN table:gpu_ablation -->
<!-- END table:gpu_ablation -->
the end
"""


@pytest.fixture
def files(tmp_path) -> list[str]:
    """The arguments that name results and a README in a folder of their own."""
    (tmp_path / "cpu.json").write_text(json.dumps(RUN))
    (tmp_path / "train.json").write_text(json.dumps(TRAIN))
    (tmp_path / "accuracy.json").write_text(json.dumps(ACCURACY))
    (tmp_path / "gpu.json").write_text(json.dumps(GPU))
    (tmp_path / "learning.json").write_text(json.dumps(LEARNING))
    (tmp_path / "README.md").write_text(README)
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
    assert "| µs per action | again and again |" in lines
    assert "| by hand, eager | 62.0 (20.0x) |" in lines
    assert "| training loop | steps/s | of the ideal | overlap is | default is | act | update |" in lines
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
    assert len(captions) == 13
    for part in (
        "Test CPU, 2 cores",
        "torch 2.13.0+cpu",
        "Python 3.11.4",
        "sacfast 0.1.0 (avx512)",
    ):
        assert all(part in caption for caption in captions)
    *others, minutes, ablation, gpu_ablation = captions
    assert "2025-11-22: Test GPU" in gpu_ablation and "2025-11-21" not in gpu_ablation
    assert all("2025-11-22" in caption for caption in others)
    assert all("2025-11-21" in caption and "2025-11-22" not in caption for caption in (minutes, ablation))
    assert lines[0] == "# Title" and lines[-1] == "the end" and "between" in lines and "old" not in lines


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
    further = "sacfast, obs_epsilon 1e-8, Test GPU, 5 at once | 1 | - | - | - | 5,000, after 2,000,000 | - |"
    assert f"| HalfCheetah-v5 | {further}" in lines
    assert (
        sum(line.startswith("| Hopper-v5 | sacfast") for line in lines) == 0
    )  # no default went less far there
    early = "- | - | -46.5 ± 11.4, after 200,000 | -"
    assert f"| Pusher-v5 | Stable-Baselines3's TD3 | - | {early} | - |" in lines
    learners = "Stable-Baselines3 2.9.2 | sacfast | sacfast, notebook's settings | sacfast, batches of 64"
    assert f"| minutes to a mean return of | {learners} |" in lines
    assert (
        "| HalfCheetah-v5: 5,300, its score after 150,000 steps | 12.5 | 13.0 (0.96x) | 15.0 (0.83x) | 2.50 (5.00x) |"
        in lines
    )
    assert "| HalfCheetah-v5: 5,600, its best | 12.5 | 13.0 (0.96x) | - | 2.50 (5.00x) |" in lines
    assert "| settings | Pusher-v5, 50,000 steps |" in lines
    assert "| default | -37.2 ± 1.0 |" in lines
    assert "| tau 0.01 | -40.5 ± 0.5 |" in lines
    assert "| settings | Hopper-v5, 50,000 steps |" in lines
    assert "| default | 110.0 ± 10.0 |" in lines and "| tau 0.01 | 200.0 ± 0.0 |" in lines
    caption = next(line for line in lines if line.startswith("<sub>The deterministic policy after"))
    for part in (
        "sac.csv",
        "-v4 environments, of which",
        "side by side: 2, 1 on the Test GPU, 5 on the Test GPU, 16 on the Test GPU, 6 on 16 cores.",
        "on 2025-11-21: Test CPU",
    ):
        assert part in caption
    assert (
        "; on 2025-11-22: Test GPU, Test CPU" in caption and "; on 2025-11-23: Test CPU, 16 cores" in caption
    )
    ablation = next(line for line in lines if line.startswith("<sub>sacfast with the settings changed"))
    assert "2025-11-23" not in ablation  # where nothing but the default was tried
    beside = next(line for line in lines if line.startswith("<sub>When the mean over seeds"))
    assert "by evaluations every 50,000 steps" in beside and "with 2 runs side by side" in beside


def test_check_sees_a_stale_readme_and_leaves_it(script, files, tmp_path, capsys):
    assert script["main"]([*files, "--check"]) == 1
    assert (tmp_path / "README.md").read_text() == README
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
    (tmp_path / "README.md").write_text(damage(README))
    assert script["main"](files) == 2
    assert "README needs the lines <!-- BEGIN table:" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == damage(README)


def test_a_run_of_some_benchmarks_only(script, files, tmp_path, capsys):
    (tmp_path / "cpu.json").write_text(json.dumps(RUN | {"benchmarks": RUN["benchmarks"][:2]}))
    assert script["main"](files) == 2
    assert "no benchmark for table update; run all" in capsys.readouterr().err


def test_no_run_yet(script, files, tmp_path, capsys):
    (tmp_path / "cpu.json").unlink()
    assert script["main"](files) == 2
    assert "render.py --help says how to make it" in capsys.readouterr().err


RESULT = ROOT / "benchmarks" / "results" / "cpu.json"
RECORDED = [RESULT.with_name(f"{name}.json") for name in ("cpu", "train", "accuracy", "gpu", "learning")]


@pytest.mark.skipif(
    not all(path.exists() for path in RECORDED), reason="benchmarks/results/ holds no recorded runs"
)
@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="README.md is not beside tests/")
def test_readme_is_up_to_date(script):
    assert script["main"](["--check"]) == 0


@pytest.mark.skipif(not RESULT.exists(), reason="benchmarks/results/cpu.json is absent: no run is recorded")
@pytest.mark.parametrize("path", RECORDED[:2], ids=lambda path: path.name)
def test_the_recorded_run_is_anonymous(path):
    content = json.loads(path.read_text())
    assert content["commit_info"] == {}
    assert set(content["machine_info"]) == set(MACHINE)
    assert all("data" not in benchmark["stats"] for benchmark in content["benchmarks"])
