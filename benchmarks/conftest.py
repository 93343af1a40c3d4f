"""How the benchmarks run: on native operators only, on a fixed number of threads, into an anonymous JSON."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `import race` and the like

import peers
import race
import records

from sacfast import native

DEFAULT_THREADS = 2


@pytest.fixture(scope="session", autouse=True)
def native_operators():
    """The fall-back is never timed: without the extension every benchmark is an error that says why."""
    native.require()
    assert native.available("cpu")


@pytest.fixture(autouse=True)
def threads(request):
    """torch's threads during a benchmark; parametrise it indirectly for another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request, "param", DEFAULT_THREADS))
    yield torch.get_num_threads()
    torch.set_num_threads(before)


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Keep the statistics; drop the samples, and what tells the computer, its user and their folders."""
    output_json["machine_info"] = records.describe_machine()
    output_json["commit_info"] = {}
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)


def pytest_terminal_summary(terminalreporter):
    """Each race with all its contestants; pytest-benchmark's own table has only ours."""
    if race.not_compiled:
        terminalreporter.write_line(
            f"torch.compile baselines left out under --benchmark-disable: {', '.join(race.not_compiled)}"
        )
    if peers.missing:
        missing = ", ".join(sorted(peers.missing))
        terminalreporter.write_line(f"left out because they are not installed: {missing}")
    for result in race.finished:
        terminalreporter.write_line(f"\n{result['group']}")
        for role, loop in result.get("loops", {}).items():
            line = (
                f"  {role:<10} {loop['steps_per_s'][1]:>8.1f} steps/s, {loop['of_ideal'][1]:.0%} of the ideal"
            )
            shares = (f"{stage} {share:.1%}" for stage, share in loop.get("stages", {}).items())
            terminalreporter.write_line(f"{line}, overlap is {loop['ratio'][1]:.2f}x  {', '.join(shares)}")
        for role, summary in result.get("contestants", {}).items():
            q1, median, q3 = summary["us"]
            line = f"  {role:<10} {median:>10.4g} us ({q1:.4g} to {q3:.4g})"
            if "ratio" in summary:
                line += "  {1:.2f}x ({0:.2f} to {2:.2f})".format(*summary["ratio"])
            if "gb_per_s" in summary:
                line += f"  {summary['gb_per_s']:.1f} GB/s"
            if "gflop_per_s" in summary:
                line += f"  {summary['gflop_per_s']:.1f} GFLOP/s"
            terminalreporter.write_line(line)
        for name, rate in result.get("peak_gflop_per_s", {}).items():
            terminalreporter.write_line(f"  peak of {name}: {rate:.1f} GFLOP/s")
        for name, us in result.get("phases_us", {}).items():
            terminalreporter.write_line(f"  {name:<33} {us:>8.4g} us of all threads per update")
