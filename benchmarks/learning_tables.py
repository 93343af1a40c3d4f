"""README's tables of what was learned, from the entries of results/learning.json (learning_results.py)."""

import json
import statistics
from pathlib import Path
from typing import Any

from tables import NONE, OURS, Entry, number

SHOWN = ("default", "notebook's")  # variants, of more than the ablation
STEP, MEAN, MINUTES = 0, 1, 3  # columns of an evaluation
MILESTONES = (50_000, 100_000, 300_000, 1_000_000)


def learning_table(entries: list[Entry]) -> list[str]:
    """By environment: ours with the default and the notebook's settings, Stable-Baselines3's, and those published.

    The last column: after how many minutes on the same machine the mean over seeds first was what
    Stable-Baselines3's was at its end.
    """
    shown = [entry for entry in entries if entry["variant"] in SHOWN]
    environments = list(dict.fromkeys(entry["env"] for entry in shown))
    steps = {step for step in MILESTONES for entry in shown if _at(entry, step)}
    for env in environments:
        steps |= {int(step) for _, scores in published(env) for step in scores}
    columns = sorted(steps)
    lines = [
        "| return per episode | by | seeds | "
        + " | ".join(f"{step:,} steps" for step in columns)
        + " | minutes per 100,000 steps | minutes to SB3's score |",
        "|---|---|---:|" + "---:|" * (len(columns) + 2),
    ]
    for env in environments:
        ours = [entry for entry in shown if entry["env"] == env]
        theirs = {
            _place(entry): mean_curve(entry)[-1][MEAN] for entry in ours if entry["implementation"] == "sb3"
        }
        for entry in ours:
            paces = [run["evaluations"][-1][MINUTES] / run["evaluations"][-1][STEP] for run in entry["runs"]]
            cells = [_mean_and_deviation(_at(entry, step)) for step in columns]
            cells.append(number(100_000 * statistics.median(paces)))
            cells.append(_minutes_to(entry, theirs[_place(entry)]) if _place(entry) in theirs else NONE)
            bold = entry["implementation"] == OURS and entry["variant"] == "default"
            name = f"**{learner(entry)}**" if bold else learner(entry)
            lines.append(f"| {env} | {name} | {len(entry['runs'])} | {' | '.join(cells)} |")
        for reference, scores in published(env):
            cells = [_score(*scores[str(step)]) if str(step) in scores else NONE for step in columns]
            lines.append(
                f"| {env} | {reference['who']} | {reference['seeds'] or NONE} | {' | '.join(cells)} | - | - |"
            )
    return lines


def ablation_table(entries: list[Entry]) -> list[str]:
    """One line per variant of the settings, one column per environment, after as many steps as all of them have."""
    environments = list(dict.fromkeys(entry["env"] for entry in entries if entry["variant"] != "default"))
    ours = [entry for entry in entries if (entry["implementation"], entry["device"]) == ("sacfast", "cpu")]
    cells: dict[str, dict[str, str]] = {}
    steps = {}
    for env in environments:
        rivals = [entry for entry in ours if entry["env"] == env]
        steps[env] = min(run["evaluations"][-1][STEP] for entry in rivals for run in entry["runs"])
        for entry in rivals:
            text = _mean_and_deviation(_at(entry, steps[env]))
            minutes = number(statistics.median(_at(entry, steps[env], MINUTES)))
            cells.setdefault(entry["variant"], {})[env] = f"{text} ({len(entry['runs'])}), {minutes} min"
    lines = [
        "| settings | " + " | ".join(f"{env}, {steps[env]:,} steps" for env in environments) + " |",
        "|---|" + "---:|" * len(environments),
    ]
    for variant, by_env in cells.items():
        lines.append(f"| {variant} | {' | '.join(by_env.get(env, NONE) for env in environments)} |")
    return lines


def published(env: str) -> list[tuple[dict[str, Any], dict[str, list]]]:
    """Who has published scores of any version of `env`, and these, [mean, deviation] by step."""
    name = env.rpartition("-v")[0]
    references = json.loads((Path(__file__).parent / "published.json").read_text())
    return [(reference, reference["scores"][name]) for reference in references if name in reference["scores"]]


def mean_curve(entry: Entry) -> list[list[float]]:
    """[step, mean, deviation, minutes], means over the seeds, evaluation by evaluation as far as all seeds are."""
    together = zip(*(run["evaluations"] for run in entry["runs"]), strict=False)
    return [[statistics.mean(column) for column in zip(*rows, strict=True)] for rows in together]


def _place(entry: Entry) -> tuple:
    """What minutes are of."""
    machine = entry["runs"][0]["machine"]
    return machine["cpu"], machine["cores"], machine.get("gpu")


def side_by_side(entries: list[Entry]) -> str:
    """How many runs shared a machine: "2", and where there was a GPU "5 on the NVIDIA H200"."""
    machines = [run["machine"] for entry in entries for run in entry["runs"]]
    texts = (
        f"{each['side_by_side']}" + (f" on the {each['gpu']}" if "gpu" in each else "") for each in machines
    )
    return ", ".join(dict.fromkeys(texts))


def _minutes_to(entry: Entry, score: float) -> str:
    return next((number(minutes) for _, mean, _, minutes in mean_curve(entry) if mean >= score), NONE)


def learner(entry: Entry) -> str:
    """What learned: an implementation, with the settings and the device where these are not the usual ones."""
    machine = entry["runs"][0]["machine"]
    name = f"Stable-Baselines3 {machine['sb3']}" if entry["implementation"] == "sb3" else OURS
    name += "" if entry["variant"] == "default" else f", {entry['variant']} settings"
    return name if entry["device"] == "cpu" else f"{name}, {machine['gpu']}"


def _at(entry: Entry, step: int, column: int = MEAN) -> list[float]:
    """One number per seed, or none if a seed was not evaluated after this step."""
    values = [row[column] for run in entry["runs"] for row in run["evaluations"] if row[STEP] == step]
    return values if len(values) == len(entry["runs"]) else []


def _mean_and_deviation(scores: list[float]) -> str:
    if not scores:
        return NONE
    return _score(statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else None)


def _score(mean: float, deviation: float | None) -> str:
    digits = 0 if abs(mean) >= 1000 else 1
    return f"{mean:,.{digits}f}" + ("" if deviation is None else f" ± {deviation:,.{digits}f}")
