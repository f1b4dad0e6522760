"""Where the files of a pretrained model lie: on the hub, in a folder of this machine, or in one GGUF file."""

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from labor_llm.errors import ConfigError
from labor_llm.paths import from_home

CONFIGS = ("config.json", "adapter_config.json")
WHOLE = " Copy the model's folder (config.json, tokenizer.json, *.safetensors) there."
FOREIGN = {
    "model_index.json": "a pipeline of diffusers",
    "params.json": "in the format of its authors, which a script of transformers converts",
}
"""What a folder without config.json is, by a file in it."""


@dataclass(frozen=True)
class ModelFiles:
    """A backbone's settings of the same names; see ``HubBackbone``."""

    path: str
    subfolder: str | None = None
    revision: str | None = None
    gguf_file: str | None = None
    fetch: str | None = None

    @cached_property
    def folder(self) -> str:
        """The folder on this machine, or the name on the hub."""
        path = from_home(Path(self.path))
        folder = path.parent if self._is_gguf else path
        return str(folder.absolute() if folder.is_dir() else folder)

    @cached_property
    def gguf(self) -> str | None:
        """The name of the GGUF file, if the model is in one."""
        return Path(self.path).name if self._is_gguf else self.gguf_file

    @property
    def inner(self) -> Path:
        """The folder, if it is on this machine, in which the files themselves lie."""
        return Path(self.folder) / (self.subfolder or "")

    def find(self, name: str) -> Path | None:
        """Where a file of the model lies on this machine, fetched from the hub if need be; None if it has none."""
        if Path(self.folder).is_dir():
            return path if (path := self.inner / name).is_file() else None
        found = cached_file(
            self.folder,
            name,
            subfolder=self.subfolder or "",
            revision=self.revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return Path(found) if found else None

    @property
    def arguments(self) -> dict[str, Any]:
        """What transformers is to know besides the folder, for configuration, tokenizer and weights alike."""
        named = {"subfolder": self.subfolder, "gguf_file": self.gguf}
        given = {name: value for name, value in named.items() if value is not None}
        return {"revision": self.revision, "trust_remote_code": False, **given}

    @property
    def _is_gguf(self) -> bool:
        return self.path.endswith(".gguf")

    def check(self) -> None:
        """A ConfigError if a path on this machine, which the hub would take for a name, leads to no model."""
        folder = Path(self.folder)
        if folder.is_file():
            raise self._missing(f"{self.path!r} is a file; set it to the folder with config.json")
        if not folder.is_dir() and (self._is_gguf or is_local(self.path)):
            kind = "file" if self._is_gguf else "folder"
            raise self._missing(f"there is no {kind} {self.path!r} on this machine")
        if folder.is_dir():
            self._check_folder(folder)
        if self.gguf and find_spec("gguf") is None:
            raise ConfigError(
                f"backbone.path: {self.gguf} is a GGUF file, which the package gguf reads: "
                "pip install 'labor-llm[gguf]'"
            )

    def _check_folder(self, folder: Path) -> None:
        inner = self.inner
        if not inner.is_dir():
            raise self._missing(f"{self.path!r} has no folder {self.subfolder!r}", _subfolders(folder))
        if self.gguf and not (inner / self.gguf).is_file():
            raise self._missing(f"there is no file {str(inner / self.gguf)!r}", _gguf_files(inner))
        if not self.gguf and not any((inner / name).is_file() for name in CONFIGS):
            kind = next((f": it is {kind}" for name, kind in FOREIGN.items() if (inner / name).is_file()), "")
            choices = _subfolders(folder) or _gguf_files(inner) or WHOLE
            raise self._missing(f"{str(inner)!r} has no config.json{kind}", choices)

    def _missing(self, what: str, choices: str = "") -> ConfigError:
        fetch = f" `{self.fetch}` fetches it." if self.fetch else ""
        return ConfigError(f"backbone.path: {what}.{choices}{fetch}")


def is_local(path: str) -> bool:
    """Whether a path cannot be a name on the hub, which has at most one slash."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 1


def _subfolders(folder: Path) -> str:
    """A sentence on the folders within one that hold models or adapters."""
    found = {path.parent for name in CONFIGS for path in folder.glob(f"*/**/{name}")}
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    return f" Set backbone.subfolder to one of: {', '.join(names)}." if names else ""


def _gguf_files(folder: Path) -> str:
    """A sentence on the GGUF files in a folder."""
    names = sorted(path.name for path in folder.glob("*.gguf"))
    return f" Set backbone.gguf_file to one of: {', '.join(names)}." if names else ""
