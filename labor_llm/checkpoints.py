"""Checkpoints of training: a file that one device writes, or a folder with the shards of several.

A folder holds one safetensors file per device and ``rest.pt`` with everything that is not sharded. Both kinds can
be read on any number of devices. Nothing is unpickled but plain values and tensors (``weights_only``).
"""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

REST = "rest.pt"
Checkpoint = dict[str, Any]
"""As Lightning makes it: ``state_dict``, ``optimizer_states`` and what the loops and callbacks keep."""


def existing(path: Path) -> Path | None:
    """The checkpoint that was last written whole to this path, if there is one."""
    return next((kept for kept in (path, _beside(path, "old")) if kept.exists()), None)


def read_rest(path: Path) -> Checkpoint:
    """What a checkpoint holds beside its tensors; those of a file are mapped, not read."""
    if path.is_dir():
        return dict(torch.load(path / REST, weights_only=True))
    return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by name, whole, in main memory."""
    if path.is_dir():
        return {name: value for (part, name, *_), value in _whole(path).items() if part == "state_dict"}
    return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"])


def read_whole(path: Path) -> Checkpoint:
    """A checkpoint as one device writes it, in main memory."""
    if not path.is_dir():
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    checkpoint = read_rest(path) | {"state_dict": {}}
    for (part, *where), value in _whole(path).items():
        if part == "state_dict":
            checkpoint["state_dict"][where[0]] = value
        else:
            optimizer, name, key = where
            checkpoint["optimizer_states"][int(optimizer)]["state"].setdefault(name, {})[key] = value
    checkpoint["optimizer_states"] = [numbered(state) for state in checkpoint["optimizer_states"]]
    return checkpoint


def write_shards(checkpoint: Checkpoint, path: Path, first: bool, wait: Callable[[], None]) -> None:
    """Write a folder together: each device its shards, the first one the rest. The old one stays until then."""
    partial = _beside(path, "partial")
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    wait()
    save(_shards(checkpoint), storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True))
    if first:
        torch.save(_without_shards(checkpoint), partial / REST)
        _replace(path, partial)
    wait()


def read_shards(path: Path, like: Checkpoint) -> Checkpoint:
    """Fill the shards of ``like`` in place, from a folder of any number of devices; returns the folder's rest."""
    load(_shards(like), storage_reader=HuggingFaceStorageReader(str(path)))
    return read_rest(path)


def numbered(state: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimizer that knows weights by their names, as one has it that numbers them."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "state": {numbers[name]: values for name, values in state["state"].items()},
        "param_groups": [
            group | {"params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]
        ],
    }


def named(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The other way round."""
    return {
        "state": {names[number]: values for number, values in state["state"].items()},
        "param_groups": [
            group | {"params": [names[number] for number in group["params"]]} for group in state["param_groups"]
        ],
    }


class FileOrFolder(TorchCheckpointIO):
    """Writes a file, and reads either kind: for strategies where every device has all weights."""

    def save_checkpoint(self, checkpoint: Checkpoint, path: Any, storage_options: Any = None) -> None:
        """Write a file straight, without the copy in memory that Lightning makes; the old one stays until then."""
        partial = _beside(Path(path), "partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, partial)
        _replace(Path(path), partial)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Checkpoint:
        """Read a file or a folder, whole."""
        return read_whole(Path(path))


def _shards(checkpoint: Checkpoint) -> dict[str, DTensor]:
    """The sharded tensors of a checkpoint by their place in it."""
    shards = {f"state_dict/{name}": value for name, value in checkpoint["state_dict"].items()}
    for number, optimizer in enumerate(checkpoint["optimizer_states"]):
        for name, values in optimizer["state"].items():
            place = f"optimizer_states/{number}/{name}"
            shards |= {f"{place}/{key}": value for key, value in values.items() if isinstance(value, DTensor)}
    return shards


def _without_shards(checkpoint: Checkpoint) -> Checkpoint:
    """Everything else, in the same places."""
    rest = {key: value for key, value in checkpoint.items() if key != "state_dict"}
    rest["optimizer_states"] = [
        optimizer
        | {
            "state": {
                name: {key: value for key, value in values.items() if not isinstance(value, DTensor)}
                for name, values in optimizer["state"].items()
            }
        }
        for optimizer in checkpoint["optimizer_states"]
    ]
    return rest


def _whole(folder: Path) -> dict[tuple[str, ...], Tensor]:
    """The tensors of a folder, put together from their shards."""
    reader = HuggingFaceStorageReader(str(folder))
    found = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(each.size, dtype=each.properties.dtype)
        for name, each in found.items()
        if isinstance(each, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*single process")
        load(tensors, storage_reader=reader, no_dist=True)
    return {tuple(name.split("/")): value for name, value in tensors.items()}


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}.{ending}")


def _replace(path: Path, partial: Path) -> None:
    """Put a whole file or folder in the place of another; at any moment, ``existing`` finds one of them."""
    old = _beside(path, "old")
    if partial.is_file() and not path.is_dir():
        partial.replace(path)
    else:
        if path.exists():
            _remove(old)
            path.rename(old)
        partial.rename(path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
