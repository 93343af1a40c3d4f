"""Every tolerance of the test suite, by dtype, with the reason for it.

Where rounding dominates the bar is derived: the native result's error against float64 may be at most twice
the float32 reference's own error against float64, plus a floor of a few units in the last place of the
largest value.
"""

import torch

EPSILON = {torch.float32: 2.0**-23, torch.float64: 2.0**-52, torch.bfloat16: 2.0**-7}

# Normals: error of float32 against float64, in units of epsilon * max(1, |value|). Measured over 2^25 draws: 2.1.
NORMAL_ULPS = 3.0

# Native float64 calls the same standard library as PyTorch, in another order of operations.
FLOAT64_RELATIVE = 1e-12

# Floor of the derived bar, in units of epsilon * max |exact value|.
FLOOR_ULPS = 4.0


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
