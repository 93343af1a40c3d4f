"""Renders README's tables from the JSON of a benchmark run.

    pytest benchmarks --benchmark-json=benchmarks/results/cpu.json
    pytest benchmarks/bench_train.py benchmarks/bench_checkpoint.py --benchmark-json=benchmarks/results/train.json
    python benchmarks/accuracy.py          # results/accuracy.json
    python benchmarks/learning.py TABLE... # results/learning.json
    python benchmarks/render.py            # rewrites the tables between README's markers
    python benchmarks/render.py --check    # exits with 1 if README is not what the JSON gives

The markers are lines of their own for each of TABLES: <!-- BEGIN table:NAME --> and <!-- END table:NAME -->
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OURS = "sacfast"
NONE = "-"

Entry = dict[str, Any]  # one benchmark's extra_info


class RenderError(Exception):
    """The JSON or the README is not what it should be; the message says what to do."""


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def with_range(quartiles: list[float], scale: float = 1.0) -> str:
    """median (first quartile to third quartile)"""
    low, median, high = (number(value * scale) for value in quartiles)
    return f"{median} ({low} to {high})"


def operators_table(entries: list[Entry]) -> list[str]:
    """One line per operation and shape: ours, then each baseline with how many times longer it takes."""
    lines = [
        "| µs per call | shape | sacfast | usual eager | fastest eager | torch.compile | GB/s (of stream) |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for entry in entries:
        results = entry["contestants"]
        cells = [with_range(results[OURS]["us"])]
        cells += [_baseline(results.get(role)) for role in ("usual", "eager", "compiled")]
        cells.append(_bandwidth(results))
        lines.append(f"| {entry['operation']} | {entry['shape']} | {' | '.join(cells)} |")
    return lines


def _baseline(result: dict[str, Any] | None) -> str:
    if result is None:
        return NONE
    return f"{number(result['us'][1])} ({number(result['ratio'][1])}x)"


def _bandwidth(results: dict[str, Any]) -> str:
    if "stream" not in results:
        return NONE
    ours, stream = results[OURS]["gb_per_s"], results["stream"]["gb_per_s"]
    return f"{number(ours)} ({ours / stream:.0%})"


ROLES = {
    OURS: "**sacfast**",
    "avx512": "sacfast, AVX-512",
    "bf16x3": "sacfast, bf16x3",
    "bf16": "sacfast, bf16",
    "reference": "reference",
    "notebook": "notebook",
    "eager": "by hand, eager",
    "compiled": "by hand, compiled",
    "sb3": "SB3",
    "sbx": "SBX",
}


def _roles(entries: list[Entry]) -> list[str]:
    """Those that took part in any of the races, in the order of ROLES."""
    return [role for role in ROLES if any(role in entry["contestants"] for entry in entries)]


def update_table(entries: list[Entry]) -> list[str]:
    """One line per shape, one column per implementation; ours with GFLOP/s and its share of the peak."""
    roles = _roles(entries)
    lines = [
        "| ms per update | GFLOP/s (of peak) | " + " | ".join(ROLES[role] for role in roles) + " |",
        "|---|---:|" + "---:|" * len(roles),
    ]
    for entry in entries:
        results = entry["contestants"]
        rate, peak = results[OURS]["gflop_per_s"], entry["peak_gflop_per_s"]["float32"]
        cells = [entry["shape"], f"{number(rate)} ({rate / peak:.0%})"]
        cells += [_time_and_ratio(results.get(role), 1e-3) for role in roles]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _time_and_ratio(result: dict[str, Any] | None, scale: float) -> str:
    if result is None:
        return NONE
    if "ratio" not in result:
        return with_range(result["us"], scale)
    return f"{number(result['us'][1] * scale)} ({number(result['ratio'][1])}x)"


def phases_table(entries: list[Entry]) -> list[str]:
    """One line per shape, one column per phase of the native update: microseconds of all threads, and the share."""
    phases = list(entries[0]["phases_us"])
    lines = [
        "| µs of all threads per update | " + " | ".join(phases) + " |",
        "|---|" + "---:|" * len(phases),
    ]
    for entry in entries:
        total = sum(entry["phases_us"].values())
        cells = [f"{number(us)} ({us / total:.0%})" for us in entry["phases_us"].values()]
        lines.append(f"| {entry['shape']} | {' | '.join(cells)} |")
    return lines


def action_table(entries: list[Entry]) -> list[str]:
    """One line per implementation; again and again, and straight after an update."""
    lines = [
        "| µs per action | " + " | ".join(entry["shape"] for entry in entries) + " |",
        "|---|" + "---:|" * len(entries),
    ]
    for role in _roles(entries):
        cells = [_time_and_ratio(entry["contestants"].get(role), 1.0) for entry in entries]
        lines.append(f"| {ROLES[role]} | {' | '.join(cells)} |")
    return lines


def loop_table(entries: list[Entry]) -> list[str]:
    """One line per environment and loop: its pace, how near that is to the ideal, and where its time goes."""
    stages = list(entries[0]["loops"]["strict"]["stages"])
    lines = [
        f"| training loop | steps/s | of the ideal | overlap is | {' | '.join(stages)} |",
        "|---|---:|---:|---:|" + "---:|" * len(stages),
    ]
    for entry in entries:
        for role, loop in entry["loops"].items():
            name = ROLES.get(role, f"**sacfast, {role}**")
            cells = [
                f"{entry['shape']}, {name}",
                with_range(loop["steps_per_s"]),
                f"{loop['of_ideal'][1]:.0%}",
            ]
            cells.append(f"{number(loop['ratio'][1])}x")
            cells += [f"{loop['stages'][stage]:.1%}" if "stages" in loop else NONE for stage in stages]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def checkpoint_table(entries: list[Entry]) -> list[str]:
    """One line per size of the replay buffer."""
    lines = ["| ms per checkpoint | what is new | everything, in one file |", "|---|---:|---:|"]
    for entry in entries:
        cells = [_time_and_ratio(entry["contestants"][role], 1e-3) for role in (OURS, "whole")]
        lines.append(f"| {entry['shape']} | {' | '.join(cells)} |")
    return lines


def precision_table(entries: list[Entry]) -> list[str]:
    """One line per precision and path: the error of either network's gradient, and the angle where it matters."""
    (entry,) = entries
    lines = [
        "| gradient's relative error | arithmetic | critics | actor | cosine, critics | cosine, actor |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in entry["rows"]:
        cells = [f"`{row['precision']}`", row["path"]]
        cells += [f"{row['error'][name]:.0e}" for name in ("critic", "actor")]
        cells += [f"{row['cosine'][name]:.4f}" for name in ("critic", "actor")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def learning_table(entries: list[Entry]) -> list[str]:
    """By environment: ours with the default and the notebook's settings, Stable-Baselines3's, and those published.

    The last column: after how many minutes the mean over seeds first was what Stable-Baselines3's was at its end.
    """
    shown = [entry for entry in entries if entry["variant"] in SHOWN]
    environments = list(dict.fromkeys(entry["env"] for entry in shown))
    steps = {step for step in MILESTONES for entry in shown if _scores_at(entry, step)}
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
        theirs = [mean_curve(entry)[-1][1] for entry in ours if entry["implementation"] == "sb3"]
        for entry in ours:
            paces = [run["evaluations"][-1][3] / run["evaluations"][-1][0] for run in entry["runs"]]
            cells = [_mean_and_deviation(_scores_at(entry, step)) for step in columns]
            cells.append(number(100_000 * statistics.median(paces)))
            cells.append(_minutes_to(entry, theirs[0]) if theirs else NONE)
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
        steps[env] = min(run["evaluations"][-1][0] for entry in rivals for run in entry["runs"])
        for entry in rivals:
            text = _mean_and_deviation(_scores_at(entry, steps[env]))
            cells.setdefault(entry["variant"], {})[env] = f"{text} ({len(entry['runs'])})"
    lines = [
        "| settings | " + " | ".join(f"{env}, {steps[env]:,} steps" for env in environments) + " |",
        "|---|" + "---:|" * len(environments),
    ]
    for variant, by_env in cells.items():
        lines.append(f"| {variant} | {' | '.join(by_env.get(env, NONE) for env in environments)} |")
    return lines


SHOWN = ("default", "notebook's")  # variants, of more than the ablation
MILESTONES = (50_000, 100_000, 300_000, 1_000_000)


def published(env: str) -> list[tuple[dict[str, Any], dict[str, list]]]:
    """Who has published scores of any version of `env`, and these, [mean, deviation] by step."""
    name = env.rpartition("-v")[0]
    references = json.loads((HERE / "published.json").read_text())
    return [(reference, reference["scores"][name]) for reference in references if name in reference["scores"]]


def mean_curve(entry: Entry) -> list[list[float]]:
    """[step, mean, deviation, minutes], means over the seeds, evaluation by evaluation as far as all seeds are."""
    together = zip(*(run["evaluations"] for run in entry["runs"]), strict=False)
    return [[statistics.mean(column) for column in zip(*rows, strict=True)] for rows in together]


def _minutes_to(entry: Entry, score: float) -> str:
    return next((number(minutes) for _, mean, _, minutes in mean_curve(entry) if mean >= score), NONE)


def learner(entry: Entry) -> str:
    """What learned: an implementation, with the settings and the device where these are not the usual ones."""
    machine = entry["runs"][0]["machine"]
    name = f"Stable-Baselines3 {machine['sb3']}" if entry["implementation"] == "sb3" else OURS
    name += "" if entry["variant"] == "default" else f", {entry['variant']} settings"
    return name if entry["device"] == "cpu" else f"{name}, {machine['gpu']}"


def _scores_at(entry: Entry, step: int) -> list[float]:
    """One score per seed, or none if a seed was not evaluated after this step."""
    scores = [row[1] for run in entry["runs"] for row in run["evaluations"] if row[0] == step]
    return scores if len(scores) == len(entry["runs"]) else []


def _mean_and_deviation(scores: list[float]) -> str:
    if not scores:
        return NONE
    return _score(statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else None)


def _score(mean: float, deviation: float | None) -> str:
    digits = 0 if abs(mean) >= 1000 else 1
    return f"{mean:,.{digits}f}" + ("" if deviation is None else f" ± {deviation:,.{digits}f}")


TABLES: dict[str, Callable[[list[Entry]], list[str]]] = {
    "operators": operators_table,
    "update": update_table,
    "phases": phases_table,
    "action": action_table,
    "loop": loop_table,
    "checkpoint": checkpoint_table,
    "precision": precision_table,
    "learning": learning_table,
    "ablation": ablation_table,
}
SOURCES = {
    "cpu.json": ("operators", "update", "phases", "action"),
    "train.json": ("loop", "checkpoint"),
    "accuracy.json": ("precision",),
    "learning.json": ("learning", "ablation"),
}
# A table of what another table's runs have measured besides.
RUNS_OF = {"phases": "update", "ablation": "learning"}

INTERLEAVED = "Interleaved, ratios taken within a round."
LEGENDS = {
    "operators": (
        "Median (first to third quartile); for others, how many times longer than sacfast's a call takes. "
        "Usual eager: torch.distributions.Normal, a loop over the parameters, NumPy fancy indexing. "
        "Fastest eager: the formula by hand, torch._foreach_lerp_, torch.randint and index_select; "
        "torch.compile is of the same. {threads} threads where the shape names none. GB/s counts what the "
        "memory must move, for rows the cache lines that they touch; stream is add_ of 64 MiB in place."
        f" {INTERLEAVED}"
    ),
    "update": (
        "A batch drawn from 100,000 transitions, then one update of critics, policy, temperature and targets: "
        "two hidden layers of the width named. Median (first to third quartile); for others, how many times longer "
        "than sacfast's in float32 an update takes. GFLOP/s counts 2 B in out per product and layer, forward and "
        "for either gradient; the peak is of float32 multiply-adds in registers, by as many threads. By hand: "
        "batched twin critics, fused Adam, tensor replay, torch.compile for the compiled one. reference: "
        "sacfast's own in PyTorch. SB3, SBX: train(gradient_steps=1) of Stable-Baselines3 and of its JAX sibling."
        f" {INTERLEAVED}"
    ),
    "phases": (
        "The native update in float32, timed inside: microseconds in each phase summed over the threads, and "
        "its share of the sum."
        f" {INTERLEAVED}"
    ),
    "action": (
        "select_action of one Pusher-v5 observation, sampled, NumPy in and out; two hidden layers of 256. Median "
        "(first to third quartile); for others, how many times longer than sacfast's it takes."
        f" {INTERLEAVED}"
    ),
    "loop": (
        "Whole training loops, one update per step, batch 256, two hidden layers of 256, {threads} threads, each in a "
        "process of its own, {steps:,} steps of it timed; {rounds} rounds. The ideal takes as long as the longer of "
        "environment step and update, as they are in the strict loop of the same round; `overlap is` so many times as "
        "fast as the loop named. Shares of the wall clock; overlapped, `update` is what is left to wait for. "
        "SB3: Stable-Baselines3, SBX its JAX sibling, as they come."
        f" {INTERLEAVED}"
    ),
    "checkpoint": (
        "A run folder's checkpoint, which appends what is new, against `SACAgent.save`, which writes the buffer whole; "
        "median (first to third quartile), and how many times longer the latter takes."
        f" {INTERLEAVED}"
    ),
    "precision": (
        "Root mean square against float64, relative to the gradient's own, at Pusher-v5's dimensions, batch 256, after "
        "{updates:,} updates on random transitions. PyTorch is the reference engine. An emulated path computes what "
        "the instructions would, on a CPU without them."
    ),
    "learning": (
        "The deterministic policy after as many steps, over {episodes} episodes in an environment of its own: mean ± "
        "standard deviation over seeds. Minutes are of training, {side_by_side} runs side by side on a thread each; "
        "the last column: when the mean over seeds first was as high as Stable-Baselines3's at its end. "
        "Others' scores are as published: {published}."
    ),
    "ablation": (
        "sacfast with one setting changed, or with the notebook's, but for 5,000 random steps, and what else is named: "
        "mean ± standard deviation over as many seeds as the brackets say, of the deterministic policy over {episodes} "
        "episodes."
    ),
}


def _legend_values(name: str, entries: list[Entry]) -> dict[str, Any]:
    """What stands in the braces of a legend."""
    first = entries[0]
    if name in ("operators", "update"):
        return {"threads": max(entry["threads"] for entry in entries)}
    if name == "learning":
        return first | first["runs"][0]["machine"] | {"published": _sources(entries)}
    return first


def caption(name: str, entries: list[Entry], date: str) -> str:
    """How to read the table, and the hardware and versions that it was measured with."""
    legend = LEGENDS[name].format(**_legend_values(name, entries))
    measured: dict[str, set[str]] = {}
    for entry in entries:
        for each in (entry["machine"],) if "machine" in entry else (run["machine"] for run in entry["runs"]):
            measured.setdefault(_machine(each), set()).add(each.get("date", date))
    machines = (f"on {', '.join(sorted(dates))}: {machine}" for machine, dates in measured.items())
    return f"<sub>{legend} Measured {'; '.join(machines)}.</sub>"


def _machine(machine: dict[str, Any]) -> str:
    text = (
        "{cpu}, {cores} cores ({system}), torch {torch}, Python {python}, {compiler}, "
        "sacfast {sacfast} ({kernels})"
    ).format(**machine)
    return f"{machine['gpu']}, {text}" if "gpu" in machine else text


def _sources(entries: list[Entry]) -> str:
    """Where the published scores beside these entries are from, and how they were got."""
    environments = dict.fromkeys(entry["env"] for entry in entries)
    references = {reference["who"]: reference for env in environments for reference, _ in published(env)}
    return "; ".join(f"{who} ({each['source']}): {each['protocol']}" for who, each in references.items())


def load(path: Path) -> tuple[list[Entry], str]:
    """Every benchmark's extra_info in the order of the run, and the run's date."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RenderError(
            f"cannot read {path} ({error}); {Path(__file__).name} --help says how to make it"
        ) from None
    return [entry["extra_info"] for entry in content["benchmarks"]], content["datetime"][:10]


def render(readme: str, entries: list[Entry], date: str, names: Iterable[str]) -> str:
    """`readme` with the tables `names` replaced. Raises RenderError if a marker or a table's runs are missing."""
    for name in names:
        chosen = [entry for entry in entries if entry.get("table") == RUNS_OF.get(name, name)]
        if not chosen:
            raise RenderError(f"the JSON has no benchmark for table {name}; run all of benchmarks/")
        begin, end = f"<!-- BEGIN table:{name} -->", f"<!-- END table:{name} -->"
        pattern = re.compile(f"^{re.escape(begin)}$.*?^{re.escape(end)}$", re.DOTALL | re.MULTILINE)
        if len(pattern.findall(readme)) != 1:
            raise RenderError(
                f"README needs the lines {begin} and {end}, once and in this order, around table {name}"
            )
        try:
            text = "\n".join([begin, *TABLES[name](chosen), "", caption(name, chosen, date), end])
        except KeyError as error:
            raise RenderError(f"the JSON lacks {error} for table {name}: measure it again") from None
        readme = pattern.sub(lambda _, text=text: text, readme)
    return readme


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the JSON files")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if README is stale")
    args = parser.parse_args(argv)
    try:
        before = args.readme.read_text()
        after = before
        for source, names in SOURCES.items():
            after = render(after, *load(args.results / source), names)
    except (RenderError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.check and before != after:
        print(f"error: {args.readme} is stale; run: python benchmarks/render.py", file=sys.stderr)
        return 1
    if before != after:
        args.readme.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
