"""Locks between processes that the operating system holds: they end with the process that took them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # what a file system without locks says


def take(path: Path, timeout_s: float) -> BaseFileLock | None:
    """The lock that goes by this file, until its `release`; None, and nothing is held, on a file system without locks.

    Raises filelock.Timeout when another process has kept it for `timeout_s` seconds, OSError where there can be no
    such file.
    """
    from filelock import FileLock  # here, because setup.py may use this package without it

    # What filelock falls back to, a file that marks the lock as taken, would outlast a process that is killed.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=timeout_s)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise
    return lock
