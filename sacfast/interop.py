"""Agents of other libraries: `from_sb3` takes over a SAC that Stable-Baselines3 saved, which need not be installed.

Its file is a zip of tensors (*.pth, read with torch's weights_only) and of `data`, a JSON of settings in which what
JSON cannot express is pickled. Of that only the action space is read, by an unpickler that runs nothing.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacfast.agent import SACAgent
from sacfast.config import MOST_HIDDEN_LAYERS, SACConfig
from sacfast.errors import CheckpointError, SACError, first_line
from sacfast.state import BETA1, BETA2, EPSILON, Adam

# Adam's options with which torch's is ours, as far as a file states them.
_PLAIN_ADAM = {
    "betas": (BETA1, BETA2),
    "eps": EPSILON,
    "weight_decay": 0,
    "amsgrad": False,
    "decoupled_weight_decay": False,
}


def from_sb3(
    path: str | os.PathLike,
    *,
    device: torch.device | str = "cpu",
    engine: str = "auto",
    threads: int | None = None,
    precision: str = "float32",
) -> SACAgent:
    """The agent that Stable-Baselines3's `SAC.save` wrote to `path`, or to `path`.zip: it acts as the original does.

    Taken over: weights of policy, critics and targets, temperature, Adam's moments, updates done, action bounds,
    learning rate, gamma, tau, target entropy, batch size, buffer size and seed. Not taken over: the replay buffer and
    the statistics of a VecNormalize, which such a file has not. `device` and the others are SACAgent's.

    Fits: 1-D observations; ReLU, 1 to 4 hidden layers of the same widths in policy and critics; two critics; no
    gSDE. Raises SACError for what does not, naming it, and CheckpointError for a file that is damaged or of
    something else. Warns of what acts the same but would go on learning differently, but not of a schedule, of
    which the learning rate stays what it had come to.
    """
    archive = _Archive(path)
    try:
        return _take_over(archive, device=device, engine=engine, threads=threads, precision=precision)
    except SACError:
        raise
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        pickle.UnpicklingError,
    ) as error:
        raise CheckpointError(
            f"{archive.path} is not laid out as Stable-Baselines3's SAC ({type(error).__name__}: "
            f"{first_line(error)[:200]}); save it again with a recent version"
        ) from error


def _learning_rate(path: Path, rate: Any, optimizer: dict[str, Any]) -> float:
    """Of a schedule, which is a function, the current value, unless that has come to its end."""
    current = rate if isinstance(rate, int | float) else optimizer["param_groups"][0]["lr"]
    if current > 0:
        return current
    lr = SACConfig.notebook().lr
    _warn(
        f"{path}: its learning rate has come to {current:g}; further training would have {lr:g}, as by default there"
    )
    return lr


def _take_over(archive: _Archive, **options: Any) -> SACAgent:
    path, data, weights = archive.path, archive.settings(), archive.tensors("policy.pth")
    _check_settings(path, data)
    widths = _check_weights(path, weights)
    low, high = _action_bounds(data)
    variables = archive.tensors("pytorch_variables.pth")
    optimizer = archive.tensors("actor.optimizer.pth")
    learned = "log_ent_coef" in variables
    agent = SACAgent(
        weights["actor.latent_pi.0.weight"].shape[1],
        len(low),
        widths,
        lr=_learning_rate(path, data["learning_rate"], optimizer),
        gamma=data["gamma"],
        tau=data["tau"],
        alpha=0.2 if learned else float(variables["ent_coef_tensor"]),
        automatic_entropy_tuning=learned,
        target_entropy=data["target_entropy"] if isinstance(data["target_entropy"], float) else None,
        batch_size=data["batch_size"],
        buffer_capacity=data["buffer_size"],
        action_low=low,
        action_high=high,
        seed=data["seed"],
        **options,
    )
    for name, tensors in _networks(weights, len(widths)).items():
        getattr(agent, name).load_state_dict(tensors)
    _load_moments(path, agent.state.actor_adam, optimizer)
    _load_moments(path, agent.state.critic_adam, archive.tensors("critic.optimizer.pth"))
    if learned:
        with torch.no_grad():
            agent.log_alpha.copy_(variables["log_ent_coef"])
        _load_moments(path, agent.state.alpha_adam, archive.tensors("ent_coef_optimizer.pth"))
    agent.state.step = int(data["_n_updates"])
    return agent


class _Archive:
    """The zip that Stable-Baselines3 writes. Raises CheckpointError for what cannot be read."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.exists() and Path(f"{path}.zip").exists():
            self.path = Path(f"{path}.zip")

    def _member(self, name: str) -> bytes:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(name)
        except FileNotFoundError:
            raise CheckpointError(f"there is no file {self.path}; name one that SAC.save wrote") from None
        except KeyError:
            raise CheckpointError(
                f"{self.path} holds no {name}; it was not saved by a SAC of Stable-Baselines3"
            ) from None
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise CheckpointError(
                f"{self.path} is damaged or is no file of Stable-Baselines3 ({first_line(error)[:200]})"
            ) from None

    def settings(self) -> dict[str, Any]:
        try:
            data = json.loads(self._member("data"))
        except ValueError as error:
            raise CheckpointError(f"{self.path} is damaged: its settings cannot be read ({error})") from None
        return data if isinstance(data, dict) else {}

    def tensors(self, name: str) -> dict[str, Any]:
        """A state dictionary, on the CPU."""
        try:
            return torch.load(io.BytesIO(self._member(name)), map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(f"{self.path} is damaged: {name}: {first_line(error)[:200]}") from None


def _check_settings(path: Path, data: Mapping[str, Any]) -> None:
    """Raise SACError for settings under which the same weights would act differently; warn of those for training."""
    module = str(data["policy_class"].get("__module__", ""))
    if (
        module.startswith(("stable_baselines3.", "sb3_contrib."))
        and module != "stable_baselines3.sac.policies"
    ):
        raise SACError(
            f"{path} holds a policy of {module}; Stable-Baselines3's SAC is all that sacfast can take over."
        )
    space = data["observation_space"]
    kind, shape = str(space.get(":type:")).split("'")[1].rsplit(".", 1)[-1], space.get("_shape")
    if kind != "Box" or shape is None or len(shape) != 1:
        raise SACError(
            f"{path} observes a {kind} of shape {shape}, but sacfast needs a 1-D Box; images and dictionaries "
            "cannot be taken over."
        )
    if data["use_sde"]:
        raise SACError(
            f"{path} was trained with use_sde=True; gSDE is another policy than sacfast's Gaussian."
        )
    options = data["policy_kwargs"]
    for name, wanted in (("activation_fn", "ReLU"), ("features_extractor_class", "FlattenExtractor")):
        if name in options and f".{wanted}'" not in str(options[name]):
            raise SACError(f"{path} has {name}={options[name]}, but sacfast's networks have {wanted} only.")
    for name, ours in (("target_update_interval", 1), ("n_steps", 1)):
        if data.get(name, ours) != ours:
            _warn(f"{path} was trained with {name}={data[name]}; sacfast goes on with {ours}")


def _check_weights(path: Path, weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The widths of the hidden layers. Raises SACError unless the weights are those of sacfast's networks."""
    critics = {name.split(".")[1] for name in weights if name.startswith("critic.")}
    if critics != {"qf0", "qf1"}:
        raise SACError(f"{path} has {len(critics)} critics, but sacfast has two, always.")
    policy, *others = (_widths(weights, name) for name in ("actor.latent_pi", "critic.qf0", "critic.qf1"))
    if not 1 <= len(policy) <= MOST_HIDDEN_LAYERS:
        raise SACError(f"{path} has {len(policy)} hidden layers; sacfast has 1 to {MOST_HIDDEN_LAYERS}.")
    for critic in others:
        if critic[:-1] != policy:
            raise SACError(
                f"{path} has hidden layers {list(policy)} in the policy and {list(critic[:-1])} in a critic; "
                "sacfast needs the same in both."
            )
    known = {layer for names in _names(len(policy)).values() for layer in names.values()}
    unknown = sorted(name for name in weights if name.rsplit(".", 1)[0] not in known)
    if unknown:
        raise SACError(f"{path} holds {unknown[0]}, for which sacfast's networks have no place.")
    return policy


def _widths(weights: Mapping[str, Tensor], stack: str) -> tuple[int, ...]:
    """Outputs of the dense layers of a torch.nn.Sequential, in order."""
    found = (re.fullmatch(re.escape(stack) + r"\.(\d+)\.weight", name) for name in weights)
    indices = sorted(int(match[1]) for match in found if match)
    return tuple(weights[f"{stack}.{i}.weight"].shape[0] for i in indices)


def _names(layers: int) -> dict[str, dict[str, str]]:
    """By network: our name of each dense layer, and theirs."""
    actor = {f"fc{i + 1}": f"actor.latent_pi.{2 * i}" for i in range(layers)}
    names = {"actor": actor | {"mean": "actor.mu", "log_std": "actor.log_std"}}
    for network in ("critic", "critic_target"):
        names[network] = {}
        for twin in range(2):
            stack = f"{network}.qf{twin}"
            names[network] |= {f"fc{twin * layers + i + 1}": f"{stack}.{2 * i}" for i in range(layers)}
            names[network][f"q{twin + 1}"] = f"{stack}.{2 * layers}"
    return names


def _networks(weights: Mapping[str, Tensor], layers: int) -> dict[str, dict[str, Tensor]]:
    """State dictionaries under our names."""
    return {
        network: {
            f"{ours}.{kind}": weights[f"{theirs}.{kind}"]
            for ours, theirs in names.items()
            for kind in ("weight", "bias")
        }
        for network, names in _names(layers).items()
    }


def _load_moments(path: Path, adam: Adam, optimizer: Mapping[str, Any]) -> None:
    """Take over torch.optim.Adam's moments, whose parameters come in the order of our flat buffer."""
    moments, group = optimizer["state"], optimizer["param_groups"][0]
    plain = "amsgrad" in group  # RAdam and others have no such option
    if not plain or any(group.get(name, value) != value for name, value in _PLAIN_ADAM.items()):
        _warn(
            f"{path} was trained with another optimizer than plain Adam; sacfast goes on with Adam from zero moments"
        )
        return
    if moments:
        for name, ours in (("exp_avg", adam.exp_avg), ("exp_avg_sq", adam.exp_avg_sq)):
            ours.copy_(torch.cat([moments[i][name].reshape(-1) for i in sorted(moments)]))
        adam.step = int(moments[0]["step"])


class _Inert:
    """Stands for whatever a pickle asks for: keeps what it is given, and does nothing."""

    args: tuple = ()
    state: Any = None

    def __new__(cls, *args: Any) -> _Inert:
        self = super().__new__(cls)
        self.args = args
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Inert]:
        return _Inert


def _action_bounds(data: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """low and high [A] of the pickled action space, exactly; as text, which is there too, they are rounded."""
    pickled = base64.b64decode(data["action_space"][":serialized:"])
    space = _InertUnpickler(io.BytesIO(pickled)).load()
    return _array(space.state["low"]), _array(space.state["high"])


def _array(frombuffer: _Inert) -> np.ndarray:
    """The array of a pickled numpy._core.numeric._frombuffer(bytes, dtype, shape, order)."""
    content, dtype, *_ = frombuffer.args
    return np.frombuffer(content, {"f4": np.float32, "f8": np.float64}[dtype.args[0]])


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=5)  # who called from_sb3
