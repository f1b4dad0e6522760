"""Whether the files of a checkpoint on this machine are whole, and hold weights only."""

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from labor_llm.errors import ConfigError

POINTER = b"version https://git-lfs"
"""How a file begins that Git has not fetched."""
FETCHED = {".safetensors", ".bin", ".json", ".model", ".gguf", ".txt"}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
AGAIN = "Download or copy it again."
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"


def check_whole(folder: Path, pickled: bool) -> None:
    """A ConfigError that names the file of a local model which is a pointer, cut off, damaged or missing."""
    for path in sorted(folder.iterdir()):
        if path.suffix in FETCHED and path.is_file() and _begins_with(path, POINTER):
            raise ConfigError(
                f"backbone.path: {path} is a Git LFS pointer, not the file itself. Run `git lfs pull` in its "
                "repository, or download the file."
            )
    for path in _weight_files(folder, pickled):
        if not path.is_file():
            raise ConfigError(f"backbone.path: {path}, which the index beside it names, is missing. {AGAIN}")
        if path.suffix == ".safetensors":
            _check_safetensors(path)


def check_index(index: Path) -> list[str]:
    """The files that an index of shards names; a ConfigError if it is damaged or would have pickles read."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"backbone.path: {index} is no index of weights ({error}). {AGAIN}") from error
    if index.name.startswith(SAFE):
        check_not_pickled(names, index)
    return names


def check_not_pickled(names: list[str], where: Path | str) -> None:
    """A ConfigError if one of the files is pickled, which only ``backbone.weights=pickle`` reads."""
    if pickled := [name for name in names if str(name).endswith(PICKLES)]:
        raise ConfigError(
            f"backbone.weights: {where} names {pickled[0]}, a pickle. backbone.weights=pickle reads the weights "
            "of pickles and runs no code in them."
        )


def _weight_files(folder: Path, pickled: bool) -> Iterator[Path]:
    """The files that transformers and peft read, as far as a name or an index says that they exist."""
    stem = PICKLED if pickled else SAFE
    index = folder / f"{stem}.index.json"
    if not (folder / stem).is_file() and index.is_file():
        yield from (folder / name for name in check_index(index))
    yield from (path for name in (stem, "adapter_model.safetensors") if (path := folder / name).is_file())


def _check_safetensors(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"backbone.path: {path} is cut off or damaged ({error}). {AGAIN}") from error


def _begins_with(path: Path, first: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(first)) == first
