"""The folder of a run, as others than the trainer see it: its settings and its trained agent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sacfast.agent import SACAgent
from sacfast.checkpoint import read_meta
from sacfast.config import TrainConfig
from sacfast.errors import SACError
from sacfast.run_folder import policy_file


def read_config(run: Path) -> TrainConfig:
    """The settings of a run folder. Raises SACError when it is none."""
    path = run / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SACError(
            f"{run} is not the folder of a run (it has no config.json); give the folder that "
            "training printed."
        ) from None
    except (OSError, ValueError) as error:
        raise SACError(f"{path} cannot be read ({error}); restore it or start a new run.") from None
    try:
        return TrainConfig.from_dict(values)
    except SACError as error:
        raise SACError(f"{path} was written by another version of sacfast, or by hand: {error}") from None


def load_agent(
    run: Path, checkpoint: str = "best", *, device: str = "cpu"
) -> tuple[SACAgent, TrainConfig, dict[str, Any]]:
    """Agent, settings and the trainer's counters from a run folder; checkpoint is "best" or "last".

    Raises SACError when the folder is not a run's, CheckpointError when the file is missing or damaged.
    """
    config, path = read_config(run), policy_file(run, checkpoint)
    agent = SACAgent.from_checkpoint(path, device=device, engine="reference", precision="float32")
    return agent, config, read_meta(path)["extra"]
