"""Tables as files: CSV, Parquet, Stata and Excel, each as a scan."""

import lzma
import struct
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import polars as pl

from labor_llm.errors import ConfigError, DataError

ENDINGS = (".csv", ".csv.gz", ".csv.xz", ".parquet", ".dta", ".xlsx")
IN_MEMORY = 100_000_000
"""Bytes up to which a CSV file is read at once; a larger one is first rewritten as Parquet."""


@contextmanager
def scanned(path: Path, missing: list[str], words: Collection[str]) -> Iterator[pl.LazyFrame]:
    """The file as a scan; DataError if it is absent, of another kind or broken.

    All columns of a CSV or Excel file are text, since leading zeros count. Stata writes answers as numbers with
    labels: the columns named in ``words`` get the labels, all others keep the numbers.
    """
    if not path.is_file():
        raise DataError(f"dataset.raw: no file at {path.absolute()}")
    if not path.name.lower().endswith(ENDINGS):
        raise DataError(f"{path.name!r} must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is an empty file: download or export it again")
    ending = path.suffix.lower()
    try:
        if ending == ".parquet":
            yield pl.scan_parquet(path)
        elif ending == ".dta":
            yield _stata(path, words).lazy()
        elif ending == ".xlsx":
            yield _excel(path, missing).lazy()
        elif ending == ".xz":
            yield pl.read_csv(lzma.decompress(path.read_bytes()), infer_schema=False, null_values=missing).lazy()
        elif path.stat().st_size <= IN_MEMORY:
            yield pl.read_csv(path, infer_schema=False, null_values=missing).lazy()
        else:
            with tempfile.TemporaryDirectory(prefix="labor-llm-") as folder:
                copy = Path(folder) / "table.parquet"
                pl.scan_csv(path, infer_schema=False, null_values=missing).sink_parquet(copy)
                yield pl.scan_parquet(copy)
    except (pl.exceptions.PolarsError, lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable as {ending} file: {error}") from error


def _stata(path: Path, words: Collection[str]) -> pl.DataFrame:
    """Numbers and text as Stata holds them; labels in place of numbers where words are wanted."""
    try:
        frame = pd.read_stata(path, convert_categoricals=False, convert_dates=False)
        wanted = [name for name in frame.columns if name in set(words)]
        labels = pd.read_stata(path, columns=wanted, convert_dates=False) if wanted else frame[[]]
    except (ValueError, OSError, KeyError, struct.error) as error:
        raise DataError(f"{path} is not readable as Stata file: {error}") from error
    texts = {name: labels[name].astype("string") for name in wanted}
    return pl.from_pandas(frame.assign(**texts))


def _excel(path: Path, missing: list[str]) -> pl.DataFrame:
    """The first sheet, as text."""
    try:
        table = pl.read_excel(path, infer_schema_length=0)
    except ModuleNotFoundError as error:
        raise ConfigError(f"Excel files need a package: pip install 'labor-llm[excel]' ({error})") from error
    except Exception as error:  # the reader of Excel files has errors of its own
        if type(error).__module__.split(".")[0] not in ("fastexcel", "_fastexcel", "polars"):
            raise
        raise DataError(f"{path} is not readable as Excel file: {error}") from error
    return table.with_columns(pl.col(pl.String).replace(dict.fromkeys(missing)))
