"""Every tolerance of the test suite, by dtype, with the reason for it.

Where rounding dominates the bar is derived: the native result's error against float64 may be at most twice
the float32 reference's own error against float64, plus a floor of a few units in the last place of the
largest value.
"""

from dataclasses import dataclass

import torch

EPSILON = {torch.float32: 2.0**-23, torch.float64: 2.0**-52, torch.bfloat16: 2.0**-7}

# Normals: error of float32 against float64, in units of epsilon * max(1, |value|). Measured over 2^25 draws: 2.1.
NORMAL_ULPS = 3.0

# Native float64 calls the same standard library as PyTorch, in another order of operations.
FLOAT64_RELATIVE = 1e-12

# Floor of the derived bar, in units of epsilon * max |exact value|.
FLOOR_ULPS = 4.0

# Actions of another program for the same float32 weights, relative to the width of the action bounds.
EXPORT = 1e-5


def error_bar(reference: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error allowed: 2 x the reference's own, plus the floor. `exact` is float64."""
    own = (reference.double() - exact).abs().max().item()
    return 2.0 * own + FLOOR_ULPS * EPSILON[reference.dtype] * max(1.0, exact.abs().max().item())


def assert_as_accurate(
    native: torch.Tensor, reference: torch.Tensor, exact: torch.Tensor, name: str = ""
) -> None:
    """Fail unless native's largest error against `exact` (float64) is within error_bar."""
    assert native.dtype == reference.dtype and native.shape == reference.shape
    if native.numel() == 0:
        return
    error, bar = (native.double() - exact).abs().max().item(), error_bar(reference, exact)
    assert error <= bar, f"{name}: native error {error:.3g} against float64 exceeds {bar:.3g}"


@dataclass(frozen=True)
class Error:
    """What a precision of the native engine adds to twice the float32 reference's own error, against float64.

    critic, actor: of one parameter's gradient, root mean square relative to the gradient's own. The actor's has
    jumps (which critic is the smaller, which units are on), and fewer bits fall on the other side of more of them.
    whole: of a network's whole gradient, its length's relative error and one minus its cosine, from 100 rows on.
    metrics: of a metric m, relative to 1 + |m|. trajectory: of the weights after ten updates, relative to their way.

    Largest found over tests/test_engine_native.py's shapes, critic / actor: float32 7e-7 / 2e-6 (where biases cancel;
    else 4e-7), bf16x3 2e-5 / 1e-5 (4e-3 where a unit switched), bf16 8e-2 / 3e-1. tests/test_engine_cuda.py: tf32
    6e-2 / 3e-2 where a unit switched, else 1e-3.
    """

    critic: float
    actor: float
    whole: float
    metrics: float
    trajectory: float


PRECISION_ERROR = {
    "float32": Error(critic=1e-6, actor=1e-6, whole=1e-6, metrics=1e-6, trajectory=2e-6),
    "tf32": Error(critic=0.1, actor=0.2, whole=2e-3, metrics=3e-3, trajectory=0.1),
    "bf16x3": Error(critic=5e-5, actor=1e-2, whole=1e-4, metrics=1e-4, trajectory=1e-2),
    "bf16": Error(critic=0.15, actor=0.5, whole=0.02, metrics=0.03, trajectory=0.3),
}
