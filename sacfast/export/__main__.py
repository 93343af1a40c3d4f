"""`python -m sacfast.export RUN OUT`: the policy of a run as .onnx, .pt2 or .safetensors."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from sacfast.errors import SACError
from sacfast.export import export
from sacfast.runs import load_agent


@dataclass(frozen=True)
class ExportConfig:
    """Write the deterministic policy of a run to one file, to act without sacfast."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, as printed by training."""

    out: tyro.conf.Positional[Path]
    """File to write; .onnx, .pt2 (torch.export) or .safetensors says as what."""

    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint to take."""


def main(arguments: list[str] | None = None) -> int:
    config = tyro.cli(ExportConfig, args=arguments, prog="python -m sacfast.export")
    try:
        agent, trained, extra = load_agent(config.run, config.checkpoint, engine="reference")
        export(agent, config.out)
    except SACError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    step = f", step {extra['step']:,}" if "step" in extra else ""
    print(
        f"{config.out}: {trained.env} ({config.checkpoint} policy{step}), obs [n, {agent.state_dim}] -> "
        f"action [n, {agent.action_dim}] in the environment's units; its actions are the agent's"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
