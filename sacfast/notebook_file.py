"""The files of the notebook's own SACAgent.save (torch.save), read with weights_only: nothing in them runs."""

import os
import pickle
from typing import Any

import torch
from torch import Tensor

from sacfast.errors import CheckpointError, first_line
from sacfast.state import SACState


def recognised(path: str | os.PathLike) -> bool:
    """Whether `path` looks like a torch.save file (a zip archive), as the notebook's SACAgent.save writes."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def read(path: str | os.PathLike, state: SACState) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Tensors and counters under SACState's names; what the file lacks (log_alpha of a fixed temperature) is `state`'s.

    Raises CheckpointError if it is damaged, or something else than the notebook's SACAgent.save wrote.
    """
    content = _content(path)
    try:
        return _renamed(content, state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not laid out as the notebook's checkpoints ({error}); it was not loaded"
        ) from None


def _content(path: str | os.PathLike) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or is no checkpoint ({first_line(error)[:200]})") from None
    wanted = {"actor", "critic", "critic_target", "actor_optimizer", "critic_optimizer", "training_steps"}
    missing = wanted - set(content) if isinstance(content, dict) else wanted
    if missing:
        raise CheckpointError(f"{path} is no SAC checkpoint: it lacks {', '.join(sorted(missing))}")
    return content


def _renamed(content: dict[str, Any], state: SACState) -> tuple[dict[str, Tensor], dict[str, int]]:
    tensors = {name: tensor.clone() for name, tensor in state.named_tensors()}
    counters = state.counters() | {"step": int(content["training_steps"])}
    for network in ("actor", "critic", "critic_target"):
        if set(content[network]) != set(getattr(state, network).state_dict()):
            raise ValueError(f"{network} has {', '.join(content[network])}")
        tensors |= {f"{network}.{name}": tensor for name, tensor in content[network].items()}
    optimizers = {
        "actor": (content["actor_optimizer"], list(state.actor.parameters())),
        "critic": (content["critic_optimizer"], list(state.critic.parameters())),
    }
    if content.get("log_alpha") is not None:
        tensors["log_alpha"] = content["log_alpha"].detach()
        optimizers["alpha"] = (content["alpha_optimizer"], [torch.nn.Parameter(state.log_alpha)])
    for name, (optimizer, params) in optimizers.items():
        # Index of the parameter -> step, exp_avg, exp_avg_sq; empty before the first step.
        moments = optimizer["state"]
        counters[f"{name}_adam_step"] = int(moments[0]["step"]) if moments else 0
        for key in ("exp_avg", "exp_avg_sq"):
            pieces = [moments[i][key].reshape(-1) for i in range(len(params))] if moments else []
            flat = torch.cat(pieces) if pieces else torch.zeros(sum(p.numel() for p in params), device="cpu")
            tensors[f"{name}_adam.{key}"] = flat
    return tensors, counters
