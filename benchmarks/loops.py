"""Whole training loops, each in a process of its own: `python benchmarks/loops.py ROLE ENV STEPS THREADS` prints JSON.

Timed from step WARM_UP on, when everything has been compiled and learning is under way. Every loop has 256 x 256
networks and one update per step from step 1,000 on; batches are of 256, as the others have them, but in DEFAULT, which
is what `python -m sacfast.train` does. Otherwise each has the defaults of its package: ours writes its logs, the
others have none.
"""

import json
import sys
import tempfile
import time

import peers

from sacfast.config import SCHEDULES
from sacfast.diagnostics import STAGES

STARTS, WARM_UP = 1000, 1500
DEFAULT = "default settings"
OURS = (*SCHEDULES, DEFAULT)


def ours(role: str, env: str, steps: int, threads: int) -> dict:
    from sacfast import SACConfig, TrainConfig
    from sacfast.logger import read_csv
    from sacfast.train import train

    with tempfile.TemporaryDirectory() as out:
        config = TrainConfig(
            env=env,
            steps=steps,
            schedule="strict" if role == DEFAULT else role,
            threads=threads,
            out=out,
            learning_starts=STARTS,
            eval_every=0,
            eval_episodes=1,
            sac=SACConfig() if role == DEFAULT else SACConfig.notebook(),
        )
        rows = read_csv(train(config) / "progress.csv")
    before = next(row for row in rows if row["step"] >= WARM_UP)
    after = [row for row in rows if row["step"] > before["step"]]
    taken, seconds = after[-1]["step"] - before["step"], after[-1]["elapsed_s"] - before["elapsed_s"]
    per_step = seconds / taken
    stages = {stage: per_step * sum(row[f"time_{stage}"] for row in after) / len(after) for stage in STAGES}
    return {"seconds_per_step": per_step, "stages": stages}


def peer(role: str, env: str, steps: int, threads: int) -> dict:
    import torch
    from stable_baselines3.common.callbacks import BaseCallback

    torch.set_num_threads(threads)  # XLA takes every core
    algorithm, settings = peers.algorithm(role)
    model = algorithm("MlpPolicy", env, learning_starts=STARTS, seed=0, **settings)

    class Clock(BaseCallback):
        begin = 0.0

        def _on_step(self) -> bool:
            if self.num_timesteps == WARM_UP:
                self.begin = time.perf_counter()
            return True

    clock = Clock()
    model.learn(steps, callback=clock)
    return {"seconds_per_step": (time.perf_counter() - clock.begin) / (steps - WARM_UP)}


def main(argv: list[str]) -> int:
    role, env, steps, threads = argv[0], argv[1], int(argv[2]), int(argv[3])
    run = ours if role in OURS else peer
    print(json.dumps(run(role, env, steps, threads)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
