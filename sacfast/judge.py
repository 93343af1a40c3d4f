"""What a run's policies are worth: scores in its evaluation environment, and the best policy's file."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from functools import partial
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from sacfast import checkpoint
from sacfast.agent import SACAgent
from sacfast.collector import Array
from sacfast.config import TrainConfig
from sacfast.errors import CheckpointError, SACError, raised
from sacfast.evaluate import (
    REPORT_SEED,
    SELECTION_SEED,
    Evaluation,
    Policy,
    baseline_policies,
    evaluate,
)
from sacfast.pilot import Pilot
from sacfast.run_folder import Counters, RunFolder
from sacfast.stop import StopRequest


class ScoringStopped(Exception):
    """A signal came while episodes were run for a score."""


class Judge:
    """Scores the policies of one run in `env`, and keeps the best as best.safetensors.

    at: where the run stands, of which `best` and `best_step` are kept here. Scoring raises ScoringStopped after a
    signal and SACError for what the environment does.
    """

    def __init__(
        self,
        config: TrainConfig,
        agent: SACAgent,
        env: gymnasium.Env | VectorEnv,
        pilot: Pilot,
        stop: StopRequest,
        folder: RunFolder,
        at: Counters,
    ) -> None:
        self.config, self.agent, self.env = config, agent, env
        self.pilot, self.stop, self.at = pilot, stop, at
        self._best = folder.best

    def score(self, seed: int = SELECTION_SEED, policy: Policy | None = None) -> Evaluation:
        """Of the agent acting by its mean, or of another policy."""
        chosen = policy or partial(self.pilot.act, step=self.at.step, evaluate=True)

        def act(observation: Array) -> Array:
            if self.stop.signum is not None:
                raise ScoringStopped
            return chosen(observation)

        try:
            return evaluate(act, self.env, self.config.eval_episodes, seed)
        except (SACError, ScoringStopped):
            raise
        except (Exception, SystemExit) as error:
            raise SACError(
                f"{self.config.env}, evaluated at step {self.at.step}, {raised(error)}."
            ) from error

    def is_best(self, mean: float) -> bool:
        return self.at.best is None or mean > self.at.best

    def keep(self, score: Evaluation) -> None:
        """The agent's policy as the best so far. Raises CheckpointError where it cannot be written."""
        found = {"best": score.mean, "best_step": self.at.step}
        with self.stop.shielded():
            self.agent.save(self._best, replay_buffer=False, extra=dataclasses.asdict(self.at) | found)
        self.at.best, self.at.best_step = score.mean, self.at.step

    def recall(self) -> None:
        """Of a resumed run: what was found after its checkpoint must not be overwritten by less."""
        with suppress(CheckpointError, KeyError, TypeError):
            found = checkpoint.read_meta(self._best)["extra"]
            if found["best_step"] >= self.at.step and self.is_best(found["best"]):
                self.at.best, self.at.best_step = found["best"], found["best_step"]

    def report(self) -> tuple[dict[str, Any], str]:
        """Score the best policy on fresh starts beside random and zero actions: for summary.json, and in a sentence.

        The agent has the best policy from then on.
        """
        which = "last policy"
        if self._best.exists():
            self.at.best_step = self.agent.load(self._best)["step"]
            which = f"best policy, step {self.at.best_step:,}"
        score = self.score(REPORT_SEED)
        policies = baseline_policies(self.env, REPORT_SEED) if self.config.baselines else {}
        others = {name: self.score(REPORT_SEED, policy) for name, policy in policies.items()}
        summary = {
            "env": self.config.env,
            "step": self.at.step,
            "best_step": self.at.best_step,
            "score": dataclasses.asdict(score),
            "baselines": {name: dataclasses.asdict(value) for name, value in others.items()},
        }
        beside = ", ".join(f"{name} actions {other}" for name, other in others.items())
        return summary, (
            f"{self.config.env} after {self.at.step:,} steps: {score} over {len(score.returns)} episodes ({which})"
            + (f"; {beside}" if beside else "")
        )
