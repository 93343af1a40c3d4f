"""How many threads: the cores that this process may use."""

from __future__ import annotations

import math
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from .requirements import check_whole


def physical_cores() -> int:
    """CPU cores that this process may use, hyper-threads counted once where the system tells; at least 1.

    At most OMP_NUM_THREADS, with which joblib, Ray and job scripts share out a machine. A CPU quota (a container's,
    say) counts too: threads beyond it would only be suspended in turn.
    """
    return min(_allowed_cores(), _omp_num_threads())


def _omp_num_threads() -> int:
    try:
        number = int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0])  # then come those of nested regions
    except ValueError:
        return sys.maxsize
    return number if number > 0 else sys.maxsize


def _allowed_cores() -> int:
    return max(1, min(_visible_cores(), _quota()))


def _quota() -> int:
    """The cores' worth of time that the tightest of the process's cgroups, up to the root, gives; of either version."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return sys.maxsize
    quotas = [sys.maxsize]
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers:  # version 2
            root, files = "/sys/fs/cgroup", ["cpu.max"]
        elif "cpu" in controllers.split(","):  # version 1; "cpu" is a link where cpuacct shares the folder
            root, files = "/sys/fs/cgroup/cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        # In a container the path may be the host's; the folders above it are then the container's own.
        group = Path(root + path)
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # no such file, or "max", which is no limit
                texts = [(folder / file).read_text(encoding="ascii") for file in files]
                quota, period = map(int, " ".join(texts).split())
                if quota > 0:  # -1 is no limit
                    quotas.append(math.ceil(quota / period))
    return min(quotas)


def _visible_cores() -> int:
    try:
        usable = os.sched_getaffinity(0)
    except (AttributeError, OSError):
        return os.cpu_count() or 1
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        return len({Path(topology.format(cpu)).read_text(encoding="ascii").strip() for cpu in usable})
    except OSError:
        return len(usable)


def thread_count(threads: int | None) -> int:
    """`threads`, with None and 0 meaning `physical_cores()`; warns above the cores that this process may use.

    Raises SACError unless it is a whole number of at least 0.
    """
    cores = _allowed_cores()
    number = 0 if threads is None else check_whole("threads", threads, 0, remedy="0 means one per core")
    if number > cores:
        warnings.warn(
            f"threads={number} is above the {cores} physical cores that this process may use, "
            "which is usually slower; threads=0 takes as many as there are cores",
            stacklevel=2,
        )
    return number or physical_cores()
