"""The checkpoint file: whole or not at all."""

import os

import pytest
import torch
from agents import make_agent
from safetensors.torch import save_file

from sacfast import CheckpointError, checkpoint, notebook_file

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}


def test_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, TENSORS, {"n": 3, "nested": {"x": [1.5, None]}})
    tensors, meta = checkpoint.read(path)
    assert meta == {"n": 3, "nested": {"x": [1.5, None]}} == checkpoint.read_meta(path)
    assert all(torch.equal(tensors[k], TENSORS[k]) for k in TENSORS)
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder; sacfast\.runs\.load_agent reads that of a run"):
        checkpoint.read(tmp_path)


def test_a_view_costs_only_its_own_bytes(tmp_path):
    big = torch.zeros(1_000_000)
    checkpoint.write(tmp_path / "x", {"small": big[:10], "other": big[10:20]}, {})
    assert (tmp_path / "x").stat().st_size < 1000


def test_what_stands_alone_is_not_copied(tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(checkpoint, "save_file", lambda tensors, *_, **__: written.update(tensors))
    whole, strided = torch.arange(6.0), torch.arange(6.0).view(2, 3).T
    checkpoint.write(
        tmp_path / "x", {"whole": whole, "again": whole, "part": whole[2:4], "strided": strided}, {}
    )
    assert written["whole"].data_ptr() == whole.data_ptr()
    assert written["again"].data_ptr() != whole.data_ptr() and torch.equal(written["again"], whole)
    assert written["part"].untyped_storage().nbytes() == 8 and written["part"].tolist() == [2.0, 3.0]
    assert written["strided"].is_contiguous() and torch.equal(written["strided"], strided)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, TENSORS, {"version": "old"})

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device.*untouched"):
        checkpoint.write(path, {"a": torch.zeros(1)}, {"version": "new"})
    assert checkpoint.read_meta(path) == {"version": "old"}
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match="cannot write"):
        checkpoint.write(tmp_path / "no" / "x", TENSORS, {})


@pytest.mark.parametrize("keep", [0, 4, 60, 200])
def test_truncated(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, {"a": torch.zeros(1000)}, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(path)


def test_not_ours(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.read(tmp_path / "nothing")
    save_file(TENSORS, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="no sacfast checkpoint"):
        checkpoint.read(tmp_path / "foreign")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "torch.pt")
    with pytest.raises(CheckpointError, match="lacks actor"):
        notebook_file.read(tmp_path / "torch.pt", make_agent().state)


def test_from_a_newer_version(tmp_path, monkeypatch):
    path = tmp_path / "x"
    monkeypatch.setattr(checkpoint, "VERSION", 99)
    checkpoint.write(path, TENSORS, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="newer sacfast.*upgrade"):
        checkpoint.read(path)


def test_a_damaged_description(tmp_path):
    header = {"format": "sacfast", "version": "one", "meta": "{}"}
    save_file(TENSORS, tmp_path / "x", metadata=header)
    with pytest.raises(CheckpointError, match="its description cannot be read"):
        checkpoint.read(tmp_path / "x")


class Bomb:
    def __reduce__(self):
        return (os.system, ("echo executed",))


def test_a_pickle_is_never_executed(tmp_path, capfd):
    torch.save({"actor": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(CheckpointError, match="damaged or is no checkpoint"):
        notebook_file.read(tmp_path / "bomb.pt", make_agent().state)
    assert "executed" not in capfd.readouterr().out
