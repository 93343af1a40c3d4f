"""README's tables of times and errors: lines of Markdown from the extra_info of a benchmark's runs."""

from collections.abc import Callable
from typing import Any

OURS = "sacfast"
NONE = "-"

Entry = dict[str, Any]  # one benchmark's extra_info


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
        cells += [_time_and_ratio(results.get(role), 1.0) for role in ("usual", "eager", "compiled")]
        cells.append(_bandwidth(results))
        lines.append(f"| {entry['operation']} | {entry['shape']} | {' | '.join(cells)} |")
    return lines


def _bandwidth(results: dict[str, Any]) -> str:
    if "stream" not in results:
        return NONE
    ours, stream = results[OURS]["gb_per_s"], results["stream"]["gb_per_s"]
    return f"{number(ours)} ({ours / stream:.0%})"


ROLES = {
    OURS: "**sacfast**",
    "single": "sacfast, an update per call",
    "avx512": "sacfast, AVX-512",
    "bf16x3": "sacfast, bf16x3",
    "tf32": "sacfast, tf32",
    "bf16": "sacfast, bf16",
    "reference": "reference",
    "notebook": "notebook",
    "eager": "by hand, eager",
    "compiled": "by hand, compiled",
    "graph": "by hand, compiled, as a CUDA graph",
    "sb3": "SB3",
    "sb3 1 thread": "SB3, 1 thread",
    "sbx": "SBX",
}


def _roles(entries: list[Entry]) -> list[str]:
    """Those that took part in any of the races, in the order of ROLES."""
    return [role for role in ROLES if any(role in entry["contestants"] for entry in entries)]


def update_table(entries: list[Entry]) -> list[str]:
    """One line per shape, one column per implementation; ours with GFLOP/s and its share of the peak."""

    def rate(entry: Entry) -> str:
        ours, peak = entry["contestants"][OURS]["gflop_per_s"], entry["peak_gflop_per_s"]["float32"]
        return f"{number(ours)} ({ours / peak:.0%})"

    return _race_table(entries, "ms per update | GFLOP/s (of peak)", rate, 1e-3)


def gpu_update_table(entries: list[Entry]) -> list[str]:
    """One line per shape, one column per implementation; ours with the rate of its arithmetic."""

    def rate(entry: Entry) -> str:
        return number(entry["flop"] / entry["contestants"][OURS]["us"][1] / 1e6)

    return _race_table(entries, "µs per update | TFLOP/s", rate, 1.0)


def _race_table(entries: list[Entry], heading: str, rate: Callable[[Entry], str], scale: float) -> list[str]:
    roles = _roles(entries)
    lines = [
        f"| {heading} | " + " | ".join(ROLES[role] for role in roles) + " |",
        "|---|---:|" + "---:|" * len(roles),
    ]
    for entry in entries:
        cells = [_time_and_ratio(entry["contestants"].get(role), scale) for role in roles]
        lines.append(f"| {entry['shape']} | {rate(entry)} | {' | '.join(cells)} |")
    return lines


def _time_and_ratio(result: dict[str, Any] | None, scale: float) -> str:
    if result is None:
        return NONE
    if "ratio" not in result:
        return with_range(result["us"], scale)
    return f"{number(result['us'][1] * scale)} ({number(result['ratio'][1])}x)"


def gpu_operators_table(entries: list[Entry]) -> list[str]:
    """One line per operator: its time, and how much of the card's bandwidth it uses."""
    lines = ["| operator | µs | GB/s |", "|---|---:|---:|"]
    for entry in entries:
        for name, result in entry["operators"].items():
            lines.append(f"| {name} | {with_range(result['us'])} | {number(result['gb_per_s'])} |")
    return lines


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
        f"| training loop | steps/s | of the ideal | overlap's speed | default's speed | {' | '.join(stages)} |",
        "|---|---:|---:|---:|---:|" + "---:|" * len(stages),
    ]
    for entry in entries:
        for role, loop in entry["loops"].items():
            name = ROLES.get(role, f"**sacfast, {role}**")
            cells = [
                f"{entry['shape']}, {name}",
                with_range(loop["steps_per_s"]),
                f"{loop['of_ideal'][1]:.0%}",
            ]
            cells += [f"{number(loop[ratio][1])}x" for ratio in ("ratio", "default_ratio")]
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
