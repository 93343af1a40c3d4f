"""The training loop: one run, from its first step, or from a checkpoint, to its last.

    random actions until learning_starts, then the policy's
    step of all environments -> replay buffer -> updates that are due -> every so often: log, evaluate, checkpoint

Everything is counted in steps of single environments. Every episode starts from a seed made of the run's seed, the
environment's index and the episode's number there, so that a run resumed between two episodes continues as if it had
never stopped. An episode cut off by an interruption is left behind, and the resumed run begins with the next one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv
from torch import Tensor

from sacfast.agent import SACAgent
from sacfast.collector import Array, Collector, episode_seed
from sacfast.config import TrainConfig
from sacfast.engines import Metrics
from sacfast.errors import CheckpointError, SACError
from sacfast.evaluate import REPORT_SEED, SELECTION_SEED, Evaluation, baselines, evaluate
from sacfast.logger import Row, RunLogger, make_display
from sacfast.plotting import plot_run


class TrainingInterrupted(KeyboardInterrupt):
    """Raised once a run that a signal stopped has saved itself: `run` is its folder, `signum` the signal."""

    def __init__(self, run: Path, signum: int, command: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; resume with {command}")
        self.run, self.signum = run, signum


class DivergedError(SACError):
    """The policy's numbers are no longer finite: the one error after which nothing must be saved."""


class _EvaluationStopped(Exception):
    """Ends an evaluation early once a signal has asked the run to stop."""


class StopRequest:
    """SIGINT and SIGTERM as a flag while active, so that neither a step nor a save is ever cut in half.

    Whoever insists may be facing an environment that hangs: the third SIGINT, and every later one, raises
    KeyboardInterrupt, though never inside `shielded`. Outside the main thread, where Python delivers no
    signals, it stays quiet.
    """

    INSISTENCE = 3

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}
        self._interrupts = 0
        self._shielded = False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """For what must not be cut, however often somebody asks: signals set the flag and nothing else."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._interrupts += signum == signal.SIGINT
        if signum == signal.SIGINT and self._interrupts >= self.INSISTENCE and not self._shielded:
            raise KeyboardInterrupt


@dataclass
class Counters:
    """Where a run stands: what a checkpoint carries beside the agent."""

    step: int = 0
    episode: int = 0
    """Episodes begun before the current ones, over all environments."""
    episodes: list[int] | None = None
    """The same for each environment, as it must be to go on: None stands for the beginning of a run."""
    best: float | None = None
    best_step: int = 0
    evaluated_step: int = 0
    elapsed_s: float = 0.0


class Trainer:
    """One run: the agent, its environments, its logs and its place in time. `run()` does everything.

    env and eval_env are single environments or vectors; they and the agent fit together; `folder` exists; `resumed`
    are the counters of the checkpoint that the agent was loaded from; `custom_env` says that the environment is not
    simply gymnasium.make(config.env).
    """

    def __init__(
        self,
        config: TrainConfig,
        agent: SACAgent,
        env: gymnasium.Env | VectorEnv,
        eval_env: gymnasium.Env | VectorEnv,
        folder: Path,
        resumed: Counters | None = None,
        *,
        custom_env: bool = False,
    ) -> None:
        self.config, self.agent, self.eval_env = config, agent, eval_env
        self.folder = folder
        self.resume_command = resume_command(folder, custom_env)
        self.at = resumed or Counters()
        self.collector = Collector(
            env, config.env, lambda env, episode: episode_seed(config.seed, episode, env)
        )
        self._place_episodes()
        self.stop = StopRequest()
        self.display = make_display(config.env, config.steps)
        resume_step = None if resumed is None else resumed.step
        self.logger = RunLogger(folder, self.display, tensorboard=config.tensorboard, resume_step=resume_step)
        self.metrics: Metrics | None = None
        self._returns: list[float] = []  # of the episodes that ended since the last log row
        self._changing = False  # a transition is being stored, or an update is under way
        self._finished = False  # the last checkpoint of this part of the run is written
        self._mark = (perf_counter(), self.at.step, agent.training_steps)

    def run(self) -> None:
        """Train to the end, score the best policy, draw the plots.

        Raises TrainingInterrupted after a signal, SACError for what the environment or the disk did; what was
        learned is saved first, unless saving is what failed. A third SIGINT may come when nothing can be saved
        (before the first step, in the middle of an update): it leaves as a plain KeyboardInterrupt.
        """
        try:
            with self.stop:
                self._run()
        finally:
            self.display.close()
            self.logger.close()
        if self.stop.signum is not None:
            raise TrainingInterrupted(self.folder, self.stop.signum, self.resume_command)

    def _run(self) -> None:
        try:
            self.display.start(self.at.step)
            self._loop()
            self._finish()
        except (CheckpointError, DivergedError):
            raise
        except KeyboardInterrupt:  # the third SIGINT, wherever it struck
            if self._changing or not self._rescue():
                raise KeyboardInterrupt(
                    f"ended by SIGINT at step {self.at.step:,}; what was learned since the last checkpoint in "
                    f"{self.folder} is lost"
                ) from None
        except Exception:
            self._rescue()
            raise

    def _loop(self) -> None:
        config = self.config
        self._mark = (perf_counter(), self.at.step, self.agent.training_steps)
        self._enter_phase()
        if self._due(config.eval_every, self.at.evaluated_step):
            self._evaluate()  # the signal that ended the run's previous part cut this one short
        self.collector.reset()
        while self.at.step < config.steps and self.stop.signum is None:
            before = self.at.step
            self._advance()
            updates = config.updates_by(self.at.step) - config.updates_by(before)
            if updates:
                self._changing = True
                self.metrics = self.agent.train(updates, config.sac.batch_size)
                self._changing = False
            if before < config.learning_starts <= self.at.step:
                self._enter_phase()
            self.display.step(self.at.step)
            if self._due(config.log_every, before):
                self._log()
            if self._due(config.eval_every, before):
                self._evaluate()
            if self._due(config.checkpoint_every, before) and self.at.step < config.steps:
                self._save_last()

    def _due(self, every: int, since: int) -> bool:
        """Whether a multiple of `every` lies after step `since`, up to the current one."""
        return every > 0 and self.at.step // every > since // every

    def _place_episodes(self) -> None:
        """Count episodes on from where the run stands."""
        counts = self.collector.episodes
        saved = self.at.episodes or [self.at.episode] + [0] * (len(counts) - 1)
        if len(saved) != len(counts):
            raise SACError(
                f"the run had {len(saved)} environments, not {len(counts)}; resume it with as many."
            )
        counts[:] = saved

    def _advance(self) -> None:
        """One step of every environment, its transitions into the replay buffer."""
        collector, at = self.collector, self.at
        random = at.step < self.config.learning_starts
        action = collector.random_action() if random else self._act(collector.obs)
        rows, ended = collector.step(action, at.step)
        self._changing = True
        # A time limit is not an end: only `terminated` stops the bootstrap, from the true last observation.
        # The buffer sees by itself which row continues which; should it ask, rows.env says whose each row is.
        self.agent.replay_buffer.push_batch(
            rows.obs, rows.action, rows.reward, rows.next_obs, rows.terminated
        )
        at.step += len(rows.reward)
        self._changing = False
        for episode in ended:
            at.episode += 1
            self._returns.append(episode.total)
            self.logger.episode(at.episode, at.step, episode.total, episode.length)

    def _act(self, observation: Array, evaluate: bool = False) -> Array:
        if isinstance(observation, Tensor):
            action: Array = self.agent.act(observation, evaluate)
        elif len(observation) == 1 and observation.ndim == 2:
            action = self.agent.select_action(observation[0], evaluate)[None]  # the fastest call of engines
        else:
            action = self.agent.select_action(observation, evaluate)
        if not math.isfinite(action.sum()):
            first = action.reshape(-1, self.agent.action_dim)[0].tolist()
            raise DivergedError(
                f"the policy's action at step {self.at.step} is {first}: training diverged; start "
                f"again with a lower --lr than {self.config.sac.lr:g} or with smaller rewards (checkpoints "
                f"in {self.folder} are older)."
            )
        return action

    def _log(self) -> None:
        (then, step, updates), now = self._mark, perf_counter()
        seconds = max(now - then, 1e-9)
        self.at.elapsed_s += seconds
        self._mark = (now, self.at.step, self.agent.training_steps)
        row: Row = {
            "step": self.at.step,
            "episode": self.at.episode,
            "updates": self.agent.training_steps,
            "episode_return": sum(self._returns) / len(self._returns) if self._returns else None,
            "steps_per_s": (self.at.step - step) / seconds,
            "updates_per_s": (self.agent.training_steps - updates) / seconds,
            "elapsed_s": self.at.elapsed_s,
        }
        self._returns.clear()
        self.logger.progress(row, self.metrics)

    def _evaluate(self) -> None:
        """Score the deterministic policy and keep it as best.safetensors when it is the best so far."""
        with self._untimed("evaluating"):
            try:
                score = evaluate(
                    self._evaluation_policy, self.eval_env, self.config.eval_episodes, SELECTION_SEED
                )
            except _EvaluationStopped:
                return
            self.at.evaluated_step = self.at.step
            is_best = self.at.best is None or score.mean > self.at.best
            row: Row = {
                "step": self.at.step,
                "mean": score.mean,
                "std": score.std,
                "min": score.min,
                "max": score.max,
                "episodes": len(score.returns),
                "mean_length": sum(score.lengths) / len(score.lengths),
            }
            self.logger.evaluation(row, is_best)
            if is_best:
                self.at.best, self.at.best_step = score.mean, self.at.step
                self._save("best.safetensors", replay_buffer=False)

    def _evaluation_policy(self, observation: Array) -> Array:
        if self.stop.signum is not None:
            raise _EvaluationStopped
        return self._act(observation, evaluate=True)

    def _save_last(self) -> None:
        with self._untimed("saving"):
            self._write_last()

    def _write_last(self) -> None:
        # Acting shows whether the weights are still numbers: NaN must not replace a good checkpoint.
        self._act(np.zeros(self.agent.state_dim, np.float32), evaluate=True)
        self._save("last.safetensors", replay_buffer=True)

    def _save(self, name: str, *, replay_buffer: bool) -> None:
        episodes = self.collector.next_episodes()  # those under way cannot be continued later
        counters = dataclasses.asdict(self.at) | {"episode": sum(episodes), "episodes": episodes}
        with self.stop.shielded():
            self.agent.save(self.folder / name, replay_buffer=replay_buffer, extra=counters)

    def _rescue(self) -> bool:
        """Save what was learned before an error leaves, and say where; failing here must not hide the error.

        Returns whether last.safetensors holds all that was learned.
        """
        if self.at.step == 0:
            return False
        saved, text = True, f"saved step {self.at.step:,}; to go on: {self.resume_command}"
        try:
            if not self._finished:  # once it is, the agent may be the best policy already, not the last
                self._write_last()
        except Exception as second:
            saved, text = False, f"what was learned since the last checkpoint could not be saved: {second}"
        with suppress(Exception):  # a closed pipe, say
            self.display.message(text)
        return saved

    @contextmanager
    def _untimed(self, phase: str) -> Iterator[None]:
        """Leave the time spent inside out of the rates."""
        begin = perf_counter()
        self.display.phase(phase)
        yield
        seconds = perf_counter() - begin
        then, step, updates = self._mark
        self._mark = (then + seconds, step, updates)
        self.display.pause(seconds)
        self._enter_phase()

    def _enter_phase(self) -> None:
        self.display.phase("random actions" if self.at.step < self.config.learning_starts else "training")

    def _finish(self) -> None:
        """Save; at the end of the run also evaluate, score the best policy on fresh starts, and draw."""
        if self.stop.signum is None:
            if self._mark[1] != self.at.step:
                self._log()
            if self.at.evaluated_step != self.at.step:
                self._evaluate()
        self._save_last()
        self._finished = True
        if self.stop.signum is None:
            with suppress(_EvaluationStopped), self._untimed("scoring"):
                self._report()
        if self.stop.signum is not None:
            name = signal.Signals(self.stop.signum).name
            self.display.message(
                f"stopped by {name} at step {self.at.step:,} of {self.config.steps:,}; everything "
                f"learned is in {self.folder}\nto go on: {self.resume_command}"
            )

    def _report(self) -> None:
        best = self.folder / "best.safetensors"
        which = "last policy"
        if best.exists():
            step = self.agent.load(best)["step"]
            which = f"best policy, step {step:,}"
        episodes = self.config.eval_episodes
        score = evaluate(self._evaluation_policy, self.eval_env, episodes, REPORT_SEED)
        others = baselines(self.eval_env, episodes, REPORT_SEED)
        self._write_summary(score, others)
        complaint = _draw(self.folder)
        self.display.close()
        if complaint is not None:
            self.display.message(complaint)
        self.display.message(
            f"{self.config.env} after {self.at.step:,} steps: {score} over {episodes} episodes ({which}); "
            f"random actions {others['random']}, zero actions {others['zero']}"
        )
        self.display.message(f"run folder: {self.folder}")

    def _write_summary(self, score: Evaluation, others: dict[str, Evaluation]) -> None:
        summary = {
            "env": self.config.env,
            "step": self.at.step,
            "best_step": self.at.best_step,
            "score": dataclasses.asdict(score),
            "baselines": {name: dataclasses.asdict(value) for name, value in others.items()},
        }
        write_json(self.folder / "summary.json", summary)


def write_json(path: Path, values: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise SACError(
            f"cannot write {path} ({error.strerror}); free some space and resume the run."
        ) from error


def _draw(folder: Path) -> str | None:
    """Draw the pictures. What to print when that fails, since a picture must never cost a finished run."""
    try:
        plot_run(folder)
    except Exception as error:
        return f"no pictures ({error}); python -m sacfast.plot {shlex.quote(str(folder))} tries again"
    return None


def resume_command(folder: Path, custom_env: bool = False) -> str:
    """How to go on: on the command line, or in Python for an environment that only the caller can make."""
    if custom_env:
        arguments = ["--resume", str(folder)]
        return f"from sacfast.train import parse, train; train(parse({arguments}), env=...)"
    return f"python -m sacfast.train --resume {shlex.quote(str(folder))}"
