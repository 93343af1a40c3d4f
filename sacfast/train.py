"""Sets up a run and starts it; `python -m sacfast.train`. The loop itself is in trainer.py."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from sacfast import native
from sacfast.agent import SACAgent
from sacfast.comparison import plot_comparison
from sacfast.config import SACConfig, TrainConfig
from sacfast.cores import physical_cores
from sacfast.display import say
from sacfast.engines import Engine
from sacfast.envs import flattened, normalising_wrappers, same_environment
from sacfast.errors import SACError
from sacfast.flags import parse, parse_each, spaced
from sacfast.pilot import DivergedError
from sacfast.run_folder import RunFolder, complete, resume_command
from sacfast.runs import check_resume, given_environments, is_finished, read_config, write_config
from sacfast.sources import AnyEnv, EnvSource, check_alike, environments
from sacfast.trainer import Trainer, TrainingInterrupted
from sacfast.vector import close_and_tell

__all__ = ["main", "parse", "train"]

_IMPORTED_IN = os.getpid()


def train(config: TrainConfig | None = None, env: EnvSource = None, eval_env: EnvSource = None) -> Path:
    """Train as `config` says and return the run's folder; one of its name that is finished is left as it is.

    env: for an environment that is not registered with Gymnasium, a function that makes it (training and
        evaluation each get their own; config.num_envs of them are trained on together), or an environment made by
        gymnasium.make, which is left open. Its name replaces config.env. Either may also be a vector of
        environments, of arrays or of tensors, that follows Gymnasium's vector interface; it is stepped as it is.
    eval_env: likewise, where evaluation needs another one than `env` gives, with the same observations and bounds of
        actions.

    To resume a run in Python, take its settings over: train(parse(["--resume", RUN])), with the same `env` and
    `eval_env`; without those that it was given before it is refused.

    Raises SACError for anything the user can put right, TrainingInterrupted (a KeyboardInterrupt) after SIGINT, SIGTERM
    or SIGHUP. What was learned has been saved then, unless saving is what failed, or the policy's numbers are no longer
    finite. A third SIGINT ends even an environment that hangs.
    """
    config = config or TrainConfig()
    given = tuple(name for name, source in (("env", env), ("eval_env", eval_env)) if source is not None)
    by_name = bool(config.name) and config.resume is None
    owned: list[AnyEnv] = []
    with ExitStack() as stack:
        stack.callback(_close, owned)
        if env is None:
            config = _continued(config, given, by_name)
        name, training, evaluation = environments(config, env, eval_env, owned)
        check_alike(training, evaluation)
        if env is not None:
            config = _continued(dataclasses.replace(config, env=name), given, by_name)
        if by_name and config.resume is not None and is_finished(config.resume, config.steps):
            run = Path(config.resume)
            more = f"; give more --steps than {config.steps:,} to train it further" if complete(run) else ""
            say(f"{run} is finished{more}")
            return run
        try:
            trainer = _make_trainer(config, training, evaluation, stack, given)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_nothing_done(config, given)) from None
        try:
            trainer.run()
        finally:
            _print_profile(trainer.agent.engine)
    return trainer.folder


def _continued(config: TrainConfig, given: Sequence[str], by_name: bool) -> TrainConfig:
    """`config`, with the run to go on with as its `resume` where its name has been trained before.

    Raises SACError for a run that was made with other settings, or in other environments.
    """
    run = _folder_of_runs(config) / config.name if by_name else config.resume
    # One of a name without either was killed before its first checkpoint, and begins anew.
    if run is None or (by_name and not (complete(Path(run)) or is_finished(run, 0))):
        return config
    saved = read_config(run)
    if by_name:  # whichever way OUT was written before, this one led here
        config = dataclasses.replace(config, resume=str(run), out=saved.out)
    _check_given(Path(run), given)
    check_resume(saved, config, by_name)
    return config


def _check_given(run: Path, given: Sequence[str]) -> None:
    """Raise SACError for a run that would go on with another environment than the caller's own of before."""
    before = given_environments(run)
    missing = [name for name in before if name not in given]
    if missing:
        raise SACError(
            f"{run} was trained with {' and '.join(f'{name}=' for name in missing)}, which only your program can "
            f"make; to go on: {resume_command(run, before)}"
        )


def _close(envs: list[AnyEnv]) -> None:
    for each in envs:
        close_and_tell(each)


def _make_trainer(
    config: TrainConfig, env: AnyEnv, eval_env: AnyEnv, stack: ExitStack, given: tuple[str, ...]
) -> Trainer:
    """The run's trainer; `stack` gives up the lock on its folder."""
    if config.resume is None:
        _check_writable(Path(config.out))
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    # In a forked process PyTorch's other threads do not exist, and it may wait for them for ever.
    torch.set_num_threads((config.threads or physical_cores()) if os.getpid() == _IMPORTED_IN else 1)
    agent = SACAgent.from_env(
        env,
        device=device,
        storage=config.storage,
        engine=config.engine,
        threads=config.threads,
        seed=config.seed,
        **config.sac.to_dict(),
    )
    agent.replay_buffer.allocate()  # too little memory is told before the run has a folder
    folder: RunFolder | None = None
    resumed: dict[str, Any] | None = None
    if config.resume is not None:
        folder = RunFolder(Path(config.resume), config.keep_checkpoints)
        stack.enter_context(folder.locked())
        resumed = folder.load(agent)
        step = resumed["counters"]["step"]
        if step >= config.steps:
            say(f"{folder.path} has reached its {step:,} steps; give a larger --steps to train further")
    # The build, if there is one, comes once everything else is known to be right (the native engine's own comes with
    # the engine), and talks before the display starts. With any engine: acting and the sampler use the operators too.
    native.available(agent.device.type)
    made = False
    lock = stack.enter_context(ExitStack())
    if folder is None:
        path, made = _new_folder(config)
        folder = RunFolder(path, config.keep_checkpoints)
        lock.enter_context(folder.locked())
    try:
        _advise(config, env, eval_env, agent, given)
        count = getattr(env, "num_envs", 1)
        times = f" x {count}" if count > 1 else ""
        say(
            f"{config.env}{times}: {agent.state_dim} observations, {agent.action_dim} actions; engine "
            f"{agent.engine.name} on {agent.device}, {torch.get_num_threads()} threads, seed {config.seed}\n"
            f"run folder: {folder.path}"
        )
        trainer = Trainer(config, agent, env, eval_env, folder, resumed, given)
        # Once nothing is refused any more: a resumed run would keep settings that it never had.
        write_config(folder.path, config, given)
    except BaseException:
        if made:  # Weights & Biases refused, say: it would stay behind as a run without settings
            lock.close()
            shutil.rmtree(folder.path, ignore_errors=True)
        raise
    return trainer


def _advise(
    config: TrainConfig, env: AnyEnv, eval_env: AnyEnv, agent: SACAgent, given: Sequence[str]
) -> None:
    """Print what the user may not have expected of these settings and environments, a line each."""
    count = getattr(env, "num_envs", 1)
    if "env" in given and config.make_kwargs:
        say("make_kwargs is not used: env= gives an environment that is made already")
    if config.num_envs not in (1, count):
        say(f"num_envs={config.num_envs} is not used: env= gives a vector of {count}")
    note, sac, engine, action_dim = flattened(eval_env), config.sac, agent.engine, agent.action_dim
    if note is not None:
        say(f"{config.env}: {note}")
    if same_environment(env, eval_env):
        say(
            f"{config.env}: training and evaluation share one environment; an evaluation leaves the episode under way "
            "behind"
        )
    for name in dict.fromkeys(normalising_wrappers(env) + normalising_wrappers(eval_env)):
        say(
            f"{config.env}: {name} has statistics of its own in training, evaluation and use; leave it out: "
            "observations are normalised by --normalize-obs, rewards scaled by --reward-scale"
        )
    for name, why in sac.unread.items():
        if (value := getattr(sac, name)) != getattr(SACConfig, name):
            say(f"{name}={value} is not used, since {why}")
    if sac.automatic_entropy_tuning and engine.target_entropy >= (most := math.log(2) * action_dim):
        say(
            f"target entropy {engine.target_entropy:g} cannot be reached: {action_dim} actions have {most:.3g} at the "
            "most, that of uniformly random ones; the temperature will grow without end. Choose a negative number"
        )
    if config.schedule == "overlap" and not engine.starts:
        say(
            f"overlap: engine {engine.name} on {engine.threads} thread(s) cannot update while the environments step; "
            "the run is no faster than strict"
        )


def _print_profile(engine: Engine) -> None:
    """Where the updates' time went, if SACFAST_PROFILE asks for it and the engine knows."""
    phases = engine.profile() if native.profiling() else {}
    total = sum(phases.values())
    if total > 0:
        shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in phases.items())
        say(f"updates, {total:.1f} s of all threads: {shares}")


def _nothing_done(config: TrainConfig, given: tuple[str, ...]) -> str:
    """What to say when Ctrl-C comes while a run is being set up."""
    if config.resume is None:
        return "interrupted before the first step; there is nothing to resume"
    return f"interrupted before the first step; to go on: {resume_command(Path(config.resume), given)}"


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise SACError(
            f"--out {out} cannot be written to ({error.strerror}); choose another folder."
        ) from error


def _folder_of_runs(config: TrainConfig) -> Path:
    return Path(config.out) / config.env.replace("/", "-").replace(":", "-")


def _new_folder(config: TrainConfig) -> tuple[Path, bool]:
    """OUT/ENV/NAME, and whether it was not there before; without a name OUT/ENV/DATE-TIME-sSEED, with a number behind
    it when two runs start in the same second.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    base = _folder_of_runs(config) / (config.name or f"{stamp}-s{config.seed}")
    folder, count = base, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder, True
        except OSError as error:
            exists = isinstance(error, FileExistsError)
            if exists and config.name and folder.is_dir():
                return folder, False
            if not exists or config.name:
                raise SACError(
                    f"cannot make the run folder {folder} ({error.strerror}); choose another --out or --name."
                ) from error
            count += 1
            folder = base.with_name(f"{base.name}-{count}")


def _train_each(configs: list[TrainConfig]) -> bool:
    """One run after another and, of several, a picture of all: in OUT, since OUT/ENV holds runs alone.

    Whether all were made to their end: a seed that diverges is told, and the others are made.
    """
    runs: list[Path] = []
    for i, config in enumerate(configs):
        try:
            runs.append(train(config))
        except DivergedError as error:
            if len(configs) == 1:
                raise
            _complain(f"error: seed {config.seed}: {error}")
        except BaseException:
            waiting = [other.seed for other in configs[i + 1 :]]
            if waiting:
                _complain(f"not begun: --seeds {spaced(waiting)}")
            raise
    if len(runs) > 1:
        files, _ = plot_comparison(
            runs, Path(configs[0].out), f"comparison-{runs[0].parent.name}-{runs[0].name}"
        )
        say(f"comparison of the runs: {' '.join(map(str, files))}")
    return len(runs) == len(configs)


def _complain(text: str) -> None:
    with suppress(OSError):  # of a terminal that was closed
        print(text, file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    try:
        all_made = _train_each(parse_each(arguments))
    except SACError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingInterrupted as stopped:
        return 128 + stopped.signum
    except KeyboardInterrupt as stopped:
        print(str(stopped) or "interrupted", file=sys.stderr)
        return 130
    return 0 if all_made else 2


if __name__ == "__main__":
    sys.exit(main())
