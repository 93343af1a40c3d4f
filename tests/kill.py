"""Kill a run with SIGKILL at random moments and resume it, again and again; `python tests/kill.py --kills 100`.

After every kill each file that has its final name is opened; at the end the run is compared, byte by byte, with one
that was never killed.
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path

from training_runs import FLAGS, assert_same_run, counters_of

from sacfast import checkpoint
from sacfast.logger import read_csv
from sacfast.train import main

HOPPER = [*FLAGS, "--env", "Hopper-v5", "--learning-starts", "50", "--log-every", "50"]
HOPPER += ["--checkpoint-every", "10", "--eval-every", "300", "--no-tensorboard", "--keep-checkpoints", "1"]


def checkpoints_in(out):
    return sorted(Path(out).glob("*/*/checkpoints/[0-9]*"))


def killed(flags, out, delays):
    """Train with `flags`, killed after each of `delays` seconds, then to the end.

    The seconds count from a checkpoint of the process's own and, every other time, from its start, so that loading and
    clearing up are struck too. Returns the run's folder and the step of its latest checkpoint after each kill that
    struck.
    """
    context = multiprocessing.get_context("forkserver")  # imports once, and every child is a fresh process
    context.set_forkserver_preload(["sacfast.train"])
    steps, run = [], None
    for number, delay in enumerate(delays):
        arguments = [*flags, "--out", str(out)] if run is None else ["--resume", str(run)]
        process, before = context.Process(target=main, args=(arguments,)), checkpoints_in(out)
        process.start()
        while number % 2 == 0 and process.is_alive() and checkpoints_in(out) == before:
            time.sleep(0.005)
        time.sleep(delay)
        struck = process.is_alive()
        process.kill()
        process.join()
        if struck and checkpoints_in(out):
            run = checkpoints_in(out)[-1].parents[1]
            steps.append(check_whole(run))
    assert run is not None
    assert main(["--resume", str(run)]) == 0
    return run, steps


def check_whole(run):
    """Open everything that a reader would take for whole. Returns the step of the latest checkpoint."""
    for path in run.rglob("*"):
        if not any(part.startswith(".") for part in path.relative_to(run).parts):
            if path.suffix == ".safetensors":
                checkpoint.read(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".csv":
                read_csv(path, ("step",))
    return counters_of(run)["step"]


def compare(engine, step_count, delays, out):
    """Raise AssertionError unless a killed run is the same as one that was not. Returns where it was killed."""
    flags = [*HOPPER, "--engine", engine, "--steps", str(step_count)]
    assert main([*flags, "--out", str(out / "whole")]) == 0
    (whole,) = (path.parent for path in (out / "whole").rglob("config.json"))
    run, steps = killed(flags, out / "killed", delays)
    assert steps == sorted(steps)
    assert_same_run(whole, run)
    assert not list(run.rglob(".*")), list(run.rglob(".*"))
    return steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--engine", default="native")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--longest", type=float, default=0.5, help="seconds before a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    moments = [generator.uniform(0, options.longest) for _ in range(options.kills)]
    with tempfile.TemporaryDirectory() as folder:
        struck = compare(options.engine, options.steps, moments, Path(folder))
    print(f"{len(struck)} of {options.kills} kills struck a run that had begun, at steps {struck}")
    print(
        "every file was whole every time, and the run ended with the same bytes as one that was never killed"
    )
    sys.exit(0)
