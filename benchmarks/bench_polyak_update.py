"""polyak_update_: over a critic's parameters, over one flat buffer, and beyond every cache."""

import pytest
import torch
from baselines import ACTION_DIM, OBS_DIM, polyak_eager, polyak_usual
from race import COMPILED, OURS, Case, race

from sacfast import CriticNetwork
from sacfast.ops import polyak_update_, polyak_update_reference_

TAU = 0.005
BIG_BYTES = 64 * 2**20


def run(
    benchmark, shape: str, target: list[torch.Tensor], source: list[torch.Tensor], beyond_caches: bool = False
) -> None:
    """`target` and `source` as lists; ours takes a single pair as two tensors, its other form."""
    ours = (target, source) if len(target) > 1 else (target[0], source[0])
    foreach = torch.compile(polyak_eager, fullgraph=True)
    moved = 3 * sum(t.nbytes for t in target) if beyond_caches else None  # reads two, writes one

    def check(call) -> None:
        expected = [t.detach().clone() for t in target]
        polyak_update_reference_(expected, source, TAU)
        call()
        for ours, theirs in zip(target, expected, strict=True):
            torch.testing.assert_close(ours.detach(), theirs, rtol=1e-6, atol=1e-7)

    race(
        benchmark,
        Case("operators", "polyak_update_", shape, moved),
        {
            OURS: lambda: polyak_update_(*ours, TAU),
            "usual": lambda: polyak_usual(target, source, TAU),
            "eager": lambda: polyak_eager(target, source, TAU),
            COMPILED: lambda: foreach(target, source, TAU),
        },
        check,
    )


def test_parameters_of_the_twin_critic(benchmark):
    target, source = (list(CriticNetwork(OBS_DIM, ACTION_DIM).parameters()) for _ in range(2))
    run(benchmark, f"{len(target)} tensors, {sum(t.numel() for t in target):,} floats", target, source)


def test_one_flat_buffer(benchmark):
    numel = sum(p.numel() for p in CriticNetwork(OBS_DIM, ACTION_DIM).parameters())
    run(benchmark, f"one tensor, {numel:,} floats", [torch.randn(numel)], [torch.randn(numel)])


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_beyond_the_caches(benchmark, threads):
    target, source = torch.randn(BIG_BYTES // 4), torch.randn(BIG_BYTES // 4)
    shape = f"one tensor, {BIG_BYTES // 2**20} MiB, {threads} thread{'s' * (threads > 1)}"
    run(benchmark, shape, [target], [source], beyond_caches=True)
