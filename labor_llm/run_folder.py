"""The run folder: what a run writes, where, and how the same command finds it again.

    <outputs>/<dataset>/<name>/<time>-<hash>/
        config.yaml  environment.txt  run.log  metrics.jsonl  metrics.json  predictions.parquet  model/  complete

The hash is of the resolved config and the data's fingerprint, and config.yaml has a hash of the code, so a sweep
that is run again skips what is complete and resumes what is not. ``complete`` is written last.
"""

import hashlib
import json
import logging
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from labor_llm.errors import ConfigError, LaborLLMError, RunError
from labor_llm.machine import gpu_name, processor_name, threads

logger = logging.getLogger(__name__)

MARKER = "complete"
CONFIG, METRICS, PREDICTIONS, MODEL, CHECKPOINTS = (
    "config.yaml",
    "metrics.json",
    "predictions.parquet",
    "model",
    "checkpoints",
)


def find(parent: Path, decisive: Mapping[str, Any], code: str) -> Path | None:
    """The newest folder of a run with these settings that was made by this code."""
    folders = sorted(path.parent for path in parent.glob(f"*/{CONFIG}"))
    alike = [folder for folder in folders if is_named_for(folder, decisive)]
    found = [folder for folder in alike if stored_config(folder).get("code") == code]
    if alike and not found:
        logger.info("%s was made by other code: with that of now it is another run", from_here(alike[-1]))
    return max(found, default=None)


def is_named_for(folder: Path, decisive: Mapping[str, Any]) -> bool:
    """Whether a run's folder is named for these settings."""
    return folder.name.endswith(f"-{_digest(decisive)}")


def stored_config(folder: Path) -> dict[str, Any]:
    """The resolved config of a run, complete or not."""
    config = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def create(parent: Path, config: Mapping[str, Any], decisive: Mapping[str, Any]) -> Path:
    """A new folder with its config, which ``find`` finds by what is decisive."""
    make_folder(parent, "outputs")
    with tempfile.TemporaryDirectory(prefix=".new-", dir=parent) as scratch:
        new = Path(scratch) / "run"
        new.mkdir()
        (new / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.create(dict(config))), encoding="utf-8")
        time = datetime.now()
        while (folder := parent / f"{time:%Y%m%d-%H%M%S}-{_digest(decisive)}").exists():  # made by other code
            time += timedelta(seconds=1)
        return new.rename(folder)


def _digest(decisive: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:8]


def is_complete(folder: Path) -> bool:
    """Whether the run ended and wrote all its results."""
    return (folder / MARKER).is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved config of a complete run."""
    if not is_complete(folder):
        raise RunError(_no_run(folder))
    return stored_config(folder)


def _no_run(folder: Path) -> str:
    """What a path is instead of the folder of a complete run."""
    if folder.is_file():
        return f"{folder} is a file: name the folder of a run."
    if not folder.is_dir():
        return f"run folder {folder} does not exist."
    if (folder / CONFIG).is_file():
        return f"run folder {folder} is not complete: run its command again to resume it."
    markers = [path for depth in (1, 2, 3) for path in folder.glob("*/" * depth + MARKER)]
    below = sorted(path.parent for path in markers if path.with_name(CONFIG).is_file())
    there = f"there are runs below it, such as {below[-1]}" if below else "there is no complete run below it"
    return f"{folder} is not the folder of a run; {there}."


def fitted_on(config: Mapping[str, Any]) -> dict[str, Any]:
    """On what a run fitted its model: said beside the model's own settings."""
    return {key: config.get(key) for key in ("dataset", "known_until", "train_persons", "valid_persons")}


def fitting_run(folder: Path) -> dict[str, Any]:
    """The config of a complete run that has a fitted model of its own; a RunError if it scored that of another."""
    config = read_config(folder)
    if config.get("fitted"):
        raise RunError(f"the run in {folder} scored the model of {config['fitted']}: name that one.")
    return config


def check_possible(folder: Path, key: str) -> None:
    """A ConfigError that names the setting if a folder cannot be made because a file has its name."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if there.exists() and not there.is_dir():
        raise ConfigError(f"{key} names a folder, but {there} is a file")


def make_folder(folder: Path, key: str) -> None:
    """Make a folder and those above it; a ConfigError that names the setting if the system refuses."""
    check_possible(folder, key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}: the folder {folder} cannot be made ({error.strerror}); name another") from error


def from_here(path: Path) -> Path:
    """An absolute path relative to the working directory, if it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of the run folder, and the package's log in its ``run.log``.

    A run that is refused before anything was computed leaves no folder.
    """
    handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("labor_llm")
    try:
        with FileLock(folder / ".lock", timeout=0):
            package.addHandler(handler)
            (folder / "environment.txt").write_text(environment())
            try:
                yield
            except LaborLLMError:
                if not _has_results(folder):
                    shutil.rmtree(folder)
                raise
    except Timeout:
        raise RunError(f"another process is running in {folder}; wait for it, or stop it.") from None
    except Exception as error:
        trace = None if isinstance(error, LaborLLMError) else (type(error), error, error.__traceback__)
        handler.handle(package.makeRecord(package.name, logging.ERROR, __file__, 0, str(error), (), trace))
        raise
    finally:
        package.removeHandler(handler)
        handler.close()


def _has_results(folder: Path) -> bool:
    """Whether there is anything that the same command would go on from."""
    return any((folder / name).exists() for name in (MODEL, PREDICTIONS)) or any((folder / CHECKPOINTS).glob("*"))


def environment() -> str:
    """Python, platform, what computes, the code's commit and every installed package, one a line."""
    packages = sorted({f"{dist.name}=={dist.version}" for dist in distributions()}, key=str.lower)
    head = [
        f"python {platform.python_version()}",
        platform.platform(),
        f"processor {processor_name()}",
        f"threads {threads()}",
        f"gpu {gpu_name() or 'none'}",
        f"commit {git_commit() or 'unknown'}",
    ]
    return "\n".join([*head, *packages]) + "\n"


def git_commit() -> str | None:
    """The commit of the code that runs, with ``+`` if it was changed since; None outside its checkout."""
    code = Path(__file__)
    git = ["git", "-C", str(code.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", code.name], capture_output=True, check=True)
        describe = [*git, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
