"""What benchmarks might have written to results/, for the tests of what becomes of it."""

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
        *(
            entry(
                "action",
                "one action",
                when,
                {
                    "sacfast": {"us": [3.0 * times, 3.1 * times, 3.2 * times]},
                    "eager": {"us": [60.0 * times, 62.0 * times, 64.0 * times], "ratio": [19.0, 20.0, 21.0]},
                },
            )
            for when, times in (("again and again", 1), ("straight after an update", 3))
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
                    "default settings": LOOP
                    | {"steps_per_s": [250.0, 252.0, 255.0], "default_ratio": [1.0, 1.0, 1.0]},
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
    machine = machine or MACHINE | {"date": "2025-11-21", "side_by_side": 2, "stable-baselines3": "2.9.2"}
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
        learning_entry(
            "HalfCheetah-v5",
            [[[50_000, 5650.0, 9.0, 2.5], [150_000, 5640.0, 9.0, 7.5]]],
            variant="former default",
        ),
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
        *(
            learning_entry("Pusher-v5", [[[50_000, score, 5.0, 6.0]]] * 3, variant=f"{variant}, fresh seeds")
            for variant, score in (("default", -36.0), ("tau 0.01", -35.0))
        ),
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
