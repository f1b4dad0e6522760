"""Prepared tables: a dataset is read from its raw files once, and again only when something changed."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from labor_llm.careers import Careers, write_parts
from labor_llm.datasets import Dataset
from labor_llm.datasets.report import Report, lines
from labor_llm.errors import ConfigError, DataError, LaborLLMError
from labor_llm.run_folder import make_folder, write_atomically
from labor_llm.source_code import code_hash, modules
from labor_llm.taxonomy import PACKAGED

logger = logging.getLogger(__name__)

FILES_SHOWN = 3
FOLDER_NAME = re.compile(r"[\w+=,-][\w.+=,-]*")
FOLDER_RULE = "names a folder: letters, digits and _ . + = , - only"


def prepared_path(dataset: Dataset, outputs: Path) -> Path:
    """Where the dataset's Careers table lies; ``prepare.json`` beside it says what it was made from."""
    if not FOLDER_NAME.fullmatch(dataset.name):
        raise ConfigError(f"dataset.name {FOLDER_RULE}, got {dataset.name!r}")
    return outputs / dataset.name / "careers.parquet"


def prepared_lines(dataset: Dataset, outputs: Path) -> list[str]:
    """What became of the records of a prepared dataset: what ``prepare`` prints of them."""
    return lines_of(_read(prepared_path(dataset, outputs).with_name("prepare.json")))


def read_prepared(dataset: Dataset, outputs: Path) -> Careers:
    """The dataset's Careers table in memory, prepared first if that is needed."""
    prepare(dataset, outputs)
    return Careers.read(prepared_path(dataset, outputs))


def prepare(dataset: Dataset, outputs: Path) -> dict[str, Any]:
    """Write the dataset's Careers table, if its files, its settings or the code changed; what prepare.json says.

    A dataset whose raw file is not named, or is gone, is taken as it was prepared with the same other settings.
    Only one part of the table is in memory at a time, and the table before it stays until the new one is valid.
    """
    path = prepared_path(dataset, outputs)
    record = path.with_name("prepare.json")
    make_folder(path.parent, "outputs")
    stamp: dict[str, Any] = {"settings": _settings(dataset), "code": _code(dataset), "files": _files(dataset)}
    with FileLock(path.with_name(".prepare.lock")):
        before = _read(record) if path.is_file() and record.is_file() else None
        if before is not None and _still_holds(before, stamp, raw=_is_there(dataset, before)):
            logger.info("prepared before: %s", path)
            return before
        report, fresh = Report(), path.with_name(".fresh.parquet")
        try:
            fingerprint = write_parts(_shown(dataset.parts(report), dataset.name), fresh)
        except LaborLLMError as error:
            raise type(error)(f"{error}{_hint(dataset, path, record)}") from error
        stamp["replaced"] = _replaced(before, stamp, dataset.name)
        record.unlink(missing_ok=True)
        fresh.replace(path)
        stamp |= {"split": repr(dataset.split), "report": report.to_dict(), "fingerprint": fingerprint}
        write_atomically(record, json.dumps(stamp, indent=1))
    return stamp


def lines_of(facts: Mapping[str, Any]) -> list[str]:
    """What became of a dataset's records, and what its table replaced; ``facts``: of prepare.json."""
    replaced = facts.get("replaced")
    return [*lines(facts["report"]), *([f"note: {replaced}"] if replaced else [])]


def _replaced(before: Mapping[str, Any] | None, now: Mapping[str, Any], name: str) -> str | None:
    """A sentence on the table of the same name that there was, if it was made of other files or settings."""
    if before is None:
        return None
    of_then, of_now = before["settings"], now["settings"]
    other = [f"dataset.{key}" for key in {**of_then, **of_now} if of_then.get(key) != of_now.get(key)]
    paths = [] if before["files"].keys() == now["files"].keys() else list(before["files"])
    if not other and not paths:
        return None
    made = [f"of {', '.join(paths[:FILES_SHOWN])}"] if paths else []
    made += [f"with other values of {', '.join(other)}"] if other else []
    return (
        f"this table replaced one of the same name, {name!r}, that was made {' and '.join(made)}. To keep "
        "several, give each a dataset.name of its own"
    )


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


def _is_there(dataset: Dataset, before: dict[str, Any]) -> bool:
    """Whether raw files are named and there; those that are gone must be the ones of then."""
    if not hasattr(dataset, "raw"):
        return True
    if (raw := _raw(dataset)) is None:
        return False
    paths = [path for file in before["files"] for path in (Path(file), *Path(file).parents)]
    return raw.exists() or raw.resolve() not in paths


def _raw(dataset: Dataset) -> Path | None:
    """The raw file or folder that a dataset names, if it names one."""
    raw: str | Path | None = getattr(dataset, "raw", None)
    return None if raw is None else Path(raw)


def _still_holds(before: dict[str, Any], now: dict[str, Any], raw: bool) -> bool:
    """Whether a table was made from the same settings, code and files; without raw files, by any code."""
    if before["settings"] != now["settings"]:
        return False
    if raw:
        return bool(before["code"] == now["code"] and before["files"] == now["files"])
    others = {path: state for path, state in now["files"].items() if state is not None}
    holds = bool(before["files"].items() >= others.items())
    if holds and before["code"] != now["code"]:
        logger.warning("the table was prepared by other code than there is now, and its raw file is not there")
    return holds


def _hint(dataset: Dataset, path: Path, record: Path) -> str:
    """What a table that was prepared before is good for, if the raw files cannot be read."""
    raw = _raw(dataset)
    if not path.is_file() or (raw is not None and raw.exists()):
        return ""
    if raw is not None:
        return f"\nThere is {path}, prepared before: leave out dataset.raw to use it."
    return (
        f"\nThere is {path}, but made with other settings: give the settings of then, which are in {record.name} "
        "beside it, or the file again."
    )


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


def _code(dataset: Dataset) -> str:
    """Hash of what turns files into careers: the reader and what it rests on, and the packaged lists it names."""
    names = " ".join(path.read_text(encoding="utf-8") for path in modules(type(dataset)).values())
    names += json.dumps(_settings(dataset))
    lists = [path for path in sorted(PACKAGED.rglob("*.csv")) if f'"{path.stem}"' in names]
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in lists]
    return hashlib.sha256(" ".join([code_hash(type(dataset)), *contents]).encode()).hexdigest()
