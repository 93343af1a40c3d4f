"""How many threads: the cores that this process may use."""

from __future__ import annotations

import math
import os
import sys
import warnings
from pathlib import Path

from .errors import SACError
from .requirements import whole


def physical_cores() -> int:
    """CPU cores that this process may use, hyper-threads counted once where the system tells; at least 1.

    At most OMP_NUM_THREADS, with which joblib, Ray and job scripts share out a machine. A CPU quota (a container's,
    say; cgroup v2) counts too: threads beyond it would only be suspended in turn.
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
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # "max" is no limit
        return sys.maxsize


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
    number = 0 if threads is None else whole(threads)
    if number is None or number < 0:
        raise SACError(f"threads={threads!r} must be a whole number of at least 0; 0 means one per core.")
    if number > cores:
        warnings.warn(
            f"threads={number} is above the {cores} physical cores that this process may use, "
            "which is usually slower; threads=0 takes as many as there are cores",
            stacklevel=2,
        )
    return number or physical_cores()
