"""The command line of `python -m sacfast.train`: one flag is one field of TrainConfig or SACConfig."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from sacfast.config import SACConfig, TrainConfig
from sacfast.errors import SACError
from sacfast.runs import read_config


# The command line fills these in; they are checked as one TrainConfig afterwards, so that a bad value is
# reported in our one sentence and not from inside the parser.
@dataclass(frozen=True)
class _SACFlags(SACConfig):
    def __post_init__(self) -> None:
        pass


def _read_json(words: list[str]) -> dict[str, Any]:
    value = json.loads(words[0])
    if not isinstance(value, dict):
        raise ValueError(f"{words[0]} is not a JSON object")
    return value


_JSON = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=_read_json,
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [json.dumps(value)],
)


@dataclass(frozen=True)
class _TrainFlags(TrainConfig):
    make_kwargs: Annotated[dict[str, Any], _JSON] = field(default_factory=dict)
    sac: _SACFlags = field(default_factory=_SACFlags)

    seeds: tuple[int, ...] = ()
    """Instead of --seed: one run per seed, one after another, and a picture that compares them."""

    def __post_init__(self) -> None:
        pass


def parse(arguments: Sequence[str | os.PathLike] | None = None) -> TrainConfig:
    """Settings from command-line arguments (None: this program's); with --resume, those not given come from the run.

    Raises as `parse_each` does, and SACError for several seeds.
    """
    config, *more = parse_each(arguments)
    if more:
        raise SACError("--seeds names several runs, but only one can be made here; call train once per seed.")
    return config


def parse_each(arguments: Sequence[str | os.PathLike] | None) -> list[TrainConfig]:
    """The settings of every run that the arguments ask for: one per seed.

    Raises SACError for values out of range, for a run that cannot be read, for a seed that is named twice, and for
    --seeds beside --resume or a --seed other than the default; SystemExit for an unknown flag.
    """
    # A run, as `train` returns it, is a Path.
    words = None if arguments is None else [os.fspath(argument) for argument in arguments]
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--resume")
    resume = None
    with suppress(argparse.ArgumentError):  # tyro reports it below
        resume = finder.parse_known_args(words)[0].resume
    values = (TrainConfig() if resume is None else read_config(Path(resume))).to_dict()
    values["sac"] = _SACFlags(**values["sac"])
    flags = tyro.cli(
        _TrainFlags,
        default=_TrainFlags(**values),
        args=words,
        prog="python -m sacfast.train",
        description=TrainConfig.__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    chosen = dataclasses.asdict(flags)
    seeds = chosen.pop("seeds")
    if len(set(seeds)) < len(seeds):
        raise SACError(f"--seeds {spaced(seeds)} names a seed twice; the two runs would be the same.")
    if seeds and (resume is not None or chosen["seed"] != TrainConfig.seed):
        raise SACError("--seeds starts runs of its own; leave out --seed and --resume.")
    if not seeds:
        return [TrainConfig.from_dict(chosen)]
    name = chosen.pop("name")
    return [
        TrainConfig.from_dict({**chosen, "seed": seed, "name": f"{name}-s{seed}" if name else ""})
        for seed in seeds
    ]


def spaced(seeds: Iterable[int]) -> str:
    """As they are typed after --seeds."""
    return " ".join(map(str, seeds))
