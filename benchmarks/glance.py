"""README's first table: the first line of each of the others, for who reads no further."""

import math

from learning_tables import beside_peers, minutes_to_match
from tables import NONE, OURS, ROLES, Entry, number

SB3 = "sb3"
# Ours in other forms, and Stable-Baselines3, which has a column of its own.
NO_OTHERS = (
    OURS,
    "avx512",
    "bf16x3",
    "tf32",
    "bf16",
    "reference",
    "strict",
    "overlap",
    "default settings",
    SB3,
)
RACES = (
    ("update", "ms per update on the CPU", 1e-3),
    ("gpu_update", "µs per update on the GPU", 1.0),
    ("action", "µs per action", 1.0),
)


def at_a_glance(entries: list[Entry]) -> list[Entry]:
    """The entries that `glance_table` is made of."""
    learned = beside_peers([entry for entry in entries if entry.get("table") == "learning"])
    env = next((entry["env"] for entry in learned if entry["implementation"] == SB3), None)
    return [
        *(entry for entry in learned if entry["env"] == env and entry["variant"] == "default"),
        *(first for name in ("loop", *(race[0] for race in RACES)) if (first := _first(entries, name))),
    ]


def glance_table(entries: list[Entry]) -> list[str]:
    """Learning, the training loop, one update on either device, one action: ours, Stable-Baselines3, the best other."""
    lines = [
        "| | sacfast | Stable-Baselines3 | the fastest other |",
        "|---|---:|---:|---:|",
    ]
    ours, theirs = (next(e for e in entries if e.get("implementation") == name) for name in (OURS, SB3))
    match = minutes_to_match(ours, theirs)
    minutes = match.ours or math.inf
    lines.append(
        f"| minutes to a return of {match.score} on {ours['env']} | **{number(minutes)}** "
        f"| {number(match.theirs)} ({number(match.theirs / minutes)}x) | {NONE} |"
    )
    if loop := _first(entries, "loop"):
        paces = {
            role: (each["steps_per_s"][1], each["default_ratio"][1]) for role, each in loop["loops"].items()
        }
        name = f"environment steps per second in training, {loop['shape']}"
        lines.append(_line(name, {OURS: paces["default settings"]} | paces, 1.0))
    for table, name, scale in RACES:
        if race := _first(entries, table):
            times = {
                role: (each["us"][1], each.get("ratio", (1, 1))[1])
                for role, each in race["contestants"].items()
            }
            lines.append(_line(f"{name}, {race['shape']}", times, scale))
    return lines


def _first(entries: list[Entry], table: str) -> Entry | None:
    return next((entry for entry in entries if entry.get("table") == table), None)


def _line(name: str, results: dict[str, tuple[float, float]], scale: float) -> str:
    """`results`: by role, what was measured, and how many times slower than ours that is."""
    others = {role: result for role, result in results.items() if role not in NO_OTHERS}
    cells = [f"**{number(results[OURS][0] * scale)}**", NONE, NONE]
    if SB3 in results:
        cells[1] = _cell(*results[SB3], scale)
    if others:
        best = min(others, key=lambda role: others[role][1])
        cells[2] = f"{ROLES[best]}: {_cell(*others[best], scale)}"
    return f"| {name} | {' | '.join(cells)} |"


def _cell(value: float, ratio: float, scale: float) -> str:
    return f"{number(value * scale)} ({number(ratio)}x)"
