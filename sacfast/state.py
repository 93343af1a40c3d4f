"""SACState: everything that is learned, in one place.

One flat float32 buffer per network; the modules' parameters are views of it, so Adam and Polyak are
single passes and a checkpoint is a handful of tensors. Engines read and write these buffers in place.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sacfast.errors import SACError
from sacfast.networks import ActorNetwork, CriticNetwork
from sacfast.normalizer import ObservationNormalizer
from sacfast.ops import Stream, random_key

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def flatten_parameters(module: nn.Module) -> Tensor:
    """Move a module's parameters into one new flat buffer [P] and make each parameter a view of its slice."""
    flat = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    _link(module, flat)
    return flat


def _link(module: nn.Module, flat: Tensor) -> None:
    params = list(module.parameters())
    for param, piece in zip(params, flat.split([p.numel() for p in params]), strict=True):
        param.data = piece.view_as(param)


@dataclass(frozen=True)
class Layer:
    """Where a dense layer y = W x + b lies in its network's flat buffer: W [outputs, inputs] row by row from
    `weight_offset` on, b [outputs] from `bias_offset` on, counted in floats.
    """

    name: str
    weight_offset: int
    bias_offset: int
    outputs: int
    inputs: int


def dense_layers(module: nn.Module) -> tuple[Layer, ...]:
    """The dense layers of a network in the order of its flat buffer (flatten_parameters)."""
    offsets, end = {}, 0
    for name, param in module.named_parameters():
        offsets[name] = end
        end += param.numel()
    return tuple(
        Layer(name, offsets[f"{name}.weight"], offsets[f"{name}.bias"], layer.out_features, layer.in_features)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    )


def parameters_of(network: nn.Module, layer: Layer) -> dict[str, nn.Parameter | None]:
    """What network.fc1.weight and bias find, in a fraction of the time, and behind torch.compile too; {} without such a
    layer.
    """
    module = network._modules.get("_orig_mod", network)._modules.get(layer.name)  # type: ignore[union-attr]
    return {} if module is None else module._parameters


@dataclass
class Adam:
    """Adam's moments for one flat parameter buffer [P] (Kingma & Ba, arXiv:1412.6980, Algorithm 1)."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int = 0

    @classmethod
    def zeros(cls, param: Tensor) -> "Adam":
        return cls(torch.zeros_like(param), torch.zeros_like(param))

    @torch.no_grad()
    def update_(self, param: Tensor, grad: Tensor, lr: float) -> None:
        """param <- param - lr * m_hat / (sqrt(v_hat) + eps), in place; all [P]."""
        self.step += 1
        self.exp_avg.lerp_(grad, 1 - BETA1)
        self.exp_avg_sq.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
        correction1, correction2 = 1 - BETA1**self.step, 1 - BETA2**self.step
        denominator = (self.exp_avg_sq.sqrt() / correction2**0.5).add_(EPSILON)
        param.addcdiv_(self.exp_avg, denominator, value=-lr / correction1)


class SACState:
    """Weights, target weights, Adam moments, temperature, counters and the random seed of one agent.

    actor, critic, critic_target    modules whose parameters view the flat buffers below
    actor_params, critic_params, critic_target_params    float32 [P]
    actor_layers    where fc1, fc2, ..., mean and log_std lie in actor_params
    critic_layers    where fc1, ..., q1, and fc{L+1}, ..., q2, lie in critic_params and critic_target_params
    log_alpha    float32 [1]
    actor_adam, critic_adam, alpha_adam    Adam moments
    normalizer    by which the networks see observations, or None: as they are
    step    updates done; together with `seed` it keys every random number of an update
    action_step    exploratory actions drawn; keys the exploration noise
    """

    def __init__(
        self,
        actor: ActorNetwork,
        critic: CriticNetwork,
        log_alpha: Tensor,
        seed: int,
        normalizer: ObservationNormalizer | None = None,
    ):
        self.actor, self.critic, self.critic_target = actor, critic, copy.deepcopy(critic)
        self.actor_params = flatten_parameters(self.actor)
        self.critic_params = flatten_parameters(self.critic)
        self.critic_target_params = flatten_parameters(self.critic_target)
        self.critic_target.requires_grad_(False)
        self.actor_layers = dense_layers(actor)
        twins = dense_layers(critic)
        self.critic_layers = twins[: len(twins) // 2], twins[len(twins) // 2 :]
        self.log_alpha = log_alpha
        flats = [self.actor_params, self.critic_params, self.critic_target_params, self.log_alpha]
        networks = [self.actor, self.critic, self.critic_target]
        self._watched = flats + [param for network in networks for param in network.parameters()]
        self.actor_adam = Adam.zeros(self.actor_params)
        self.critic_adam = Adam.zeros(self.critic_params)
        self.alpha_adam = Adam.zeros(self.log_alpha)
        self.normalizer = normalizer
        self.seed = seed
        self.step = 0
        self.action_step = 0

    @property
    def obs_dim(self) -> int:
        return self.actor.state_dim

    @property
    def action_dim(self) -> int:
        return self.actor.action_dim

    @property
    def device(self) -> torch.device:
        return self.actor_params.device

    def key(self, stream: Stream) -> Tensor:
        """The random key int64 [3] of this update (of this action for EXPLORE) for one purpose."""
        step = self.action_step if stream == Stream.EXPLORE else self.step
        return random_key(self.seed, stream, step, device=self.device)

    def check_network(self, name: str) -> None:
        """Raise SACError unless the parameters of this network are still views of its flat buffer."""
        network, flat = getattr(self, name), getattr(self, f"{name}_params")
        begin, size = flat.data_ptr(), flat.element_size()
        for layer in self.actor_layers if name == "actor" else self.critic_layers[0] + self.critic_layers[1]:
            parameters = parameters_of(network, layer)
            for kind, offset in (("weight", layer.weight_offset), ("bias", layer.bias_offset)):
                parameter = parameters.get(kind)
                if parameter is None or parameter.data_ptr() != begin + size * offset:
                    raise SACError(
                        f"the parameters of {name} are no longer the float32 numbers of state.{name}_params: "
                        ".to(), .double(), vector_to_parameters, load_state_dict(assign=True) or a new layer took "
                        "their place; make a new agent and load the weights into it"
                    )

    def version(self) -> int:
        """A number that grows with every write to a weight of any network or to log_alpha, whoever writes.

        It follows load_state_dict, optimizers, in-place operations on parameters or flat buffers, and engines, but
        not writes through `.data` or NumPy, nor optimizers with fused=True, which torch does not count.
        """
        return sum([tensor._version for tensor in self._watched])

    @property
    def writes(self) -> int:
        """By how much `written` raises `version`."""
        return len(self._watched)

    def written(self) -> None:
        """For native code, to call once it has written to weights: what torch does itself for its own operations.

        `version` follows, and so does autograd, which refuses to differentiate through a graph whose weights changed.
        """
        torch.autograd.graph.increment_version(self._watched)

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every learned tensor under its checkpoint name, as a live view: copy_ into it to load."""
        for name in ("actor", "critic", "critic_target"):
            for key, tensor in getattr(self, name).state_dict().items():
                yield f"{name}.{key}", tensor
        yield "log_alpha", self.log_alpha
        for name in ("actor_adam", "critic_adam", "alpha_adam"):
            adam: Adam = getattr(self, name)
            yield f"{name}.exp_avg", adam.exp_avg
            yield f"{name}.exp_avg_sq", adam.exp_avg_sq

    def counters(self) -> dict[str, int]:
        """The integers of a checkpoint; `set_counters` is the inverse."""
        return {
            "seed": self.seed,
            "step": self.step,
            "action_step": self.action_step,
            "actor_adam_step": self.actor_adam.step,
            "critic_adam_step": self.critic_adam.step,
            "alpha_adam_step": self.alpha_adam.step,
        }

    def set_counters(self, counters: dict[str, int]) -> None:
        self.seed = int(counters["seed"])
        self.step = int(counters["step"])
        self.action_step = int(counters["action_step"])
        self.actor_adam.step = int(counters["actor_adam_step"])
        self.critic_adam.step = int(counters["critic_adam_step"])
        self.alpha_adam.step = int(counters["alpha_adam_step"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """From a pickle or a copy, where a parameter is no view of another tensor: links modules and buffers again."""
        self.__dict__.update(state)
        for name in ("actor", "critic", "critic_target"):
            _link(getattr(self, name), getattr(self, f"{name}_params"))
