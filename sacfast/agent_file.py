"""All that an agent is, in one file: what SACAgent.save writes, and how load takes it over.

Tensors carry the names of SACState, "normalizer.NAME" and "replay.NAME"; the description holds the rest.
"""

import os
from typing import Any

import torch
from torch import Tensor

from sacfast import checkpoint, notebook_file
from sacfast.config import SACConfig, hidden_widths
from sacfast.envs import ActionBounds
from sacfast.errors import CheckpointError, SACError
from sacfast.replay import ReplayBuffer
from sacfast.state import SACState

Path = str | os.PathLike


def write(
    path: Path,
    state: SACState,
    config: SACConfig,
    bounds: ActionBounds,
    buffer: ReplayBuffer | None,
    extra: dict[str, Any],
) -> None:
    """Raises CheckpointError if it cannot be written; an earlier file at `path` is then untouched."""
    tensors = dict(state.named_tensors()) | _statistics(state)
    if buffer is not None:
        tensors |= {f"replay.{name}": tensor for name, tensor in buffer.segment().items()}
    meta = {
        "state_dim": state.obs_dim,
        "action_dim": state.action_dim,
        "action_low": bounds.low.tolist(),
        "action_high": bounds.high.tolist(),
        "config": config.to_dict(),
        "counters": state.counters(),
        "normalized": 0 if state.normalizer is None else state.normalizer.count,
        "replay": None if buffer is None else buffer.counters(),
        "extra": extra,
    }
    checkpoint.write(path, tensors, meta)


def read(
    path: Path, state: SACState, config: SACConfig, bounds: ActionBounds
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file of `write`, or of the notebook's own save(), for an agent like this.

    Raises CheckpointError if the file is damaged or was made for other dimensions, settings or action bounds, or has a
    fixed temperature of 0 where this agent learns one.
    """
    if notebook_file.recognised(path):
        tensors, counters = notebook_file.read(path, state)
        _compare(path, _meaning(config), SACConfig.notebook().to_dict())
        meta: dict[str, Any] = {"counters": counters}
    else:
        tensors, meta = checkpoint.read(path)
        _check_meta(path, meta, state, config, bounds)
    live = dict(state.named_tensors()) | _statistics(state)
    wanted = {name: tuple(tensor.shape) for name, tensor in live.items()}
    _check_shapes(path, tensors, wanted)
    if config.automatic_entropy_tuning and torch.isneginf(tensors["log_alpha"]).any():
        raise CheckpointError(
            f"{path} has a fixed temperature of 0, from which none can be learned; make the agent with "
            "automatic_entropy_tuning=False"
        )
    return tensors, meta


def take_over(
    path: Path,
    tensors: dict[str, Tensor],
    meta: dict[str, Any],
    state: SACState,
    config: SACConfig,
    buffer: ReplayBuffer,
) -> None:
    """Put what `read` gave into `state`, in place, but for the temperature where it is fixed, and, if the file holds
    transitions, into `buffer`. Raises CheckpointError, before anything is changed, for what the buffer cannot hold.
    """
    replay = meta.get("replay")
    if replay:
        held = tensors["replay.reward"].numel() if "replay.reward" in tensors else 0
        if held > replay["size"]:  # fewer are for `restore` to find
            raise CheckpointError(
                f"{path} cannot be loaded: it holds {held} transitions, but describes {replay['size']}"
            )
        try:
            buffer.restore([_segment(tensors)] if replay["size"] else [], replay)
        except SACError as error:
            raise CheckpointError(f"{path} cannot be loaded: {error}") from None
    live = dict(state.named_tensors())
    if not config.automatic_entropy_tuning:
        del live["log_alpha"]
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(tensors[name])
    state.set_counters(meta["counters"])
    if state.normalizer is not None:
        saved = {name: tensors[f"normalizer.{name}"] for name in state.normalizer.named_tensors()}
        state.normalizer.restore(saved, meta["normalized"])


def _statistics(state: SACState) -> dict[str, Tensor]:
    tensors = {} if state.normalizer is None else state.normalizer.named_tensors()
    return {f"normalizer.{name}": tensor for name, tensor in tensors.items()}


def _segment(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix("replay."): t for n, t in tensors.items() if n.startswith("replay.")}


def _check_meta(
    path: Path, meta: dict[str, Any], state: SACState, config: SACConfig, bounds: ActionBounds
) -> None:
    ours = {
        "state_dim": state.obs_dim,
        "action_dim": state.action_dim,
        "hidden_dim": list(config.widths),
        "action_low": bounds.low.tolist(),
        "action_high": bounds.high.tolist(),
    } | _meaning(config)
    theirs = meta["config"] | meta
    theirs["hidden_dim"] = list(hidden_widths(meta["config"]["hidden_dim"]))
    if bounds.nearly(ActionBounds(theirs["action_low"], theirs["action_high"])):
        theirs |= {name: ours[name] for name in ("action_low", "action_high")}
    _compare(path, ours, theirs)


def _meaning(config: SACConfig) -> dict[str, Any]:
    """The settings without which the same weights are another policy, or other values."""
    names = ["normalize_obs", "reward_scale", "log_std_min", "log_std_max", "log_std_bound"]
    if config.normalize_obs:
        names.append("obs_epsilon")
    return {name: getattr(config, name) for name in names}


def _compare(path: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, value in ours.items():
        saved = theirs[name]
        if saved != value:
            raise CheckpointError(
                f"{path} was saved with {name}={saved}, but this agent has {name}={value}; "
                "make the agent as the checkpoint's was (SACAgent.from_checkpoint does, but for the notebook's files)"
            )


def _check_shapes(path: Path, saved: dict[str, Tensor], wanted: dict[str, tuple[int, ...]]) -> None:
    for name, shape in wanted.items():
        if name not in saved:
            raise CheckpointError(f"{path} lacks {name}; it was not written by SACAgent.save")
        if saved[name].shape != shape:
            raise CheckpointError(
                f"{path} holds {name} of shape {list(saved[name].shape)}, but this agent's is {list(shape)}; "
                "make the agent with the checkpoint's dimensions"
            )
