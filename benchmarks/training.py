"""Gathers finished runs of sacfast.train into results/training.json and a learning curve.

    python -m sacfast.train --seed 0        # and other seeds
    python benchmarks/training.py runs/Pusher-v5/*
    python benchmarks/render.py

All runs must be of one environment and one length. The curve shows every run's evaluations, with the mean over runs.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import numpy as np
from race import describe_machine

from sacfast.errors import SACError
from sacfast.evaluate import read_config
from sacfast.logger import read_csv

RESULTS = Path(__file__).resolve().parent / "results"


def gather(folder: Path) -> dict:
    """One finished run: its seed, scores, minutes of training and evaluations. Raises SACError if it is unfinished."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except OSError:
        raise SACError(
            f"{folder} has no summary.json: let the run finish, with --resume if need be"
        ) from None
    config = read_config(folder)
    return {
        "env": config.env,
        "steps": config.steps,
        "seed": config.seed,
        "threads": config.threads,
        "minutes": read_csv(folder / "progress.csv")[-1]["elapsed_s"] / 60,
        "score": {name: summary["score"][name] for name in ("mean", "std")},
        "episodes": len(summary["score"]["returns"]),
        "baselines": {name: value["mean"] for name, value in summary["baselines"].items()},
        "evaluations": [
            [row["step"], row["mean"], row["std"]] for row in read_csv(folder / "evaluation.csv")
        ],
    }


def draw(runs: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    curves = [np.array(run["evaluations"]) for run in runs]
    for i, curve in enumerate(curves):
        label = "each seed" if i == 0 else None
        axes.plot(curve[:, 0], curve[:, 1], color="tab:blue", alpha=0.4, linewidth=1, label=label)
    mean = np.mean([curve[:, 1] for curve in curves], axis=0)
    axes.plot(
        curves[0][:, 0], mean, color="tab:blue", linewidth=2.5, marker="o", label=f"mean of {len(runs)} seeds"
    )
    for name, style in (("zero", "--"), ("random", ":")):
        score = runs[0]["baselines"][name]
        axes.axhline(
            score, color="black", linestyle=style, linewidth=1.2, label=f"{name} actions ({score:.0f})"
        )
    axes.set(
        title=f"{runs[0]['env']}, deterministic policy",
        xlabel="environment steps",
        ylabel=f"return per episode (mean of {runs[0]['episodes']})",
    )
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Gather finished runs for README.")
    parser.add_argument("runs", type=Path, nargs="+")
    args = parser.parse_args(argv)
    try:
        runs = sorted((gather(folder) for folder in args.runs), key=lambda run: run["seed"])
    except SACError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if len({(run["env"], run["steps"]) for run in runs}) > 1:
        print("error: the runs differ in environment or length; give those of one kind", file=sys.stderr)
        return 2
    content = {
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "benchmarks": [{"extra_info": {"table": "training", "machine": describe_machine(), "runs": runs}}],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training.json").write_text(json.dumps(content, indent=1) + "\n")
    draw(runs, RESULTS / "learning_curve.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
