"""Gathers finished runs of sacfast.train into results/training.json and a learning curve.

    python -m sacfast.train --engine native --seed 0        # and other engines, seeds and environments
    python benchmarks/training.py runs/*/*
    python benchmarks/render.py

Runs of one environment and engine must be of one length. The curve shows every evaluation of the first one given.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import numpy as np
from race import describe_machine

from sacfast.errors import SACError
from sacfast.logger import read_csv
from sacfast.runs import read_config

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
        "engine": config.engine,
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


def draw(groups: dict[str, list[dict]], path: Path) -> None:
    """One environment's evaluations: by engine, each seed and the mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for color, (engine, runs) in zip(("tab:blue", "tab:orange", "tab:green"), groups.items(), strict=False):
        curves = [np.array(run["evaluations"]) for run in runs]
        for curve in curves:
            axes.plot(curve[:, 0], curve[:, 1], color=color, alpha=0.35, linewidth=1)
        mean = np.mean([curve[:, 1] for curve in curves], axis=0)
        minutes = np.median([run["minutes"] for run in runs])
        label = f"{engine}, mean of {len(runs)} seeds, {minutes:.1f} minutes"
        axes.plot(curves[0][:, 0], mean, color=color, linewidth=2.5, marker="o", label=label)
    run = next(iter(groups.values()))[0]
    for name, style in (("zero", "--"), ("random", ":")):
        score = run["baselines"][name]
        axes.axhline(
            score, color="black", linestyle=style, linewidth=1.2, label=f"{name} actions ({score:.0f})"
        )
    axes.set(
        title=f"{run['env']}, deterministic policy",
        xlabel="environment steps",
        ylabel=f"return per episode (mean of {run['episodes']})",
    )
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def group(runs: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """By environment, then by engine, in the order given; by seed within. Raises SACError where lengths differ."""
    groups: dict[str, dict[str, list[dict]]] = {}
    for run in runs:
        groups.setdefault(run["env"], {}).setdefault(run["engine"], []).append(run)
    for env, engines in groups.items():
        if len({run["steps"] for same in engines.values() for run in same}) > 1:
            raise SACError(f"the runs of {env} differ in length; give those of one length")
        for same in engines.values():
            same.sort(key=lambda run: run["seed"])
    return groups


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Gather finished runs for README.")
    parser.add_argument("runs", type=Path, nargs="+")
    args = parser.parse_args(argv)
    try:
        groups = group([gather(folder) for folder in args.runs])
    except SACError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    machine = describe_machine()
    entries = [
        {"table": "training", "machine": machine, "runs": runs}
        for engines in groups.values()
        for runs in engines.values()
    ]
    content = {
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "benchmarks": [{"extra_info": entry} for entry in entries],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training.json").write_text(json.dumps(content, indent=1) + "\n")
    draw(next(iter(groups.values())), RESULTS / "learning_curve.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
