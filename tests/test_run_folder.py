"""Checkpoints of a run: what is written, what is kept, and that nothing half-written is ever taken for one."""

import errno
import fcntl
import json
import os

import numpy as np
import pytest
from training_runs import described

from sacfast import SACAgent, checkpoint, run_folder
from sacfast.errors import CheckpointError, SACError
from sacfast.run_folder import RunFolder, complete, latest, policy_file


def make_agent(rows=0, capacity=40):
    agent = SACAgent(3, 2, hidden_dim=4, buffer_capacity=capacity, engine="reference", threads=1, seed=0)
    push(agent, rows)
    return agent


def push(agent, rows):
    """Transitions that tell their number."""
    for i in range(agent.replay_buffer.pushed, agent.replay_buffer.pushed + rows):
        agent.replay_buffer.push(np.full(3, i), np.zeros(2), i, np.full(3, i + 1), False)


def state(step):
    return {"counters": {"step": step}, "array": np.arange(step, dtype=np.float64)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(run_folder, "LEAST_TRANSITIONS", 8)


def test_only_what_is_new_is_written(tmp_path, small_segments):
    agent, run = make_agent(), RunFolder(tmp_path, keep=1)
    for pushed, segments in (
        (0, []),
        (10, ["0-10"]),
        (15, ["0-10", "10-15"]),
        (17, ["0-10", "10-17"]),  # a small one is written anew with what followed
        (18, ["0-10", "10-18"]),
        (30, ["0-10", "10-18", "18-30"]),
        (50, ["10-18", "18-30", "30-50"]),  # number 10 to 50 are held
        (51, ["10-18", "18-30", "30-50", "50-51"]),
        (200, ["160-200"]),  # the ring went round since the last one
    ):
        push(agent, pushed - agent.replay_buffer.pushed)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("replay/*")}
        run.save(agent, pushed, state(pushed))
        found = [
            [int(number) for number in name.split(".")[0].split("-")] for name in names(tmp_path / "replay")
        ]
        held = [f"{first}-{end}" for first, end in found]
        assert held == segments
        assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.exists())
        twin = make_agent()
        loaded = RunFolder(tmp_path).load(twin)
        assert loaded["counters"] == {"step": pushed}
        assert loaded["array"].tobytes() == state(pushed)["array"].tobytes()
        assert twin.replay_buffer.counters() == agent.replay_buffer.counters()
        if pushed:
            for name, tensor in twin.replay_buffer.segment(0).items():
                assert tensor.equal(agent.replay_buffer.segment(0)[name])


@pytest.mark.parametrize(("keep", "kept"), [(1, [4]), (2, [3, 4]), (0, [0, 1, 2, 3, 4])])
def test_the_newest_are_kept_with_the_segments_that_they_need(tmp_path, keep, kept, small_segments):
    agent, run = make_agent(), RunFolder(tmp_path, keep)
    for step in range(5):
        run.save(agent, step, state(step))
        push(agent, 30)
    assert [int(path.name) for path in complete(tmp_path)] == kept
    needed = {
        f"{s['first']:012d}-{s['end']:012d}.safetensors"
        for path in complete(tmp_path)
        for s in json.loads((path / "state.json").read_text())["replay"]["segments"]
    }
    assert set(names(tmp_path / "replay")) == needed
    for path in complete(tmp_path)[1:]:  # each of them can be gone back to
        os.rename(path, tmp_path / "away")
        twin = make_agent()
        assert RunFolder(tmp_path, keep=0).load(twin)["counters"]["step"] in kept
        os.rename(tmp_path / "away", path)


def test_a_step_saved_again_counts_once(tmp_path):
    agent, run = make_agent(5), RunFolder(tmp_path, keep=2)
    for step in (3, 7, 7, 7):
        run.save(agent, step, state(step))
    assert names(tmp_path / "checkpoints") == ["000000003", "000000007.2"]
    assert RunFolder(tmp_path).load(make_agent())["counters"]["step"] == 7
    assert policy_file(tmp_path, "last") == tmp_path / "checkpoints" / "000000007.2" / "agent.safetensors"


@pytest.mark.parametrize("write", range(5))
def test_a_full_disk_at_any_write_leaves_the_last_checkpoint(tmp_path, monkeypatch, write):
    agent, run = make_agent(20), RunFolder(tmp_path, keep=1)
    run.save(agent, 20, state(20))
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    push(agent, 10)
    real, writes = os.fsync, []

    def full(handle):
        writes.append(1)
        # Of a file and of its folder in turn: the segment, the agent, the arrays, the description, the rename.
        if len(writes) == 2 * write + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    words = r"cannot write the checkpoint of step 30 .*No space left on device.*the one of step 20 is intact"
    with pytest.raises(CheckpointError, match=words):
        run.save(agent, 30, state(30))
    monkeypatch.undo()
    left = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    assert left == before if write < 4 else before.items() < left.items()  # the fifth is whole already
    twin = make_agent()
    assert RunFolder(tmp_path, keep=1).load(twin)["counters"]["step"] == (20 if write < 4 else 30)
    run.save(agent, 30, state(30))
    assert RunFolder(tmp_path).load(twin)["counters"]["step"] == 30
    assert twin.replay_buffer.pushed == 30


def test_what_was_left_half_written_is_ignored_and_cleared_away(tmp_path):
    agent, run = make_agent(20), RunFolder(tmp_path, keep=1)
    run.save(agent, 20, state(20))
    whole = sorted(tmp_path.rglob("*"))
    half = tmp_path / "checkpoints" / ".000000030.tmp"
    half.mkdir()
    (half / "agent.safetensors").write_bytes(b"half")
    (tmp_path / "replay" / "000000000020-000000000030.safetensors").write_bytes(
        b"of a checkpoint never finished"
    )
    (tmp_path / "replay" / ".000000000030.x.tmp").touch()
    (tmp_path / ".best.safetensors.x.tmp").touch()
    assert RunFolder(tmp_path).load(make_agent())["counters"]["step"] == 20
    assert sorted(tmp_path.rglob("*")) == whole


def test_a_newer_version_is_refused_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "VERSION", 99)
    RunFolder(tmp_path).save(make_agent(20), 20, state(20))
    monkeypatch.undo()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        CheckpointError, match=r"newer sacfast \(format 99, this one reads 1\); upgrade sacfast"
    ):
        RunFolder(tmp_path).load(make_agent())
    assert sorted(tmp_path.rglob("*")) == before


def test_damage_is_named(tmp_path):
    RunFolder(tmp_path).save(make_agent(20), 20, state(20))
    (segment,) = (tmp_path / "replay").iterdir()
    for path in (segment, *latest(tmp_path).iterdir()):
        contents = bytearray(path.read_bytes())
        flipped = bytearray(contents)
        flipped[-9] ^= 1 if path.suffix == ".safetensors" else 0xFF
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=f"{path.name} is damaged .*move the newest folder"):
            RunFolder(tmp_path).load(make_agent())
        path.write_bytes(contents)
    segment.unlink()
    with pytest.raises(CheckpointError, match=f"{segment.name} is damaged .*No such file"):
        RunFolder(tmp_path).load(make_agent())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values.pop("version"), "it lacks 'version'"),
        (lambda values: values.pop("replay"), "it lacks 'replay'"),
        (lambda values: values["replay"].pop("counters"), "it lacks 'counters'"),
        (lambda values: values.pop("files"), "it lacks 'files'"),
        (lambda values: values.pop("state"), "it lacks 'state'"),
        (lambda values: values["replay"]["segments"][0].pop("digest"), "digest"),
        (lambda values: values["replay"].update(segments=[1]), "int"),
    ],
)
def test_a_description_without_its_parts_is_damaged(tmp_path, change, words):
    agent, run = make_agent(20), RunFolder(tmp_path)
    run.save(agent, 20, state(20))
    path = latest(tmp_path) / "state.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=rf"state.json is damaged \(.*{words}.*move the newest folder"):
        RunFolder(tmp_path).load(make_agent())
    push(agent, 60)
    run.save(agent, 80, state(80))  # needs none of the older one's segments
    assert RunFolder(tmp_path).load(make_agent())["counters"]["step"] == 80
    assert path.exists() and len(list((tmp_path / "replay").iterdir())) == 1


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        RunFolder(tmp_path).load(make_agent())


@pytest.mark.parametrize(
    ("code", "known"),
    [(errno.ENOLCK, True), (errno.ENOSYS, True), (errno.EOPNOTSUPP, True), (errno.EIO, False)],
)
def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, code, known):
    def refuse(*_):
        raise OSError(code, "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)
    told = (
        pytest.warns(UserWarning, match="without locks: run it only once")
        if known
        else pytest.raises(SACError, match=r"cannot lock .* \(refused\); is it writable\?")
    )
    with told, RunFolder(tmp_path).locked():
        pass


def test_the_lock_says_who_has_it(tmp_path):
    with RunFolder(tmp_path).locked():
        words = (
            f"being trained by process {os.getpid()} on {os.uname().nodename} since 2.*; wait for it to end"
        )
        with pytest.raises(SACError, match=words), RunFolder(tmp_path).locked():
            pass
        (tmp_path / "run.lock.json").unlink()
        with pytest.raises(SACError, match="being trained by another process"), RunFolder(tmp_path).locked():
            pass
    with RunFolder(tmp_path).locked():
        pass
    assert names(tmp_path) == ["run.lock"]


def test_the_description_can_be_read(tmp_path):
    RunFolder(tmp_path).save(make_agent(20), 20, state(20))
    values = described(tmp_path)
    assert (values["format"], values["version"], values["step"]) == ("sacfast", 1, 20)
    assert values["state"] == {"counters": {"step": 20}, "array": {"$array": "0"}}
    assert [(s["first"], s["end"]) for s in values["replay"]["segments"]] == [(0, 20)]


def test_a_folder_that_was_moved_away_under_another_name_is_left_alone(tmp_path):
    run = RunFolder(tmp_path)
    run.save(make_agent(20), 20, state(20))
    run.save(make_agent(20), 30, state(30))
    (tmp_path / "checkpoints" / "000000030").rename(tmp_path / "checkpoints" / "000000030.bak")
    assert [folder.name for folder in complete(tmp_path)] == ["000000020"]
    assert RunFolder(tmp_path).load(make_agent())["counters"]["step"] == 20


def test_a_best_policy_that_is_not_there_yet_is_named(tmp_path):
    RunFolder(tmp_path).save(make_agent(20), 20, state(20))
    with pytest.raises(CheckpointError, match=r"no best policy.*--checkpoint last"):
        policy_file(tmp_path, "best")
    with pytest.raises(SACError, match="checkpoint='latest' must be one of best, last"):
        policy_file(tmp_path, "latest")


def test_the_best_policy_outlives_the_checkpoints(tmp_path):
    (tmp_path / "best.safetensors").touch()
    assert policy_file(tmp_path, "best") == tmp_path / "best.safetensors"
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        policy_file(tmp_path, "last")
