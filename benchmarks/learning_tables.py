"""README's tables of what was learned, from the entries of results/learning.json (learning_results.py)."""

import json
import statistics
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tables import NONE, OURS, Entry, number

AS_ANT_V4 = "as Ant-v4"  # with its observation and reward
FORMER = "former default"  # begins the names of its departures
MANY = 4  # variants that end after as many steps have a column for these
FRESH = ", fresh seeds"  # ends the names of what was tried once more, on seeds that the ablation has not
SUCCESSORS = {FORMER: "default", f"{FORMER}, {AS_ANT_V4}": AS_ANT_V4}
SHOWN = (*SUCCESSORS, *SUCCESSORS.values(), "notebook's")  # variants whose scores are shown
TIMED = ("default", FORMER, "notebook's")  # whose minutes to a score are
STEP, MEAN, MINUTES = 0, 1, 3  # columns of an evaluation
MILESTONES = (50_000, 100_000, 300_000, 1_000_000)
LEAST_SEEDS = 3  # for a cell of the ablation: fewer are a hint, and stay in results/


def defaults(entries: list[Entry]) -> list[Entry]:
    """Those of the learning table: the defaults of both implementations."""
    return [entry for entry in entries if entry["variant"] == "default"]


def other_settings(entries: list[Entry]) -> list[Entry]:
    """Those that are `shown` beside the defaults."""
    return [entry for entry in shown(entries) if entry["variant"] != "default"]


def shown(entries: list[Entry]) -> list[Entry]:
    """Of the default's, the former default's and the notebook's settings: of the former default, where today's has
    fewer steps or seeds.
    """
    chosen = [entry for entry in entries if entry["variant"] in SHOWN]
    ours = {
        (each["env"], each["device"], each["variant"]): each
        for each in chosen
        if each["implementation"] == OURS
    }

    def surpassed(entry: Entry) -> bool:
        today = ours.get((entry["env"], entry["device"], SUCCESSORS.get(entry["variant"])))
        return (
            today is not None
            and last_step(today) >= last_step(entry)
            and len(today["runs"]) >= len(entry["runs"])
        )

    return [entry for entry in chosen if not surpassed(entry)]


def learning_table(entries: list[Entry]) -> list[str]:
    """By environment, a line per learner, and one per published source. The first entry's machine is not named."""
    return _learning_table(entries, place(entries[0]["runs"][0]), published)


def others_table(entries: list[Entry]) -> list[str]:
    """Likewise, of every learner with its machine, and without the published sources."""
    return _learning_table(entries, None, lambda env: [])


def _learning_table(
    entries: list[Entry], usual: tuple | None, beside: Callable[[str], list[tuple[dict, dict]]]
) -> list[str]:
    lines = [
        "| return per episode | by | seeds | "
        + " | ".join(f"{step:,} steps" for step in MILESTONES)
        + f" | minutes for {MILESTONES[0]:,} steps |",
        "|---|---|---:|" + "---:|" * (len(MILESTONES) + 1),
    ]
    for env in dict.fromkeys(entry["env"] for entry in entries):
        for entry in (entry for entry in entries if entry["env"] == env):
            minutes = _at(_at_first_place(entry), MILESTONES[0], MINUTES)
            cells = _cells(_measured(entry))
            cells.append(number(statistics.median(minutes)) if minutes else NONE)
            name = learner(entry)
            if entry["device"] != "cpu":
                name += f", {_together(entry)} at once"
            elif elsewhere := _elsewhere(entry["runs"][0], usual):
                name += f", on {elsewhere}"
            if entry["implementation"] == OURS and entry["variant"] == "default":
                name = f"**{name}**"
            lines.append(f"| {env} | {name} | {len(entry['runs'])} | {' | '.join(cells)} |")
        for reference, scores in beside(env):
            cells = _cells({int(step): _score(*score) for step, score in scores.items()})
            lines.append(
                f"| {env} | {reference['who']} | {reference['seeds'] or NONE} | {' | '.join(cells)} | - |"
            )
    return lines


def beside_peers(entries: list[Entry]) -> list[Entry]:
    """Those of environments that Stable-Baselines3 learned too, on the same machine.

    Raises ValueError where the seeds of one of them ran on different machines.
    """
    learned = {entry["env"] for entry in entries if entry["implementation"] == "sb3"}
    timed = [entry for entry in entries if entry["env"] in learned and entry["variant"] in TIMED]
    theirs = {(entry["env"], _only_place(entry)) for entry in timed if entry["implementation"] == "sb3"}
    return [entry for entry in timed if (entry["env"], _only_place(entry)) in theirs]


def minutes_table(entries: list[Entry]) -> list[str]:
    """Of `beside_peers` entries, two lines per environment: when the mean over seeds first was as high as
    Stable-Baselines3's was at its end, and when as many steps were done; and how many times longer Stable-Baselines3
    took.
    """
    ours = list(dict.fromkeys(learner(entry) for entry in entries if entry["implementation"] == OURS))
    theirs = [entry for entry in entries if entry["implementation"] == "sb3"]
    lines = [
        f"| minutes | {' | '.join([learner(theirs[0]), *ours])} |",
        "|---|" + "---:|" * (1 + len(ours)),
    ]
    for entry in theirs:
        rivals = {learner(each): each for each in entries if each["env"] == entry["env"]}
        last = mean_curve(entry)[-1]
        score, steps = _score(last[MEAN], None), f"{last[STEP]:,.0f} steps"
        for goal, minutes, value in (
            (f"to a mean return of {score}, its score after {steps}", _minutes_to, last[MEAN]),
            (f"for {steps}", _minutes_for, last[STEP]),
        ):
            least = minutes(entry, value)
            assert least is not None
            cells = [number(least)]
            for name in ours:
                each = minutes(rivals[name], value) if name in rivals else None
                cells.append(NONE if each is None else f"{number(each)} ({number(least / each)}x)")
            lines.append(f"| {entry['env']}, {goal} | {' | '.join(cells)} |")
    return lines


class Match(NamedTuple):
    """The minutes after which two means were as high as `theirs` was at its end, or None for ours where never."""

    score: str
    theirs: float
    ours: float | None


def minutes_to_match(ours: Entry, theirs: Entry) -> Match:
    last = mean_curve(theirs)[-1]
    least = _minutes_to(theirs, last[MEAN])
    assert least is not None
    return Match(_score(last[MEAN], None), least, _minutes_to(ours, last[MEAN]))


def _cells(scores: dict[int, str]) -> list[str]:
    """One per milestone, of scores by step. One after another number of steps stands under the next milestone, or the
    last, with its steps, where that has none.
    """
    cells = [scores.get(step, NONE) for step in MILESTONES]
    for step in sorted(scores.keys() - set(MILESTONES)):
        column = next((i for i, at in enumerate(MILESTONES) if at > step), len(MILESTONES) - 1)
        if MILESTONES[column] not in scores:
            cells[column] = f"{scores[step]}, after {step:,}"
    return cells


def _measured(entry: Entry) -> dict[int, str]:
    """Scores by step: at the milestones, and after the last steps that all seeds have."""
    steps = (*MILESTONES, last_step(entry))
    return {step: _mean_and_deviation(scores) for step in steps if (scores := _at(entry, step))}


def ablation_table(entries: list[Entry]) -> list[str]:
    """Of `ablated` entries: one line per variant of the settings, one column per environment and number of steps; one
    that is not that far has no score.
    """
    environments = dict.fromkeys(entry["env"] for entry in entries if entry["variant"] != "default")
    columns: list[str] = []
    cells: dict[str, dict[str, str]] = {}
    for env in environments:
        rivals = [entry for entry in entries if entry["env"] == env]
        for step in _compared_after(rivals):
            columns.append(f"{env}, {step:,} steps")
            for entry in rivals:
                cells.setdefault(entry["variant"], {})[columns[-1]] = _mean_and_deviation(_at(entry, step))
    lines = [f"| settings | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for variant, scores in cells.items():
        shown = " | ".join(scores.get(column, NONE) for column in columns)
        lines.append(f"| {variant.removesuffix(FRESH)} | {shown} |")
    return lines


def _compared_after(entries: list[Entry]) -> list[int]:
    """Of the steps where two or more of them end (one that ends alone may not be finished), the last of those that most
    were evaluated after; and those where many end.
    """
    ends = Counter(last_step(entry) for entry in entries)
    shared = [step for step, count in ends.items() if count > 1] or list(ends)
    best = max(shared, key=lambda step: (sum(bool(_at(entry, step)) for entry in entries), step))
    return sorted({best, *(step for step, count in ends.items() if count >= MANY)})


def ablated(entries: list[Entry], device: str, fresh: bool = False) -> list[Entry]:
    """Those that an ablation is about: ours on such a device, in environments where more than one thing was tried; with
    the seeds of the main tables, or `fresh` ones.
    """
    enough = [
        entry
        for entry in entries
        if (entry["implementation"], entry["device"]) == (OURS, device)
        and not entry["variant"].endswith(AS_ANT_V4)  # another task
        and entry["variant"].endswith(FRESH) == fresh
        and len(entry["runs"]) >= LEAST_SEEDS
    ]
    rivals = Counter(entry["env"] for entry in enough)
    return [entry for entry in enough if rivals[entry["env"]] > 1]


def sources() -> list[str]:
    """Who has published scores of any environment."""
    return [reference["who"] for reference in _references()]


def published(env: str) -> list[tuple[dict[str, Any], dict[str, list]]]:
    """Who has published scores of any version of `env`, and these, [mean, deviation] by step."""
    name = env.rpartition("-v")[0]
    return [(each, each["scores"][name]) for each in _references() if name in each["scores"]]


@cache
def _references() -> list[dict[str, Any]]:
    return json.loads((Path(__file__).parent / "published.json").read_text())


def last_step(entry: Entry) -> int:
    """The last step that all seeds were evaluated at."""
    return int(mean_curve(entry)[-1][STEP])


def mean_curve(entry: Entry) -> list[list[float]]:
    """[step, mean, deviation, minutes], means over the seeds, after every step that all seeds were evaluated at."""
    by_step = [{row[STEP]: row for row in run["evaluations"]} for run in entry["runs"]]
    common = sorted(set.intersection(*(set(rows) for rows in by_step)))
    together = ([rows[step] for rows in by_step] for step in common)
    return [[statistics.mean(column) for column in zip(*rows, strict=True)] for rows in together]


def place(run: dict[str, Any]) -> tuple:
    """The machine, which is what its minutes are of."""
    return tuple(run["machine"].get(name) for name in ("cpu", "cores", "kernels", "gpu"))


def _only_place(entry: Entry) -> tuple:
    places = {place(run) for run in entry["runs"]}
    if len(places) > 1:
        raise ValueError(
            f"{entry['env']}, {entry['variant']}: seeds of different machines, {sorted(map(str, places))}"
        )
    return places.pop()


def _at_first_place(entry: Entry) -> Entry:
    """Of the seeds that shared a machine with the first: scores of several go together, minutes do not."""
    runs = entry["runs"]
    return entry | {"runs": [run for run in runs if place(run) == place(runs[0])]}


def side_by_side(entries: list[Entry], name_all: bool = False) -> str:
    """How many runs shared a machine: "2 or 3", and of other machines than the first's "6 on 16 cores"."""
    usual = None if name_all else place(entries[0]["runs"][0])
    found: dict[str, dict[int, None]] = {}
    for entry in entries:
        for run in entry["runs"]:
            found.setdefault(_elsewhere(run, usual), {})[run["machine"]["side_by_side"]] = None
    return ", ".join(
        " or ".join(map(str, counts)) + (f" on {other}" if other else "") for other, counts in found.items()
    )


def _together(entry: Entry) -> int:
    """How many runs shared the machine, at the most."""
    return max(run["machine"]["side_by_side"] for run in entry["runs"])


def _elsewhere(run: dict[str, Any], usual: tuple | None) -> str:
    """What tells the run's machine from the usual one, if it is another."""
    machine = run["machine"]
    if place(run) == usual:
        return ""
    if "gpu" in machine:
        return f"the {machine['gpu']}"
    cores = f"{machine['cores']} cores"
    return cores if usual and machine["cores"] != usual[1] else f"{cores} with {machine['kernels']}"


def _minutes_to(entry: Entry, score: float) -> float | None:
    return next((minutes for _, mean, _, minutes in mean_curve(entry) if mean >= score), None)


def _minutes_for(entry: Entry, steps: float) -> float | None:
    return next((minutes for step, *_, minutes in mean_curve(entry) if step == steps), None)


def learner(entry: Entry) -> str:
    """What learned: an implementation, with the settings and the device where these are not the usual ones."""
    gpu = entry["runs"][0]["machine"].get("gpu")
    return implementation(entry) + ("" if gpu is None else f", {gpu}")


def implementation(entry: Entry) -> str:
    """The same, wherever it ran."""
    machine = entry["runs"][0]["machine"]
    name = f"Stable-Baselines3 {machine['stable-baselines3']}" if entry["implementation"] == "sb3" else OURS
    usual = {"default": "", "notebook's": ", notebook's settings"}
    return name + usual.get(entry["variant"], f", {entry['variant']}")


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
