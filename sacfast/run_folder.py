"""The folder of a run: its lock, its checkpoints, and the replay buffer's history that they share.

run.lock                    held by the process that trains; who that is stands in run.lock.json
best.safetensors            the best policy so far, without a replay buffer
checkpoints/000050000/      everything at that step
    state.json              counters, where the logs and the environments stand, the replay segments needed, digests
    agent.safetensors       weights, targets, Adam moments, log_alpha, counters
    arrays.safetensors      the arrays that state.json names
replay/A-B.safetensors      transitions number A up to B since the beginning, written once and shared by checkpoints

Every file is written under a hidden name, flushed to the disk and renamed; a checkpoint's folder likewise, after the
segments that it names. So what has its final name is whole, and the checkpoint with the highest number is the latest.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import filelock

from sacfast import checkpoint
from sacfast.agent import SACAgent
from sacfast.errors import CheckpointError, SACError
from sacfast.native import locks
from sacfast.replay import ReplayBuffer
from sacfast.requirements import check_choice

VERSION = 1
NAME = re.compile(r"\d+(\.\d+)?")  # of a checkpoint's folder

# A segment of fewer transitions is written anew together with what followed, so that frequent checkpoints do not leave
# thousands of files.
LEAST_TRANSITIONS = 4096


@dataclass(frozen=True)
class Segment:
    """A file of the transitions number first up to end."""

    first: int
    end: int
    digest: str

    @property
    def name(self) -> str:
        return f"{self.first:012d}-{self.end:012d}.safetensors"


@dataclass
class Counters:
    """Where a run stands: what a checkpoint carries beside the agent."""

    step: int = 0
    episode: int = 0
    """Episodes begun before the current ones, over all environments."""
    best: float | None = None
    best_step: int = 0
    evaluated_step: int = 0
    logged_step: int = 0
    elapsed_s: float = 0.0


class RunFolder:
    """Checkpoints of one run, the newest `keep` of them (0: all). Use within `locked`."""

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path, self.keep = path, keep
        self.best = path / "best.safetensors"
        self.checkpoints, self.replay = path / "checkpoints", path / "replay"
        self._named: dict[str, list[Segment]] = {}  # the replay segments of every checkpoint in the folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder. Raises SACError, saying who does, if one is at it."""
        holder = self.path / "run.lock.json"
        try:
            lock = locks.take(self.path / "run.lock", 0)
        except filelock.Timeout:
            raise SACError(
                f"{self.path} is being trained by {_holder(holder)}; wait for it to end, or stop it (it saves "
                "itself); if it is gone, delete run.lock there."
            ) from None
        except OSError as error:
            raise SACError(f"cannot lock {self.path} ({error.strerror}); is it writable?") from error
        if lock is None:
            warnings.warn(f"{self.path} is on a file system without locks: run it only once", stacklevel=3)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            with suppress(OSError):  # on a full disk, say: the lock holds without it
                who = {"pid": os.getpid(), "host": platform.node(), "since": now}
                checkpoint.write_text(holder, json.dumps(who))
            yield
        finally:
            with suppress(OSError):
                holder.unlink()
            if lock is not None:
                lock.release()

    def save(self, agent: SACAgent, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint of `agent` and of `state`, then drop the old ones. `state` is plain values and arrays (see
        `checkpoint.pack`); its "counters" go into the agent's file too.

        Of the replay buffer only what the last checkpoint had not is written. Raises CheckpointError; the earlier
        checkpoints are then as they were.
        """
        intact = max(self._named, key=_number, default="")
        try:
            self.checkpoints.mkdir(exist_ok=True)
            self.replay.mkdir(exist_ok=True)
            segments = self._write_segments(agent.replay_buffer, self._named.get(intact, []))
            self._write_checkpoint(agent, step, state, segments)
        except (OSError, CheckpointError) as error:
            with suppress(OSError):
                self._tidy()
            earlier = (
                f"the one of step {_number(intact)[0]:,} is intact" if intact else "there is no earlier one"
            )
            raise CheckpointError(
                f"cannot write the checkpoint of step {step:,} in {self.path} ({error.__cause__ or error}); {earlier}: "
                "free some space"
            ) from error
        for clear in (self._drop_old, self._tidy):
            with suppress(OSError):  # what cannot be deleted now goes the next time
                clear()

    def discard(self) -> None:
        """Remove every checkpoint and the replay buffer's history, as far as the disk lets it."""
        with suppress(OSError):
            self._hide(list(self._named))
            self._tidy()
            self.checkpoints.rmdir()
            self.replay.rmdir()

    def load(self, agent: SACAgent) -> dict[str, Any]:
        """Give `agent` the latest checkpoint, replay buffer included, and return the `state` of `save`.

        Raises CheckpointError if there is none, or it is damaged or of a newer version, before anything is changed, or
        of an agent of other dimensions or settings.
        """
        folder = latest(self.path)
        description = _description(folder)
        for name, digest in description.files.items():
            _check(folder / name, digest)
        rows = []
        for segment in description.segments:
            _check(self.replay / segment.name, segment.digest)
            rows.append(checkpoint.read(self.replay / segment.name)[0])
        state = checkpoint.unpack(description.state, checkpoint.read(folder / "arrays.safetensors")[0])
        agent.replay_buffer.restore(rows, description.counters)
        agent.load(folder / "agent.safetensors")
        self._named = {}
        for each in complete(self.path):
            # An older one that is damaged keeps its folder, for whoever wants to look into it, but not its segments.
            with suppress(CheckpointError):
                self._named[each.name] = _description(each).segments
        with suppress(OSError):
            self._tidy()
        return state

    def _write_segments(self, buffer: ReplayBuffer, before: list[Segment]) -> list[Segment]:
        """The segments that hold what the buffer does, oldest first: those of `before`, the last checkpoint's, as far
        as they still count, and what is new.
        """
        oldest = buffer.pushed - buffer.size
        segments = [segment for segment in before if segment.end > oldest]
        since = segments[-1].end if segments else oldest
        if buffer.pushed == since:
            return segments
        if segments and since - segments[-1].first < LEAST_TRANSITIONS:
            since = max(segments.pop().first, oldest)
        segment = Segment(since, buffer.pushed, "")
        path = self.replay / segment.name
        checkpoint.write(path, buffer.segment(since), {})
        segments.append(replace(segment, digest=_digest(path)))
        return segments

    def _write_checkpoint(
        self, agent: SACAgent, step: int, state: dict[str, Any], segments: list[Segment]
    ) -> None:
        name = _free_name(step, self._named)
        temporary = self.checkpoints / f".{name}.tmp"
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
        described, arrays = checkpoint.pack(state)
        agent.save(temporary / "agent.safetensors", replay_buffer=False, extra=state["counters"])
        checkpoint.write(temporary / "arrays.safetensors", arrays, {})
        description = {
            "format": checkpoint.FORMAT,
            "version": VERSION,
            "step": step,
            "files": {
                file: _digest(temporary / file) for file in ("agent.safetensors", "arrays.safetensors")
            },
            "replay": {
                "counters": agent.replay_buffer.counters(),
                "segments": [asdict(segment) for segment in segments],
            },
            "state": described,
        }
        checkpoint.write_text(temporary / "state.json", json.dumps(description, indent=1))
        os.rename(temporary, self.checkpoints / name)
        self._named[name] = segments
        checkpoint.sync_folder(self.checkpoints)

    def _drop_old(self) -> None:
        """Remove all but the newest `keep` checkpoints; of two of one step the later one counts."""
        names = sorted(self._named, key=_number)
        superseded = [a for a, b in itertools.pairwise(names) if _number(a)[0] == _number(b)[0]]
        kept = [name for name in names if name not in superseded]
        self._hide(superseded + (kept[: -self.keep] if self.keep else []))

    def _hide(self, names: Sequence[str]) -> None:
        """Give checkpoints up to `_tidy`: a folder that is only partly deleted must not look whole."""
        for name in names:
            os.rename(self.checkpoints / name, self.checkpoints / f".{name}.tmp")
            del self._named[name]

    def _tidy(self) -> None:
        """Delete what an interrupted write left behind, and the segments that no checkpoint names any more."""
        for path in self.checkpoints.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True)
        needed = {segment.name for segments in self._named.values() for segment in segments}
        for path in self.replay.iterdir():
            if path.name not in needed:
                path.unlink()
        for path in self.path.glob(".*.tmp"):
            path.unlink()


def resume_command(run: Path, given: Sequence[str] = ()) -> str:
    """How to go on: on the command line, or in Python where `train` was given "env" or "eval_env", or both."""
    if given:
        arguments = ["--resume", str(run)]
        environments = ", ".join(f"{name}=..." for name in given)
        return f"from sacfast.train import parse, train; train(parse({arguments}), {environments})"
    return f"python -m sacfast.train --resume {quoted(run)}"


def quoted(path: Path) -> str:
    """As it is typed on a command line."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a small file of the run, atomically. Raises SACError where the disk refuses."""
    try:
        checkpoint.write_text(path, json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise SACError(
            f"cannot write {path} ({error.strerror}); free some space and resume the run."
        ) from error


def complete(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    folders = [folder for folder in (run / "checkpoints").glob("*") if NAME.fullmatch(folder.name)]
    return sorted(folders, key=lambda folder: _number(folder.name))


def latest(run: Path) -> Path:
    """The folder of the latest checkpoint. Raises CheckpointError if there is none."""
    folders = complete(run)
    if folders:
        return folders[-1]
    if (run / "summary.json").exists():
        raise CheckpointError(
            f"{run} is finished, and has no checkpoint any more (--discard-checkpoints, or deleted by hand); take its "
            "best policy, or start a new run"
        )
    raise CheckpointError(f"{run} has no checkpoint (in {run / 'checkpoints'}); start a new run")


def policy_file(run: Path, which: str) -> Path:
    """The file of the policy that is "best" or "last". Raises SACError for another word, CheckpointError if there is
    none.
    """
    check_choice("checkpoint", which, ("best", "last"))
    best = RunFolder(run).best  # stays when the checkpoints of a finished run are deleted
    if which == "best" and best.exists():
        return best
    last = latest(run) / "agent.safetensors"
    if which == "last":
        return last
    raise CheckpointError(
        f"{run} has no best policy, since none was evaluated so far; take the last one (--checkpoint last)"
    )


def _free_name(step: int, taken: dict[str, Any]) -> str:
    """The step with nine digits; saved again at the same step, followed by .1, .2, ..."""
    again = [_number(name)[1] for name in taken if _number(name)[0] == step]
    return f"{step:09d}" + (f".{max(again) + 1}" if again else "")


def _number(name: str) -> tuple[int, int]:
    step, _, again = name.partition(".")
    return int(step), int(again or 0)


@dataclass(frozen=True)
class _Description:
    """What `load` needs of a checkpoint's state.json: `files` to their digests, the replay buffer's `counters`."""

    files: dict[str, str]
    segments: list[Segment]
    counters: dict[str, int]
    state: dict[str, Any]


def _description(folder: Path) -> _Description:
    path = folder / "state.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = int(values["version"])
        if version <= VERSION:
            replay = values["replay"]
            segments = [Segment(**each) for each in replay["segments"]]
            return _Description(values["files"], segments, replay["counters"], values["state"])
    except KeyError as error:
        raise _damaged(path, f"it lacks {error}") from None
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from None
    raise CheckpointError(
        f"{folder} was written by a newer sacfast (format {version}, this one reads {VERSION}); upgrade sacfast"
    )


def _check(path: Path, digest: str) -> None:
    try:
        found = _digest(path)
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None
    if found != digest:
        raise _damaged(path, "its contents are not those that were written")


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged ({reason}); restore it, or move the newest folder of checkpoints away to resume from the "
        "one before"
    )


def _digest(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock, but has not said so yet
        return "another process"
