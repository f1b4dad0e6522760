"""Prepared tables: a dataset is read from its raw files once, and again only when something changed."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import labor_llm
from labor_llm.careers import Careers, write_parts
from labor_llm.datasets import Dataset
from labor_llm.datasets.report import Report
from labor_llm.errors import ConfigError, DataError
from labor_llm.run_folder import check_possible, write_atomically

logger = logging.getLogger(__name__)

FOLDER_NAME = re.compile(r"[\w+=,-][\w.+=,-]*")
FOLDER_RULE = "names a folder: letters, digits and _ . + = , - only"


def prepared_path(dataset: Dataset, outputs: Path) -> Path:
    """Where the dataset's Careers table lies; ``prepare.json`` beside it says what it was made from."""
    if not FOLDER_NAME.fullmatch(dataset.name):
        raise ConfigError(f"dataset.name {FOLDER_RULE}, got {dataset.name!r}")
    return outputs / dataset.name / "careers.parquet"


def read_prepared(dataset: Dataset, outputs: Path) -> Careers:
    """The dataset's Careers table in memory, prepared first if that is needed."""
    prepare(dataset, outputs)
    return Careers.read(prepared_path(dataset, outputs))


def prepare(dataset: Dataset, outputs: Path) -> dict[str, Any]:
    """Write the dataset's Careers table, if its files, its settings or the code changed; what prepare.json says.

    A dataset whose raw file is not named is taken as it was prepared with the same other settings. Only one
    part of the table is in memory at a time, and the table before it stays until all of the new one is valid.
    """
    path = prepared_path(dataset, outputs)
    record = path.with_name("prepare.json")
    check_possible(path.parent, "outputs")
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp: dict[str, Any] = {"settings": _settings(dataset), "code": _code(), "files": _files(dataset)}
    with FileLock(path.with_name(".prepare.lock")):
        if path.is_file() and record.is_file():
            before = _read(record)
            if _still_holds(before, stamp, named=getattr(dataset, "raw", True) is not None):
                logger.info("prepared before: %s", path)
                return before
        report, fresh = Report(), path.with_name(".fresh.parquet")
        try:
            fingerprint = write_parts(_shown(dataset.parts(report), dataset.name), fresh)
        except ConfigError as error:
            there = (
                f"\nThere is {path}, but made with other settings or by other code: give the settings of then, "
                f"which are in {record.name} beside it, or the file again."
            )
            raise ConfigError(f"{error}{there if path.is_file() else ''}") from error
        record.unlink(missing_ok=True)
        fresh.replace(path)
        stamp |= {"split": repr(dataset.split), "report": report.to_dict(), "fingerprint": fingerprint}
        write_atomically(record, json.dumps(stamp, indent=1))
    return stamp


def _read(record: Path) -> dict[str, Any]:
    """What prepare.json says; a DataError if it is damaged."""
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict) or not {"settings", "code", "files"} <= before.keys():
        raise DataError(f"{record} is damaged: delete it, and the dataset is prepared again")
    return before


def _shown(parts: Iterator[Careers], name: str) -> Iterator[Careers]:
    """The parts, and a line that counts their records while they pass."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task, records = progress.add_task(f"preparing {name}"), 0
        for part in parts:
            records += len(part)
            progress.update(task, description=f"preparing {name}: {records:,} records")
            yield part


def _still_holds(before: dict[str, Any], now: dict[str, Any], named: bool) -> bool:
    """Whether a table was made from the same settings, code and files; if none is named, from those there were."""
    same = all(before.get(key) == now[key] for key in ("settings", "code"))
    files = before["files"] == now["files"] if named else before["files"].items() >= now["files"].items()
    return bool(same and files)


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
    sources = [package / name for name in ("careers.py", "columns.py", "schemes.py", "taxonomy.py")]
    sources += [
        *package.glob("datasets/*.py"),
        *package.glob("datasets/*.csv"),
        *package.glob("taxonomies/**/*.csv"),
    ]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sorted(sources))).hexdigest()
