"""Checkpoint files: named tensors and a JSON description in one safetensors file, written atomically, no pickle.

`pack` parts a tree of values and arrays into these two, `unpack` joins them.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sacfast.errors import CheckpointError, first_line

FORMAT, VERSION = "sacfast", 1


def write(path: str | os.PathLike, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `tensors` and JSON-able `meta` to `path`; a reader sees the old file or the whole new one, never a part.

    Raises CheckpointError (full disk, missing or read-only folder); an earlier file at `path` is then untouched.
    """
    path = Path(path)
    header = {"format": FORMAT, "version": str(VERSION), "meta": json.dumps(meta)}
    owned: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        alone = owned[name] = _alone(tensor.detach().cpu(), storages)
        storages.add(alone.untyped_storage().data_ptr())
    try:
        with _in_place_of(path) as temporary:
            save_file(owned, temporary, metadata=header)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write the checkpoint {path} ({error}); free some space or choose another folder. "
            "An earlier checkpoint there is untouched"
        ) from error


def _alone(tensor: Tensor, storages: set[int]) -> Tensor:
    """Contiguous and all of its storage, and that none of `storages`: what shares one is refused. What is so already is
    not copied, since a replay buffer's memory may be most of what there is.
    """
    storage = tensor.untyped_storage()
    alone = (
        tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
    )
    return tensor if alone else tensor.clone(memory_format=torch.contiguous_format)


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write` does its own. Raises OSError; an earlier file at `path` is then untouched."""
    with _in_place_of(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


@contextmanager
def _in_place_of(path: Path) -> Iterator[Path]:
    """A file to write, which takes the name `path` once it is whole and on the disk; not at all after an error."""
    name = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield name
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(name, path)
        sync_folder(path.parent)
    finally:
        if os.path.exists(name):
            os.unlink(name)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk: a renamed file survives a power cut only then."""
    if os.name != "posix":  # Windows has no handle to a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and meta of a file that `write` made. Raises CheckpointError if it is none, or damaged."""
    with _opened(path) as file:
        meta = _meta(path, file)
        return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118 (not a dict)


def read_meta(path: str | os.PathLike) -> dict[str, Any]:
    """The description alone, without reading the tensors. Raises as `read` does."""
    with _opened(path) as file:
        return _meta(path, file)


def _opened(path: str | os.PathLike):
    if not os.path.exists(path):
        raise CheckpointError(f"there is no checkpoint at {path}")
    if os.path.isdir(path):
        raise CheckpointError(f"{path} is a folder; sacfast.runs.load_agent reads that of a run")
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is damaged or is no checkpoint ({first_line(error)[:200]}); use an earlier one"
        ) from None


def _meta(path: str | os.PathLike, file) -> dict[str, Any]:
    header = file.metadata() or {}
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file, but no sacfast checkpoint (one of sacfast.export holds the policy alone)"
        )
    try:
        version = int(header["version"])
        if version <= VERSION:
            return json.loads(header["meta"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its description cannot be read ({error})") from None
    raise CheckpointError(
        f"{path} was written by a newer sacfast (format {version}, this one reads {VERSION}); upgrade sacfast"
    )


def pack(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """JSON-able values and named tensors for nested dictionaries, lists and tuples of plain values and NumPy arrays."""
    arrays: dict[str, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, (np.ndarray, np.generic)):
            name = str(len(arrays))
            arrays[name] = torch.from_numpy(np.array(value))
            return {"$scalar" if isinstance(value, np.generic) else "$array": name}
        if isinstance(value, tuple):
            return {"$tuple": [walk(item) for item in value]}
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        return value

    return walk(tree), arrays


def unpack(described: Any, arrays: dict[str, Tensor]) -> Any:
    """The inverse of `pack`, to the bit."""
    if isinstance(described, list):
        return [unpack(item, arrays) for item in described]
    if not isinstance(described, dict):
        return described
    match described:
        case {"$array": name}:
            return arrays[name].numpy().copy()  # a mapped file cannot be deleted everywhere
        case {"$scalar": name}:
            return arrays[name].numpy()[()]
        case {"$tuple": items}:
            return tuple(unpack(item, arrays) for item in items)
    return {key: unpack(item, arrays) for key, item in described.items()}
