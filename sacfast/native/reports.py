"""What a person is told of builds: a line, or an error of one sentence."""

import sys


class BuildError(Exception):
    """The extension cannot be built: one sentence, and in `tail` the compiler's last lines, if any."""

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail


def say(message: str) -> None:
    """One line for the user, on stderr."""
    print(f"sacfast: {message}", file=sys.stderr, flush=True)
