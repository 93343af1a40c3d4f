"""Errors that a user can act on: each message is one sentence with the offending value and the remedy."""

import os
import sysconfig
import traceback
from pathlib import Path

NOT_THE_USERS = ("<frozen", str(Path(__file__).parent) + os.sep, sysconfig.get_path("stdlib") + os.sep)


class SACError(ValueError):
    """A mistake in the input. The command line prints its message alone, without a traceback."""


class NativeUnavailable(SACError):
    """Native code was required but cannot be built or loaded on this machine; the message says why."""


class ActionNotFinite(SACError):
    """A policy's action holds NaN or an infinity."""


class CheckpointError(SACError):
    """A checkpoint is missing, damaged, from a newer version, or made for other dimensions."""


def _said(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")


def first_line(error: BaseException) -> str:
    """What `error` says, in its first line without a full stop; its type's name where it says nothing."""
    return _said(error) or type(error).__name__


def raised(error: BaseException) -> str:
    """What it raised and where, since the command line shows no traceback: in the user's own code, if there is any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_the_users(frame.filename)]
    frame = (own or frames)[-1]
    text = _said(error)
    return f"raised {type(error).__name__}{f': {text}' if text else ''} ({frame.filename}:{frame.lineno})"


def _is_the_users(file: str) -> bool:
    installed = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return not installed and not file.startswith(NOT_THE_USERS)
