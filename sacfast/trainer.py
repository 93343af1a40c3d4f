"""The training loop: one run, from its first step, or from a checkpoint, to its last.

    random actions until learning_starts, then the policy's
    step of all environments -> replay buffer -> updates that are due -> every so often: log, evaluate, checkpoint

Under schedule="overlap" the updates that are due by one step are made beside the next step of the environments. Where
they begin and end does not depend on who is faster: they begin once that step's action is chosen, from the weights
before them, and end before its transitions are stored.

Everything is counted in steps of single environments. Every episode starts from a seed made of the run's seed, the
environment's index and the episode's number there. A run that stopped between any two steps goes on as if it had not:
a checkpoint holds the environments' state too. Where that cannot be had (envstate.py), the episodes that were cut off
are left behind, and the resumed run begins with the next ones.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from sacfast.agent import SACAgent
from sacfast.collector import Collector, episode_seed
from sacfast.config import TrainConfig
from sacfast.diagnostics import Stopwatch, saturation
from sacfast.display import Row, make_display
from sacfast.envs import same_environment
from sacfast.errors import ActionNotFinite, CheckpointError, SACError, first_line
from sacfast.evaluate import MAX_EPISODE_STEPS, Evaluation
from sacfast.judge import Judge, ScoringStopped
from sacfast.learner import Learner
from sacfast.logger import RunLogger
from sacfast.pilot import DivergedError, Pilot
from sacfast.plotting import plot_run
from sacfast.run_folder import Counters, RunFolder, quoted, resume_command, write_json
from sacfast.stop import StopRequest


class TrainingInterrupted(KeyboardInterrupt):
    """Raised once a run that a signal stopped has saved itself: `run` is its folder, `signum` the signal."""

    def __init__(self, run: Path, signum: int, command: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; resume with {command}")
        self.run, self.signum = run, signum


class Trainer:
    """One run: the agent, its environments, its logs and its place in time. `run()` does everything.

    env and eval_env are single environments or vectors; they and the agent fit together; `folder` is locked; `resumed`
    is what it gave with the checkpoint that the agent was loaded from; `given` names those of "env" and "eval_env" that
    are not simply gymnasium.make(config.env). Where both are the same, a robot say, an evaluation leaves the episode
    under way behind.
    """

    def __init__(
        self,
        config: TrainConfig,
        agent: SACAgent,
        env: gymnasium.Env | VectorEnv,
        eval_env: gymnasium.Env | VectorEnv,
        folder: RunFolder,
        resumed: dict[str, Any] | None = None,
        given: Sequence[str] = (),
    ) -> None:
        self.config, self.agent, self._given = config, agent, given
        self._shared = same_environment(env, eval_env)
        self.folder, self._checkpoints = folder.path, folder
        self.resume_command = resume_command(folder.path, given)
        self.at = Counters() if resumed is None else Counters(**resumed["counters"])
        self._resumed = resumed
        self.collector = Collector(
            env, config.env, lambda env, episode: episode_seed(config.seed, episode, env)
        )
        before = self.collector.num_envs if resumed is None else len(resumed["environments"]["next_episodes"])
        if before != self.collector.num_envs:
            raise SACError(
                f"the run had {before} environments, not {self.collector.num_envs}; resume it with as many."
            )
        self.stop = StopRequest()
        self.display = make_display(config.env, config.steps)
        resume_step = None if resumed is None else self.at.step
        self.logger = RunLogger(
            folder.path,
            self.display,
            tensorboard=config.tensorboard,
            wandb=config.wandb,
            settings=config.to_dict(),
            resume_step=resume_step,
            evaluated_step=resume_step and self.at.evaluated_step,
        )
        self._returns: list[float] = []  # of the episodes that ended since the last log row
        self._storing = False  # a transition is being stored
        self._within_step = True  # the environments' state is not that of a moment between two steps
        self._begun = False  # a resumed run is where its checkpoint is
        self._finished = False  # the last checkpoint of this part of the run is written
        self._stopwatch = Stopwatch(self.at.elapsed_s)
        self._mark = (self.at.elapsed_s, self.at.step, agent.training_steps)  # of the last log row
        self.learner = Learner(config, agent, self._stopwatch)
        self.pilot = Pilot(config, agent, folder.path)
        self.judge = Judge(config, agent, eval_env, self.pilot, self.stop, folder, self.at)
        if resumed is not None:
            self.judge.recall()

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
        except KeyboardInterrupt:  # the third SIGINT, as a rule, wherever it struck
            if self._storing or self.learner.updating or not self._rescue():
                raise KeyboardInterrupt(
                    f"ended by SIGINT at step {self.at.step:,}; what was learned since the last checkpoint in "
                    f"{self.folder} is lost"
                ) from None
            if self.stop.signum is None:
                raise  # an environment's own, or that of a thread whose signals we do not get
        except (Exception, SystemExit):
            self._rescue()
            raise

    def _loop(self) -> None:
        config = self.config
        self._enter_phase()
        self._begin()
        self._begun = True
        self._stopwatch.skip()
        # An interrupt that insisted may have come between a step and its updates.
        self.learner.learn(self.at.step)
        self._stopwatch.lap("update")
        if self._due(config.eval_every, self.at.evaluated_step):
            self._evaluate()  # the signal that ended the run's previous part cut this one short
        while self.at.step < config.steps and self.stop.signum is None:
            before = self.at.step
            self._advance()
            self.learner.learn(self.at.step)
            self._stopwatch.lap("update")
            self.display.step(self.at.step)
            if before < config.learning_starts <= self.at.step:
                self._enter_phase()
            if self._due(config.log_every, before):
                self._log()
            self._stopwatch.lap("log")  # here, since what follows is skipped
            if self._due(config.eval_every, before):
                self._evaluate()
            if self._due(config.checkpoint_every, before) and self.at.step < config.steps:
                self._save_on_the_way()

    def _due(self, every: int, since: int) -> bool:
        """Whether a multiple of `every` lies after step `since`, up to the current one."""
        return every > 0 and self.at.step // every > since // every

    def _begin(self) -> None:
        """The first observations: of a new run, which is saved as it begins, or of the checkpoint."""
        if self._resumed is None:
            self.collector.reset()
            self._within_step = False
            obstacle = self._save_last()
            if obstacle is not None:
                self.display.message(f"a resumed run will begin with the next episode: {obstacle}")
            return
        self._returns = self._resumed["returns"]
        self.learner.restore(self._resumed)
        environments = self._resumed["environments"]
        obstacle = self.collector.recover(environments, self.at.step)
        if obstacle is not None:
            self.at.episode = sum(environments["next_episodes"])
            if environments["under_way"]:
                self.display.message(f"the episode that was interrupted is left behind ({obstacle})")
        self._within_step = False

    def _advance(self) -> None:
        """One step of every environment, its transitions into the replay buffer."""
        collector, at = self.collector, self.at
        self._within_step = True
        random = at.step < self.config.learning_starts
        action = collector.random_action() if random else self.pilot.act(collector.obs, at.step)
        self._stopwatch.lap("act")
        with self.learner.beside(at.step):
            try:
                rows, ended = collector.step(action, at.step)
            except ActionNotFinite as error:
                raise self.pilot.diverged(str(error)) from None
        self._stopwatch.lap("env")
        self._storing = True
        # A time limit is not an end: only `terminated` stops the bootstrap, from the true last observation.
        try:
            self.agent.replay_buffer.push_batch(*rows)
        except SACError as error:
            raise SACError(f"{collector.name}, at step {at.step + 1}: {error}") from None
        at.step += len(rows.reward)
        self._storing = False
        self._stopwatch.lap("insert")
        for episode in ended:
            at.episode += 1
            self._returns.append(episode.total)
            self.logger.episode(at.episode, at.step, episode.total, episode.length)
        self._within_step = False
        self._stopwatch.lap("log")

    def _log(self) -> None:
        now = (self._stopwatch.elapsed_s, self.at.step, self.agent.training_steps)
        seconds, steps, updates = (new - old for old, new in zip(self._mark, now, strict=True))
        self._mark = now
        buffer, learner = self.agent.replay_buffer, self.learner
        row: Row = {
            "step": self.at.step,
            "episode": self.at.episode,
            "updates": self.agent.training_steps,
            "episode_return": sum(self._returns) / len(self._returns) if self._returns else None,
            "saturation": saturation(buffer.newest_actions(self.at.step - self.at.logged_step)),
            **learner.norms,
            "buffer_fill": buffer.size / buffer.capacity,
            "steps_per_s": steps / max(seconds, 1e-9),
            "updates_per_s": updates / max(seconds, 1e-9),
            "elapsed_s": self._stopwatch.elapsed_s,
            **self._stopwatch.shares(),
        }
        self.at.logged_step = self.at.step
        self._returns.clear()
        learner.forget_norms()
        self.logger.progress(row, learner.metrics)

    def _evaluate(self) -> None:
        """Score the deterministic policy and keep it as best.safetensors when it is the best so far."""
        with self._untimed("evaluating"):
            self.at.elapsed_s = self._stopwatch.elapsed_s
            self._within_step = self._shared  # the evaluation's episodes are not those to go on with
            try:
                score = self.judge.score()
            except ScoringStopped:
                return
            self._warn_of_endless_episodes(score)
            is_best = self.judge.is_best(score.mean) and self._keep(score)
            row: Row = {
                "step": self.at.step,
                "mean": score.mean,
                "std": score.std,
                "min": score.min,
                "max": score.max,
                "episodes": len(score.returns),
                "mean_length": sum(score.lengths) / len(score.lengths),
            }
            self.at.evaluated_step = self.at.step  # first: a row that was written is not written again
            self.logger.evaluation(row, is_best)
            if self._shared:
                following = self.collector.next_episodes()
                self.at.episode = sum(following)
                self.collector.begin(following, self.at.step)
                self._within_step = False

    def _keep(self, score: Evaluation) -> bool:
        """Whether best.safetensors holds the policy that was scored; a disk that refuses it ends no run."""
        try:
            self.judge.keep(score)
        except CheckpointError as error:
            self.display.message(f"{error}; training goes on, without this policy as its best")
            return False
        return True

    def _warn_of_endless_episodes(self, score: Evaluation) -> None:
        if max(score.lengths) >= MAX_EPISODE_STEPS and self.at.evaluated_step == 0:
            remedy = (
                "gymnasium.make's max_episode_steps sets one (--make-kwargs '{\"max_episode_steps\": 1000}')"
            )
            if self._given:
                remedy = "gymnasium.wrappers.TimeLimit around each environment sets one"
            self.display.message(
                f"an evaluation's episode was cut at {MAX_EPISODE_STEPS:,} steps: has {self.config.env} no time limit? "
                f"{remedy}, and fewer --eval-episodes take less time"
            )

    def _save_on_the_way(self) -> None:
        """A checkpoint that the disk refuses ends no run: what is learned is in memory, and the next one has it all."""
        try:
            self._save_last()
        except CheckpointError as error:
            self.display.message(f"{error}; training goes on, and tries again at the next checkpoint")

    def _save_last(self) -> str | None:
        """Returns the obstacle to having the environments' state, if there was one."""
        with self._untimed("saving"):
            return self._write_last()

    def _write_last(self) -> str | None:
        self.pilot.check(self.at.step)  # NaN must not replace a good checkpoint
        environments = self.collector.captured(self._within_step)
        self.at.elapsed_s = self._stopwatch.elapsed_s  # what a resumed run would not know of
        state = {
            "counters": dataclasses.asdict(self.at),
            "returns": list(self._returns),
            **self.learner.state(),
            "environments": environments,
        }
        with self.stop.shielded():
            self.logger.flush()
            self._checkpoints.save(self.agent, self.at.step, state)
        return environments["obstacle"]

    def _rescue(self) -> bool:
        """Save what was learned before an error leaves, and say where; failing here must not hide the error.

        Returns whether the latest checkpoint holds all that was learned.
        """
        if self.at.step == 0:
            return False
        if not self._begun:  # what would be saved is the checkpoint without the environments' state
            with suppress(Exception):
                self.display.message(f"nothing is lost; to go on: {self.resume_command}")
            return True
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
        self.display.phase(phase)
        try:
            yield
        finally:
            self._stopwatch.skip()
            self._enter_phase()

    def _enter_phase(self) -> None:
        self.display.phase("random actions" if self.at.step < self.config.learning_starts else "training")

    def _finish(self) -> None:
        """Save; at the end of the run also evaluate, score the best policy on fresh starts, and draw.

        Raises CheckpointError where the disk refuses the checkpoint, once the score is told.
        """
        if self.stop.signum is None:
            if self.at.logged_step != self.at.step:
                self._log()
            if self.at.evaluated_step != self.at.step:
                self._evaluate()
        refusal: CheckpointError | None = None
        try:
            self._save_last()
        except CheckpointError as error:
            refusal = CheckpointError(f"{error}, then go on: {self.resume_command}")
        self._finished = True
        try:
            if self.stop.signum is None:
                with suppress(ScoringStopped), self._untimed("scoring"):
                    self._report()
                    # A signal that came meanwhile is answered with how to go on.
                    if self.config.discard_checkpoints and refusal is None and self.stop.signum is None:
                        self._checkpoints.discard()
        finally:
            if refusal is not None:
                raise refusal
        if self.stop.signum is not None:
            name = signal.Signals(self.stop.signum).name
            self.display.message(
                f"stopped by {name} at step {self.at.step:,} of {self.config.steps:,}; everything "
                f"learned is in {self.folder}\nto go on: {self.resume_command}"
            )

    def _report(self) -> None:
        summary, sentence = self.judge.report()
        try:
            write_json(self.folder / "summary.json", summary)
        finally:
            complaint = _draw(self.folder)
            self.display.close()
            if complaint is not None:
                self.display.message(complaint)
            self.display.message(sentence)
            self.display.message(f"run folder: {self.folder}")


def _draw(folder: Path) -> str | None:
    """Draw the pictures. What to print when that fails, since a picture must never cost a finished run."""
    try:
        plot_run(folder)
    except Exception as error:
        return f"no pictures ({first_line(error)}); python -m sacfast.plot {quoted(folder)} tries again"
    return None
