"""What was measured, where and when: JSON in pytest-benchmark's form, of which the tables are made (render.py)."""

import datetime
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from tables import Entry

PACKAGES = ("gymnasium", "mujoco", "stable-baselines3", "sbx-rl", "jax")  # whose versions are recorded too


def read_results(path: Path) -> list[Entry]:
    """Every benchmark's extra_info in the order of the run; none where there is no such file."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    entries = [benchmark["extra_info"] for benchmark in content["benchmarks"]]
    for machine in (machine for entry in entries for machine in machines(entry)):
        # Older files have one date for all that is in them.
        machine.setdefault("date", content["datetime"][:10])
    return entries


def write_results(path: Path, entries: list[Entry]) -> None:
    from sacfast import checkpoint  # here, so that tables are rendered without PyTorch

    content = {
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "benchmarks": [{"extra_info": entry} for entry in entries],
    }
    checkpoint.write_text(path, json.dumps(content, indent=1) + "\n")


def machines(entry: Entry) -> list[dict[str, Any]]:
    """What an entry was measured on: of one of learning, each run's."""
    return [entry["machine"]] if "machine" in entry else [run["machine"] for run in entry["runs"]]


def describe_machine() -> dict[str, Any]:
    """The day, hardware and versions, without anything that names this machine or its folders."""
    import torch

    import sacfast
    from sacfast import native

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": native.machine.cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler": native.status().compiler.partition(": ")[2],
        "sacfast": sacfast.__version__,
        "kernels": torch.ops.sacfast.cpu_features() if native.available() else "no native kernels",
        **{name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def child_environment(**variables: str) -> dict[str, str]:
    """Ours and `variables`, for a script of this folder in a process of its own, which finds its neighbours.

    Python puts a script's folder on sys.path by itself, but not under PYTHONSAFEPATH.
    """
    path = filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
    return os.environ | variables | {"PYTHONPATH": os.pathsep.join(path)}
