"""The folder of a run, as others than the trainer see it: its settings and its trained agent."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sacfast.agent import SACAgent
from sacfast.checkpoint import read_meta
from sacfast.config import TrainConfig
from sacfast.errors import SACError
from sacfast.run_folder import policy_file, write_json

# What may differ when a run is resumed: nothing here changes what is learned from the steps already taken.
RESUMABLE_FIELDS = frozenset(
    {
        "steps",
        "device",
        "storage",
        "obs_dtype",
        "engine",
        "threads",
        "checkpoint_every",
        "keep_checkpoints",
        "baselines",
        "discard_checkpoints",
        "log_every",
        "tensorboard",
        "wandb",
        "resume",
    }
)
_GIVEN = "given"  # the key in config.json that is no setting: `given_environments`


def write_config(run: str | os.PathLike, config: TrainConfig, given: Sequence[str] = ()) -> None:
    """What `read_config` and `given_environments` read of a run. Raises SACError where the disk refuses."""
    values = dataclasses.replace(config, resume=None).to_dict()
    write_json(Path(run) / "config.json", values | ({_GIVEN: list(given)} if given else {}))


def given_environments(run: str | os.PathLike) -> tuple[str, ...]:
    """Which of train's arguments "env" and "eval_env" the run was made with. Raises SACError as read_config does."""
    return tuple(_values(run).get(_GIVEN, ()))


def read_config(run: str | os.PathLike) -> TrainConfig:
    """The settings of a run folder. Raises SACError for another folder."""
    run = Path(run)
    values = _values(run)
    values.pop(_GIVEN, None)
    try:
        return TrainConfig.from_dict(values)
    except SACError as error:
        raise SACError(
            f"{run / 'config.json'} was written by another version of sacfast, or by hand: {error}"
        ) from None


def _values(run: str | os.PathLike) -> dict[str, Any]:
    path = Path(run) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        return values
    except FileNotFoundError:
        raise SACError(
            f"{run} is not the folder of a run (it has no config.json); give the folder that "
            "training printed."
        ) from None
    except NotADirectoryError:
        raise SACError(
            f"{run} is a file, not the folder of a run; SACAgent.from_checkpoint reads what SACAgent.save wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise SACError(f"{path} cannot be read ({error}); restore it or start a new run.") from None


def is_finished(run: str | os.PathLike, steps: int) -> bool:
    """Whether a run has its final score, after `steps` steps at least."""
    try:
        return json.loads((Path(run) / "summary.json").read_text(encoding="utf-8"))["step"] >= steps
    except (OSError, ValueError, LookupError, TypeError):
        return False


def load_agent(
    run: str | os.PathLike, checkpoint: str = "best", *, device: str = "cpu", engine: str = "auto"
) -> tuple[SACAgent, TrainConfig, dict[str, Any]]:
    """Agent, settings and the trainer's counters from a run folder; checkpoint is "best" or "last". The agent has no
    transitions, and precision float32. `engine` as SACAgent has it: with "reference" the deterministic policy compiles
    nothing, but acts more slowly.

    Raises SACError when the folder is not a run's, CheckpointError when the file is missing or damaged.
    """
    config, path = read_config(run), policy_file(Path(run), checkpoint)
    agent = SACAgent.from_checkpoint(path, device=device, engine=engine, precision="float32")
    return agent, config, read_meta(path)["extra"]


def check_resume(saved: TrainConfig, wanted: TrainConfig, by_name: bool = False) -> None:
    """Refuse settings that contradict those of the run being resumed, by --resume or by its --name.

    Raises SACError naming the first contradictory field, or when steps were lowered.
    """
    before, after = saved.to_dict(), wanted.to_dict()
    before |= before.pop("sac")
    after |= after.pop("sac")
    for name, value in after.items():
        if name not in RESUMABLE_FIELDS and value != before[name]:
            remedy = (
                f"leave {_flag(name)} out (in Python: train(parse(['--resume', RUN]))), or start a new run without "
                "--resume."
            )
            if by_name:  # --resume takes over what is not given
                remedy = "give that, or start a new run under another --name."
            raise SACError(
                f"{_flag(name)} {_typed(value)} contradicts the run being resumed, which has "
                f"{_typed(before[name])}; {remedy}"
            )
    if wanted.steps < saved.steps:
        remedy = (
            f"give --steps {saved.steps} or more, or another --name"
            if by_name
            else "leave it out or raise it"
        )
        raise SACError(
            f"--steps {wanted.steps} is below the {saved.steps} of the run being resumed; {remedy}."
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _typed(value: Any) -> str:
    """`value` as it is typed on the command line."""
    if isinstance(value, dict):
        return f"'{json.dumps(value)}'"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value) or "''"
