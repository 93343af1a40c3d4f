"""Renders README's tables from the JSON of a benchmark run.

    pytest benchmarks --ignore-glob='*train.py' --ignore-glob='*checkpoint.py' \
        --benchmark-json=benchmarks/results/cpu.json
    pytest benchmarks/bench_train.py benchmarks/bench_checkpoint.py --benchmark-json=benchmarks/results/train.json
    pytest benchmarks/bench_robot_train.py --benchmark-json=benchmarks/results/robot.json
    python benchmarks/accuracy.py          # results/accuracy.json
    python benchmarks/gpu.py               # results/gpu.json, on a machine with an NVIDIA GPU
    python benchmarks/learning.py TABLE... # results/learning.json
    python benchmarks/render.py            # rewrites the tables between README's markers
    python benchmarks/render.py --check    # exits with 1 if README is not what the JSON gives

The markers are lines of their own for each of TABLES: <!-- BEGIN table:NAME --> and <!-- END table:NAME -->
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from glance import at_a_glance, glance_table
from learning_tables import (
    ablated,
    ablation_table,
    beside_peers,
    defaults,
    last_step,
    learning_table,
    mean_curve,
    minutes_table,
    other_settings,
    others_table,
    published,
    side_by_side,
)
from records import machines, read_results
from tables import (
    Entry,
    action_table,
    checkpoint_table,
    gpu_operators_table,
    gpu_update_table,
    loop_table,
    operators_table,
    phases_table,
    precision_table,
    update_table,
)

HERE = Path(__file__).resolve().parent


class RenderError(Exception):
    """The JSON or the README is not what it should be; the message says what to do."""


SOURCES = ("cpu.json", "train.json", "robot.json", "accuracy.json", "gpu.json", "learning.json")
FORMERLY = "The former default had a target entropy of -A instead of -A/2; A is the dimension of the actions."
INTERLEAVED = "Interleaved, ratios taken within a round."


class Table(NamedTuple):
    """How README's table of this name is made.

    lines: of Markdown, from the entries. legend: what stands below it, with `values` in its braces. runs: the table
    whose entries these are, the own one if "", all if None. choose: those of them that are shown.
    """

    lines: Callable[[list[Entry]], list[str]]
    legend: str
    runs: str | None = ""
    choose: Callable[[list[Entry]], list[Entry]] = list
    values: Callable[[list[Entry]], Mapping[str, Any]] = itemgetter(0)


def _of_glance(entries: list[Entry]) -> dict[str, Any]:
    return {"steps": last_step(next(entry for entry in entries if entry.get("implementation") == "sb3"))}


def _threads(entries: list[Entry]) -> dict[str, Any]:
    return {"threads": max(entry["threads"] for entry in entries)}


def _of_learning(entries: list[Entry]) -> dict[str, Any]:
    return entries[0] | {"side_by_side": side_by_side(entries), "published": _sources(entries)}


def _of_minutes(entries: list[Entry]) -> dict[str, Any]:
    evaluated = [step for step, *_ in mean_curve(entries[0])]
    return {"side_by_side": side_by_side(entries), "every": evaluated[-1] / len(evaluated)}


def _of_seeds(entries: list[Entry]) -> dict[str, Any]:
    counts = sorted({len(entry["runs"]) for entry in entries})
    return entries[0] | {"side_by_side": side_by_side(entries), "seeds": " or ".join(map(str, counts))}


TABLES = {
    "glance": Table(
        glance_table,
        (
            "One line from each of five tables below, other lines of which have smaller ratios; in brackets, how many "
            "times slower; -: not measured. The return is what Stable-Baselines3 has after {steps:,} steps, in runs "
            "on one core each; all else on a CPU is on two. In the first two lines each has its own default settings "
            "(in the second but for 1,000 random steps), in the others all do the same work; on the GPU a call of "
            "sacfast's makes 32 updates, a graph of the other's one."
        ),
        runs=None,
        choose=at_a_glance,
        values=_of_glance,
    ),
    "operators": Table(
        operators_table,
        (
            "Median (first to third quartile); for others, how many times longer than sacfast's a call takes. Usual "
            "eager: torch.distributions.Normal, a loop over the parameters that makes new tensors as CleanRL's does, "
            "NumPy fancy indexing. Fastest eager: the formula by hand, torch._foreach_lerp_, torch.randint and "
            "index_select; torch.compile is of the same. {threads} threads where the shape names none. GB/s counts "
            "what the memory must move, for rows the cache lines that they touch; stream is add_ of 64 MiB in place."
            f" {INTERLEAVED}"
        ),
        values=_threads,
    ),
    "update": Table(
        update_table,
        (
            "A batch drawn from 100,000 transitions, then one update of critics, policy, temperature and targets: two "
            "hidden layers of the width named. Median (first to third quartile); for others, how many times longer "
            "than sacfast's in float32 an update takes. GFLOP/s counts 2 B in out per product and layer, forward and "
            "for either gradient, the same for all; sacfast leaves out the 7 to 9 % that nobody needs, and is that "
            "much farther from the peak: of float32 multiply-adds in registers, by as many threads. By hand: batched "
            "twin critics, fused Adam, tensor replay, torch.compile for the compiled one. reference: sacfast's own in "
            "PyTorch. SB3, SBX: train(gradient_steps=1) of Stable-Baselines3 and of its JAX sibling."
            f" {INTERLEAVED}"
        ),
        values=_threads,
    ),
    "phases": Table(
        phases_table,
        (
            "The native update in float32, timed inside: microseconds in each phase summed over the threads, and its "
            "share of the sum."
        ),
        runs="update",
    ),
    "action": Table(
        action_table,
        (
            "select_action of one Pusher-v5 observation, sampled, NumPy in and out; two hidden layers of 256. Median "
            "(first to third quartile); for others, how many times longer than sacfast's it takes."
            f" {INTERLEAVED}"
        ),
    ),
    "loop": Table(
        loop_table,
        (
            "Whole training loops, one update per step from step 1,000 on, two hidden layers of 256, {threads} "
            "threads, each in a process of its own, {steps:,} steps of it timed, without evaluations; {rounds} "
            "rounds, of which median (first to third quartile). Batches of 256 but for the default settings, which "
            "are those of `python -m sacfast.train`: batches of 128, the actor updated every second time. The ideal "
            "takes as long as the longer of environment step and update, as they are in the strict loop of the same "
            "round (with the default settings, in their own). Overlap's and the default's speed are in multiples of "
            "this loop's. Shares of the wall clock; overlapped, `update` is what is left to wait for. SB3: "
            "Stable-Baselines3, SBX its JAX sibling, as they come but for that."
            f" {INTERLEAVED}"
        ),
    ),
    "checkpoint": Table(
        checkpoint_table,
        (
            "A run folder's checkpoint, which appends what is new, against `SACAgent.save`, which writes the buffer "
            "whole; median (first to third quartile), and how many times longer the latter takes."
            f" {INTERLEAVED}"
        ),
    ),
    "precision": Table(
        precision_table,
        (
            "Root mean square against float64, relative to the gradient's own, at Pusher-v5's dimensions, batch 256, "
            "after {updates:,} updates on random transitions. PyTorch is the reference engine. An emulated path "
            "computes what the instructions would, on a CPU without them."
        ),
    ),
    "gpu_update": Table(
        gpu_update_table,
        (
            "A batch drawn from 100,000 transitions on the GPU, then one update with everything in it, 32 of them per "
            "call of sacfast's; median (first to third quartile); for others, how many times longer than sacfast's in "
            "float32 an update takes. By hand: batched twin critics, fused Adam, replay on the GPU, torch.compile, "
            "and then a CUDA graph of the whole update, sampling included. TFLOP/s counts as the CPU's table does. "
            "Stable-Baselines3 and SBX were not run on a GPU."
            f" {INTERLEAVED}"
        ),
    ),
    "gpu_operators": Table(
        gpu_operators_table,
        "Median (first to third quartile), and the bytes that must move over the median.",
    ),
    "learning": Table(
        learning_table,
        (
            "The deterministic policy after as many steps, over {episodes} episodes in an environment of its own, from "
            "the same starts every time: mean ± standard deviation over seeds; -: not measured, or not reached. "
            "Minutes are of training, median over the seeds that ran where the first did, on a thread each, with so "
            "many runs side by side: {side_by_side}. Others' scores are as published: {published}."
        ),
        choose=defaults,
        values=_of_learning,
    ),
    "learning_others": Table(
        others_table,
        f"As above, with so many runs side by side: {{side_by_side}}. {FORMERLY}",
        runs="learning",
        choose=other_settings,
        values=lambda entries: {"side_by_side": side_by_side(entries, name_all=True)},
    ),
    "learning_minutes": Table(
        minutes_table,
        (
            "Mean over seeds: when its return first was as high, by evaluations every {every:,.0f} steps, and when as "
            "many steps were done; and how many times longer Stable-Baselines3 took, with {side_by_side} runs side by "
            "side on the same machine. -: not in the steps that were run."
        ),
        runs="learning",
        choose=beside_peers,
        values=_of_minutes,
    ),
    "fresh_ablation": Table(
        ablation_table,
        (
            "sacfast with the settings changed that are named, from the default or the former one; the notebook's "
            "with 5,000 random steps, unless named: mean ± standard deviation over {seeds} seeds, which the other "
            "table on CPUs has not, of the deterministic policy over {episodes} episodes. "
            f"{FORMERLY} Rows of fewer than three seeds are in results/learning.csv."
        ),
        runs="learning",
        choose=partial(ablated, device="cpu", fresh=True),
        values=_of_seeds,
    ),
    "ablation": Table(
        ablation_table,
        "As above, of {seeds} seeds.",
        runs="learning",
        choose=partial(ablated, device="cpu"),
        values=_of_seeds,
    ),
    "gpu_ablation": Table(
        ablation_table,
        "As above, of {seeds} seeds, with so many runs on the GPU at once: {side_by_side}.",
        runs="learning",
        choose=partial(ablated, device="cuda"),
        values=_of_seeds,
    ),
}


def caption(name: str, entries: list[Entry]) -> str:
    """How to read the table, and the hardware and versions that it was measured with."""
    table = TABLES[name]
    legend = table.legend.format(**table.values(entries))
    measured: dict[str, set[str]] = {}
    for entry in entries:
        for each in machines(entry):
            measured.setdefault(_machine(each), set()).add(each["date"])
    where = (f"on {', '.join(sorted(dates))}: {machine}" for machine, dates in measured.items())
    return f"<sub>{legend} Measured {'; '.join(where)}.</sub>"


def _machine(machine: dict[str, Any]) -> str:
    text = (
        "{cpu}, {cores} cores ({system}), torch {torch}, Python {python}, {compiler}, "
        "sacfast {sacfast} ({kernels})"
    ).format(**machine)
    # The learning tables name what learned with its version already.
    learned = "side_by_side" in machine
    peers = {} if learned else {"stable-baselines3": "Stable-Baselines3", "sbx-rl": "SBX"}
    text += "".join(f", {title} {machine[name]}" for name, title in peers.items() if name in machine)
    return f"{machine['gpu']}, {text}" if "gpu" in machine else text


def _sources(entries: list[Entry]) -> str:
    """Where the published scores beside these entries are from, and how they were got."""
    environments = dict.fromkeys(entry["env"] for entry in entries)
    references = {reference["who"]: reference for env in environments for reference, _ in published(env)}
    return "; ".join(f"{who} ({each['source']}): {each['protocol']}" for who, each in references.items())


def load(path: Path) -> list[Entry]:
    """Its entries. Raises RenderError where it cannot be read."""
    try:
        if path.exists():
            return read_results(path)
        reason = "there is no such file"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise RenderError(f"cannot read {path} ({reason}); {Path(__file__).name} --help says how to make it")


def render(readme: str, entries: list[Entry]) -> str:
    """`readme` with the TABLES replaced. Raises RenderError if a marker or a table's runs are missing."""
    for name, table in TABLES.items():
        runs = name if table.runs == "" else table.runs
        try:
            chosen = table.choose([entry for entry in entries if runs in (None, entry.get("table"))])
        except ValueError as error:
            raise RenderError(f"table {name} cannot be made: {error}") from None
        if not chosen:
            raise RenderError(f"the JSON has no benchmark for table {name}; run all of benchmarks/")
        begin, end = f"<!-- BEGIN table:{name} -->", f"<!-- END table:{name} -->"
        pattern = re.compile(f"^{re.escape(begin)}$.*?^{re.escape(end)}$", re.DOTALL | re.MULTILINE)
        if len(pattern.findall(readme)) != 1:
            raise RenderError(
                f"README needs the lines {begin} and {end}, once and in this order, around table {name}"
            )
        try:
            text = "\n".join([begin, *table.lines(chosen), "", caption(name, chosen), end])
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
        after = render(before, [entry for source in SOURCES for entry in load(args.results / source)])
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
