"""The reference engine in float64: what the accuracy of every other engine is measured against."""

import copy
import dataclasses
from unittest import mock

import torch

from sacfast.config import SACConfig
from sacfast.engines import Metrics, Noise, ReferenceEngine
from sacfast.replay import Batch
from sacfast.state import Adam, SACState, flatten_parameters


def in_float64(state: SACState) -> SACState:
    """A copy that computes in float64."""
    twin = copy.deepcopy(state)
    for name in ("actor", "critic", "critic_target"):
        setattr(twin, f"{name}_params", flatten_parameters(getattr(twin, name).double()))
    twin.log_alpha = twin.log_alpha.double()
    for name in ("actor_adam", "critic_adam", "alpha_adam"):
        adam = getattr(twin, name)
        setattr(twin, name, Adam(adam.exp_avg.double(), adam.exp_avg_sq.double(), adam.step))
    return twin


def exact_update(config: SACConfig, state: SACState, batch: Batch, noise: Noise) -> Metrics:
    """The reference's update of a float64 state on float32 data; it would refuse the mixture by itself."""
    with mock.patch("sacfast.engines.reference.check_inputs"):
        return ReferenceEngine(config).update(state, _doubled(batch), _doubled(noise))


def _doubled(record):
    return type(record)(*(getattr(record, field.name).double() for field in dataclasses.fields(record)))


def relative_error(native: torch.Tensor, exact: torch.Tensor) -> float:
    """Root-mean-square error relative to the root mean square of `exact` (float64); absolute where that is zero."""
    return (native.double() - exact).norm().item() / (exact.norm().item() or 1.0)
