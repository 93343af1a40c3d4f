"""The deterministic policy in a file of its own, to act without sacfast; `python -m sacfast.export RUN OUT`.

    obs [n, O] float32 -> action [n, A] float32 in the environment's units, for any n

policy.onnx           ONNX, input "obs" and output "action" (needs the extra `onnx`)
policy.pt2            a program of torch.export: torch.export.load(path).module()(obs)
policy.safetensors    the weights under DeterministicPolicy's names; README has a reader in NumPy

`sacfast.export` is the function below; `from sacfast.export import ...` finds this module.
"""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from sacfast.agent import SACAgent
from sacfast.checkpoint import read_meta
from sacfast.envs import ActionBounds
from sacfast.errors import CheckpointError, SACError, first_line
from sacfast.networks import ActorNetwork
from sacfast.normalizer import CLIP
from sacfast.runs import load_agent

# Largest difference from the agent's actions that is let through, relative to the width of the action bounds.
TOLERANCE = 1e-5


class DeterministicPolicy(nn.Module):
    """obs [n, O] -> action [n, A] = centre + half * tanh(mean(obs)), within `bounds`; all float32, on the CPU.

    The layers are copies of the actor's under its names (fc1, fc2, ..., mean). With `obs_mean` and `obs_std` [O]
    the network sees (obs - obs_mean) / obs_std, clipped to [-10, 10] as ObservationNormalizer does.
    """

    obs_mean: Tensor | None
    obs_std: Tensor | None
    mean: nn.Module
    action_low: Tensor
    action_high: Tensor

    def __init__(
        self,
        actor: ActorNetwork,
        bounds: ActionBounds,
        obs_mean: Tensor | None = None,
        obs_std: Tensor | None = None,
    ):
        super().__init__()
        self.obs_dim = actor.state_dim
        layers = {name: layer for name, layer in actor.named_children() if name != "log_std"}
        self.hidden = [name for name in layers if name != "mean"]
        for name, layer in layers.items():
            self.add_module(name, copy.deepcopy(layer))
        if obs_mean is None:  # no buffers then: torch.export stumbles over those registered as None
            self.obs_mean = self.obs_std = None
        else:
            self.register_buffer("obs_mean", obs_mean)
            self.register_buffer("obs_std", obs_std)
        self.register_buffer("action_low", torch.tensor(bounds.low, device="cpu"))
        self.register_buffer("action_high", torch.tensor(bounds.high, device="cpu"))
        self.requires_grad_(False).cpu()

    def forward(self, obs: Tensor) -> Tensor:
        x = obs
        if self.obs_mean is not None and self.obs_std is not None:
            x = torch.clamp((x - self.obs_mean) / self.obs_std, -CLIP, CLIP)
        for name in self.hidden:
            x = F.relu(getattr(self, name)(x))
        unit = torch.tanh(self.mean(x))
        low, high = self.action_low, self.action_high
        return torch.clamp(0.5 * (high + low) + 0.5 * (high - low) * unit, low, high)


def export(run: SACAgent | str | os.PathLike, path: str | os.PathLike, *, checkpoint: str = "best") -> Path:
    """Write the deterministic policy of a run, or of an agent, to `path`; its suffix (FORMATS) is the format.

    run: the folder of a run, whose "best" or "last" `checkpoint` is taken, or a SACAgent.

    What was written is read again and must give the agent's own actions for random observations, to 1e-5 of the
    bounds' width, before it takes its place: `path` then holds the whole file, or what it held before. Returns `path`.

    Raises SACError for an unknown suffix, a missing package, a policy that does not come out the same, a file
    that cannot be written, and a `path` that holds an agent's checkpoint; CheckpointError as load_agent does.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise SACError(
            f"{path} has the suffix {path.suffix!r}, which is no format of exports; name a file "
            f"{', '.join(FORMATS)} (torch.export's .pt2 is what replaces TorchScript's .pt)."
        )
    _spare_checkpoint(path)
    agent = run if isinstance(run, SACAgent) else load_agent(Path(run), checkpoint, engine="reference")[0]
    write, read = FORMATS[path.suffix]
    statistics = () if agent.normalizer is None else agent.normalizer.mean_and_std()
    policy = DeterministicPolicy(agent.actor, agent.bounds, *statistics)
    try:
        # A folder, because some writers add files of their own; inside it the file gets its usual permissions.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            with _quiet():
                write(policy, temporary)
                _check(read(policy, temporary), agent, path)
            os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise SACError(f"cannot write {path} ({reason}); choose another file.") from error
    return path


def _spare_checkpoint(path: Path) -> None:
    """A policy says much less than a checkpoint, whose suffix it may share."""
    try:
        read_meta(path)
    except CheckpointError:
        return
    raise SACError(f"{path} is an agent's checkpoint, which an export would replace; choose another file.")


def _check(act: Callable[[np.ndarray], np.ndarray], agent: SACAgent, path: Path) -> None:
    """Raise SACError unless `act` is the agent's deterministic policy, for batches of several sizes."""
    generator, width = np.random.default_rng(0), agent.bounds.high - agent.bounds.low
    for n in (1, 2, 253):
        obs = generator.standard_normal((n, agent.state_dim), np.float32)
        if agent.normalizer is not None:  # within what it has seen: further out all would be clipped alike
            mean, std = (each.cpu().numpy() for each in agent.normalizer.mean_and_std())
            obs = mean + 2 * std * obs
        difference = float((np.abs(act(obs) - agent.select_action(obs, evaluate=True)) / width).max())
        if not difference <= TOLERANCE:  # NaN is refused too
            raise SACError(
                f"{path} was not written: its actions differ from the agent's by {difference:.1g} of the bounds' "
                f"width, more than {TOLERANCE:g}; another format may do better ({', '.join(FORMATS)})."
            )


def _write_onnx(policy: DeterministicPolicy, path: Path) -> None:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise SACError(f"no ONNX: {' and '.join(missing)} not installed; pip install 'sacfast[onnx]'.")
    try:
        torch.onnx.export(
            policy,
            (_example(policy),),
            path,
            dynamo=True,
            dynamic_shapes=_ANY_BATCH,
            input_names=["obs"],
            output_names=["action"],
            external_data=False,
            verbose=False,
        )
    except Exception as error:  # torch and onnxscript have a dozen types between them
        reason = first_line(error)
        raise SACError(
            f"no ONNX: torch's exporter failed ({reason}); .pt2 and .safetensors remain."
        ) from error


def _read_onnx(policy: DeterministicPolicy, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(str(path))
    return lambda obs: np.asarray(*session.run(None, {"obs": obs}))


def _write_pt2(policy: DeterministicPolicy, path: Path) -> None:
    program = torch.export.export(policy, (_example(policy),), dynamic_shapes=_ANY_BATCH)
    try:
        torch.export.save(program, path)
    except RuntimeError as error:  # of a full disk
        raise OSError(first_line(error)) from error


def _read_pt2(policy: DeterministicPolicy, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    return _in_numpy(torch.export.load(path).module())


def _write_safetensors(policy: DeterministicPolicy, path: Path) -> None:
    safetensors.torch.save_file(policy.state_dict(), path, metadata={"format": "sacfast policy"})


def _read_safetensors(policy: DeterministicPolicy, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    twin = copy.deepcopy(policy)
    twin.load_state_dict(safetensors.torch.load_file(path), assign=True)
    return _in_numpy(twin)


def _in_numpy(module: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda obs: module(torch.from_numpy(obs)).numpy()


_ANY_BATCH = {"obs": {0: torch.export.Dim("n")}}


def _example(policy: DeterministicPolicy) -> Tensor:
    """Observations to trace with: two, because torch.export takes a batch of one for a constant."""
    return torch.zeros(2, policy.obs_dim, device="cpu")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters say about packages and functions that are not the user's concern."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# suffix -> how to write a policy to a file, and how to read it back as a function from obs to action
FORMATS = {
    ".onnx": (_write_onnx, _read_onnx),
    ".pt2": (_write_pt2, _read_pt2),
    ".safetensors": (_write_safetensors, _read_safetensors),
}
