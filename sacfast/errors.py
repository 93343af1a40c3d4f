"""Errors that a user can act on: each message is one sentence with the offending value and the remedy."""


class SACError(ValueError):
    """A mistake in the input. The command line prints its message alone, without a traceback."""


class NativeUnavailable(SACError):
    """Native code was required but cannot be built or loaded on this machine; the message says why."""


class ActionNotFinite(SACError):
    """A policy's action holds NaN or an infinity."""


class CheckpointError(SACError):
    """A checkpoint is missing, damaged, from a newer version, or made for other dimensions."""


def first_line(error: BaseException) -> str:
    """What `error` says, in its first line; its type's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
