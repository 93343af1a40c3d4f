"""README's first table: a line of each of the others, for who reads no further."""

import math

from learning_tables import beside_peers, minutes_to_match
from tables import NONE, OURS, ROLES, Entry, number

SB3 = "sb3"
OTHERS = ("notebook", "eager", "compiled", "graph", "sbx")
# By table: its line's name, what a microsecond is of its unit, and the shape to show: where that has a choice, the
# batch that Stable-Baselines3 has by default, and what a training loop sees of an action.
RACES = {
    "update": ("ms per update on the CPU", 1e-3, "batch 256"),
    "gpu_update": ("µs per update on the GPU, many to a call", 1.0, "batch 256"),
    "action": ("µs per action", 1.0, "straight after an update"),
}


def at_a_glance(entries: list[Entry]) -> list[Entry]:
    """The entries that `glance_table` is made of."""
    learned = beside_peers([entry for entry in entries if entry.get("table") == "learning"])
    env = next((entry["env"] for entry in learned if entry["implementation"] == SB3), None)
    return [
        *(entry for entry in learned if entry["env"] == env and entry["variant"] == "default"),
        *(first for name in ("loop", *RACES) if (first := _first(entries, name))),
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
    for table, (name, scale, _) in RACES.items():
        if race := _first(entries, table):
            times = {
                role: (each["us"][1], each.get("ratio", (1, 1))[1])
                for role, each in race["contestants"].items()
            }
            lines.append(_line(f"{name}, {race['shape']}", times, scale))
    return lines


def _first(entries: list[Entry], table: str) -> Entry | None:
    """The first entry of the table that is of the shape to show."""
    shape = RACES[table][2] if table in RACES else ""
    return next((entry for entry in entries if entry.get("table") == table and shape in entry["shape"]), None)


def _line(name: str, results: dict[str, tuple[float, float]], scale: float) -> str:
    """`results`: by role, what was measured, and how many times slower than ours that is."""
    others = {role: result for role, result in results.items() if role in OTHERS}
    cells = [f"**{number(results[OURS][0] * scale)}**", NONE, NONE]
    if SB3 in results:
        cells[1] = _cell(*results[SB3], scale)
    if others:
        best = min(others, key=lambda role: others[role][1])
        cells[2] = f"{ROLES[best]}: {_cell(*others[best], scale)}"
    return f"| {name} | {' | '.join(cells)} |"


def _cell(value: float, ratio: float, scale: float) -> str:
    return f"{number(value * scale)} ({number(ratio)}x)"
