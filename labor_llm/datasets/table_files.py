"""Tables as files: CSV, Parquet, Stata and Excel, each as a scan."""

import gzip
import lzma
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl

from labor_llm import parquet_files
from labor_llm.errors import ConfigError, DataError
from labor_llm.text_files import check_encoding

ENDINGS = (".csv", ".csv.gz", ".csv.xz", ".parquet", ".dta", ".xlsx")
BROKEN = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    UnicodeDecodeError,
)
IN_MEMORY = 100_000_000
"""Bytes up to which a CSV file is read at once; a larger one is first rewritten as Parquet."""


@contextmanager
def scanned(
    path: Path, missing: list[str], words: Collection[str], dates: Collection[str]
) -> Iterator[pl.LazyFrame]:
    """The file as a scan; DataError if it is absent, of another kind or broken.

    All columns of a CSV or Excel file are text, since leading zeros count. Stata writes answers as numbers with
    labels: the columns named in ``words`` get the labels, all others keep the numbers. It also writes dates as
    numbers: those of ``dates`` become dates.
    """
    if not path.is_file():
        raise DataError(f"dataset.raw: no file at {path.absolute()}")
    if not path.name.lower().endswith(ENDINGS):
        raise DataError(
            f"{path.name!r} must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}: save tables of SPSS, R or "
            "SAS, and other text, as one of these"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is an empty file: download or export it again")
    if ".csv" in path.name.lower():
        _check_text(path)
    with readable(path):
        read = READERS.get(path.suffix.lower())
        in_memory = None if read is None else read(path, missing, words, dates)
    if in_memory is not None:
        yield in_memory.lazy()
    elif path.suffix.lower() == ".parquet":
        yield parquet_files.scanned(path)
    elif path.stat().st_size <= IN_MEMORY:
        with readable(path):
            table = pl.read_csv(path.absolute(), glob=False, infer_schema=False, null_values=missing)
        yield table.lazy()
    else:
        with tempfile.TemporaryDirectory(prefix="labor-llm-") as folder:
            copy = Path(folder) / "table.parquet"
            with readable(path):
                scan = pl.scan_csv(path.absolute(), glob=False, infer_schema=False, null_values=missing)
                scan.sink_parquet(copy)
            yield parquet_files.scanned(copy)


def guarded(path: Path, parts: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Parts of a scan; what is wrong with the file only shows when they are read."""
    while True:
        with readable(path):
            part = next(parts, None)
        if part is None:
            return
        yield part


def _check_text(path: Path) -> None:
    """A DataError if a CSV file is in UTF-16, or its columns are separated by something else than commas."""
    unpack = UNPACK.get(path.suffix.lower(), open)
    with readable(path), unpack(path, "rb") as file:
        line = file.readline()
    check_encoding(line, str(path))
    head = line.decode(errors="replace").strip()
    if "," not in head and any(sign in head for sign in ";\t|"):
        raise DataError(f"{path} begins {head!r}: columns must be separated by commas")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What reading a broken file raises, as DataError."""
    try:
        yield
    except BROKEN as error:
        cure = ". Save it as UTF-8" if "utf-8" in str(error).lower() else ""
        raise DataError(f"{path} is not readable as {path.suffix.lower()} file: {error}{cure}") from error


def _xz(path: Path, missing: list[str], words: Collection[str], dates: Collection[str]) -> pl.DataFrame:
    return pl.read_csv(lzma.decompress(path.read_bytes()), infer_schema=False, null_values=missing)


def _stata(path: Path, missing: list[str], words: Collection[str], dates: Collection[str]) -> pl.DataFrame:
    """Numbers and text as Stata holds them; labels in place of numbers where words are wanted."""
    try:
        frame = pd.read_stata(path.absolute(), convert_categoricals=False, convert_dates=False)
        wanted = [name for name in frame.columns if name in set(words)]
        labels = pd.read_stata(path.absolute(), columns=wanted, convert_dates=False) if wanted else frame[[]]
        dated = [name for name in frame.columns if name in set(dates)]
        days = pd.read_stata(path.absolute(), columns=dated, convert_categoricals=False) if dated else frame[[]]
        texts = {name: labels[name].astype("string") for name in wanted}
        return pl.from_pandas(frame.assign(**texts, **days))
    except Exception as error:  # what pandas raises depends on the byte that is wrong
        reason = " ".join(str(error).split())
        if "labels" in reason and "not unique" in reason:
            reason = f"{reason.partition('.')[0]}: give every number a label of its own, or drop the labels"
        raise DataError(f"{path} is not readable as Stata file: {reason}") from error


def _excel(path: Path, missing: list[str], words: Collection[str], dates: Collection[str]) -> pl.DataFrame:
    """The first sheet, as text."""
    try:
        table = pl.read_excel(path.read_bytes(), infer_schema_length=0)
    except ModuleNotFoundError as error:
        raise ConfigError(f"Excel files need a package: pip install 'labor-llm[excel]' ({error})") from error
    except Exception as error:  # the reader of Excel files has errors of its own
        raise DataError(f"{path} is not readable as Excel file: {error}") from error
    return table.with_columns(pl.col(pl.String).replace(dict.fromkeys(missing)))


UNPACK: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
"""Ending -> what opens a packed file of text."""
READERS = {".xz": _xz, ".dta": _stata, ".xlsx": _excel}
"""Ending -> what reads the whole file into memory; CSV and Parquet are read in parts."""
