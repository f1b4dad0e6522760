"""Parquet files by their exact path: brackets, asterisks and question marks in it are characters, not patterns."""

from pathlib import Path

import polars as pl


def scanned(path: Path) -> pl.LazyFrame:
    """The file, to be read in parts. An absolute path, since polars takes ``file:x`` for an address."""
    return pl.scan_parquet(path.absolute(), glob=False)


def schema(path: Path) -> pl.Schema:
    """The file's columns and their types."""
    return scanned(path).collect_schema()


def metadata(path: Path) -> dict[str, str]:
    """What its writer says of the file."""
    return pl.read_parquet_metadata(path.absolute())
