"""Prepared tables: a dataset is read from its raw files once, and again only when something changed."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from filelock import FileLock

import labor_llm
from labor_llm.careers import Careers
from labor_llm.datasets import Dataset
from labor_llm.run_folder import write_atomically

logger = logging.getLogger(__name__)


def prepared_path(dataset: Dataset, outputs: Path) -> Path:
    """Where the dataset's Careers table lies; ``prepare.json`` beside it says what it was made from."""
    return outputs / dataset.name / "careers.parquet"


def read_prepared(dataset: Dataset, outputs: Path) -> Careers:
    """The dataset's Careers table, read from its files if they, its settings or the code changed.

    A dataset whose raw file is not named is taken as it was prepared with the same other settings.
    """
    path = prepared_path(dataset, outputs)
    record = path.with_name("prepare.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp: dict[str, Any] = {"settings": _settings(dataset), "code": _code(), "files": _files(dataset)}
    with FileLock(path.with_name(".prepare.lock")):
        if path.is_file() and record.is_file():
            before = json.loads(record.read_text(encoding="utf-8"))
            if before["files"].items() >= stamp["files"].items() and before | {"files": stamp["files"]} == stamp:
                logger.info("prepared before: %s", path)
                return Careers.read(path)
        careers = dataset.read()
        record.unlink(missing_ok=True)
        careers.write(path)
        write_atomically(record, json.dumps(stamp, indent=1))
    return careers


def _settings(dataset: Dataset) -> dict[str, Any]:
    settings = {name: value for name, value in vars(dataset).items() if name not in ("raw", "split")}
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def _files(dataset: Dataset) -> dict[str, Any]:
    """Size and time of change of every file that the dataset names; null for one that is not there."""
    states = {}
    for path in dataset.files:
        state = path.stat() if path.exists() else None
        states[str(path.resolve())] = state and [state.st_size, state.st_mtime_ns]
    return states


def _code() -> str:
    """Hash of what turns files into careers: the readers, the rules and the packaged taxonomies."""
    package = Path(labor_llm.__file__).parent
    sources = [package / "careers.py", package / "taxonomy.py", *package.glob("datasets/*.py")]
    sources += package.glob("taxonomies/*.csv")
    return hashlib.sha256(b"".join(source.read_bytes() for source in sorted(sources))).hexdigest()
