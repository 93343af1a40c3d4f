"""How a run is asked to stop: signals as a flag."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopRequest:
    """SIGINT, SIGTERM and SIGHUP as a flag while active, so that neither a step nor a save is ever cut in half.

    SIGHUP, by which a terminal says that it closes, stays ignored where it is (nohup).

    Whoever insists may be facing an environment that hangs: the third SIGINT, and every later one, raises
    KeyboardInterrupt, though never inside `shielded`. Outside the main thread, where Python delivers no
    signals, it stays quiet.
    """

    INSISTENCE = 3

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}
        self._interrupts = 0
        self._shielded = False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            signums = [signal.SIGINT, signal.SIGTERM]
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                signums.append(signal.SIGHUP)
            for signum in signums:
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """For what must not be cut, however often somebody asks: signals set the flag and nothing else."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._interrupts += signum == signal.SIGINT
        if signum == signal.SIGINT and self._interrupts >= self.INSISTENCE and not self._shielded:
            raise KeyboardInterrupt
