"""One run of learning.py's tables, in a process of its own: trains, or goes on, and leaves its evaluations in a folder.

    python benchmarks/learning_run.py FOLDER JOB    # JOB: the fields of a Job, as JSON; learning.py calls this

Both implementations are evaluated after the same steps by the same function: EPISODES episodes of the deterministic
policy, in an environment of their own, from the same starts every time. Minutes are of training alone.

A run of sacfast goes on to the bit. One of Stable-Baselines3 goes on from its last evaluation, with its replay buffer,
but with the next episode and with random numbers of that step's own, since its files hold neither. Once finished it
leaves its evaluations alone, so a longer one starts again.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import filelock
import torch
from records import describe_machine

from sacfast import SACConfig, TrainConfig, checkpoint
from sacfast.comparison import UNIMPORTANT, settings_in_effect
from sacfast.engines import ReferenceEngine
from sacfast.envs import make_env
from sacfast.evaluate import SELECTION_SEED, evaluate
from sacfast.logger import read_csv
from sacfast.run_folder import complete
from sacfast.runs import read_config
from sacfast.train import train
from sacfast.trainer import TrainingInterrupted

EPISODES = 10  # in an evaluation

# step, mean and population standard deviation of the episodes' returns, minutes of training so far
Evaluation = list[float]


@dataclass(frozen=True)
class Job:
    """One run. `settings` are fields of TrainConfig or SACConfig that differ from the defaults; `variant` names them.
    {"shared_step": True} is one that only the reference engine has here (`share_the_step`).

    Its place does not depend on `steps`, so that a longer run is the shorter one continued.
    """

    env: str
    steps: int
    seed: int = 0
    implementation: str = "sacfast"
    variant: str = "default"
    settings: dict[str, Any] = field(default_factory=dict, hash=False)
    device: str = "cpu"
    every: int = 10_000
    """Steps between evaluations."""

    @property
    def name(self) -> str:
        implementation = (
            f"{self.implementation}-{self.device}" if self.device != "cpu" else self.implementation
        )
        return f"{self.env}/{implementation}/{re.sub(r'[^A-Za-z0-9.]+', '-', self.variant)}/seed{self.seed}"

    def evaluations(self, folder: Path) -> list[Evaluation]:
        """Those made so far, up to `steps`."""
        rows = _sacfast_rows(self, folder) if self.implementation == "sacfast" else _sb3_rows(folder)
        return [row for row in rows if row[0] <= self.steps]

    def finished(self, folder: Path) -> bool:
        return any(row[0] >= self.steps for row in self.evaluations(folder))

    def learned_with(self) -> dict[str, Any]:
        """Every setting that bears on what is learned, as JSON has it; of Stable-Baselines3 what is not its own."""
        if self.implementation != "sacfast":
            return self.settings
        return _that_bear_on_learning(configuration(self, Path()))


def _that_bear_on_learning(config: TrainConfig) -> dict[str, Any]:
    values = settings_in_effect(config)
    return json.loads(json.dumps({name: values[name] for name in sorted(values.keys() - UNIMPORTANT)}))


def _latest(folders: list[Path]) -> Path | None:
    return max(folders, default=None, key=lambda path: path.name)


def _sacfast_run(job: Job, folder: Path) -> Path | None:
    """The run that was begun in a job's folder, if it came as far as its first checkpoint.

    One that had other settings, the defaults of another day say, is another's.
    """
    begun = [path.parent for path in folder.glob("*/*/config.json") if complete(path.parent)]
    settings = job.learned_with()
    return _latest([run for run in begun if _that_bear_on_learning(read_config(run)) == settings])


def _sacfast_rows(job: Job, folder: Path) -> list[Evaluation]:
    run = _sacfast_run(job, folder)
    if run is None:
        return []
    elapsed = {row["step"]: row["elapsed_s"] for row in read_csv(run / "progress.csv")}
    return [
        [row["step"], row["mean"], row["std"], elapsed[row["step"]] / 60]
        for row in read_csv(run / "evaluation.csv")
        if row["step"] in elapsed
    ]


def _sb3_saved(folder: Path) -> Path | None:
    return _latest(list(folder.glob("saved-*")))


def _sb3_rows(folder: Path) -> list[Evaluation]:
    saved = _sb3_saved(folder)
    return [] if saved is None else json.loads((saved / "evaluations.json").read_text())


def configuration(job: Job, folder: Path) -> TrainConfig:
    """The settings of a job of sacfast. Raises SACError where there are no such values, TypeError no such fields."""
    # Never the fall-back: what is measured is the native engine, or what a setting names.
    settings = {"engine": "native"} | job.settings
    if settings.pop("shared_step", False):
        settings["engine"] = "reference"
    ours = {f.name for f in fields(SACConfig)}
    return TrainConfig(
        env=job.env,
        steps=job.steps,
        seed=job.seed,
        device=job.device,
        threads=1,
        eval_every=job.every,
        eval_episodes=EPISODES,
        checkpoint_every=job.every,
        log_every=math.gcd(500, job.every),  # a row for each evaluation
        keep_checkpoints=1,
        tensorboard=False,
        out=str(folder),
        sac=SACConfig(**{name: value for name, value in settings.items() if name in ours}),
        **{name: value for name, value in settings.items() if name not in ours},
    )


def share_the_step() -> None:
    """From now on the reference engine takes the actor's gradient by the critics as they were before their own step."""
    critic_step, actor_step = ReferenceEngine._critic_step, ReferenceEngine._actor_step

    def keep_and_step(self, state, *args):
        self.critics_before = state.critic_params.clone()
        return critic_step(self, state, *args)

    def step_by_the_old(self, state, *args):
        updated = state.critic_params.clone()
        with torch.no_grad():
            state.critic_params.copy_(self.critics_before)
        result = actor_step(self, state, *args)
        with torch.no_grad():
            state.critic_params.copy_(updated)
        return result

    ReferenceEngine._critic_step, ReferenceEngine._actor_step = keep_and_step, step_by_the_old  # type: ignore[method-assign]


def run_sacfast(job: Job, folder: Path) -> None:
    if job.settings.get("shared_step"):
        share_the_step()
    config, run = configuration(job, folder), _sacfast_run(job, folder)
    if run is not None:
        before = read_config(run)
        config = replace(config, resume=str(run), out=before.out, steps=max(job.steps, before.steps))
    train(config)


def run_sb3(job: Job, folder: Path) -> None:
    """SAC("MlpPolicy", env) as it comes. Only its buffer is as small as the run allows, which changes nothing."""
    from stable_baselines3 import SAC

    env, eval_env = make_env(job.env), make_env(job.env)
    saved, rows = _sb3_saved(folder), _sb3_rows(folder)
    if saved is not None and (saved / "model.zip").exists():
        model = SAC.load(saved / "model.zip", env=env, device=job.device)
        model.load_replay_buffer(saved / "buffer.pkl")
        model.set_random_seed(job.seed + int(rows[-1][0]))
    else:
        rows = []
        model = SAC(
            "MlpPolicy",
            env,
            seed=job.seed,
            device=job.device,
            buffer_size=min(1_000_000, job.steps),
            **job.settings,
        )
    seconds = 60 * rows[-1][3] if rows else 0.0
    while model.num_timesteps < job.steps:
        begin = time.perf_counter()
        model.learn(min(job.every, job.steps - model.num_timesteps), reset_num_timesteps=False)
        seconds += time.perf_counter() - begin
        score = evaluate(
            lambda obs: model.predict(obs, deterministic=True)[0], eval_env, EPISODES, SELECTION_SEED
        )
        rows.append([model.num_timesteps, score.mean, score.std, seconds / 60])
        _save_sb3(model, rows, folder, last=model.num_timesteps >= job.steps)


def _save_sb3(model: Any, rows: list[Evaluation], folder: Path, last: bool) -> None:
    """Beside what was saved before, in whose place it then stands."""
    temporary, final = folder / "saving", folder / f"saved-{model.num_timesteps:09d}"
    for leftover in (temporary, final):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    (temporary / "evaluations.json").write_text(json.dumps(rows))
    if not last:
        model.save(temporary / "model.zip")
        model.save_replay_buffer(temporary / "buffer.pkl")
    before = list(folder.glob("saved-*"))
    os.rename(temporary, final)
    for each in before:
        shutil.rmtree(each)


RUNNERS = {"sacfast": run_sacfast, "sb3": run_sb3}


def describe(job: Job, side_by_side: int) -> dict[str, Any]:
    """The day, hardware and versions, and how many runs the machine was given at once."""
    machine = describe_machine() | {"side_by_side": side_by_side}
    if job.device != "cpu":
        machine["gpu"] = torch.cuda.get_device_name(job.device)
        # NVIDIA's MPS lets runs on one GPU go on beside one another, which their minutes depend on.
        pipes = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
        machine["mps"] = (Path(pipes) / "control").exists()
    return machine


def _stay_on_the_machine(record: Path, now: dict[str, Any]) -> None:
    """Minutes of two machines have no meaning together: a run is continued on the one it was begun on, on any day."""
    if not record.exists():
        checkpoint.write_text(record, json.dumps(now))
        return
    begun = json.loads(record.read_text())
    changed = {name: (begun.get(name), now.get(name)) for name in begun | now if name != "date"}
    changed = {name: values for name, values in changed.items() if values[0] != values[1]}
    if changed:
        text = "; ".join(
            f"{name} was {before!r} and is {after!r}" for name, (before, after) in changed.items()
        )
        raise SystemExit(
            f"{record.parent} was begun elsewhere ({text}): go on there, or remove it to start again"
        )


def _end_with_the_parent() -> None:
    """Its end, even by SIGKILL, closes our standard input; SIGTERM then lets the run save itself."""
    while os.read(0, 1):  # not by sys.stdin, whose lock would be in the way of our own end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(folder: str, job: str, side_by_side: str) -> int:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    work, this = Path(folder), Job(**json.loads(job))
    work.mkdir(parents=True, exist_ok=True)
    # Waits for one that an earlier scheduler left behind.
    with filelock.FileLock(work / "job.lock", fallback_to_soft=False):
        if this.finished(work):
            return 0
        _stay_on_the_machine(work / "machine.json", describe(this, int(side_by_side)))
        checkpoint.write_text(work / "job.json", json.dumps(asdict(this)))
        try:
            RUNNERS[this.implementation](this, work)
        except TrainingInterrupted as stopped:
            return 128 + stopped.signum
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
